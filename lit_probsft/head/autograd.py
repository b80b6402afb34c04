"""The one private name of torch that the head uses."""

from __future__ import annotations

import torch


def backward_retains_graph() -> bool:
    """Whether the running backward was called with `retain_graph=True`. torch has no public name for it."""
    retained: bool = torch._C._autograd._get_current_graph_task_keep_graph()
    return retained
