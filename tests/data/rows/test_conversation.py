import pytest

from lit_probsft.data.rows.conversation import validate_conversation
from lit_probsft.errors import UserError


def turns(*roles):
    return [{"role": role, "content": "x"} for role in roles]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "^messages: expected a non-empty list"),
        ("hello", "^messages: expected a non-empty list"),
        (None, "^messages: expected a non-empty list"),
        (["hello"], r"^messages\[0\]: expected a mapping"),
        ([{"role": "user"}], r"^messages\[0\]: expected a mapping with role and content"),
        (turns("somebody", "assistant"), r"^messages\[0\]: expected a role among"),
        (turns("user", "assitant"), r"Did you mean 'assistant'"),
        (turns("assistant"), "roles out of order: expected system or user as the first turn, got assistant"),
        (turns("user", "user"), "roles out of order: expected assistant after user, got user"),
        (turns("user", "system"), "roles out of order"),
        (turns("system", "assistant"), "roles out of order"),
        (turns("user"), "^messages: expected the last turn to be the assistant's"),
        (turns("system"), "^messages: expected the last turn to be the assistant's"),
        ([{"role": "user", "content": ""}], r"^messages\[0\]: expected non-empty text"),
        ([{"role": "user", "content": ["x"]}], r"^messages\[0\]: expected non-empty text"),
    ],
)
def test_turns_out_of_order_are_refused(value, message):
    with pytest.raises(UserError, match=message):
        validate_conversation(value)


def test_a_prompt_may_end_with_a_user_turn_but_not_with_a_system_turn():
    assert validate_conversation(turns("system", "user"), require_answer=False) == turns("system", "user")
    with pytest.raises(UserError, match="expected a user turn"):
        validate_conversation(turns("system"), require_answer=False)
