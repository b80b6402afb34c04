"""Adds tokens to a tokenizer. `lit_probsft.model.vocabulary` gives them rows in the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.errors import UserError

_ADDED_ATTRIBUTE = "_lit_probsft_added"


def check_added_tokens(tokens: Sequence[str], special: Sequence[str]) -> None:
    """Refuse invalid tokens before a tokenizer is loaded.

    Raises:
        UserError: names the option and the token.
    """
    seen: set[str] = set()
    for argument, texts in (("add_tokens", tokens), ("add_special_tokens", special)):
        if isinstance(texts, str):
            raise UserError(f"data.{argument}", f"expected a list of tokens, got the string {texts!r}")
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"data.{argument}", f"expected tokens that are not only white space, got {text!r}")
            if text in seen:
                raise UserError(f"data.{argument}", f"expected each token once, got {text!r} twice")
            seen.add(text)


def with_added_tokens(tokenizer: Any, tokens: Sequence[str] = (), special: Sequence[str] = ()) -> Any:
    """Return a tokenizer with these tokens added, or `tokenizer` itself if it has them all.

    Each is encoded as one id anywhere in a text. New ids follow the largest existing one, in the order of the lists. A
    token that is already in the vocabulary keeps its id, so adding a token twice changes nothing.

    Args:
        tokenizer: a fast tokenizer; it is not changed.
        tokens: ordinary tokens, such as `<think>`; decoding an answer shows them.
        special: control tokens, such as the end of a turn; decoding an answer leaves them out, and they may end a turn.
    """
    check_added_tokens(tokens, special)
    before = tokenizer.get_vocab()
    known = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    tokens = [text for text in tokens if text not in known]  # a token that is special stays special
    special = [text for text in special if not known.get(text)]
    if not tokens and not special:
        return tokenizer
    from tokenizers import AddedToken

    extended = copy.deepcopy(tokenizer)
    for texts, is_special in ((tokens, False), (special, True)):
        extended.add_tokens(
            [AddedToken(text, special=is_special, normalized=False) for text in texts], special_tokens=is_special
        )
    ids = {text: int(extended.convert_tokens_to_ids(text)) for text in (*tokens, *special)}
    setattr(extended, _ADDED_ATTRIBUTE, {text: id for text, id in ids.items() if text not in before})
    return extended


def added_token_ids(tokenizer: Any) -> Mapping[str, int]:
    """Return the ids that `with_added_tokens` added to a tokenizer's vocabulary, by token, ascending."""
    added: Mapping[str, int] = getattr(tokenizer, _ADDED_ATTRIBUTE, {})
    return added
