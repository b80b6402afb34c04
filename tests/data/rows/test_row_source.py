import csv
import dataclasses
import gzip
import io
import json

import pytest

from lit_probsft.data import Rows
from lit_probsft.errors import UserError

ROWS = [{"prompt": f"q{i}", "response": f"a{i}"} for i in range(5)]


def conversations(source):
    return [source.conversation(row) for row in source.load()]


def expected(rows=ROWS):
    return [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}] for row in rows
    ]


def write_csv(path, **options):
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "response"], **options)
        writer.writeheader()
        writer.writerows(ROWS)


def gzipped(write):
    def write_gzipped(path):
        write(path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return write_gzipped


def zstd(write):
    def write_zstd(path):
        import pyarrow

        write(path)
        content = path.read_bytes()
        half = len(content) // 2
        with path.open("wb") as file:
            for part in (content[:half], content[half:]):  # two frames, as `cat` and parallel compression make them
                with pyarrow.CompressedOutputStream(pyarrow.PythonFile(_Unclosed(file)), "zstd") as stream:
                    stream.write(part)

    return write_zstd


class _Unclosed(io.RawIOBase):
    def __init__(self, file):
        self.file = file

    def writable(self):
        return True

    def write(self, data):
        return self.file.write(data)


def write_lines(path):
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")


def write_parquet(path):
    from datasets import Dataset

    Dataset.from_list(ROWS).to_parquet(path)


def save_folder(path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(path)


def save_splits(path):
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(ROWS), "holdout": Dataset.from_list(ROWS[:1])}).save_to_disk(path)


WRITERS = {
    "rows.jsonl": write_lines,
    "rows.jsonl.gz": gzipped(write_lines),
    "rows.jsonl.zst": zstd(write_lines),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "lines.json": lambda path: path.write_text("\n".join(json.dumps(row) for row in ROWS)),
    "data.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "data.json.gz": gzipped(lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS}, indent=2))),
    "any_key.json": lambda path: path.write_text(json.dumps({"examples": ROWS}, indent=2)),
    "keyed.json": lambda path: path.write_text(json.dumps({f"id{i}": row for i, row in enumerate(ROWS)})),
    "rows.csv": write_csv,
    "rows.csv.gz": gzipped(write_csv),
    "rows.TSV": lambda path: write_csv(path, delimiter="\t"),
    "rows.tsv.zst": zstd(lambda path: write_csv(path, delimiter="\t", quoting=csv.QUOTE_ALL)),
    "rows.parquet": write_parquet,
    "folder": save_folder,
    "splits": save_splits,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_local_format_gives_the_same_conversations(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert conversations(Rows(str(tmp_path / name))) == expected()
    assert conversations(Rows(str(tmp_path / name), limit=2)) == expected(ROWS[:2])


def test_lists_and_globs_are_read_in_order(tmp_path, jsonl):
    second, first = jsonl(ROWS[3:], "b.jsonl"), jsonl(ROWS[:3], "a.jsonl")
    assert conversations(Rows(str(tmp_path / "*.jsonl"))) == expected()
    assert conversations(Rows([second, first])) == expected(ROWS[3:] + ROWS[:3])


def test_values_stay_text_and_no_type_is_guessed(tmp_path, jsonl):
    rows = [{"prompt": "2020-01-01", "response": "2020-01-01T00:00:00"}]
    assert conversations(Rows(jsonl(rows))) == expected(rows)
    path = tmp_path / "numbers.csv"
    path.write_text("prompt,response\n1,2\n")
    assert conversations(Rows(str(path))) == expected([{"prompt": "1", "response": "2"}])


def test_a_split_of_a_saved_folder_is_chosen_by_name(tmp_path):
    save_splits(tmp_path / "splits")
    assert len(Rows(str(tmp_path / "splits"), split="holdout").load()) == 1
    with pytest.raises(UserError, match=r"^split: no split 'hodlout' among train, holdout .*Did you mean 'holdout'"):
        Rows(str(tmp_path / "splits"), split="hodlout").load()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"prompt": "a", "response": "b"}\n{"prompt": \n', r"^path: .*x.jsonl' line 2: not valid JSON"),
        ("x.jsonl", b'{"prompt": "a", "response": "b"}\n[1]\n', r"^path: .*line 2: expected an object, got a list"),
        ("x.jsonl", b'{"prompt": "a", "response": "b"}\n{"prompt": "\xff"}\n', r"^path: .*line 2: not UTF-8"),
        ("x.json", b'[{"prompt": "a"},\n {"prompt" "b"}]', r"^path: .*line 2: not valid JSON"),
        ("x.json", b'[{"prompt": "a"}, 3]', r"^path: .*row 1: expected an object, got a number"),
        ("x.csv", b"prompt,response\na,b\na,b,c\n", r"^path: .*line 3: expected 2 values, got more"),
        ("x.csv", b"prompt,response\na,\xff\n", r"^path: .*line 2: not UTF-8"),
        ("x.parquet", b"nonsense", r"^path: .*not a readable parquet file"),
        ("x.txt", b"hello", r"^path: expected a file that ends in \.json, \.jsonl"),
        (
            "x.jsonl",
            b'{"question": "a", "answer": "b"}\n',
            r"^prompt: expected the columns of a known format: `messages`.*'question', 'answer'",
        ),
    ],
)
def test_a_broken_file_is_refused_with_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Rows(str(tmp_path / name)).load()


