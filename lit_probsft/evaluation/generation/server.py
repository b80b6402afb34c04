"""A backend that asks a server with the OpenAI protocol."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lit_probsft.data.tokens.rendering import adds_bos
from lit_probsft.data.tokens.tokenization import tokenize_prompt
from lit_probsft.errors import UserError
from lit_probsft.evaluation.generation.http_client import HttpClient, Refused
from lit_probsft.evaluation.generation.requests import Answer, Backend, Draw, Request

_SEED_BITS = 2**31 - 1
"""All servers take seeds of this many bits."""

_NO_FILTER = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Turns off filters that vLLM and SGLang take from the model's folder, and llama.cpp from its own defaults."""

_NO_FILTER_OF_TRANSFORMERS = {"num_beams": 1, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0}
_NO_FILTER_OF_TRANSFORMERS |= {"top_k": 0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
"""The same for `transformers serve`. It also needs `do_sample`: otherwise it samples only if the folder says so."""

_FORMS = [
    (prompt, filters_off_by)
    for prompt in ("tokens", "text", "messages")
    for filters_off_by in ("fields", "generation_config", None)
]
"""How a server takes prompts, the most exact first, and what in the request turns off filters."""


class ServerBackend(Backend):
    """Asks a server with the OpenAI protocol: vLLM, SGLang, llama.cpp, `transformers serve` and others.

    A short question at the start finds out how the server takes prompts: as token ids, as their text, or as messages,
    which its own template renders. The first of these counts that it accepts and for which it reports as many prompt
    tokens as training has. Temperature and seed are those of the draw. Other filters of the server or of the model's
    folder, such as a repetition penalty, are turned off if the server allows it.

    Args:
        url: of the server, with or without `/v1`, such as `http://localhost:8000`.
        model: its name on the server. None takes the only one that the server lists.
        tokenizer: of the model. Without one, the server gets messages.
        top_p: share of the probability mass that is sampled from, above 0 and at most 1.
        concurrency: number of requests at a time.
        retries: of a request, after connection errors and the statuses 408, 429 and 5xx.
        timeout: seconds to wait for an answer, including its time in the server's queue.
        api_key: sent as a bearer token.
        template_options: further names that the chat template reads, where the server renders messages.

    Raises:
        UserError: no server answers, it refuses the request, or it serves several models and `model` is None.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        tokenizer: Any = None,
        top_p: float = 1.0,
        concurrency: int = 32,
        retries: int = 5,
        timeout: float = 3600.0,
        api_key: str | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._client = HttpClient(url, retries=retries, timeout=timeout, api_key=api_key)
        self._tokenizer, self._top_p, self._concurrency = tokenizer, top_p, concurrency
        self._template_options = dict(template_options or {})
        self.model, self._owner = self._find_model(model)
        self._form = self._find_form()

    @override
    def describe(self) -> dict[str, Any]:
        place = {"url": self._client.url, "model": self.model, "owner": self._owner}
        prompt, filters_off_by = self._form
        return {"name": "server", **place, "prompt": prompt, "top_p": self._top_p, "filters_off": bool(filters_off_by)}

    @override
    def answer(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Yield the answers in the order in which they are finished.

        Raises:
            UserError: a request failed; raised after the answers to the requests that the server has begun.
        """
        tasks: SimpleQueue[tuple[Request, Draw]] = SimpleQueue()
        results: SimpleQueue[tuple[Answer, bool] | Exception | None] = SimpleQueue()  # the last two end a worker
        for request in requests:
            for draw in request.draws:
                tasks.put((request, draw))
        ended = threading.Event()

        def work() -> None:
            try:
                while not ended.is_set():
                    results.put(self._answer(*tasks.get_nowait()))
            except Empty:
                results.put(None)
            except Exception as error:
                ended.set()
                results.put(error)
            else:
                results.put(None)

        for _ in range(self._concurrency):
            # A daemon, because a process that should stop does not wait for the answers.
            threading.Thread(target=work, daemon=True).start()
        running, inexact, failure = self._concurrency, 0, None
        try:
            while running:
                result = results.get()
                if isinstance(result, tuple):
                    inexact += not result[1]
                    yield result[0]
                else:
                    running -= 1
                    failure = failure or result
        finally:
            ended.set()
        if failure is not None:
            raise failure
        if inexact:
            rank_zero_info(f"--server: for {inexact} answers, the server saw other prompt tokens than training has")

    def _find_model(self, name: str | None) -> tuple[str, str | None]:
        """The model's name, and its owner according to the server, which tells servers apart."""
        try:
            listed = self._client.call("/models", starting=True).get("data") or []
        except Refused as error:
            if name is None or error.status in (401, 403):
                raise
            return name, None
        try:
            owners = {str(model["id"]): model.get("owned_by") for model in listed}
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"expected a list of models from {self._client.url}/models, got {str(listed)[:200]}"
            raise UserError("--server", problem) from error
        if name is None and len(owners) != 1:
            names = ", ".join(itertools.islice(owners, 20)) or "none"
            raise UserError("--server", f"expected one model at {self._client.url}, got {names}; name the model")
        name = name or next(iter(owners))
        return name, owners.get(name)

    def _find_form(self) -> tuple[str, str | None]:
        """The first form that the server accepts and with which it sees all tokens, or else the last it accepts."""
        messages = [{"role": "user", "content": "Hi"}]
        prompt: list[int] = []
        if self._tokenizer is not None:
            prompt = tokenize_prompt(self._tokenizer, messages, template_options=self._template_options)
        accepted: tuple[str, str | None] | None = None
        for form in _FORMS:
            if (not prompt and form[0] != "messages") or (accepted and accepted[0] == form[0]):
                continue
            try:
                reply = self._ask(form, Request(0, messages, prompt, [], 1), Draw(0, 0, 0.0))
            except Refused as error:
                if error.status in (401, 403) or (form is _FORMS[-1] and not accepted):
                    raise
                continue
            if not prompt and _counted(reply, "completion_tokens") is None:
                raise self._counts_nothing()
            accepted = form
            if _sees(reply, prompt):
                break
        assert accepted is not None
        return accepted

    def _counts_nothing(self) -> UserError:
        return UserError("--server", f"{self._client.url} does not count tokens, which takes a tokenizer then")

    def _ask(self, form: tuple[str, str | None], request: Request, draw: Draw) -> dict[str, Any]:
        """What the server returns to the request for one answer."""
        prompt, filters_off_by = form
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.max_new_tokens,
            "temperature": draw.temperature,
            "top_p": self._top_p if draw.temperature else 1.0,
            "seed": draw.seed & _SEED_BITS,
        }
        if filters_off_by == "fields":
            body |= _NO_FILTER
        elif filters_off_by == "generation_config":
            body["generation_config"] = json.dumps({"do_sample": draw.temperature > 0, **_NO_FILTER_OF_TRANSFORMERS})
        if prompt != "messages":
            body["prompt"] = list(request.prompt) if prompt == "tokens" else self._text(request.prompt)
            return self._client.call("/completions", body)
        body["messages"] = [{k: v for k, v in turn.items() if k != "train"} for turn in request.messages]
        if self._template_options:
            body["chat_template_kwargs"] = self._template_options
        return self._client.call("/chat/completions", body)

    def _text(self, prompt: Sequence[int]) -> str:
        """The text of a prompt, without the beginning-of-text token if the server's tokenizer adds one."""
        text: str = self._tokenizer.decode(prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text.removeprefix(self._tokenizer.bos_token or "") if adds_bos(self._tokenizer) else text

    def _answer(self, request: Request, draw: Draw) -> tuple[Answer, bool]:
        """One answer, and whether the server saw the tokens of the prompt."""
        reply = self._ask(self._form, request, draw)
        try:
            choice = reply["choices"][0]
            text = choice["text"] if "text" in choice else _with_reasoning(choice["message"])
            encoded = text.encode("utf-8", "replace")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            problem = f"expected an answer from {self._client.url}, got {str(reply)[:200]}"
            raise UserError("--server", problem) from error
        reason = choice.get("finish_reason")
        if reason in ("abort", "error"):
            raise UserError("--server", f"{self._client.url} gave up an answer: finish_reason {reason}")
        tokens = _counted(reply, "completion_tokens")
        if tokens is None:
            if self._tokenizer is None:
                raise self._counts_nothing()
            ids = self._tokenizer(encoded.decode(), add_special_tokens=False)["input_ids"]
            tokens = len(ids) + (reason != "length")
        finish: Literal["stop", "length"] = "length" if reason == "length" else "stop"
        return Answer(request.index, draw.sample, text, tokens, finish), _sees(reply, request.prompt)


def _sees(reply: Mapping[str, Any], prompt: Sequence[int]) -> bool:
    """Whether the server counts as many tokens as the prompt has; true if it does not count, or if there is none."""
    return not prompt or _counted(reply, "prompt_tokens") in (None, len(prompt))


def _counted(reply: Mapping[str, Any], name: str) -> int | None:
    """A number of tokens; None if the server does not count them."""
    usage = reply.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and count >= 0 else None


def _with_reasoning(message: Mapping[str, Any]) -> str:
    """The text of a message, with the reasoning that the server has cut out of it."""
    content: str = message.get("content") or ""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if not reasoning:
        return content
    return f"<think>\n{reasoning.strip()}" + (f"\n</think>\n\n{content}" if content else "")
