"""Uploads an exported model to the Hugging Face hub; anything that would block the upload is found before training."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from lit_probsft.errors import UserError, first_line

_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
_CONFIGURATIONS = ("config.json", "generation_config.json", "adapter_config.json")


@dataclass(frozen=True)
class HubOptions:
    """Where `fit` uploads the model that it exports at its end.

    Args:
        repo_id: the repository, such as `me/model`; created if it does not exist. None uploads nothing.
        private: create the repository as a private one; an existing one stays as it is.
        revision: the branch; created if it does not exist.
        message: of the commit.
    """

    repo_id: str | None = None
    private: bool = False
    revision: str = "main"
    message: str = "Upload a model trained with lit_probsft"

    def __post_init__(self) -> None:
        if self.repo_id is not None:
            from huggingface_hub.errors import HFValidationError
            from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

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
    """Create the repository and the branch, and check write access.

    Args:
        options: with a `repo_id`.
        argument: names the options in errors.

    Returns:
        The options with the full `repo_id`.

    Raises:
        UserError: there is no token, the token is invalid or lacks the right to write, or the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    assert options.repo_id is not None
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UserError(argument, "cannot upload, because HF_HUB_OFFLINE is set")
    if huggingface_hub.get_token() is None:
        raise UserError(
            argument, "expected a token with write access, got none; log in with `hf auth login`, or set HF_TOKEN"
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
            raise UserError(argument, f"expected a valid token, the hub refuses this one: {_reason(error)}") from error
        if status in (403, 404):
            raise UserError(
                f"{argument}.repo_id",
                f"expected a repository to which {user} and the token have write access, got {options.repo_id!r}: "
                f"{_reason(error)}",
            ) from error
        raise UserError(argument, f"the hub refuses {options.repo_id!r}: {_reason(error)}") from error
    except Exception as error:  # network errors have many types
        raise UserError(argument, f"cannot reach the hub at {api.endpoint}: {_reason(error)}") from error
    return replace(options, repo_id=created.repo_id)


def upload(options: HubOptions, folder: Path, argument: str = "push_to_hub") -> str:
    """Upload an exported model in one commit, which also deletes the weights that it replaces.

    Args:
        options: of `ensure_repo`.
        folder: the exported model.
        argument: names the options in errors.

    Returns:
        The address of the commit.

    Raises:
        UserError: the upload failed. The folder is unchanged, and the message has the command to upload it later.
    """
    import huggingface_hub

    assert options.repo_id is not None
    try:
        found = huggingface_hub.HfApi().upload_folder(
            repo_id=options.repo_id,
            folder_path=folder,
            revision=options.revision,
            commit_message=options.message,
            # Old weight files of other sizes, and the configuration of a model where adapters are uploaded (or the
            # other way round), would be loaded instead of the new ones.
            delete_patterns=[*_WEIGHTS, *(name for name in _CONFIGURATIONS if not (folder / name).exists())],
        )
    except Exception as error:  # of the network, the hub or the disk: the exported model is complete anyway
        command = ["hf", "upload", options.repo_id, str(folder), ".", "--revision", options.revision]
        raise UserError(
            argument,
            f"{folder} is complete, but could not be uploaded to {options.repo_id}: {_reason(error)}; to upload it "
            f"later: {shlex.join(command)}",
        ) from error
    return str(found.commit_url)


def _reason(error: Exception) -> str:
    """The hub's message, or the first line of the error."""
    return getattr(error, "server_message", None) or first_line(error)
