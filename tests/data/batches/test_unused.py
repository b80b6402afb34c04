"""Columns and keys of turns that nothing reads are named once for each split."""

import logging

import pytest

from lit_probsft.data import ByteTokenizer, InstructionDataModule, MultipleChoice, Rows
from lit_probsft.data.rows.mixture import Mixture
from lit_probsft.data.tokens.rendering import unread_keys

TURNS = [{"role": "user", "content": "a", "name": "Ann", "turn": 1}, {"role": "assistant", "content": "b"}]


@pytest.fixture
def mixture(jsonl):
    questions = {"stem": "?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A", "id": 1}
    by_name = {
        "plain": Rows(
            jsonl([{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b", "url": "x"}], "p.jsonl")
        ),
        "chat": Rows(jsonl([{"messages": TURNS, "id": 1}], "c.jsonl")),
        "choice": MultipleChoice(jsonl([questions], "m.jsonl"), question="stem"),
        "function": Rows(jsonl([{"q": "a"}], "f.jsonl"), row_function="tests.data.batches.test_unused.as_question"),
    }
    return Mixture(by_name)


def as_question(row):
    return {"prompt": row["q"], "response": "b", "made": 1}


def lines(caplog):
    found = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    caplog.clear()
    return found


def test_fit_names_them_also_when_the_tokens_are_cached(mixture, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    expected = ["plain.url", "chat.id", "chat.messages[].name", "chat.messages[].turn", "choice.id"]
    for _ in range(2):
        module = InstructionDataModule(mixture, tokenizer=ByteTokenizer(), cache_dir=str(tmp_path))
        module.setup("fit")
        assert module.report["train"]["unused"] == expected
        assert lines(caplog) == ["data.train: not used: " + ", ".join(expected)]


def test_a_row_that_is_dropped_names_its_columns_too(jsonl, tmp_path):
    row = {"prompt": "a", "response": "b"}
    train, validation = jsonl([{**row, "id": 1}, {**row, "prompt": "c"}], "t.jsonl"), jsonl([row], "v.jsonl")
    module = InstructionDataModule(
        train, validation, tokenizer=ByteTokenizer(), cache_dir=str(tmp_path), duplicates="remove"
    )
    module.setup("fit")
    assert (module.report["train"]["dropped"], module.report["train"]["unused"]) == (1, ["id"])


def test_a_stream_names_them_once(jsonl, byte_tokenizer, caplog):
    from lit_probsft.data.batches.row_tokenizer import Recipe, RowTokenizer
    from lit_probsft.data.batches.stream_plan import StreamPlan
    from lit_probsft.data.batches.streaming import StreamLoader
    from lit_probsft.data.rows.splits import LoadedSource

    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    path = jsonl([{"prompt": "a", "response": "b", "id": 1}] * 3)
    row_tokenizer = RowTokenizer(LoadedSource(Rows(path), "train"), byte_tokenizer, Recipe())
    loader = StreamLoader(row_tokenizer, StreamPlan(2, buffer=4, num_windows=9), pad_token_id=0)
    assert len(list(loader)) == 9
    assert loader.report["unused"] == ["id"]
    assert lines(caplog) == ["data.train: not used: id"]


@pytest.mark.parametrize(
    ("template", "unread"),
    [
        ("", ["name", "turn"]),
        ("{{ m.name }} {{ m.turns }}", ["turn"]),
        ("{{ m['name'] }} {{ m.get(\"turn\") }}", []),
        ("a name, a turn", ["name", "turn"]),
    ],
)
def test_a_key_that_the_template_mentions_is_read(template, unread):
    assert unread_keys(template, TURNS) == unread
    assert unread_keys("", [{"role": "tool", "content": "x", "name": "f", "tool_call_id": "y"}]) == []
