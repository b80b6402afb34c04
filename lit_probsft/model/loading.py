"""Checks around loading a pretrained model, and loading errors as one message."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_probsft.errors import UserError, first_line
from lit_probsft.model.config_checks import check_read_sizes
from lit_probsft.storage.gguf import GGUF, check_gguf, gguf_at
from lit_probsft.storage.hub import missing_path, refused_code

_ARGUMENT = "model.model.model_name_or_path"


def check_model_path(name_or_path: str) -> None:
    """Check that a model's name is a hub id, an existing folder or a GGUF file.

    Raises:
        UserError: with similar names.
    """
    gguf_at(name_or_path, _ARGUMENT)
    folder = Path(name_or_path).expanduser()
    if (folder.is_file() and folder.suffix != ".gguf") or not name_or_path:
        raise UserError(_ARGUMENT, f"expected a hub id, a folder or a GGUF file, got {name_or_path!r}")
    if problem := missing_path(name_or_path):
        raise UserError(_ARGUMENT, problem)


def read_gguf(gguf: GGUF, revision: str, dtype: torch.dtype) -> torch.dtype:
    """Check a GGUF file and say in which dtype its weights are loaded.

    Args:
        gguf: the file.
        revision: branch, tag or commit on the hub.
        dtype: in which the model is loaded.

    Returns:
        The dtype of the model in the file; bfloat16 if it is quantized.
    """
    name = str(Path(gguf.place) / gguf.file)
    kind = check_gguf(gguf, revision, _ARGUMENT)
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    how = "loaded as" if kind in plain else "dequantized to"
    rank_zero_info(f"the weights of {name} ({kind}) are {how} {str(dtype).removeprefix('torch.')}")
    return plain.get(kind, torch.bfloat16)


def gguf_options() -> dict[str, Any]:
    """Arguments of `from_pretrained` that dequantize a GGUF file; early versions of transformers always do."""
    import transformers

    kind = getattr(transformers, "GgufConfig", None)
    return {} if kind is None else {"quantization_config": kind(dequantize=True)}


def read_config_of(place: str, **options: Any) -> Any:
    """Read a model's configuration and check its sizes and its index of weights.

    A padding token whose id the model does not have is left out: torch would refuse to build the embedding, and
    padding takes another id anyway.

    Args:
        place: hub id or folder.
        options: of `from_pretrained`.

    Raises:
        UserError: naming the field or the file.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(place, **options)
    check_read_sizes(config, _ARGUMENT, place)
    _check_index(Path(place) / "model.safetensors.index.json")
    text = config.get_text_config()
    for part in (config, text):
        pad = getattr(part, "pad_token_id", None)
        if pad is not None and not (isinstance(pad, int) and 0 <= pad < text.vocab_size):
            part.pad_token_id = None
    return config


def _check_index(path: Path) -> None:
    if not path.is_file() or path.with_name("model.safetensors").is_file():
        return
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        files = index["weight_map"].values()
        names = sorted({file for file in files if isinstance(file, str)} if all(files) else ())
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(_ARGUMENT, f"{path} is not an index of weights: {first_line(error)}") from error
    if not names or len(names) != len(set(map(str, files))):
        raise UserError(_ARGUMENT, f"{path} is not an index of weights: expected a file name for each weight")
    for name in names:
        if Path(name).name != name:
            raise UserError(_ARGUMENT, f"{path} names {name!r}, which is not a file in the same folder")
        if not path.with_name(name).is_file():
            raise UserError(_ARGUMENT, f"{path} names {name!r}, which does not exist")


def check_complete(name_or_path: str, loaded: Mapping[str, Any]) -> None:
    """Check that no weights are missing; transformers would draw them at random.

    Args:
        name_or_path: hub id or folder of the model.
        loaded: the loading information that `from_pretrained` returns.
    """
    if missing := sorted(loaded["missing_keys"]):
        raise UserError(
            _ARGUMENT,
            f"expected all weights of the model, but {name_or_path!r} lacks {missing[0]}"
            f"{f' and {len(missing) - 1} more' * (len(missing) > 1)}",
        )


@contextlib.contextmanager
def report_load_errors(name_or_path: str, revision: str | None) -> Iterator[None]:
    """Within this block, turn errors of transformers into a UserError of one line.

    The block only reads and checks a model's files: any error in it, except those of the machine, is taken for an error
    in the files. The option `--debug` shows where it comes from.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError, torch.distributed.DistError):
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            _ARGUMENT, f"expected only weights, but {name_or_path!r} holds a pickle that runs code or is damaged"
        ) from error
    except SafetensorError as error:
        raise UserError(_ARGUMENT, f"a weights file of {name_or_path!r} is damaged: {error}") from error
    except AssertionError as error:
        raise UserError(_ARGUMENT, f"the config.json of {name_or_path!r} does not describe a model: {error}") from error
    except RuntimeError as error:
        reason = first_line(error)
        if "ignore_mismatched_sizes" in str(error):
            reason = "the weights do not have the shapes in its configuration (transformers names them above)"
        raise UserError(_ARGUMENT, f"{name_or_path!r} cannot be loaded: {reason}") from error
    except Exception as error:  # what transformers raises for a file with wrong contents has no common base class
        reason = first_line(error)
        if isinstance(error, AttributeError | TypeError | KeyError):
            reason = f"its files have unexpected contents ({type(error).__name__}: {reason})"
        if reason.startswith("Unrecognized configuration class"):
            reason = "its architecture is not a causal language model"
        raise refused_code(error, "model.model.trust_remote_code", name_or_path, revision) or UserError(
            _ARGUMENT, f"expected a hub id or a folder with a causal language model, got {name_or_path!r}: {reason}"
        ) from error
