"""GGUF files: which file the name of a model means, and whether it can be read."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

from lit_probsft.errors import UserError, first_line

_ON_HUB = re.compile(r"([\w-][\w.-]*/[\w.-]+)/(.+\.gguf)")
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


class GGUF(NamedTuple):
    """A GGUF file in a folder or in a repository on the hub."""

    place: str
    """Folder or hub id."""
    file: str
    """Path of the file in `place`."""


def gguf_at(name: str, argument: str = "name_or_path") -> GGUF | None:
    """The GGUF file that a name means; None if it means something else.

    Args:
        name: a file, a folder that holds one and no model in Hugging Face's format, or `ORG/REPOSITORY/FILE.gguf` for a
            file on the hub.
        argument: for errors.

    Raises:
        UserError: the folder holds several.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return GGUF(str(path.parent), path.name)
    if path.is_dir():
        if any((path / other).is_file() for other in ("config.json", "adapter_config.json")):
            return None
        files = sorted(file.name for file in path.glob("*.gguf"))
        if len(files) > 1:
            raise UserError(argument, f"expected one GGUF file in {name!r}, got {', '.join(files)}; name one")
        return GGUF(str(path), files[0]) if files else None
    found = _ON_HUB.fullmatch(name)
    return GGUF(found[1], found[2]) if found and not Path(found[1].partition("/")[0]).exists() else None


def check_gguf(gguf: GGUF, revision: str | None = None, argument: str = "name_or_path") -> str:
    """Check that a GGUF file is a whole language model; returns its quantization, such as `Q4_K_M`.

    Args:
        gguf: the file, which is downloaded if it is on the hub.
        revision: branch, tag or commit on the hub.
        argument: for errors.

    Raises:
        UserError: the package `gguf` is not installed, the file is damaged or one part of a model, or it does not hold
            a language model.
    """
    from transformers.utils import cached_file

    name = str(Path(gguf.place) / gguf.file)
    if _PART.search(gguf.file):
        raise UserError(argument, f"expected a whole GGUF file, {name} is a part of one; join the parts first")
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise UserError(argument, f'{name} needs more packages: pip install "lit_probsft[gguf]"')
    try:
        path = Path(cached_file(gguf.place, gguf.file, revision=revision or "main") or "")
    except (OSError, ValueError) as error:
        raise UserError(argument, f"{name} cannot be read: {first_line(error)}") from error
    try:
        architecture, quantization, parts = _header(path, path.stat().st_mtime_ns)
    except Exception as error:  # the reader checks nothing: a damaged file ends in any exception
        raise UserError(argument, f"{path} is damaged or not a GGUF file: {first_line(error)}") from error
    if parts > 1:
        raise UserError(argument, f"expected a whole GGUF file, {name} is one of {parts} parts; join them first")
    if architecture in ("clip", "mmproj"):
        raise UserError(argument, f"expected a language model, {name} holds a projector of images or sound")
    return quantization


@functools.cache
def _header(path: Path, changed: int) -> tuple[str, str, int]:
    """Architecture, quantization and number of parts of the model."""
    from gguf import GGUFReader, LlamaFileType

    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}  # all, because reading decodes them
    architecture, parts, kind = map(fields.get, ("general.architecture", "split.count", "general.file_type"))
    if not isinstance(architecture, str) or not reader.tensors:
        raise ValueError("it has no architecture or no tensors")
    sizes: dict[str, int] = {}
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    quantization = max(sizes, key=lambda kind: sizes[kind])
    known = {each.value: each.name for each in LlamaFileType}
    if quantization not in ("F32", "F16", "BF16") and isinstance(kind, int) and kind in known:
        quantization = known[kind].removeprefix("MOSTLY_")
    return architecture, quantization, parts if isinstance(parts, int) else 1
