"""Random seeds that follow from what is computed, not from what was drawn before."""

from __future__ import annotations

import hashlib


def derived_seed(*numbers: int) -> int:
    """A 63-bit seed from integers such as (seed, step, micro-batch, rank); different integers give unrelated seeds."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
