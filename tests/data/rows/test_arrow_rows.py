"""Values of Arrow tables: class labels, maps, sequences, and columns that nothing reads."""

import json
import pickle
from decimal import Decimal

import pyarrow
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Sequence, Value
from datasets.features import features
from pyarrow import parquet

from lit_probsft.data import MultipleChoice, Rows
from lit_probsft.data.rows.arrow_rows import ArrowRows
from lit_probsft.data.rows.conversation import validate_conversation
from lit_probsft.data.rows.labels import Label
from lit_probsft.errors import UserError

NO_PICTURE = {"bytes": b"no picture", "path": None}
TURNS = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}]


def as_parquet(dataset, tmp_path, monkeypatch):
    dataset.to_parquet(tmp_path / "x.parquet")
    return str(tmp_path / "x.parquet")


def as_saved(dataset, tmp_path, monkeypatch):
    dataset.save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


def as_hub(dataset, tmp_path, monkeypatch):
    def load_dataset(*args, streaming=False, **options):
        return dataset.to_iterable_dataset() if streaming else dataset

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return "someone/rows"


@pytest.fixture(params=[as_parquet, as_saved, as_hub], ids=lambda write: write.__name__)
def written(request, tmp_path, monkeypatch):
    return lambda rows, features: request.param(
        Dataset.from_list(rows, features=Features(features)), tmp_path, monkeypatch
    )


def rows_in_both_ways(source):
    yield list(source.load())
    reader, rows = source.reader(), []
    while (load_row := reader.next()) is not None:
        rows.append(load_row())
    yield rows


def test_a_class_label_is_its_name_in_texts_and_its_number_elsewhere(written):
    labels = ClassLabel(names=["no", "yes"])
    rows = [
        {"q": "a", "label": 1, "all": [0, 1]},
        {"q": "b", "label": 0, "all": []},
        {"q": "c", "label": -1, "all": None},
    ]
    path = written(rows, {"q": Value("string"), "label": labels, "all": List(labels)})
    source = Rows(path, prompt="{q} {label}", response="label", weight="label")
    for found in rows_in_both_ways(source):
        examples = [source.example(row) for row in found[:2]]
        assert [[turn["content"] for turn in one.messages] for one in examples] == [["a yes", "yes"], ["b no", "no"]]
        assert [one.weight for one in examples] == [1.0, 0.0]
        assert [label.name for label in found[0]["all"]] == ["no", "yes"]
        assert found[2]["label"] is None
        with pytest.raises(UserError, match="column 'label': expected non-empty text, got null"):
            source.example(found[2])
        assert len(source.for_prediction().example(found[1]).messages) == 2  # the number of `no` is 0


def test_a_role_may_be_a_class_label(written):
    roles = ClassLabel(names=["assistant", "user"])
    turns = [{"role": 1, "content": "Hi."}, {"role": 0, "content": "Yes."}]
    source = Rows(written([{"messages": turns}], {"messages": List({"role": roles, "content": Value("string")})}))
    for found in rows_in_both_ways(source):
        assert source.example(found[0]).messages == TURNS


def test_a_label_is_a_number_that_keeps_its_name():
    label = Label(1, "yes")
    assert (label, f"{label}", json.dumps(label), repr(label)) == (1, "1", "1", "1 ('yes')")
    assert pickle.loads(pickle.dumps(label)).name == "yes"


def test_the_answer_to_a_multiple_choice_question_may_be_a_class_label(tmp_path):
    row = {"question_stem": "?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": 1}
    features = {
        "question_stem": Value("string"),
        "choices": {"text": List(Value("string")), "label": List(Value("string"))},
        "answerKey": ClassLabel(names=["A", "B"]),
    }
    Dataset.from_list([row], features=Features(features)).to_parquet(tmp_path / "x.parquet")
    source = MultipleChoice(str(tmp_path / "x.parquet"))
    assert source.conversation(source.load()[0])[-1]["content"] == "B"


def test_a_picture_that_nothing_uses_is_never_decoded(written):
    rows = [{"prompt": "a", "response": "b", "image": NO_PICTURE, "images": [NO_PICTURE]}]
    path = written(
        rows, {"prompt": Value("string"), "response": Value("string"), "image": Image(), "images": List(Image())}
    )
    source = Rows(path)
    for found in rows_in_both_ways(source):
        assert source.conversation(found[0])[-1]["content"] == "b"
        assert list(found[0]) == list(rows[0])
        assert found[0]["image"] == NO_PICTURE  # as it is stored, for a row function
        with pytest.raises(UserError, match="response: column 'image': expected non-empty text, got {'bytes'"):
            Rows(path, prompt="prompt", response="image").conversation(found[0])


