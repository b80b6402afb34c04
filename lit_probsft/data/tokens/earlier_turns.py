"""Finds the assistant's turns before the last one, in the text that ends with the prompt for the last."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from lit_probsft.data.tokens.answers import align
from lit_probsft.data.tokens.prompts import prompt_for
from lit_probsft.data.tokens.reasoning import reasoning_of, without_reasoning
from lit_probsft.data.tokens.rendering import Renderer, Span, highlight
from lit_probsft.data.tokens.turn_checks import Messages, insert_probe, unused_probe
from lit_probsft.data.tokens.turn_ends import common_end, find_content_end, find_end
from lit_probsft.errors import UserError


class RewrittenHistory(UserError):
    """The template renders earlier turns differently once later turns follow, so a turn cannot be found."""


@dataclass(frozen=True)
class EarlierTurns:
    """Finds turns in a text.

    Attributes:
        base: renders with the options that the user has set.
        render: renders with the options for the last answer.
        messages: of the text.
        text: `render(messages, prompts)`.
        prompts: the text ends with the prompt for an answer.
        special: matches special tokens.
        stops: the tokens that stop generation.
    """

    base: Renderer
    render: Renderer
    messages: Messages
    text: str
    prompts: bool
    special: re.Pattern[str]
    stops: Collection[str]

    def span(self, index: int) -> Span:
        """Find turn `index`.

        Raises:
            RewrittenHistory: neither its prompt nor probes locate it.
        """
        message = self.messages[index]
        start = self.start(index)
        through = self.render(self.messages[: index + 1])
        if through.startswith(self.text[:start]):
            limit = common_end(through, self.text, start)
            content_end = find_content_end(self.text, (start, limit), message, self.special)
            if content_end is not None:
                return start, self._end(index, content_end, limit)
        ending = self._ending_by_probe(index)
        if ending is None:
            raise self._rewritten(index)
        return start, self._end(index, *ending)

    def start(self, index: int) -> int:
        """Find where turn `index` starts: where the prompt that asks for it ends, or the text begins to differ from it.

        Raises:
            RewrittenHistory: the text does not show it.
        """
        before, message = self.messages[:index], self.messages[index]
        shared = []
        for asked in (message, without_reasoning(message)):  # the template may leave out earlier reasoning
            render, prompt = prompt_for(self.base, before, asked)
            if self.text.startswith(prompt):
                return len(prompt)
            if aligned := align(self._render, render, self.messages, index, self.text, prompt):
                shared.append(aligned.given)
            if not reasoning_of(message):
                break
        if not shared:
            raise self._rewritten(index)
        return max(shared)

    def _render(self, messages: Messages) -> str:
        return self.render(messages, self.prompts)

    def _ending_by_probe(self, index: int) -> Span | None:
        """What the template writes after the turn's content, up to where a last turn would continue differently.

        None unless a probe at the end of the content appears exactly once and leaves the rest of the text unchanged.
        """
        probe = unused_probe(self.text)
        probed = insert_probe(self.messages, index, probe)
        text = self._render(probed)
        if text.count(probe) != 1 or text.replace(probe, "") != self.text:
            return None
        content_end = text.index(probe)
        after_last = self.render(probed[: index + 1]).partition(probe)[2]
        return content_end, content_end + common_end(after_last, self.text[content_end:])

    def _end(self, index: int, content_end: int, limit: int) -> int:
        """The end of a turn. `limit` is the end of what the template also writes after a last turn."""
        end = find_end(self.text, (content_end, limit), self.special, self.stops)
        if end is not None:
            return end
        # The template ends a turn only once another follows, with a token of its own or with that of the next role.
        following = self.messages[index + 1]["content"].strip() if index + 1 < len(self.messages) else ""
        found = self.special.search(self.text, content_end)
        next_content = self.text.find(following, content_end) if following else -1
        if found is None or -1 < next_content < found.start():
            return limit
        return found.end()

    def _rewritten(self, index: int) -> RewrittenHistory:
        before, through = self.render(self.messages[:index], True), self.render(self.messages[: index + 1])
        return RewrittenHistory(
            "chat_template",
            f"the template renders earlier turns differently once later turns follow, so the assistant's turn "
            f"{index} cannot be found; split such conversations (`rewritten_history: split`), supervise the last "
            f"turn only (`turns: last`), or mark it with {{% generation %}} in a template of your own.\n"
            f"Up to the turn: {highlight(before, [])}\nWith the turn: {highlight(through, [])}\n"
            f"Whole conversation: {highlight(self.text, [])}",
        )
