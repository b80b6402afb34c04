"""What comes from the hub: which commit of a repository is used, and which of its own code may run."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from lit_probsft.errors import UserError, first_line, near_matches
from lit_probsft.storage.gguf import gguf_at

_FILES = ("config.json", "tokenizer_config.json")
_FILE_SUFFIXES = (".ckpt", ".pt", ".safetensors", ".gguf")
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")


def missing_path(place: str) -> str | None:
    """The problem if `place` is a missing path rather than a hub id, with a hint from `near_matches`; None if not.

    `models/quickstrt` could be either. It is taken for a path if `models/` contains a similar name. A name in `runs/`,
    the default folder of all runs, or with the suffix of a checkpoint or of weights is a path.
    """
    path = Path(place).expanduser()
    if path.is_dir() or gguf_at(place) is not None:
        return None
    names = [entry.name for entry in path.parent.iterdir()] if "/" in place and path.parent.is_dir() else []
    hint = near_matches(path.name, names)
    is_path = place.startswith((".", "/", "~", "runs/")) or place.count("/") > 1 or path.suffix in _FILE_SUFFIXES
    kind = "file" if path.suffix in _FILE_SUFFIXES else "folder"
    return f"no such {kind}: {place!r}.{hint}" if hint or is_path else None


def custom_code(place: str, revision: str | None = None) -> list[str]:
    """The code files that a model or tokenizer names, as `FILE` or `FILE of REPOSITORY`.

    Empty if it names none, or if its configuration cannot be read.
    """
    return sorted(dict.fromkeys(_code_in(place, revision)))


def _code_in(place: str, revision: str | None) -> Iterator[str]:
    from transformers.utils import cached_file

    for name in _FILES:
        try:
            path = cached_file(place, name, revision=revision or "main")
            content = json.loads(Path(path or "").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        named = content.get("auto_map") or {}
        values = named.values() if isinstance(named, dict) else [named]  # old tokenizers have a list
        for value in values:
            for path in value if isinstance(value, list | tuple) else [value]:
                if path:
                    repository, found, module = str(path).rpartition("--")
                    yield f"{module.split('.')[0]}.py{f' of {repository}' if found else ''}"


@functools.cache
def warn_of_code(argument: str, place: str, revision: str | None = None) -> None:
    """Warn once of the code that will run because the user set `trust_remote_code`."""
    from lightning.pytorch.utilities import rank_zero_warn

    code = custom_code(place, revision)
    if not code:
        return
    foreign = [name for name in code if " of " in name]
    unpinned = foreign if revision or Path(place).exists() else code
    rank_zero_warn(
        f"{argument}: code that comes with {place} WILL RUN ON THIS MACHINE with all your rights: {', '.join(code)}"
        + (f"; no revision pins {', '.join(unpinned)}" if unpinned else "")
    )


def refused_code(error: BaseException, argument: str, place: str, revision: str | None = None) -> UserError | None:
    """The UserError for transformers' refusal to run a repository's own code; None if `error` is something else."""
    if "trust_remote_code=True" not in str(error):
        return None
    code = ", ".join(custom_code(place, revision)) or "named in its configuration"
    return UserError(
        argument,
        f"expected true, because {place!r} needs code of its own ({code}); got false. Read that code, pin it with "
        "`revision`, and set this to true if you trust it",
    )


@functools.cache
def dataset_commit(name: str, revision: str | None = None) -> str | None:
    """The commit that a revision of a dataset on the hub points to; None if the hub cannot be asked.

    The answer is cached, so that a process uses one commit even if the branch moves.
    """
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return None
    try:
        sha: str | None = huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=30).sha
    except Exception:  # reported when the dataset is loaded
        return None
    return sha


def dataset_file(name: str, file: str, revision: str | None = None) -> str:
    """The path of one file of a dataset on the hub, downloaded if it is not in the cache.

    Raises:
        UserError: it is not on the hub, or the hub cannot be reached.
    """
    import huggingface_hub

    revision = dataset_commit(name, revision) or revision
    try:
        return str(huggingface_hub.hf_hub_download(name, file, repo_type="dataset", revision=revision))
    except Exception as error:  # the hub's errors share no base class
        raise UserError("path", f"could not load {file!r} of {name!r} from the hub: {first_line(error)}") from error


@functools.cache
def model_commit(place: str, revision: str | None = None) -> str | None:
    """The commit of a model or tokenizer, according to the hub or its cache on this machine; None for a local folder.

    The answer is cached, so that a process uses one commit even if the branch moves.
    """
    from transformers.utils import cached_file

    gguf = gguf_at(place)
    repository, files = (place, (*_FILES, "adapter_config.json")) if gguf is None else (gguf.place, (gguf.file,))
    for name in files:
        try:
            path = cached_file(repository, name, revision=revision or "main")
        except (OSError, ValueError):  # reported when the model or the tokenizer is loaded
            continue
        if match := _SNAPSHOT.search(Path(path or "").as_posix()):
            return match[1]
    return None
