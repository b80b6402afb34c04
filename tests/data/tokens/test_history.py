"""Conversations whose earlier turns the template rewrites are split into documents in which every turn is exact."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.data import ByteTokenizer, tokenize_conversation
from lit_probsft.data.tokens.tokenization import split_conversation, tokenize_prompt
from lit_probsft.errors import UserError
from tests.data.chat_templates import (
    CHATML,
    DROPS_REASONING,
    MARKED,
    MOVES_A_TEXT,
    REWRITES_HISTORY,
)
from tests.data.tokens.test_model_templates import CALL, MULTI, RESULT, USER, tokenizer_of

MARKED_AND_REWRITTEN = MARKED.replace(
    "{% generation %}{{ m['content']",
    "{% generation %}{{ (m['content'] if loop.last else m['content'].split('</think>')[-1])",
)
REWRITING = [DROPS_REASONING, MOVES_A_TEXT, REWRITES_HISTORY, MARKED_AND_REWRITTEN]

contents = st.sampled_from(["a", "b c", "d\n"])
answers = st.builds(
    lambda thought, content, train: {
        "role": "assistant",
        "content": (f"<think>{thought}</think>" if thought else "") + content,
        **({} if train else {"train": False}),
    },
    st.sampled_from(["", "x", "yy"]),
    contents,
    st.sampled_from([True, True, False]),
)
# A question, calls with the results of a tool, an answer.
exchanges = st.builds(
    lambda question, calls, answer: [
        {"role": "user", "content": question},
        *(message for call in calls for message in (call, {"role": "tool", "content": "r"})),
        answer,
    ],
    contents,
    st.lists(answers, max_size=2),
    answers,
)
conversations = st.lists(exchanges, min_size=1, max_size=3).map(lambda parts: [turn for part in parts for turn in part])
options = st.fixed_dictionaries(
    {"turns": st.sampled_from(["all", "first", "last"]), "reasoning": st.sampled_from(["learn", "mask", "drop"])}
)


@pytest.fixture(scope="module")
def tokenizer():
    """Its tokens show where a text was cut before it was tokenized."""
    result = ByteTokenizer().load(list)
    result.add_tokens(["\nb c"])
    return result


def supervised_turns(messages, turns):
    indices = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("train", True)]
    return {"all": indices, "first": indices[:1], "last": indices[-1:]}[turns]


def pairs(tokenizer, tokens):
    """(text before it, text) of each supervised stretch."""
    ids, labels = tokens["input_ids"], tokens["labels"]
    starts = [i for i in range(len(ids)) if labels[i] != -100 and (i == 0 or labels[i - 1] == -100)]
    found = []
    for start in starts:
        end = next((i for i in range(start, len(ids)) if labels[i] == -100), len(ids))
        found.append((tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:end])))
    return found


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([CHATML, *REWRITING]), conversations, options)
def test_every_turn_is_supervised_once_as_when_the_conversation_ends_with_it(tokenizer, template, messages, options):
    turns = supervised_turns(messages, options["turns"])
    if not turns:
        return
    documents = [
        tokenize_conversation(tokenizer, conversation, chat_template=template, **options)
        for conversation in split_conversation(tokenizer, messages, chat_template=template, **options)
    ]
    alone = [
        tokenize_conversation(
            tokenizer, messages[: turn + 1], chat_template=template, turns="last", reasoning=options["reasoning"]
        )
        for turn in turns
    ]
    assert Counter(pair for document in documents for pair in pairs(tokenizer, document)) == Counter(
        pair for document in alone for pair in pairs(tokenizer, document)
    )
    # No document could be part of a later one.
    ends = [before + text for before, text in (pairs(tokenizer, document)[-1] for document in documents)]
    assert not any(later.startswith(end) for i, end in enumerate(ends) for later in ends[i + 1 :])


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([CHATML, MARKED]), conversations, options)
def test_a_conversation_that_the_template_does_not_rewrite_stays_whole(tokenizer, template, messages, options):
    (whole,) = split_conversation(tokenizer, messages, chat_template=template, **options)
    if supervised_turns(messages, options["turns"]):
        kept = tokenize_conversation(tokenizer, messages, chat_template=template, **options)
        assert tokenize_conversation(tokenizer, whole, chat_template=template, **options) == kept


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([CHATML, *REWRITING]), conversations, options, st.booleans())
def test_the_prompt_of_the_last_turn_has_the_tokens_of_its_document(tokenizer, template, messages, options, answered):
    options = {**options, "turns": "all", "chat_template": template}
    messages = [*messages[:-1], {**messages[-1], "train": True}]
    tokens = tokenize_conversation(tokenizer, split_conversation(tokenizer, messages, **options)[-1], **options)
    asked = messages if answered else messages[:-1]
    prompt = tokenize_prompt(tokenizer, asked, rewritten_history="split", **options)
    assert tokens["input_ids"][: len(prompt)] == prompt
    assert tokens["labels"][len(prompt)] != -100 or options["reasoning"] == "mask"


def test_turns_of_one_tool_loop_share_a_document():
    qwen_3 = tokenizer_of("qwen_3")
    call = {"role": "assistant", "content": "", "reasoning_content": "Look.", "tool_calls": [CALL]}
    loop = [USER, call, RESULT, {"role": "assistant", "reasoning_content": "Wet.", "content": "Rain."}]
    split = split_conversation(qwen_3, [*loop, USER, *loop[1:]])
    assert [[turn.get("train") for turn in conversation[1::2]] for conversation in split] == [
        [None, None],
        [False, False, None, None],
    ]
    assert len(split[0]) == 4
    with pytest.raises(UserError, match="^chat_template: the template leaves out or changes part"):
        split_conversation(tokenizer_of("qwen_2_5"), [*loop, USER, *loop[1:]])  # leaves out all reasoning


def test_a_template_that_rewrites_history_advises_to_split(tokenizer):
    with pytest.raises(UserError, match="`rewritten_history: split`"):
        tokenize_conversation(tokenizer, MULTI, chat_template=REWRITES_HISTORY)
