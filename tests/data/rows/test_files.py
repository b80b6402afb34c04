"""Which file holds which rows, and what a damaged one gives."""

import gzip
import json
import random

import pyarrow
import pytest
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lit_probsft.data import Rows
from lit_probsft.data.rows.readers import BrokenRow
from lit_probsft.errors import UserError

ROWS = [{"prompt": f"What is {i}?", "response": "so " * (i % 4) + f"{i}", "n": i} for i in range(23)]
LINES = "\n".join(json.dumps(row) for row in ROWS).encode()
TURNS = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ({"messages": TURNS}, [{"messages": TURNS}]),
        ({"data": TURNS}, [{"data": TURNS}]),
        ({"data": [{"a": 1}], "other": [{"b": 2}]}, [{"a": 1}]),
        ({"prompt": "a", "choices": [{"text": "b"}]}, [{"prompt": "a", "choices": [{"text": "b"}]}]),
        ({"prompt": "a", "response": "b"}, [{"prompt": "a", "response": "b"}]),
        ({"data": []}, [{"data": []}]),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_in_a_json_file_is_a_row_unless_it_wraps_a_list_of_rows(tmp_path, content, rows, indent):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content, indent=indent))
    assert Rows(str(path)).load_with_broken() == rows
    lines = tmp_path / "x.jsonl"
    lines.write_text(json.dumps(content))
    assert Rows(str(lines)).load_with_broken() == [content]


def test_a_wrapped_list_counts_its_rows_in_errors(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"data": [{"prompt": "a", "response": "b"}, 3]}')
    with pytest.raises(UserError, match=r"^path: .*x.json' row 1: expected an object, got a number"):
        Rows(str(path)).load()


@pytest.mark.parametrize("quoted", ['a,"b\nc,d\ne,f\n', 'a,"b"c\nd,e\n', '"a\nb","c\nd,e\n'])
def test_a_stray_quote_never_swallows_rows_silently(tmp_path, quoted):
    path = tmp_path / "x.csv"
    path.write_text("prompt,response\nfirst,row\n" + quoted)
    with pytest.raises(UserError, match=r"^path: .*x.csv' line 3: not valid CSV.*quote left open"):
        Rows(str(path)).load()
    rows = Rows(str(path)).load_with_broken()
    assert rows[0] == {"prompt": "first", "response": "row"}
    assert any(isinstance(row, BrokenRow) for row in rows)


def write_parquet(path, **options):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=8, **options)


def write_zstd(path):
    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(LINES)


DAMAGED = {
    "x.jsonl": lambda path: path.write_bytes(LINES),
    "x.json": lambda path: path.write_text(json.dumps({"data": ROWS})),
    "x.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "x.jsonl.zst": write_zstd,
    "snappy.parquet": write_parquet,
    "plain.parquet": lambda path: write_parquet(path, compression="none", use_dictionary=False),
    "checksums.parquet": lambda path: write_parquet(path, compression="none", write_page_checksum=True),
}


def count_of_rows(source, way):
    """The number of rows, all of them used; an error of any one is raised."""
    if way == "load":
        return sum(source.example(row) is not None for row in source.load())
    reader, count = source.reader(), 0
    while (load_row := reader.next()) is not None:
        row = load_row()
        if isinstance(row, BrokenRow):
            raise row.error
        count += source.example(row) is not None
    return count


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(DAMAGED)), st.sampled_from(["load", "stream"]), st.integers(0, 2**32), st.booleans())
@example("x.jsonl.gz", "load", 0, True)
@example("x.jsonl.zst", "stream", 0, True)
@example("snappy.parquet", "stream", 0, True)
def test_a_damaged_file_gives_all_of_its_rows_or_one_error(tmp_path_factory, name, way, seed, cut):
    path = tmp_path_factory.mktemp("damaged") / name
    DAMAGED[name](path)
    content, draw = bytearray(path.read_bytes()), random.Random(seed)
    if cut:
        # A text that ends early is a shorter text, unless it ends within a line.
        del content[draw.randrange(len(content) - 12, len(content)) :]
    else:
        bit = draw.randrange(len(content) * 8)
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    problem = ""
    try:
        count = count_of_rows(Rows(str(path), weight="n"), way)
    except UserError as error:
        problem = str(error)
    if cut or problem:
        assert problem
        assert "\n" not in problem
    else:
        assert count == len(ROWS)


def test_a_parquet_file_with_fewer_rows_than_its_footer_says_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    write_parquet(path)
    read = parquet.ParquetFile.read_row_groups
    monkeypatch.setattr(parquet.ParquetFile, "read_row_groups", lambda *args, **options: read(*args, **options)[:-1])
    for way in ("load", "stream"):
        with pytest.raises(UserError, match=r"^path: .*x.parquet': damaged: expected .* rows as its footer says"):
            count_of_rows(Rows(str(path)), way)


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_damaged_saved_folder_is_refused(tmp_path, name):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    file = tmp_path / "saved" / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="^path: the saved folder '.*saved' is damaged|^path: cannot read '.*saved'"):
        Rows(str(tmp_path / "saved")).load()


def test_checksums_of_parquet_pages_are_verified(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(path, compression="none", use_dictionary=False, write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace(b"What is 3?", b"What is 4?"))
    with pytest.raises(UserError, match="not a readable parquet file"):
        Rows(str(path)).load()
