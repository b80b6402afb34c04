"""Tools and calls are the same from JSON and from Arrow, which adds nulls."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.data import Rows
from lit_probsft.data.rows.null_fill import without_nulls
from lit_probsft.errors import UserError


def row(name, arguments, properties):
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "Please."},
            {"role": "assistant", "content": "", "tool_calls": [call], "note": {name: "x"}},
            {"role": "tool", "content": "ok", "name": name},
            {"role": "assistant", "content": "Done."},
        ],
        "tools": [{"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}],
    }


ROWS = [
    row("weather", {"town": {"name": "Ulm"}}, {"town": {"type": "object"}}),
    row("add", {"a": 1, "more": [{"b": 2}, {"c": 3}]}, {"a": {"type": "number", "enum": [1, 2]}}),
    row("clock", {}, {}),
]


@pytest.fixture(params=["jsonl", "parquet", "saved"])
def path(request, tmp_path):
    target = tmp_path / f"rows.{request.param}"
    if request.param == "jsonl":
        target.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif request.param == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), target)
    else:
        Dataset.from_list(ROWS).save_to_disk(target)
    return str(target)


def test_rows_from_arrow_equal_those_from_json_in_memory_and_streamed(path):
    source = Rows(path)
    stream = source.stream()
    for number, expected in enumerate(ROWS):
        for loaded in (source.load()[number], stream.next().row()):
            example = source.example(loaded)
            assert (example.messages, example.tools) == (expected["messages"], expected["tools"])


def test_nulls_of_json_stay(tmp_path):
    """In a file of JSON, and in JSON text within a parquet file: of arguments, of tools, and of all turns."""
    parameters = {"a": {"default": None}}
    given = row("add", {"a": None}, parameters)
    (tmp_path / "rows.jsonl").write_text(json.dumps(given))
    call = {"name": "add", "arguments": json.dumps({"a": None})}
    texts = {"messages": [given["messages"][0], {"role": "assistant", "content": None, "tool_calls": [call]}]}
    tools = json.dumps(given["tools"])
    for name, turns in (("rows", texts["messages"]), ("text", json.dumps(given["messages"]))):
        table = pyarrow.Table.from_pylist([{"messages": turns, "tools": tools}])
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    for name in ("rows.jsonl", "rows.parquet", "text.parquet"):
        source = Rows(str(tmp_path / name))
        example = source.example(source.load()[0])
        assert example.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": None}
        assert example.tools[0]["function"]["parameters"]["properties"] == parameters


def test_a_turn_without_content_is_still_named_as_such(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns}]), tmp_path / "rows.parquet")
    source = Rows(str(tmp_path / "rows.parquet"))
    with pytest.raises(UserError, match=r"^messages\[1\]: expected non-empty text, got null"):
        source.example(source.load()[0])


leaf = st.fixed_dictionaries({}, optional={"n": st.integers(0, 9), "t": st.text(max_size=2)})
struct = st.fixed_dictionaries({}, optional={"leaf": leaf, "list": st.lists(leaf, max_size=2), "n": st.integers(0, 9)})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional={"a": struct, "b": struct, "c": st.lists(struct)}), min_size=1))
def test_what_arrow_adds_is_dropped_and_nothing_else(rows):
    fields = [("n", pyarrow.int64()), ("t", pyarrow.string())]
    inner = pyarrow.struct(fields)
    outer = pyarrow.struct([("leaf", inner), ("list", pyarrow.list_(inner)), ("n", pyarrow.int64())])
    kind = pyarrow.struct([("a", outer), ("b", outer), ("c", pyarrow.list_(outer))])
    assert without_nulls(pyarrow.array(rows, kind).to_pylist()) == rows
