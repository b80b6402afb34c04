"""An exported model on the Hugging Face hub: what would keep it from there is found before training, not after."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_probsft.errors import UserError

_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
_CONFIGURATIONS = ("config.json", "generation_config.json", "adapter_config.json")


@dataclass(frozen=True)
class HubOptions:
    """Where `fit` uploads the model that it exports at its end.

    Args:
        repo_id: such as `me/model`; created where it does not exist. None uploads nothing.
        private: whether a repository that is created is private; one that exists stays as it is.
        revision: the branch, created where it does not exist.
        message: of the commit.
    """

    repo_id: str | None = None
    private: bool = False
    revision: str = "main"
    message: str = "Upload a model trained with lit_probsft"

    def __post_init__(self) -> None:
        if self.repo_id is not None:
            from huggingface_hub.errors import HFValidationError
            from huggingface_hub.utils._validators import validate_repo_id

            try:
                validate_repo_id(self.repo_id)
            except HFValidationError as error:
                raise UserError(
                    "push_to_hub.repo_id", f"expected a repository such as me/model, got {self.repo_id!r}"
                ) from error
        for name in ("revision", "message"):
            if not getattr(self, name).strip():
                raise UserError(f"push_to_hub.{name}", f"expected a text, got {getattr(self, name)!r}")


def ensure_repo(options: HubOptions, argument: str = "push_to_hub") -> HubOptions:
    """Make sure that a model can be uploaded: create repository and branch; returns the options with their full name.

    Args:
        options: with a `repo_id`.
        argument: errors begin with it.

    Raises:
        UserError: no token, one that is not valid or has no right, or no hub.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    assert options.repo_id is not None
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UserError(argument, "expected a hub that can be reached, HF_HUB_OFFLINE is set")
    if huggingface_hub.get_token() is None:
        raise UserError(
            argument, "expected a token that may write, got none; log in with `hf auth login`, or set HF_TOKEN"
        )
    api, user = huggingface_hub.HfApi(), "this user"
    try:
        user = api.whoami()["name"]
        created = api.create_repo(options.repo_id, private=options.private, exist_ok=True)
        api.auth_check(created.repo_id, write=True)
        if options.revision != "main":
            api.create_branch(created.repo_id, branch=options.revision, exist_ok=True)
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise UserError(argument, f"expected a valid token, the hub refuses this one: {_said(error)}") from error
        if status in (403, 404):
            raise UserError(
                f"{argument}.repo_id",
                f"expected a repository that {user} may write to, with a token that may do so, got "
                f"{options.repo_id!r}: {_said(error)}",
            ) from error
        raise UserError(argument, f"the hub refuses {options.repo_id!r}: {_said(error)}") from error
    except Exception as error:  # what a network does has many names
        raise UserError(
            argument, f"expected a hub that can be reached, {api.endpoint} cannot: {_said(error)}"
        ) from error
    return replace(options, repo_id=created.repo_id)


def upload(options: HubOptions, folder: Path, argument: str = "push_to_hub") -> str:
    """Upload an exported model in one commit, in the place of weights that are there; returns its address.

    Args:
        options: as `ensure_repo` returns them.
        folder: of the model.
        argument: errors begin with it.

    Raises:
        UserError: it failed; the folder is untouched, and the message says how to upload it later.
    """
    import huggingface_hub

    assert options.repo_id is not None
    try:
        found = huggingface_hub.HfApi().upload_folder(
            repo_id=options.repo_id,
            folder_path=folder,
            revision=options.revision,
            commit_message=options.message,
            # A file of another cut would be read in the place of the new ones; and what says that a folder holds a
            # model, or adapters, must not stay where the other has come.
            delete_patterns=[*_WEIGHTS, *(name for name in _CONFIGURATIONS if not (folder / name).exists())],
        )
    except Exception as error:  # of the network, the hub or the disk: the model is there, whatever it is
        command = ["hf", "upload", options.repo_id, str(folder), ".", "--revision", options.revision]
        raise UserError(
            argument,
            f"{folder} is complete, but could not be uploaded to {options.repo_id}: {_said(error)}; to do "
            f"it later: {shlex.join(command)}",
        ) from error
    return str(found.commit_url)


def _said(error: Any) -> str:
    """What the hub says, else the first line of the error."""
    said = getattr(error, "server_message", None)
    return said or next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
