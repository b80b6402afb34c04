"""The private names of other libraries that parallel/ uses still exist and have the expected form.

A failure here means that a library has changed: adapt the module that the message names.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

PRIVATE = {
    "parallel/processes.py": [
        ("lightning.fabric.utilities.distributed", "_set_num_threads_if_needed", ["num_processes"]),
        (LAUNCHER := "lightning.pytorch.strategies.launchers.subprocess_script", "_SubprocessScriptLauncher", None),
        (LAUNCHER, "_SubprocessScriptLauncher.launch", ["self", "function", "args", "trainer", "kwargs"]),
        (LAUNCHER, "_SubprocessScriptLauncher._call_children_scripts", ["self"]),
        ("torch.distributed.distributed_c10d", "_get_default_store", []),
    ],
    "parallel/deepspeed.py": [
        (STRATEGIES := "lightning.pytorch.strategies", "DeepSpeedStrategy._init_deepspeed_distributed", ["self"]),
        (STRATEGIES, "DeepSpeedStrategy._init_config_if_needed", ["self"]),
        (STRATEGIES, "DeepSpeedStrategy._initialize_deepspeed_inference", ["self", "model"]),
        (
            STRATEGIES,
            "DeepSpeedStrategy._setup_model_and_optimizer",
            ["self", "model", "optimizer", "lr_scheduler"],
        ),
    ],
    "parallel/transformers_loading.py": [
        ("transformers", "PreTrainedModel.maybe_distribute_model", ["model", "distributed_config", "mesh_manager"]),
        (
            "transformers.distributed.sharding_utils",
            "DtensorShardOperation.shard_tensor",
            ["self", "source", "tensor_idx", "device", "dtype"],
        ),
    ],
}
"""By the module that uses it: where each name is defined, and its parameters."""


@pytest.mark.parametrize(
    ("user", "module", "name", "parameters"),
    [(user, *row) for user, rows in PRIVATE.items() for row in rows],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_private_name_exists_with_the_expected_parameters(
    user: str, module: str, name: str, parameters: list[str] | None
) -> None:
    library = module.partition(".")[0]
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
        assert found is not None, f"{library} no longer has {module}.{name}, which lit_probsft/{user} uses"
    if parameters is not None:
        now = list(inspect.signature(found).parameters)
        assert now == parameters, f"{library} changed {module}.{name} to {now}; adapt lit_probsft/{user}"


def test_attributes_that_are_set_or_read_still_exist() -> None:
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
    from transformers.distributed.sharding_utils import DtensorShardOperation

    assert "_data_parallel_size" in vars(ModelParallelStrategy()), "lightning: see FSDP2.setup_environment"
    assert "_launcher" in vars(DDPStrategy()), "lightning: see use_launcher in parallel/processes.py"
    source = inspect.getsource(DtensorShardOperation.__init__)
    assert "self._axis0_size =" in source, "transformers: see pad_with_zero_rows in parallel/transformers_loading.py"


def test_transformers_distributes_an_empty_model_through_the_replaced_method() -> None:
    from transformers import PreTrainedModel

    source = inspect.getsource(PreTrainedModel.from_pretrained)
    assert "cls.maybe_distribute_model(" in source, "transformers: see shard_while_loading"
