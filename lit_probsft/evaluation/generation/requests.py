"""What is asked of a backend, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_probsft.data.rows.conversation import Message

GREEDY = -1
"""The number of the sample that is decoded greedily, where others of the same prompt are drawn."""


@dataclass(frozen=True)
class Draw:
    """One answer that is wanted.

    Attributes:
        sample: its number among the answers to the prompt, or `GREEDY`.
        seed: for sampling. The same prompt, seed and temperature give the same answer in any batch.
        temperature: 0 is greedy.
    """

    sample: int
    seed: int
    temperature: float


@dataclass(frozen=True)
class Request:
    """A prompt, and the answers that are wanted.

    Attributes:
        index: names the request.
        messages: the conversation up to the answer.
        prompt: (T,) token ids of `messages`, as training has them before an answer. Empty if only a server can
            render them.
        draws: the answers.
        max_new_tokens: the most tokens of an answer. The prompt and these fit the model's context.
    """

    index: int
    messages: Sequence[Message]
    prompt: Sequence[int]
    draws: Sequence[Draw]
    max_new_tokens: int


@dataclass(frozen=True)
class Answer:
    """An answer to a request.

    Attributes:
        index: of the request.
        sample: of the draw.
        text: without special tokens.
        tokens: generated tokens, with the one that ends the answer.
        finish_reason: `stop`, or `length` if the answer was cut off.
    """

    index: int
    sample: int
    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]


class Backend(ABC):
    """Generates answers."""

    @abstractmethod
    def answer(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Yield the answers in the order in which they are finished, soon after each is."""

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """What the results file says of it: name, versions, dtype, device."""

    def close(self) -> None:  # noqa: B027  most have nothing to release
        """Release processes and connections."""
