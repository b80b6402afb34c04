"""Training on many devices: strategies, sharded models, and the processes of a run and their seed.

The strategies are imported on first use: a worker process that needs only `parent` does not import Lightning.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_probsft.parallel.strategies import FSDP2, DeepSpeed

__all__ = ["FSDP2", "DeepSpeed"]

MOST_PROCESSES = max(32, 4 * (os.cpu_count() or 1))
"""The most processes that an option may start. Many more processes than cores would bring the machine to a halt."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lit_probsft.parallel import strategies

    return getattr(strategies, name)
