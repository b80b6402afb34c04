"""Tokens added to a tokenizer; `lit_probsft.model.vocabulary` gives them rows in the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.errors import UserError

_MARK = "_lit_probsft_added"


def check_added(tokens: Sequence[str], special: Sequence[str]) -> None:
    """Refuse what cannot be a token, before a tokenizer is loaded.

    Raises:
        UserError: naming the option and the token.
    """
    seen: set[str] = set()
    for argument, texts in (("add_tokens", tokens), ("add_special_tokens", special)):
        if isinstance(texts, str):
            raise UserError(f"data.{argument}", f"expected a list of tokens, got the text {texts!r}")
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"data.{argument}", f"expected texts that are more than white space, got {text!r}")
            if text in seen:
                raise UserError(f"data.{argument}", f"expected each token once, got {text!r} twice")
            seen.add(text)


def with_added(tokenizer: Any, tokens: Sequence[str] = (), special: Sequence[str] = ()) -> Any:
    """A tokenizer that finds these tokens in any text; `tokenizer` itself where it knows them all already.

    Each is one id wherever it stands in a text, whatever is around it. Ids follow the largest there is, in the order of
    the lists; a token that is in the vocabulary keeps its own, so that to add a token twice is to add it once.

    Args:
        tokenizer: a fast tokenizer; it is not changed.
        tokens: part of what an answer says, such as `<think>`: shown when it is decoded.
        special: for control, such as a mark of a turn: left out when an answer is decoded, and known as an end of one.
    """
    check_added(tokens, special)
    before = tokenizer.get_vocab()
    known = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    tokens = [text for text in tokens if text not in known]  # what is special there stays so
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
    setattr(extended, _MARK, {text: id for text, id in ids.items() if text not in before})
    return extended


def added_to(tokenizer: Any) -> Mapping[str, int]:
    """Ids of the tokens that `with_added` has put into a tokenizer's vocabulary, by their texts, ascending."""
    added: Mapping[str, int] = getattr(tokenizer, _MARK, {})
    return added
