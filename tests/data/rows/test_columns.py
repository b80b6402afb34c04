import pytest

from lit_probsft.data.rows.columns import fill_template
from lit_probsft.data.rows.formats import Columns
from lit_probsft.errors import UserError


def conversation_from_columns(row, **columns):
    return Columns(**columns).example(row).messages


ROW = {"question": "2+2?", "answer": "4", "n": 4, "blank": " "}


def test_columns_and_templates_become_a_user_and_an_assistant_turn():
    turns = conversation_from_columns(
        ROW, prompt="{question}\nThink step by step.", response="answer", system="Be {answer}."
    )
    assert turns == [
        {"role": "system", "content": "Be 4."},
        {"role": "user", "content": "2+2?\nThink step by step."},
        {"role": "assistant", "content": "4"},
    ]


def test_columns_are_recognized_when_none_is_named():
    messages = [{"role": "user", "content": "a", "extra": None}, {"role": "assistant", "content": "b"}]
    expected = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert conversation_from_columns({"prompt": "a", "response": "b"}) == expected
    assert conversation_from_columns({"messages": messages, "prompt": "x", "response": "y"}) == expected
    assert conversation_from_columns({"chat": messages}, messages="chat") == expected


def test_a_system_text_does_not_replace_the_system_turn_of_a_row():
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    assert conversation_from_columns({"messages": messages}, system="other") == messages


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (r"{question} in \boxed{{}}", r"2+2? in \boxed{}"),
        (r"{question} in \boxed{}", r"2+2? in \boxed{}"),
        (r"\boxed{{{answer}}} {question}", r"\boxed{4} 2+2?"),
        ("{question} {1, 2}", "2+2? {1, 2}"),
        ("{{question}} {answer}", "{question} 4"),
    ],
)
def test_doubled_and_empty_braces_are_literal(template, text):
    assert fill_template(template, ROW, argument="prompt") == text


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prompt": "quesion", "response": "answer"}, r"^prompt: no column 'quesion' among .*Did you mean 'question'"),
        ({"prompt": "{quesion}!", "response": "answer"}, r"^prompt: no column 'quesion'.*Did you mean 'question'"),
        ({"prompt": "{question} {b}", "response": "answer"}, r"^prompt: no column 'b'.*written twice"),
        ({"prompt": "no column at all", "response": "answer"}, "^prompt: no column 'no column at all'"),
        ({"prompt": "question"}, "^response: expected a column or a template"),
        ({"response": "answer"}, "^prompt: expected a column or a template"),
        ({"messages": "chat"}, "^messages: no column 'chat'"),
        ({"messages": "chat", "prompt": "question"}, "^messages: expected either"),
        ({}, "^prompt: expected the columns of a known format: `messages`.*'question', 'answer'"),
        ({"prompt": "question", "response": "n"}, "^response: column 'n': expected non-empty text, got 4"),
        (
            {"prompt": "blank", "response": "answer"},
            "^prompt: column 'blank': expected non-empty text, got ' '",
        ),
        ({"prompt": "q: {blank}", "response": "answer"}, "^prompt: column 'blank': expected non-empty text"),
        ({"prompt": "question", "response": "answer", "system": "{n}"}, "^system: column 'n'"),
    ],
)
def test_bad_columns_are_refused_and_the_argument_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        conversation_from_columns(ROW, **kwargs)


def test_a_field_of_a_nested_column_has_a_dotted_name() -> None:
    row = {"id": 3, "extra": {"question": "1 + 1?", "deep": {"answer": "2"}}}
    turns = conversation_from_columns(row, prompt="{extra.question} Think.", response="extra.deep.answer")
    assert [turn["content"] for turn in turns] == ["1 + 1? Think.", "2"]
    with pytest.raises(UserError, match=r"response: no column 'extra.answer'.*'extra.deep.answer'"):
        conversation_from_columns(row, prompt="extra.question", response="extra.answer")


@pytest.mark.parametrize(
    ("options", "columns", "used"),
    [
        ({}, "prompt response id system weight", "prompt response system"),
        ({"system": "Be kind."}, "prompt response system", "prompt response"),
        ({"system": "Be {tone}, {system}."}, "prompt response tone system", "prompt response tone system"),
        ({"system": "tone"}, "prompt response tone", "prompt response"),
        ({"prompt": "{system}?", "response": "a", "system": "b"}, "system a b", "system a"),
        ({"prompt": "{extra.q}", "response": "extra.a", "weight": "w.x"}, "id extra ext w", "extra w"),
        ({"prompt": "{{q}} {q.a", "response": "a"}, "q a", "a"),
        ({"require_response": False}, "prompt id", "prompt"),
        ({}, "messages tools prompt response chat_template_kwargs history", "messages tools chat_template_kwargs"),
        ({"messages": "chat"}, "chat messages tools", "chat tools"),
        ({}, "conversations system history image", "conversations system history"),
        ({}, "instruction input output history system text", "instruction input output history system"),
        ({"require_response": False}, "instruction input output", "instruction input output"),
        ({"weight": "w"}, "input_ids labels attention_mask w", "input_ids labels w"),
        ({"text": "story"}, "story text url", "story"),
        ({}, "question answer", "question answer"),
    ],
)
def test_the_used_columns_are_those_that_a_row_is_made_of(options, columns, used):
    assert Columns(**options).used(columns.split()) == used.split()
