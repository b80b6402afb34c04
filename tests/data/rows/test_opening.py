"""A system text and earlier turns in columns of their own."""

import pytest

from lit_probsft.data.rows.formats import Columns
from lit_probsft.errors import UserError

FIRST = [{"role": "user", "content": "First?"}, {"role": "assistant", "content": "A"}]
LAST = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "B"}]
SHAREGPT = [{"from": "human", "value": "And then?"}, {"from": "gpt", "value": "B"}]
ROWS = {
    "messages": {"messages": LAST},
    "sharegpt": {"conversations": SHAREGPT},
    "prompt": {"prompt": "And then?", "response": "B"},
    "alpaca": {"instruction": "And then?", "output": "B"},
}


def system(text):
    return [] if text is None else [{"role": "system", "content": text}]


def turns(row, **options):
    return Columns(**options).example(row).messages


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(
    ("option", "columns", "text"),
    [
        (None, {"system": "Be kind."}, "Be kind."),
        (None, {"system": " \n"}, None),
        (None, {"system": None}, None),
        ("Be brief.", {"system": "Be kind."}, "Be brief."),
        ("Be {tone}.", {"system": "Be kind.", "tone": "calm"}, "Be calm."),
        ("tone", {"tone": "calm"}, "tone"),
        ("", {"system": "Be kind."}, None),
        ("{tone}", {"tone": "calm"}, "calm"),
        ("{tone}", {"tone": " "}, None),
        ("{tone}", {"tone": None}, None),
        ("{tone}", {}, None),
        ("{1, 2}", {}, "{1, 2}"),
    ],
)
def test_the_system_text_is_the_option_else_the_column_and_an_empty_one_is_no_turn(name, option, columns, text):
    assert turns({**ROWS[name], **columns}, system=option) == [*system(text), *LAST]


@pytest.mark.parametrize("option", [None, "other"])
def test_a_system_turn_with_text_has_precedence(option):
    row = {"messages": [*system("own"), *LAST], "system": "other"}
    assert turns(row, system=option) == [*system("own"), *LAST]
    for blank in ("", " ", None, [], [{"type": "text", "text": " "}]):
        assert turns({**row, "messages": [*system(blank or ""), *LAST]}, system=option) == [*system("other"), *LAST]
        assert turns({"conversations": [{"from": "system", "value": blank}, *SHAREGPT]}) == LAST


@pytest.mark.parametrize("history", [[["First?", "A"]], [("First?", "A")], '[["First?", "A"]]'])
@pytest.mark.parametrize("name", ["alpaca", "sharegpt"])
def test_earlier_turns_follow_the_system_text(name, history):
    row = {**ROWS[name], "history": history, "system": "Be kind."}
    assert turns(row) == [*system("Be kind."), *FIRST, *LAST]
    assert turns({**row, "system": None}) == [*FIRST, *LAST]
    if name == "sharegpt":
        row["conversations"] = [{"from": "system", "value": "own"}, *SHAREGPT]
        assert turns(row) == [*system("own"), *FIRST, *LAST]


@pytest.mark.parametrize("history", [None, [], "", " ", "[]", "null"])
def test_an_empty_history_adds_no_turn(history):
    assert turns({**ROWS["alpaca"], "history": history}) == LAST


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"system": 3}, "^system: column 'system': expected non-empty text, got 3"),
        ({"history": 3}, r"^history: expected a list of \[user, assistant\] pairs, or its JSON text, got 3"),
        ({"history": "A"}, r"^history: expected a list of \[user, assistant\] pairs, or its JSON text, got 'A'"),
        ({"history": [["First?"]]}, r"^history\[0\]: expected a pair \[user, assistant\], got \['First\?'\]"),
        ({"history": ["ab"]}, r"^history\[0\]: expected a pair"),
        ({"history": [["a", "b"], ["First?", ""]]}, r"^history\[1\]\[1\]: expected non-empty text, got ''"),
    ],
)
def test_a_wrong_type_is_refused_and_the_column_named(columns, message):
    with pytest.raises(UserError, match=message):
        turns({**ROWS["alpaca"], **columns})
