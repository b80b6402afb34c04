"""Loads a model to chat with or to evaluate: from the hub, a folder, a run, a checkpoint or a GGUF file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
import transformers
from typing_extensions import override

from lit_probsft.data.tokens.rendering import Renderer, chosen_template, plain_template, read_template
from lit_probsft.data.tokens.template_defaults import check_template_reads
from lit_probsft.data.tokens.tokenizers import read_tokenizer
from lit_probsft.errors import UserError
from lit_probsft.model import PretrainedCausalLM
from lit_probsft.parallel.sharding import Sharding
from lit_probsft.run.checkpoint_export import export_checkpoint
from lit_probsft.run.folder import RunFolder
from lit_probsft.storage.adapter_folder import adapters_at, read_config
from lit_probsft.storage.atomic import read_json
from lit_probsft.storage.gguf import gguf_at


class TokenizerOptions(TypedDict, total=False):
    """Options of every function that loads a model or its tokenizer; see `load_tokenizer`."""

    revision: str | None
    trust_remote_code: bool
    chat_template: str | None
    system: str | None
    template_options: Mapping[str, Any] | None


@contextlib.contextmanager
def model_place(name: str) -> Iterator[str]:
    """Yield the hub id, folder or GGUF file that a name means, for as long as it is needed.

    A checkpoint is exported to a temporary folder, which is removed at the end.

    Args:
        name: an exported folder, the folder of a run, a checkpoint, a GGUF file, or a hub id.

    Raises:
        UserError: the name means a folder without a model, or a checkpoint that cannot be exported.
    """
    path = Path(name).expanduser()
    if gguf_at(name, "MODEL") is not None:
        yield str(path)
    elif path.is_file() or (path / "meta.pt").exists() or (path.is_dir() and path.suffix == ".ckpt"):
        with tempfile.TemporaryDirectory(prefix="lit_probsft-") as folder:
            with _errors_of_flags():
                export_checkpoint(path, Path(folder) / "model", form="merged")
            yield str(Path(folder) / "model")
    elif not path.is_dir():
        yield name
    elif (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        yield str(path)
    elif (hf := RunFolder(path, "MODEL").hf).is_dir():
        yield str(hf)
    else:
        raise UserError(
            "MODEL", f"expected an exported model, the folder of a run that has one, or a hub id, got {name!r}"
        )


def base_of(name: str, revision: str | None = None) -> str | None:
    """The base model that a model was fine-tuned from, as its adapters or its run name it; None if neither does.

    Args:
        name: as for `model_place`.
        revision: of a hub id.
    """
    path = Path(name).expanduser().absolute()
    for folder in (path, *path.parents)[:3]:  # the run's folder, hf/ in it, or a checkpoint in checkpoints/
        if (record := read_json(folder / "run.json")) is not None:
            base = (record.get("model") or {}).get("name")
            return str(base) if base else None
    adapters = adapters_at(name, revision)
    return None if adapters is None else read_config(adapters, "MODEL").get("base_model_name_or_path")


def load_tokenizer(
    place: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    system: str | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> Any:
    """Load the tokenizer of a model, with a chat template.

    Args:
        place: hub id, folder or GGUF file.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run code that comes with the model.
        chat_template: a file, Jinja text, or `plain` for the turns' texts alone, instead of the tokenizer's own.
        system: a system message, which the template must render.
        template_options: further names, which the template must read.

    Raises:
        UserError: naming the flag of the command.
    """
    if revision is not None and Path(place).exists():
        raise UserError("--revision", f"applies to a hub id, {place} is a folder")
    with _errors_of_flags():
        tokenizer = read_tokenizer(place, revision, trust_remote_code)
        if chat_template is not None:
            plain = chat_template == "plain"
            tokenizer.chat_template = plain_template(tokenizer) if plain else read_template(chat_template)
        try:
            render = Renderer(tokenizer, chosen_template(tokenizer, None), options=template_options or {})
        except UserError as error:
            raise UserError(
                "MODEL",
                f"{place!r} has no chat template, so it is not trained for chat; fine-tune it first, or choose a "
                "template with --chat-template (a file, Jinja text, or plain)",
            ) from error
        check_template_reads(tokenizer, template_options or {})
        if system:
            _check_system(render, system)
    return tokenizer


def load_model(
    place: str,
    device: torch.device | str,
    dtype: str,
    *,
    spread: bool = False,
    **options: Unpack[TokenizerOptions],
) -> tuple[Any, Any]:
    """Load a model in evaluation mode, and its tokenizer.

    Args:
        place: hub id, folder or GGUF file.
        device: of the model.
        dtype: of the weights; `auto` is bfloat16 on a GPU, else float32.
        spread: distribute the layers over all GPUs and the CPU instead, as transformers' device map `auto` does.
        options: of `load_tokenizer`.

    Raises:
        UserError: naming the flag of the command.
    """
    device = torch.device(device)
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # hides warnings about options that are not used
    tokenizer = load_tokenizer(place, **options)
    revision, trusted = options.get("revision"), options.get("trust_remote_code", False)
    if spread and (adapters_at(place, revision) or gguf_at(place)):
        raise UserError("--device-map", f"expected a whole model, {place!r} holds adapters or is a GGUF file")
    with _errors_of_flags():
        source = PretrainedCausalLM(place, revision=revision, trust_remote_code=trusted)
        model = source.load(None, getattr(torch, dtype), _Spread() if spread else None)
    return (model if spread else model.to(device)).eval(), tokenizer


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


class _Spread(Sharding):
    """Lets transformers place the layers."""

    @contextlib.contextmanager
    @override
    def loading(self, add_rows: Any = None) -> Iterator[dict[str, Any]]:
        yield {"device_map": "auto"}

    @override
    def put(self, parameter: torch.Tensor, value: torch.Tensor) -> None:
        parameter.copy_(value)


@contextlib.contextmanager
def _errors_of_flags() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        flags = dict.fromkeys(("CKPT", "name_or_path", "model_name_or_path"), "MODEL")
        flags |= {name: "--" + name.replace("_", "-") for name in TokenizerOptions.__annotations__}
        raise UserError(flags.get(error.argument.rpartition(".")[2], error.argument), error.problem) from error


def _check_system(render: Renderer, text: str) -> None:
    try:
        prompt = render([{"role": "system", "content": text}, {"role": "user", "content": "a"}], True)
    except UserError as error:
        raise UserError("--system", f"the model's chat template refuses a system message: {error}") from error
    if text.strip() not in prompt:
        raise UserError("--system", f"the model's chat template drops or changes the system message: {prompt!r}")
