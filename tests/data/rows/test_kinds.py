"""The same conversations give the same tokens from every kind of file, whether rows are loaded or streamed."""

import csv
import gzip
import json

import pyarrow
import pytest
from datasets import Dataset
from pyarrow import parquet

from lit_probsft.data import Rows
from lit_probsft.data.batches.row_tokenizer import Recipe, RowTokenizer
from lit_probsft.data.rows.splits import Item, LoadedSource

TEMPLATE = """{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.reasoning_content or "" }}{{ m.content }}{{ m.tool_calls | default([]) | tojson }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
OTHER_TOOL = {"type": "function", "function": {"name": "h", "parameters": {"type": "object", "required": ["b"]}}}
OLD_TOOL = {"name": "g", "description": "An older one."}
TURNS = [
    [
        {"role": "system", "content": " "},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "r", "name": "f"},
        {"role": "assistant", "content": "x", "reasoning_content": "because"},
    ],
    [
        {"role": "user", "content": "two\n"},
        {"role": "assistant", "content": "", "function_call": {"name": "g", "arguments": '{"b": null}'}},
        {"role": "function", "content": "z", "name": "g"},
        {"role": "assistant", "content": "ä", "train": True},
    ],
    [
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "no", "train": False},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "<|im_end|>"},
    ],
]
ROWS = [
    {"messages": TURNS[0], "tools": [TOOL], "functions": None, "system": "Be.", "chat_template_kwargs": {"k": "v"}},
    {"messages": TURNS[1], "tools": None, "functions": [OLD_TOOL], "system": "", "chat_template_kwargs": None},
    {"messages": TURNS[2], "tools": [OTHER_TOOL], "functions": None, "system": None, "chat_template_kwargs": {"n": 1}},
]
ROWS = [
    {**row, "share": weight, "id": str(number)} for number, (row, weight) in enumerate(zip(ROWS, "123", strict=True))
]
CELLS = [
    {key: value if value is None or isinstance(value, str) else json.dumps(value) for key, value in row.items()}
    for row in ROWS
]


def write_lines(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_separated(path, separator):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(CELLS[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(CELLS)


def compressed(write, compress):
    def write_compressed(path):
        write(path)
        path.write_bytes(compress(path.read_bytes()))

    return write_compressed


WRITERS = {
    "rows.jsonl.gz": compressed(write_lines, gzip.compress),
    "rows.jsonl.zst": compressed(write_lines, lambda data: pyarrow.compress(data, "zstd", asbytes=True)),
    "rows.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "cells.jsonl": lambda path: write_lines(path, CELLS),
    "cells.csv": lambda path: write_separated(path, ","),
    "cells.tsv.gz": compressed(lambda path: write_separated(path, "\t"), gzip.compress),
    "cells.parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist(CELLS), path),
    "rows.parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2),
    "saved": lambda path: Dataset.from_list(ROWS).save_to_disk(path),
    "hub": lambda path: Dataset.from_list(ROWS).to_parquet(path),
}


def facts_of(path, tokenizer):
    """Per row: the example, tokens and labels, and what else the tokenizing loop reports. Loaded, then streamed."""
    source = Rows(path, weight="share")
    row_tokenizer = RowTokenizer(LoadedSource(source, "train"), tokenizer, Recipe(chat_template=TEMPLATE))
    stream = source.stream()
    for rows in (source.load(), [stream.next().row() for _ in ROWS]):
        items = [Item(row, 0, number) for number, row in enumerate(rows)]
        outcomes = [row_tokenizer.tokenize_item(item, 0) for item in items]
        yield [source.example(item.row) for item in items], outcomes


@pytest.fixture(scope="module")
def expected(tmp_path_factory, many_specials):
    path = tmp_path_factory.mktemp("kinds") / "rows.jsonl"
    write_lines(path)
    loaded, streamed = facts_of(str(path), many_specials)
    assert loaded == streamed
    assert [len(outcomes) for outcomes in loaded[1]] == [1, 1, 1]
    assert [outcomes[0].with_control_tokens for outcomes in loaded[1]] == [False, False, True]
    return loaded


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_tokens(name, tmp_path, many_specials, expected, monkeypatch):
    WRITERS[name](tmp_path / name)
    path = str(tmp_path / name)
    if name == "hub":
        dataset = Dataset.from_parquet(path)
        monkeypatch.setattr(
            "datasets.load_dataset",
            lambda *args, streaming=False, **options: dataset.to_iterable_dataset() if streaming else dataset,
        )
        path = "someone/rows"
    for found in facts_of(path, many_specials):
        assert found == expected
