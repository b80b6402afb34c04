"""Run by torchrun on two processes: fits as the arguments say and saves rank 0's weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests import tiny
from tests.members import ALL

if __name__ == "__main__":
    torch.set_num_threads(1)
    rows, out, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    for name, case in cases.items():
        module = tiny.fit(
            rows,
            batch_size=case["batch_size"],
            accumulate=case["accumulate"],
            objective=ALL[case["objective"]],
            dtype=getattr(torch, case["dtype"]),
            optimizer=getattr(tiny, case["optimizer"]),
            normalize=case["normalize"],
            strategy="ddp",
            devices=2,
        )
        if module.global_rank == 0:
            torch.save(
                {"weights": tiny.weights(module), "metrics": dict(module.trainer.callback_metrics)}, out / f"{name}.pt"
            )
