"""Going on as if nothing had happened: random numbers without a history, counters of another number of processes."""

from __future__ import annotations

import hashlib
from typing import Any


def derived_seed(*numbers: int) -> int:
    """A 63-bit seed from a few integers, such as (seed, step, micro-batch, rank): equal for equal ones, unrelated for
    others."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def count_in(checkpoint: dict[str, Any], before: int | None, now: int) -> None:
    """Rewrite Lightning's counters of micro-batches, in place, for windows of `now` micro-batches instead of `before`.

    A checkpoint is written between two windows; at that moment the last micro-batch may not count as completed yet.
    """
    if before is None or before == now:
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        pending = counts["processed"] - counts["completed"]
        for name in ("ready", "started", "processed"):
            counts[name] = counts[name] // before * now
        counts["completed"] = counts["processed"] - pending
