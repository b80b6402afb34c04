"""A chat with a model, whose answers are printed while they are generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from typing_extensions import override

from lit_probsft.data.tokens.rendering import Renderer, chosen_template
from lit_probsft.data.tokens.template_defaults import check_template_reads
from lit_probsft.data.tokens.tokenization import tokenize_prompt
from lit_probsft.data.tokens.tokenizers import read_tokenizer
from lit_probsft.errors import UserError
from lit_probsft.model import PretrainedCausalLM
from lit_probsft.model.generation import Generation
from lit_probsft.run.folder import RunFolder
from lit_probsft.storage.gguf import gguf_at


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


def load_model(
    name: str,
    device: torch.device,
    dtype: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    system: str | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Load a model and its tokenizer for a conversation.

    Args:
        name: an exported folder, the folder of a run, a GGUF file, or a hub id.
        device: of the model.
        dtype: of the weights; `auto` is bfloat16 on a GPU, else float32.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run code that comes with the model.
        system: a system message, which the chat template must render.
        template_options: further names, which the chat template must read.

    Raises:
        UserError: naming the flag of `chat`.
    """
    place = _folder_or_hub_id(name)
    if revision is not None and Path(place).exists():
        raise UserError("--revision", f"applies to a hub id, {place} is a folder")
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # hides warnings about options that `chat` does not use
    try:
        tokenizer = read_tokenizer(place, revision, trust_remote_code)
        try:
            render = Renderer(tokenizer, chosen_template(tokenizer, None), options=template_options or {})
        except UserError as error:
            raise UserError(
                "MODEL",
                f"{name!r} has no chat template, so it is not trained for chat; fine-tune it first",
            ) from error
        check_template_reads(tokenizer, template_options or {})
        if system:
            _check_system(render, system)
        source = PretrainedCausalLM(place, revision=revision, trust_remote_code=trust_remote_code)
        model = source.load(None, getattr(torch, dtype))
    except UserError as error:
        raise UserError(_FLAGS.get(error.argument.rpartition(".")[2], error.argument), error.problem) from error
    return model.to(device).eval(), tokenizer


_FLAGS = {
    "name_or_path": "MODEL",
    "model_name_or_path": "MODEL",
    "trust_remote_code": "--trust-remote-code",
    "template_options": "--template-options",
}
"""Flags of `chat`, by the last part of the argument that an error names."""


def device_named(name: str) -> torch.device:
    """The device; `auto` is the accelerator, or the CPU on a machine without one.

    Raises:
        UserError: if this machine does not have it.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        torch.zeros(1, device=(device := torch.device(name))).item()  # a device without data, meta, refuses
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError("--device", f"expected an available device, such as cpu or cuda, got {name!r}") from error
    return device


def _check_system(render: Renderer, text: str) -> None:
    try:
        prompt = render([{"role": "system", "content": text}, {"role": "user", "content": "a"}], True)
    except UserError as error:
        raise UserError("--system", f"the model's chat template refuses a system message: {error}") from error
    if text.strip() not in prompt:
        raise UserError("--system", f"the model's chat template drops or changes the system message: {prompt!r}")


def _folder_or_hub_id(name: str) -> str:
    path = Path(name).expanduser()
    if gguf_at(name) is not None:
        return str(path)
    if path.is_file() or (path / "meta.pt").exists() or (path.is_dir() and path.suffix == ".ckpt"):
        raise UserError(
            "MODEL",
            f"expected the folder of a model, {name} is a checkpoint; convert it with "
            f"python -m lit_probsft export {name} OUT",
        )
    if not path.is_dir():
        return name
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return str(path)
    if (hf := RunFolder(path, "MODEL").hf).is_dir():
        return str(hf)
    raise UserError("MODEL", f"expected an exported model, the folder of a run that has one, or a hub id, got {name!r}")
