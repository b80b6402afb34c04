"""Writing a checkpoint to a single file, now or in the background."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from typing_extensions import override

from lit_probsft.storage.checkpoint_writing import WholeFileIO


class CheckpointWriter(WholeFileIO):
    """Writes single files.

    Args:
        asynchronous: copy the state and write it in a thread, one file at a time.
    """

    def __init__(self, asynchronous: bool = False) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(max_workers=1) if asynchronous else None
        self._writing: Future[None] | None = None

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if self._thread is None:
            super().save_checkpoint(checkpoint, path)
            return
        snapshot = apply_to_collection(checkpoint, torch.Tensor, lambda t: t.detach().to("cpu", copy=True))
        self._writing = self._thread.submit(super().save_checkpoint, snapshot, path)

    def done(self) -> bool:
        """Whether the last file is written."""
        return self._writing is None or self._writing.done()

    def finish(self) -> str | None:
        """Wait for the last file; return what went wrong, if anything did."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None
        failure, self.failure = self.failure, None
        return failure

    @override
    def teardown(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True)
