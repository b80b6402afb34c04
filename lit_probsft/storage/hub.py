"""Code and commits of others: what of a repository's own code may run, and which of its commits was taken."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from lit_probsft.errors import UserError, near_matches

_FILES = ("config.json", "tokenizer_config.json")
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")


def missing_folder(place: str) -> tuple[bool, str]:
    """Is `place` a folder that is not there, and no id on the hub; and folders beside it that are like it, as a hint.

    `runs/quickstrt` could be either: it is a folder where `runs/` has a name like that.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return False, ""
    names = [entry.name for entry in path.parent.iterdir()] if "/" in place and path.parent.is_dir() else []
    hint = near_matches(path.name, names)
    return bool(hint) or place.startswith((".", "/", "~")) or place.count("/") > 1, hint


def custom_code(place: str, revision: str | None = None) -> list[str]:
    """The files of code that a model or tokenizer names, its own or `FILE of REPOSITORY`; empty for none, or where that
    cannot be read."""
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
        values = named.values() if isinstance(named, dict) else [named]  # of old tokenizers it is a list
        for value in values:
            for path in value if isinstance(value, list | tuple) else [value]:
                if path:
                    repository, found, module = str(path).rpartition("--")
                    yield f"{module.split('.')[0]}.py{f' of {repository}' if found else ''}"


@functools.cache
def warn_of_code(argument: str, place: str, revision: str | None = None) -> None:
    """Say once what code of others will run, as the user has allowed it."""
    from lightning.pytorch.utilities import rank_zero_warn

    code = custom_code(place, revision)
    if not code:
        return
    strange = [name for name in code if " of " in name]
    unpinned = strange if revision or Path(place).exists() else code
    rank_zero_warn(
        f"{argument}: code that comes with {place} WILL RUN ON THIS MACHINE with all your rights: {', '.join(code)}"
        + (f"; no revision pins {', '.join(unpinned)}" if unpinned else "")
    )


def refused_code(error: BaseException, argument: str, place: str, revision: str | None = None) -> UserError | None:
    """What to tell the user if `error` is transformers' refusal to run a repository's own code; None if it is not."""
    if "trust_remote_code=True" not in str(error):
        return None
    code = ", ".join(custom_code(place, revision)) or "named in its configuration"
    return UserError(
        argument,
        f"expected true, since {place!r} comes with code of its own that would have to run ({code}); got "
        "false. Read that code, pin it with `revision`, and set it to true if you trust it",
    )


@functools.cache
def dataset_commit(name: str, revision: str | None = None) -> str | None:
    """The commit of a data set that the hub gives for a revision now, the same for as long as this process lives; None
    where the hub does not say."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return None
    try:
        sha: str | None = huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=30).sha
    except Exception:  # loading it will say what is wrong
        return None
    return sha


@functools.cache
def model_commit(place: str, revision: str | None = None) -> str | None:
    """The commit that the hub, or the cache of its files on this machine, gives for a revision of a model or tokenizer
    now, the same for as long as this process lives; None for a local folder."""
    from transformers.utils import cached_file

    for name in (*_FILES, "adapter_config.json"):
        try:
            path = cached_file(place, name, revision=revision or "main")
        except (OSError, ValueError):  # loading it will say what is wrong
            continue
        if match := _SNAPSHOT.search(Path(path or "").as_posix()):
            return match[1]
    return None
