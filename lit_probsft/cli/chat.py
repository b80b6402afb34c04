"""A quick talk with a model: one line of input is one turn, and its answer is written as it comes."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from lit_probsft.data.tokens.rendering import Renderer, chosen_template
from lit_probsft.data.tokens.tokenization import tokenize_prompt
from lit_probsft.data.tokens.tokenizers import read_tokenizer
from lit_probsft.errors import UserError
from lit_probsft.model import PretrainedCausalLM
from lit_probsft.model.generation import Generation
from lit_probsft.run.folder import RunFolder

_HELP = "/reset forgets the talk so far, /exit or the end of the input ends it, Ctrl-C stops an answer"


class Chat:
    """A conversation with a model.

    Args:
        model: loaded.
        tokenizer: with a chat template.
        generation: how answers are written.
        system: a text that stands in front.
    """

    def __init__(self, model: Any, tokenizer: Any, generation: Generation, system: str | None = None) -> None:
        self.model, self.tokenizer, self.generation = model, tokenizer, generation
        self._first = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Forget all but the system text."""
        self.messages = list(self._first)

    def answer(self, text: str, out: Any) -> str:
        """Answer one turn of the user's, writing to `out` as it comes; an interruption ends the answer where it is.

        Raises:
            UserError: the template refuses the conversation, or it has become too long; it is as it was before.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt = tokenize_prompt(self.tokenizer, asked)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and len(prompt) >= limit:
            raise UserError(
                "chat", f"the talk has {len(prompt)} tokens, the model {limit} positions; /reset begins anew"
            )
        stream = _Stream(self.tokenizer, out)
        ids = torch.tensor([prompt], device=self.model.device)
        options = self.generation.as_kwargs()
        if limit is not None:
            options["max_new_tokens"] = min(options["max_new_tokens"], limit - len(prompt))
        pad = self.tokenizer.pad_token_id
        with contextlib.suppress(KeyboardInterrupt), torch.no_grad():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
                streamer=stream,
                **options,
            )
        stream.end()
        # Not `learnt`: where the earlier turns lie is asked for masks alone, and not every template can tell.
        self.messages = [*asked, {"role": "assistant", "content": stream.text, "train": False}]
        return stream.text


class _Stream(transformers.generation.BaseStreamer):  # type: ignore[misc]
    """Writes what tokens say once they say it whole: a character may take several of them."""

    def __init__(self, tokenizer: Any, out: Any) -> None:
        self._tokenizer, self._out = tokenizer, out
        self._ids: list[int] = []
        self._prompt = True
        self.text = ""

    def put(self, value: torch.Tensor) -> None:
        """The next ids; the prompt comes first."""
        if self._prompt:
            self._prompt = False
            return
        self._ids += value.flatten().tolist()
        text = self._decoded()
        if not text.endswith("\ufffd"):
            self._show(text)

    def end(self) -> None:
        """What is left, whole or not."""
        self._show(self._decoded())

    def _decoded(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _show(self, text: str) -> None:
        self._out.write(text[len(self.text) :])
        self._out.flush()
        self.text = text


def run_chat(options: argparse.Namespace) -> None:
    """The command.

    Args:
        options: `model`, `system`, `temperature`, `top_p`, `max_new_tokens`, `seed`, `device`, `dtype`, `revision`,
            `trust_remote_code`.

    Raises:
        UserError: a flag is out of range, or the model is not there or cannot hold a conversation.
    """
    try:
        generation = Generation(options.max_new_tokens, options.temperature, options.top_p)
    except UserError as error:
        flag = error.argument.removeprefix("generation.").replace("_", "-")
        raise UserError(f"--{flag}", error.problem) from error
    device = _device(options.device)
    chat = Chat(*loaded(options, device), generation, options.system)
    torch.manual_seed(options.seed)
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):  # not everywhere; then lines cannot be edited
            import readline  # noqa: F401
        print(f"{options.model} ({_HELP})")
    for line in _lines(terminal):
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            chat.reset()
        elif text:
            try:
                chat.answer(text, sys.stdout)
            except UserError as error:
                if not terminal:
                    raise
                print(error, end="")
            print(flush=True)


def loaded(options: argparse.Namespace, device: torch.device) -> tuple[Any, Any]:
    """Model and tokenizer that `options.model` names: an exported folder, a run's folder, or a hub id."""
    place, revision, trusted = _place(options.model), options.revision, options.trust_remote_code
    if revision is not None and Path(place).exists():
        raise UserError("--revision", f"expected it with a hub id, {place} is a folder")
    dtype = options.dtype if options.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # of sampling options that do not matter where none is sampled
    try:
        tokenizer = read_tokenizer(place, revision, trusted)
        try:
            render = Renderer(tokenizer, chosen_template(tokenizer, None))
        except UserError as error:
            raise UserError(
                "MODEL",
                f"expected a model with a chat template, {options.model!r} has none: it has not been trained to "
                "hold a conversation; fine-tune it first",
            ) from error
        if options.system:
            _check_system(render, options.system)
        model = PretrainedCausalLM(place, revision=revision, trust_remote_code=trusted).load(
            None, getattr(torch, dtype)
        )
    except UserError as error:
        raise _renamed(error) from error
    return model.to(device).eval(), tokenizer


def _check_system(render: Renderer, text: str) -> None:
    try:
        whole = render([{"role": "system", "content": text}, {"role": "user", "content": "a"}], True)
    except UserError as error:
        raise UserError("--system", f"the model's chat template refuses a system text: {error}") from error
    if text.strip() not in whole:
        raise UserError("--system", f"the model's chat template leaves a system text out, or changes it: {whole!r}")


def _place(name: str) -> str:
    """The folder or hub id."""
    path = Path(name).expanduser()
    if path.is_file() or (path / "meta.pt").exists() or (path.is_dir() and path.suffix == ".ckpt"):
        raise UserError(
            "MODEL",
            f"expected a model's folder, {name} is a checkpoint; make one of it: "
            f"python -m lit_probsft export {name} OUT",
        )
    if not path.is_dir():
        return name
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return str(path)
    if RunFolder(path).hf.is_dir():
        return str(RunFolder(path).hf)
    raise UserError("MODEL", f"expected an exported model, the folder of a run with one, or a hub id, got {name!r}")


def _renamed(error: UserError) -> UserError:
    flags = {"name_or_path": "MODEL", "trust_remote_code": "--trust-remote-code"}
    flags |= {"model.model.model_name_or_path": "MODEL", "model.model.trust_remote_code": "--trust-remote-code"}
    return UserError(flags[error.argument], error.problem) if error.argument in flags else error


def _device(name: str) -> torch.device:
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        torch.empty(1, device=(device := torch.device(name)))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError("--device", f"expected one that is here, such as cpu or cuda, got {name!r}") from error
    return device


def _lines(terminal: bool) -> Iterator[str]:
    """Lines of the input; at a terminal with a prompt, where Ctrl-C ends them too."""
    if not terminal:
        yield from sys.stdin
        return
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        yield line
