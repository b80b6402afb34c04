"""Blocks of reasoning are found wherever they stand in an answer; tags that it only mentions are text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.data import tokenize_conversation
from lit_probsft.data.tokens.reasoning import drop_reasoning, exclude_reasoning, find_blocks
from lit_probsft.errors import UserError
from tests.data.chat_templates import CHATML

USER = {"role": "user", "content": "q"}
FENCE = "```xml\n<think>x</think>\n```"

# Answer: what is left without its reasoning.
ANSWERS = {
    "<think>a</think>b": "b",
    "<think>\na\n</think>\n\nb": "b",
    "<think>\n\n</think>\n\nb": "b",
    "a\n\n<think>\nb\n</think>\n\nc\n\n<think>\nd\n</think>\n\ne": "a\n\nc\n\ne",
    "a <think>b</think> c": "a c",
    "a <think>b</think>": "a",
    # The prompt has opened the block.
    "a\n</think>\n\nb": "b",
    "a</think>b": "b",
    "</think>\nb <think>c</think>d": "b d",
    # Mentioned tags.
    "Use the <think> tag.": "Use the <think> tag.",
    "Close it with `</think>`.": "Close it with `</think>`.",
    "The </think> tag closes it.": "The </think> tag closes it.",
    "`<think>a</think>` shows it.": "`<think>a</think>` shows it.",
    "Open <think>, then `</think>`.": "Open <think>, then `</think>`.",
    f"An example:\n{FENCE}": f"An example:\n{FENCE}",
    # Blocks and mentioned tags.
    "<think>\nWhat is `</think>`?\n</think>\n`</think>` closes.": "`</think>` closes.",
    "<think>\nWhat is <think>?\n</think>\nA tag.": "A tag.",
    f"<think>\n{FENCE}\n</think>\nb": "b",
    "Not <think>.\n<think>\na\n</think>\nb": "Not <think>.\nb",
    "<think>\n```\nunfinished</think>b\n```\nc\n```": "b\n```\nc\n```",
    "<think>an odd ` tick</think>b `c`": "b `c`",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_drop_removes_the_blocks_alone(answer):
    dropped = drop_reasoning([USER, {"role": "assistant", "content": answer, "reasoning_content": "r"}])
    assert dropped == [USER, {"role": "assistant", "content": ANSWERS[answer]}]
    assert drop_reasoning(dropped) == dropped


def test_drop_leaves_other_roles_alone():
    user = {"role": "user", "content": "<think>a</think>b"}
    assert drop_reasoning([user]) == [user]


texts = st.sampled_from(["a", "b\n", "\n\nc", " d ", "<think> e", "`</think>`", "<|im_end|>"])
blocks = st.sampled_from(["<think>x</think>", "\n<think>\n\ny\n</think>\n\n", "<think>\n</think>"])


@settings(max_examples=30, deadline=None)
@given(st.lists(texts | blocks, min_size=1, max_size=6).map("".join))
def test_mask_supervises_what_drop_leaves(byte_tokenizer, answer):
    messages = [USER, {"role": "assistant", "content": answer}]
    try:
        dropped = drop_reasoning(messages)[1]["content"]
    except UserError:
        dropped = ""
    tokens = tokenize_conversation(byte_tokenizer, messages, chat_template=CHATML, reasoning="mask")
    labels = [label for label in tokens["labels"] if label != -100]
    left = byte_tokenizer.decode(labels, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert left.removesuffix("<|im_end|>").strip() == dropped.strip()
    assert [label for label in labels if label > 255] == [258]


def test_a_block_that_the_prompt_opens_or_a_line_begins_must_be_closed():
    text = "ask<think>\na</think>b"
    assert exclude_reasoning(text, [(11, len(text))]) == [(len(text) - 1, len(text))]
    for unclosed, span in (("ask<think>\nb", (11, 12)), ("<think>\nb", (0, 9))):
        with pytest.raises(UserError, match="^reasoning: expected </think> after <think>"):
            exclude_reasoning(unclosed, [span])
    with pytest.raises(UserError, match="^reasoning: expected </think> after <think>"):
        drop_reasoning([{"role": "assistant", "content": "<think>\nb"}])
    assert find_blocks("<think> is a tag") == []
    unfinished = "```\na</think>b\n```"
    assert find_blocks(unfinished, is_open=True) == [(0, unfinished.index("b"))]
    assert find_blocks(unfinished) == []
