"""A chat with a model, whose answers are printed while they are generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import transformers
from typing_extensions import override

from lit_probsft.data.tokens.tokenization import tokenize_prompt
from lit_probsft.errors import UserError
from lit_probsft.model.generation import Generation


class ChatSession:
    """A conversation with a model.

    Args:
        model: in evaluation mode.
        tokenizer: with a chat template.
        generation: how answers are generated.
        system: the system message.
        template_options: further names that the chat template reads.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        generation: Generation,
        system: str | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._template_options = template_options
        self.model, self.tokenizer, self.generation = model, tokenizer, generation
        self._start = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Start a new conversation with the same system message."""
        self.messages = list(self._start)

    def answer(self, text: str) -> str:
        """Answer a turn of the user, printing the answer while it is generated. Ctrl-C ends the answer early.

        Raises:
            UserError: if the template refuses the conversation, or it is too long for the model. The conversation stays
                as it was.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = tokenize_prompt(self.tokenizer, messages, template_options=self._template_options)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and len(prompt) >= limit:
            raise UserError(
                "chat",
                f"the conversation has {len(prompt)} tokens, the model {limit} positions; /reset starts a new one",
            )
        generation = self.generation
        if limit is not None:
            generation = replace(generation, max_new_tokens=min(generation.max_new_tokens, limit - len(prompt)))
        ids = torch.tensor([prompt], device=self.model.device)
        streamer = _Streamer(
            self.tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        try:
            with torch.no_grad():
                pad = self.tokenizer.pad_token_id
                generation.answer(self.model, ids, torch.ones_like(ids), pad_token_id=pad, streamer=streamer)
        except KeyboardInterrupt:
            streamer.end()
        # `train: False`: only the prompt is rendered, so the template need not show where earlier turns begin.
        self.messages = [*messages, {"role": "assistant", "content": streamer.text, "train": False}]
        return streamer.text


class _Streamer(transformers.TextStreamer):  # type: ignore[misc]
    """Prints an answer while it is generated, and keeps it in `text`."""

    text = ""

    @override
    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        super().on_finalized_text(text, stream_end)
