"""Streams have the same rows as loading does, in any format, and resume at any position."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.data import FigletPuzzles, Mixture, Part, Rows
from lit_probsft.data.rows.readers import BrokenRow, IndexedReader
from lit_probsft.data.rows.streams import MixedStream, RowStream
from lit_probsft.errors import UserError

ROWS = [{"prompt": f"What is {i}?", "response": "so " * (i % 4) + f"{i}\n{i}"} for i in range(23)]


def as_json_lines(path, rows=ROWS):
    text = "\ufeff" + "\n".join(f"{json.dumps(row)}" + "\n" * (i % 3) for i, row in enumerate(rows))
    path.with_suffix(".jsonl").write_text(text, encoding="utf-8")
    return str(path.with_suffix(".jsonl"))


def as_list(path):
    path.with_suffix(".json").write_text(json.dumps(ROWS))
    return str(path.with_suffix(".json"))


def as_list_in_lines(path):
    path.with_suffix(".jsonl").write_text("\n " + json.dumps(ROWS))
    return str(path.with_suffix(".jsonl"))


def as_csv(path, suffix=".csv", **options):
    with path.with_suffix(suffix).open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "response"], **options)
        writer.writeheader()
        writer.writerows(ROWS)
    return str(path.with_suffix(suffix))


def as_tsv(path):
    return as_csv(path, ".tsv", delimiter="\t")


def as_gzip(path):
    content = Path(as_json_lines(path)).read_bytes()
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(content[:100]) + gzip.compress(content[100:]))
    return str(path.with_suffix(".jsonl.gz"))


def as_zstd(path):
    import pyarrow

    content = Path(as_json_lines(path)).read_bytes()
    with pyarrow.CompressedOutputStream(str(path.with_suffix(".jsonl.zst")), "zstd") as stream:
        stream.write(content)
    return str(path.with_suffix(".jsonl.zst"))


def as_parquet(path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path.with_suffix(".parquet"), row_group_size=5)
    return str(path.with_suffix(".parquet"))


def as_saved(path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(path)
    return str(path)


def as_several(path):
    as_json_lines(path.with_name("a"), ROWS[:7])
    as_json_lines(path.with_name("b"), [])
    as_json_lines(path.with_name("c"), ROWS[7:])
    return str(path.with_name("*.jsonl"))


FILES = [as_json_lines, as_list, as_list_in_lines, as_csv, as_tsv, as_gzip, as_zstd, as_parquet, as_saved, as_several]


def take(stream, count):
    return [stream.next() for _ in range(count)]


def rows_of(following):
    return [one.row() for one in following]


def restored(position):
    """A position as a checkpoint restores it."""
    return json.loads(json.dumps(position))


@pytest.mark.parametrize("write", FILES, ids=lambda write: write.__name__)
def test_a_stream_of_files_has_their_rows_and_resumes_at_any_position(write, tmp_path):
    source = Rows(write(tmp_path / "rows"))
    assert [dict(row) for row in source.load()] == ROWS
    whole = source.stream()
    found, positions = [], [whole.position]
    for _ in range(2 * len(ROWS) + 3):
        found.append(whole.next())
        positions.append(whole.position)
    assert [dict(row) for row in rows_of(found)] == [*ROWS, *ROWS, *ROWS[:3]]
    assert [(one.row_index, one.passes) for one in found[20:26]] == [(20, 0), (21, 0), (22, 0), (0, 1), (1, 1), (2, 1)]
    for start in (0, 1, 6, 7, 8, 22, 23, 24, 46):
        again = source.stream(restored(positions[start]))
        assert again.position == positions[start]
        rest = take(again, len(found) - start)
        assert rows_of(rest) == rows_of(found[start:])
        assert [(one.row_index, one.passes) for one in rest] == [(one.row_index, one.passes) for one in found[start:]]
        assert again.position == positions[-1]


@pytest.mark.parametrize("kind", ["made", "parquet", "json"])
def test_a_stream_of_the_hub_resumes_at_any_position(monkeypatch, tmp_path, kind):
    import datasets

    requests = []
    load = datasets.load_dataset

    def from_hub(path, name, *, split, revision, streaming=False):
        requests.append((path, name, split, streaming))
        if kind == "made":
            return datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=3)
        written = {"parquet": as_parquet, "json": as_json_lines}[kind](tmp_path / "rows")
        return load(kind, data_files=written, split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    source = Rows("someone/rows", name="main", split="test")
    whole = source.stream()
    found, positions = [], [whole.position]
    for _ in range(30):
        found.append(whole.next())
        positions.append(whole.position)
    assert rows_of(found) == [*ROWS, *ROWS[:7]]
    for start in (0, 1, 5, 9, 22, 23, 25):
        again = source.stream(restored(positions[start]))
        assert rows_of(take(again, 30 - start)) == rows_of(found[start:])
    assert set(requests) == {("someone/rows", "main", "test", True)}


def test_broken_rows_keep_their_line_numbers_in_a_stream(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{nonsense\n[1]\n{"text": "b\xff"}\n{"text": "c"}')
    stream = Rows(str(path)).stream()
    found = rows_of(take(stream, 5))
    assert [row for row in found if not isinstance(row, BrokenRow)] == [{"text": "a"}, {"text": "c"}]
    broken = [str(row.error).partition("line ")[2] for row in found if isinstance(row, BrokenRow)]
    assert [text.split(":")[0] for text in broken] == ["3", "4", "5"]
    whole = [str(row.error) for row in Rows(str(path)).load_with_broken() if isinstance(row, BrokenRow)]
    assert [str(row.error) for row in found if isinstance(row, BrokenRow)] == whole


def test_any_source_can_be_streamed_and_a_limit_ends_a_pass(tmp_path):
    figlet = FigletPuzzles(count=3)
    assert rows_of(take(figlet.stream(), 4)) == [*figlet.load(), figlet.load()[0]]
    limited = Rows(as_json_lines(tmp_path / "x"), limit=2)
    assert rows_of(take(limited.stream(), 5)) == [ROWS[0], ROWS[1], ROWS[0], ROWS[1], ROWS[0]]
    assert limited.stream(limited.stream().position).position == limited.stream().position


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        (b"", ".jsonl", "path: expected at least one row, got an empty data set"),
        (b"a\n", ".csv", "path: expected at least one row, got an empty data set"),
        (b"nonsense", ".parquet", "not a readable parquet file"),
        (b"[1,", ".jsonl", "not valid JSON"),
    ],
)
def test_an_unreadable_stream_is_refused(tmp_path, content, suffix, message):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        Rows(str(path)).stream().next()


# Mixtures.


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 9)), min_size=1, max_size=4), st.integers(0, 60))
def test_a_mixed_stream_keeps_its_shares_at_every_row_and_resumes_at_any_position(drawn, start):
    def opened(count):
        return lambda position: RowStream(lambda at: IndexedReader([{"i": i} for i in range(count)], at), position)

    streams = {f"s{i}": opened(count) for i, (count, _) in enumerate(drawn)}
    weights = {f"s{i}": weight for i, (_, weight) in enumerate(drawn)}
    whole = MixedStream(streams, weights, None)
    found = take(whole, start)
    position = restored(whole.position)
    found += take(whole, 80 - start)
    again = MixedStream(streams, weights, position)
    assert rows_of(take(again, 80 - start)) == rows_of(found[start:])
    assert again.position == whole.position
    seen = Counter()
    for number, one in enumerate(found, start=1):
        name = f"s{one.source}"
        count = drawn[one.source][0]
        assert one.row() == {"source": name, "row": {"i": seen[name] % count}}
        assert (one.row_index, one.passes) == (seen[name] % count, seen[name] // count)
        seen[name] += 1
        shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        assert all(abs(seen[name] - shares[name] * number) < len(drawn) for name in weights)


def test_a_mixture_without_weights_or_with_a_size_cannot_be_streamed(tmp_path):
    path = as_json_lines(tmp_path / "x")
    with pytest.raises(UserError, match=r"sources.a.weight: expected a weight, since a stream does not know"):
        Mixture({"a": path}).stream()
    with pytest.raises(UserError, match=r"size: expected none with data.streaming, which has no epochs, got 3"):
        Mixture({"a": Part(path, 1.0)}, size=3).stream()
    stream = Mixture({"a": Part(path, 1.0), "b": Part(Rows(path, limit=2), 1.0)}).stream()
    assert [(one.source, one.row_index) for one in take(stream, 6)] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 0)]
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"sources.e.path: expected at least one row"):
        Mixture({"e": Part(str(tmp_path / "empty.jsonl"), 1.0)}).stream().next()


def test_a_file_damaged_in_a_later_row_group_is_refused_and_named(tmp_path):
    path = tmp_path / "rows.parquet"
    as_parquet(path)
    damaged = bytearray(path.read_bytes())
    position = damaged.index(b"What is 20?")
    damaged[position - 40 : position + 40] = bytes(value ^ 0x5A for value in damaged[position - 40 : position + 40])
    path.write_bytes(damaged)
    stream = Rows(str(path)).stream()
    with pytest.raises(UserError, match=r"^path: .*rows.parquet'"):
        rows_of(take(stream, len(ROWS)))


def test_a_hub_that_fails_in_the_middle_of_a_stream_is_reported(monkeypatch):
    import datasets

    def rows():
        yield ROWS[0]
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *args, **options: datasets.IterableDataset.from_generator(rows)
    )
    stream = Rows("someone/something").stream()
    assert stream.next().row() == ROWS[0]
    with pytest.raises(UserError) as error:
        stream.next()
    assert str(error.value) == "path: the hub gave no more rows: ConnectionError: no route"