def test_only_the_used_columns_of_a_parquet_file_are_read(tmp_path, monkeypatch):
    path, read = tmp_path / "x.parquet", []
    row = {"prompt": "a", "response": "b", "deep": {"x": "c"}, "rest": "d"}
    parquet.write_table(pyarrow.Table.from_pylist([row] * 3), path)
    original = parquet.ParquetFile.read_row_groups

    def read_row_groups(file, groups, columns):
        read.append(columns)
        return original(file, groups, columns)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_groups", read_row_groups)
    source = Rows(str(path), prompt="{deep.x}", response="response")
    for found in rows_in_both_ways(source):
        assert source.conversation(found[1])[0]["content"] == "c"
        assert read == [["response", "deep"]]
        assert dict(found[2]) == row
        assert read[1:] == [["prompt"], ["rest"]]
        read.clear()


def test_a_map_is_a_mapping_and_a_repeated_key_is_an_error(tmp_path):
    path = tmp_path / "x.parquet"
    texts = pyarrow.map_(pyarrow.string(), pyarrow.string())
    turns = [[list(turn.items()) for turn in TURNS]] * 2
    tools = [[[("name", "f")]], [[("name", "f"), ("name", "g")]]]
    table = pyarrow.table(
        {"messages": pyarrow.array(turns, pyarrow.list_(texts)), "tools": pyarrow.array(tools, pyarrow.list_(texts))}
    )
    parquet.write_table(table, path)
    source = Rows(str(path))
    for found in rows_in_both_ways(source):
        example = source.example(found[0])
        assert (example.messages, example.tools) == (TURNS, [{"name": "f"}])
        with pytest.raises(UserError, match="column 'tools': not a readable value"):
            source.example(found[1])
        weighted = Rows(str(path), weight="tools")
        with pytest.raises(UserError, match=r"weight: column 'tools': expected a number from 0 to 1e9, got \[\{'name"):
            weighted.example(found[0])


@pytest.mark.skipif(not hasattr(features, "Json"), reason="this version of datasets has no such feature")
def test_values_of_a_json_feature_are_parsed(written):
    row = {"messages": TURNS, "tools": [{"a": 1}, {"b": None}]}
    path = written([row], {"messages": features.Json(), "tools": List(features.Json())})
    for found in rows_in_both_ways(Rows(path)):
        assert found == [row]


def test_a_decimal_is_a_weight(tmp_path):
    weights = pyarrow.array([Decimal("0.5")], pyarrow.decimal128(9, 2))
    parquet.write_table(pyarrow.table({"text": ["a"], "w": weights}), tmp_path / "x.parquet")
    source = Rows(str(tmp_path / "x.parquet"), weight="w")
    assert source.example(source.load()[0]).weight == 0.5


@pytest.mark.parametrize(("offset", "text"), [(1, b"\xff"), (2**30, b"a")])
def test_a_damaged_value_is_refused_where_it_is_used_only(offset, text):
    offsets = bytearray((0).to_bytes(4, "little") + (1).to_bytes(4, "little"))
    buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(text)]
    damaged = pyarrow.Array.from_buffers(pyarrow.string(), 1, buffers)
    table = pyarrow.table({"text": ["a"], "damaged": damaged})
    offsets[4:] = offset.to_bytes(4, "little")  # as a flipped bit of a memory-mapped file
    row = ArrowRows(table)[0]
    assert Rows("x.parquet").example(row).text == "a"
    with pytest.raises(UserError, match="path: column 'damaged': not a readable value"):
        Rows("x.parquet", text="damaged").example(row)


@pytest.mark.parametrize(
    "stored",
    [
        json.dumps(TURNS),
        f"\n {json.dumps(TURNS, indent=1)}",
        {"role": ["user", "assistant"], "content": ["Hi.", "Yes."]},
        {"from": ["human", "gpt"], "value": ["Hi.", "Yes."], "weight": [None, None]},
        json.dumps({"role": ["user", "assistant"], "content": ["Hi.", "Yes."]}),
    ],
)
def test_turns_as_tables_store_them_are_the_same_turns(stored):
    assert validate_conversation(stored) == TURNS


@pytest.mark.parametrize(
    "stored", ["Hi.", "[", "{}", "3", {"role": ["user"], "content": []}, {"role": "user"}, "[" * 10**5]
)
def test_what_holds_no_turns_is_refused_as_it_was_stored(stored):
    with pytest.raises(UserError, match="messages: expected a non-empty list of {role, content}, got"):
        validate_conversation(stored)


def test_turns_of_a_sequence_feature_and_of_text_cells_are_read(tmp_path):
    features = Features({"messages": Sequence({"role": Value("string"), "content": Value("string")})})
    columns = {key: [turn[key] for turn in TURNS] for key in ("role", "content")}
    Dataset.from_list([{"messages": columns}], features=features).save_to_disk(tmp_path / "saved")
    cell = json.dumps(TURNS)
    (tmp_path / "x.tsv").write_text(f"id\tmessages\n1\t{cell}\n")
    quoted = cell.replace('"', '""')
    (tmp_path / "x.csv").write_text(f'conversations,id\n"{quoted}",1\n')
    for name in ("saved", "x.tsv", "x.csv"):
        source = Rows(str(tmp_path / name))
        assert source.conversation(source.load()[0]) == TURNS
