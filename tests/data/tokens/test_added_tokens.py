"""Added tokens have one id each, anywhere in a text, and leave all other ids unchanged."""

from __future__ import annotations

from typing import Any

import pytest

from lit_probsft.data import BPETokenizer, ByteTokenizer, InstructionDataModule, PretrainedTokenizer
from lit_probsft.data.tokens.added_tokens import added_token_ids, with_added_tokens
from lit_probsft.errors import UserError

TEXT = "a<think>2 + 2</think>4<|go|><thinking"


@pytest.mark.parametrize("source", [ByteTokenizer(), BPETokenizer(280)], ids=["bytes", "bpe"])
def test_each_added_token_gets_one_new_id_and_other_ids_stay(source: Any) -> None:
    before = source.load(lambda: ["two and two are four"])
    size = len(before)
    after = with_added_tokens(before, ["<think>", "</think>"], ["<|go|>"])
    assert added_token_ids(after) == {"<think>": size, "</think>": size + 1, "<|go|>": size + 2}
    assert len(before) == size
    assert not added_token_ids(before)
    ids = after(TEXT)["input_ids"]
    pieces = ["a", size, "2 + 2", size + 1, "4", size + 2, "<thinking"]
    assert ids == [id for piece in pieces for id in ([piece] if isinstance(piece, int) else before(piece)["input_ids"])]
    # decoding shows ordinary tokens and skips special ones
    assert after.decode(ids, skip_special_tokens=True) == TEXT.replace("<|go|>", "")


def test_adding_a_token_twice_changes_nothing_even_after_saving(tmp_path: Any) -> None:
    after = with_added_tokens(ByteTokenizer().load(list), ["<think>"], ["<|go|>"])
    assert with_added_tokens(after, ["<think>"], ["<|go|>"]) is after
    after.save_pretrained(tmp_path)
    again = with_added_tokens(PretrainedTokenizer(str(tmp_path)).load(list), ["<think>", "<|im_end|>"], ["<|go|>"])
    assert not added_token_ids(again)
    assert again(TEXT)["input_ids"] == after(TEXT)["input_ids"]
    assert again.decode([again.eos_token_id], skip_special_tokens=True) == ""  # a special token stays special


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add_tokens": [" "]}, "data.add_tokens: expected tokens that are not only white space, got ' '"),
        ({"add_tokens": "<a>"}, "data.add_tokens: expected a list of tokens, got the string '<a>'"),
        (
            {"add_tokens": ["<a>"], "add_special_tokens": ["<a>"]},
            "data.add_special_tokens: expected each token once, got '<a>' twice",
        ),
    ],
)
def test_invalid_tokens_are_refused_at_construction(options: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        InstructionDataModule(tokenizer=ByteTokenizer(), **options)
    assert str(caught.value) == message
