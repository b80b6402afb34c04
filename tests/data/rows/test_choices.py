"""Multiple-choice questions: prompt and response, and which labels are flipped."""

import json
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.data import ByteTokenizer, InstructionDataModule, Mixture, MultipleChoice
from lit_probsft.errors import UserError


def row(number, answer="B", labels="ABCD"):
    texts = [f"choice {number}{label}" for label in labels]
    return {"question_stem": f"Which is {number}?", "choices": {"text": texts, "label": [*labels]}, "answerKey": answer}


ROWS = [row(i, "ABCD"[i % 4]) for i in range(800)]


def responses(source, rows=ROWS):
    return [source.conversation(one)[-1]["content"] for one in rows]


def test_the_prompt_lists_the_choices_and_the_response_is_the_label():
    user, assistant = MultipleChoice("x").conversation(row(1))
    assert user == {"role": "user", "content": "Which is 1?\nA. choice 1A\nB. choice 1B\nC. choice 1C\nD. choice 1D"}
    assert assistant == {"role": "assistant", "content": "B"}
    renamed = {"q": "{choices}?", "c": ["x", "y"], "l": ["1", "2"], "a": "2"}
    source = MultipleChoice("x", question="q", choices="c", labels="l", answer="a", prompt="Q: {question}\n{choices}\n")
    assert source.conversation(renamed)[0]["content"] == "Q: {choices}?\n1. x\n2. y\n"
    assert responses(MultipleChoice("x")) == [one["answerKey"] for one in ROWS]


def test_a_column_that_no_field_names_is_not_read():
    class WithPicture(dict):
        def __getitem__(self, column):
            assert column != "picture"
            return super().__getitem__(column)

    assert responses(MultipleChoice("x"), [WithPicture(row(1), picture=b"")]) == ["B"]


@settings(max_examples=8, deadline=None)
@given(st.floats(0, 1), st.integers(0, 1000))
def test_flipped_is_the_share_of_wrong_labels(share, seed):
    """Wrong labels are equally frequent, within five standard deviations and five rows."""
    source = MultipleChoice("x", flipped=share, seed=seed)
    labels = responses(source)
    wrong = [(one["answerKey"], label) for one, label in zip(ROWS, labels, strict=True) if label != one["answerKey"]]
    assert {label for _, label in wrong} <= set("ABCD")
    assert [label != one["answerKey"] for one, label in zip(ROWS, labels, strict=True)] == [
        source.is_flipped(one) for one in ROWS
    ]
    count = len(ROWS)
    assert abs(len(wrong) - share * count) <= 5 * math.sqrt(count * share * (1 - share)) + 5
    if wrong:
        by_step = Counter(("ABCD".index(label) - "ABCD".index(right)) % 4 for right, label in wrong)
        assert all(abs(by_step[k] - len(wrong) / 3) <= 5 * math.sqrt(len(wrong) * 2 / 9) + 5 for k in (1, 2, 3))


def test_flipped_0_flips_no_label_and_flipped_1_flips_all():
    assert not any(MultipleChoice("x", flipped=0.0).is_flipped(one) for one in ROWS)
    assert all(MultipleChoice("x", flipped=1.0).is_flipped(one) for one in ROWS)
    pairs = [row(i, "A", "AB") for i in range(50)]
    assert set(responses(MultipleChoice("x", flipped=1.0), pairs)) == {"B"}


def test_a_flip_depends_on_the_row_not_its_position_and_stays_at_every_larger_share(jsonl):
    shuffled = random.Random(0).sample(ROWS[:200], 200)
    few, more = (MultipleChoice(jsonl(ROWS[:200]), flipped=share, seed=3) for share in (0.3, 0.6))
    known = dict(zip([one["question_stem"] for one in ROWS], responses(few), strict=True))
    elsewhere = MultipleChoice(jsonl(shuffled, "other.jsonl"), flipped=0.3, seed=3, limit=120)
    for one, label in zip(elsewhere.load(), responses(elsewhere, elsewhere.load()), strict=True):
        assert known[one["question_stem"]] == label
    stream = elsewhere.stream()
    for one in shuffled[:120]:
        assert elsewhere.conversation(stream.next().row()) == elsewhere.conversation(one)
    for one in ROWS:
        if few.is_flipped(one):
            assert more.conversation(one) == few.conversation(one)
    assert responses(few) != responses(MultipleChoice("x", flipped=0.3, seed=4))


def test_cached_tokens_depend_on_share_and_seed(jsonl, tmp_path):
    path, found = jsonl(ROWS[:40]), {}
    for share, seed in ((0.0, 0), (0.5, 0), (0.5, 1)):
        source = MultipleChoice(path, flipped=share, seed=seed)
        module = InstructionDataModule(source, tokenizer=ByteTokenizer(), cache_dir=str(tmp_path / "cache"))
        module.setup("fit")
        documents = module.documents("train")
        # The answer is the token before the end of the turn and the line break.
        found[share, seed] = [chr(documents[i][0][-3]) for i in range(40)]
        assert found[share, seed] == responses(source, ROWS[:40])
        assert source.identity() != MultipleChoice(path, flipped=0.25, seed=seed).identity()
    assert len({tuple(labels) for labels in found.values()}) == 3
    assert Mixture({"a": MultipleChoice(path)}).conversation({"source": "a", "row": ROWS[0]})


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"flipped": 1.5}, {}, r"^flipped: expected a share from 0 to 1, got 1.5"),
        ({"prompt": "{qestion}"}, {}, r"^prompt: no column 'qestion'.*Did you mean 'question'"),
        ({"limit": 0}, {}, r"^limit: expected at least 1 row"),
        ({"revision": "main"}, {}, r"^revision: expected none with local files"),
        ({"answer": "answerkey"}, {}, r"^answer: no column 'answerkey' .*Did you mean 'answerKey'"),
        ({}, {"answerKey": "E"}, r"^answer: column 'answerKey': expected one of \['A', 'B', 'C', 'D'\], got 'E'"),
        (
            {},
            {"choices": {"text": ["a"], "label": ["B"]}},
            r"^labels: expected at least two choices with a different label each",
        ),
        (
            {},
            {"choices": {"text": ["a", "b"], "label": ["B", "B"]}},
            r"^labels: expected at least two choices with a different label each",
        ),
        ({}, {"choices": {"text": "ab", "label": ["A", "B"]}}, r"^choices: column 'choices.text': expected a list"),
        ({}, {"choices": {"text": ["a", ""], "label": ["A", "B"]}}, r"^choices: .*expected non-empty text"),
    ],
)
def test_an_invalid_question_is_refused_and_the_argument_named(options, change, message, jsonl):
    with pytest.raises(UserError, match=message):
        MultipleChoice(jsonl([{**row(0), **change}]), **options).load()


def test_a_broken_line_is_refused_with_its_line_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row(0)) + "\n{\n")
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        MultipleChoice(str(path)).load()
    module = InstructionDataModule(
        MultipleChoice(str(path)), tokenizer=ByteTokenizer(), on_bad_row="skip", cache_dir=str(tmp_path)
    )
    module.setup("fit")
    assert module.report["train"]["kept"] == 1