def test_a_missing_file_suggests_similar_names(tmp_path, jsonl):
    jsonl(ROWS, "train.jsonl")
    for path in ("trian.jsonl", "trian.jsonl.bak"):
        with pytest.raises(UserError, match=r"^path: no such file: .*Did you mean 'train.jsonl'"):
            Rows(str(tmp_path / path)).load()
    for path, message in (("none/x.jsonl", "no folder"), ("*.parquet", "no file matches"), ("", "was not written by")):
        with pytest.raises(UserError, match=f"^path: .*{message}"):
            Rows(str(tmp_path / path)).load()
    for path in ("", []):
        with pytest.raises(UserError, match=r"^path: expected"):
            Rows(path).load()


def test_a_hub_id_is_passed_to_datasets_with_name_and_split(monkeypatch):
    import datasets

    requests = []

    def load_dataset(*args, **kwargs):
        requests.append((args, kwargs))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = Rows("somebody/questions", name="main", split="test", limit=3)
    assert conversations(source) == expected(ROWS[:3])
    assert requests[0] == (("somebody/questions", "main"), {"split": "test", "revision": None})
    assert source.fingerprint() != dataclasses.replace(source, limit=2).fingerprint()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError('Unknown split "tset"'), "^split: no split 'tset' in .*Did you mean 'test'"),
        (ValueError("BuilderConfig 'x' not found"), "^name: .*BuilderConfig 'x' not found"),
        (
            ConnectionError("no route"),
            "^path: expected a local file or a data set on the hub, could not load .somebody/q.: no route",
        ),
    ],
)
def test_errors_of_the_hub_become_user_errors(monkeypatch, error, message):
    import datasets

    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *args, **options: ["train", "test"])
    with pytest.raises(UserError, match=message):
        Rows("somebody/q", split="tset").load()


def test_a_fingerprint_depends_on_content_and_fields_but_not_on_the_path(tmp_path, jsonl):
    source = Rows(jsonl(ROWS))
    fingerprint = source.fingerprint()
    assert Rows(jsonl(ROWS, "copy.jsonl")).fingerprint() == fingerprint
    assert Rows(jsonl(ROWS[:-1], "fewer.jsonl")).fingerprint() != fingerprint
    assert Rows(source.path, system="Be kind.").fingerprint() != fingerprint


def test_a_byte_order_mark_and_a_long_csv_cell_are_read_and_a_lone_surrogate_is_refused(tmp_path):
    marked, table, broken = tmp_path / "marked.json", tmp_path / "long.csv", tmp_path / "broken.jsonl"
    marked.write_bytes(b'\xef\xbb\xbf[{"prompt": "a", "response": "b"}]')
    assert list(Rows(str(marked)).load()) == [{"prompt": "a", "response": "b"}]
    table.write_text("prompt,response\n" + "a" * 200_000 + ",b\n")
    assert len(Rows(str(table)).load()[0]["prompt"]) == 200_000
    broken.write_text('{"prompt": "a", "response": "b\\ud800"}\n')
    source = Rows(str(broken))
    with pytest.raises(UserError, match=r"response: column 'response': expected Unicode text.*U\+D800"):
        source.conversation(source.load()[0])


def test_a_limit_below_1_is_refused():
    with pytest.raises(UserError, match=r"^limit: expected at least 1"):
        Rows("x", limit=0)
