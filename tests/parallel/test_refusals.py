"""Unsupported settings are refused early, in one message that names the argument."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
)
from torch import nn

from lit_probsft.cli.commands import main
from lit_probsft.errors import UserError
from lit_probsft.model import RandomCausalLM
from lit_probsft.model.lora import LoRA
from lit_probsft.model.lora_injection import inject_adapters
from lit_probsft.parallel import FSDP2, DeepSpeed
from lit_probsft.parallel.sharding import FullySharded, Sharding
from lit_probsft.parallel.strategies import check_supported, resolve_strategy
from lit_probsft.storage.checkpoint_files import MANIFEST
from lit_probsft.storage.checkpoint_writing import WholeFileIO, write_file, write_folder
from lit_probsft.training.checkpoints import CheckpointOptions, Checkpoints, where_to_continue
from lit_probsft.training.module import ProbSFTModule
from tests import tiny
from tests.cli.test_fit import config
from tests.parallel.worker import CONFIGS
from tests.storage.trees import SINGLE_PROCESS

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # it is refused


def refused(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        act()
    assert str(caught.value).isprintable()


@pytest.fixture
def deepspeed() -> None:
    pytest.importorskip("deepspeed")


# --- arguments


@pytest.mark.parametrize("value", [0, -1, -(10**9)])
def test_keep_last_is_at_least_one(value: int) -> None:
    refused(lambda: CheckpointOptions(keep_last=value), f"checkpoints.keep_last: expected at least 1, got {value}")
    assert CheckpointOptions(keep_last=1).keep_last == 1


@pytest.mark.parametrize("value", ["", "Best", "last", "all", True])
def test_export_is_every_best_final_or_none(value: Any) -> None:
    refused(
        lambda: CheckpointOptions(export=value),
        f"checkpoints.export: expected final, best, every or none, got {value!r}",
    )


@pytest.mark.parametrize("value", [0, 4, -1, "2"])
def test_the_zero_stage_is_1_2_or_3(value: Any) -> None:
    """With or without DeepSpeed installed."""
    refused(lambda: DeepSpeed(stage=value), f"trainer.strategy.stage: expected 1, 2 or 3, got {value}")


def test_without_deepspeed_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    refused(DeepSpeed, r'trainer.strategy: DeepSpeed is not installed \(pip install "lit_probsft\[deepspeed\]"\)')


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(("r", value, "at least 1") for value in (0, -1)),
        *(("alpha", value, "more than 0") for value in (0, -1.0, NAN, INF)),
        *(("dropout", value, "at least 0 and less than 1") for value in (-0.1, 1.0, 1.5, NAN)),
    ],
)
def test_options_of_adapters_are_in_range(name: str, value: float, expected: str) -> None:
    refused(lambda: LoRA(**{name: value}), f"model.lora.{name}: expected {expected}, got {value}")


LLAMAS = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


@pytest.mark.parametrize("model", ["llama", "tied"])
@pytest.mark.parametrize(
    "targets",
    [
        ["nothing"],
        ["q_proj", "v_prj"],  # an unknown name next to a known one
        ["proj"],  # a part of a name
        [],
        "",
        "q_proj",  # a string where a list is expected
        "all_linear",
        "(",
        ["embed_tokens", "q_proj"],  # embeddings, norms and whole layers
        ["embed_tokens"],
        ["norm"],
        ["layers"],
        ["self_attn"],
    ],
)
def test_only_linear_layers_can_be_adapted(model: str, targets: Any) -> None:
    whole = tiny.model(**CONFIGS[model])
    refused(
        lambda: inject_adapters(whole, LoRA(target_modules=targets)),
        f"model.lora.target_modules: expected all-linear or a list of names among {LLAMAS}, got ",
    )


def test_the_error_lists_the_linear_layers_of_the_model() -> None:
    gpt2 = RandomCausalLM(CONFIGS["gpt2"]).load(tiny.ByteTokenizer().load(list), torch.float32)
    refused(
        lambda: inject_adapters(gpt2, LoRA(target_modules=["q_proj"])),
        r"model.lora.target_modules: .* among c_attn, c_fc, c_proj, got \['q_proj'\]",
    )


@pytest.mark.parametrize("model", ["llama", "tied"])
def test_a_pattern_cannot_select_the_output_layer(model: str) -> None:
    whole = tiny.model(**CONFIGS[model])
    refused(
        lambda: inject_adapters(whole, LoRA(target_modules=r".*(q_proj|lm_head)")),
        "model.lora.target_modules: expected the output layer in a list of names, got",
    )


@pytest.fixture
def mesh() -> Iterator[Any]:
    """A device mesh of this process only."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("targets", [["project_in"], ["q_proj", "project_in"]])
def test_fsdp2_refuses_adapters_outside_the_decoder_layers(mesh: Any, targets: list[str]) -> None:
    opt = {"model_type": "opt", "hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 32, "num_hidden_layers": 1}
    model = RandomCausalLM({**opt, "num_attention_heads": 2, "vocab_size": 64}).load(None, torch.float32)
    sharding = FullySharded(mesh, compute_bf16=False, cpu_offload=False)
    sharding.shard(model)
    inject_adapters(model, LoRA(target_modules=targets))
    refused(
        lambda: sharding.shard_adapters(model),
        r"model.lora: expected adapters inside the decoder layers, got model.decoder.project_in\.lora_A",
    )


# --- strategies


def strategy(name: str, **options: Any) -> Namespace:
    """A strategy as the configuration names it."""
    return Namespace(class_path=f"lightning.pytorch.strategies.{name}", init_args=Namespace(**options))


FSDP1 = sorted(name for name in StrategyRegistry if name.startswith("fsdp") and name != "fsdp2")
UNSUPPORTED = {
    **{name: (name, f"trainer.strategy: {name} .FSDP1. is not supported, use fsdp2") for name in FSDP1},
    "FSDPStrategy": (strategy("FSDPStrategy"), "trainer.strategy: FSDPStrategy .* use fsdp2"),
    "FSDPStrategy by its short name": (Namespace(class_path="FSDPStrategy"), "trainer.strategy: FSDPStrategy .* fsdp2"),
    **{
        f"{size} tensor parallel": (
            strategy("ModelParallelStrategy", tensor_parallel_size=size),
            "trainer.strategy.tensor_parallel_size: .* use fsdp2",
        )
        for size in (2, 8)
    },
    "an unknown stage": ("deepspeed_stage_4", "trainer.strategy: expected one of .*deepspeed_stage_3.* got 'deepspe"),
}


def test_lightning_registers_the_names_of_fsdp1() -> None:
    assert {"fsdp", "fsdp_cpu_offload"} <= set(FSDP1)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_strategy_in_a_configuration_is_refused(name: str) -> None:
    chosen, message = UNSUPPORTED[name]
    refused(lambda: resolve_strategy(chosen), message)


@pytest.mark.parametrize(
    ("chosen", "stage"), [(f"deepspeed_stage_{stage}", stage) for stage in (1, 2, 3)] + [("deepspeed", 2)]
)
def test_lightnings_names_for_deepspeed_select_our_class(chosen: str, stage: int) -> None:
    ours = resolve_strategy(chosen)
    assert ours.class_path == "lit_probsft.parallel.strategies.DeepSpeed"
    assert ours.init_args.stage == stage


def test_our_classes_replace_those_of_lightning() -> None:
    for size in ("auto", 1):
        ours = resolve_strategy(
            strategy("ModelParallelStrategy", tensor_parallel_size=size, data_parallel_size=4, timeout=None)
        )
        assert ours.class_path == "lit_probsft.parallel.strategies.FSDP2"
        assert vars(ours.init_args) == {"timeout": None}
    ours = resolve_strategy(strategy("DeepSpeedStrategy", stage=3))
    assert (ours.class_path, ours.init_args.stage) == ("lit_probsft.parallel.strategies.DeepSpeed", 3)


@pytest.mark.parametrize("chosen", ["auto", "ddp", "fsdp2", strategy("DDPStrategy", find_unused_parameters=True)])
def test_other_strategies_are_unchanged(chosen: Any) -> None:
    assert resolve_strategy(chosen) is chosen


class MyFSDP(FSDPStrategy):
    """A user's own strategy."""


@pytest.mark.parametrize(
    ("kind", "ours"),
    [(FSDPStrategy, "FSDP2"), (MyFSDP, "FSDP2"), (ModelParallelStrategy, "FSDP2"), (DeepSpeedStrategy, "DeepSpeed")],
)
def test_an_unsupported_strategy_object_is_refused(deepspeed: None, kind: Any, ours: str) -> None:
    refused(
        lambda: check_supported(kind()),
        rf"trainer.strategy: {kind.__name__} is not supported, use lit_probsft.parallel.{ours}\(\)",
    )


def test_an_unsupported_strategy_object_is_refused_before_the_model_loads() -> None:
    module = ProbSFTModule("./nowhere")  # does not exist
    module._trainer = SimpleNamespace(strategy=FSDPStrategy(), datamodule=None)  # type: ignore[assignment]
    refused(module.configure_model, "trainer.strategy: FSDPStrategy is not supported")


def test_supported_strategy_objects_are_accepted(deepspeed: None) -> None:
    for supported in (FSDP2(), DeepSpeed(), DDPStrategy(), SingleDeviceStrategy()):
        check_supported(supported)


@pytest.mark.parametrize("offload", [False, True])
def test_fsdp2_on_a_cpu_needs_a_machine_without_accelerators_and_no_offload(
    monkeypatch: pytest.MonkeyPatch, offload: bool
) -> None:
    monkeypatch.setattr(ModelParallelStrategy, "setup_environment", lambda self: None)
    monkeypatch.setattr(ModelParallelStrategy, "root_device", torch.device("cpu"))
    monkeypatch.setattr(FSDP2, "num_processes", 1)
    if offload:
        refused(
            FSDP2(cpu_offload=True).setup_environment,
            "trainer.strategy.cpu_offload: expected another device",
        )
        return
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    refused(FSDP2().setup_environment, "trainer.accelerator: fsdp2 shards over this machine's cuda devices, got cpu")


# --- DeepSpeed


def under(monkeypatch: pytest.MonkeyPatch, chosen: Any) -> None:
    trainer = SimpleNamespace(strategy=chosen, precision="32-true", _val_check_time_interval=None)
    monkeypatch.setattr(ProbSFTModule, "trainer", trainer)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_refuses_to_normalize_by_kept_tokens(
    deepspeed: None, monkeypatch: pytest.MonkeyPatch, stage: Any
) -> None:
    under(monkeypatch, DeepSpeed(stage=stage))
    module = ProbSFTModule("a", normalize="kept")
    refused(lambda: module.setup("fit"), "model.normalize: kept is not possible with DeepSpeed.* use tokens, or fsdp2")
    ProbSFTModule("a", normalize="tokens").setup("fit")
    under(monkeypatch, FSDP2())
    module.setup("fit")


def test_deepspeed_refuses_asynchronous_checkpoints(deepspeed: None, tmp_path: Path) -> None:
    now = CheckpointOptions()
    later = dataclasses.replace(now, asynchronous=True)
    trainer: Any = SimpleNamespace(strategy=DeepSpeed(), fit_loop=SimpleNamespace())
    module: Any = None
    refused(
        lambda: Checkpoints(tmp_path, later).setup(trainer, module, "fit"),
        "checkpoints.asynchronous: not possible with DeepSpeed.* use fsdp2",
    )
    Checkpoints(tmp_path, now).setup(trainer, module, "fit")
    trainer.strategy = FSDP2()
    Checkpoints(tmp_path, later).setup(trainer, module, "fit")
    assert trainer.strategy.asynchronous


# --- checkpoints of another strategy, model or number of processes


def folder(path: Path, kind: str, world_size: int = 1) -> Path:
    strategy: Any = SimpleNamespace(**{**vars(SINGLE_PROCESS), "world_size": world_size})
    write_folder(strategy, path, kind, lambda partial: (partial / "a").write_text("b"))
    return path


def test_a_run_without_checkpoints_cannot_be_resumed(tmp_path: Path) -> None:
    refused(
        lambda: where_to_continue(tmp_path),
        f"--resume: expected an intact checkpoint in {tmp_path}: it has no checkpoints",
    )


@pytest.mark.parametrize("kind", ["fsdp2", "deepspeed"])
def test_a_single_process_refuses_a_folder(tmp_path: Path, kind: str) -> None:
    path = folder(tmp_path / "a", kind)
    message = f"--resume: expected a single file, {path} is a folder that {kind} wrote"
    refused(lambda: WholeFileIO().load_checkpoint(path), message)


@pytest.mark.parametrize(("kind", "found"), [("fsdp2", "deepspeed"), ("deepspeed", "fsdp2"), ("deepspeed", "file")])
def test_a_checkpoint_of_another_strategy_is_refused(deepspeed: None, tmp_path: Path, kind: str, found: str) -> None:
    path = tmp_path / "a"
    write_file({}, path) if found == "file" else folder(path, found)
    loading = FSDP2() if kind == "fsdp2" else DeepSpeed()
    described = "a single file" if found == "file" else f"a folder that {found} wrote"
    message = f"--resume: expected a checkpoint that {kind} wrote, {path} is {described}; resume with"
    refused(lambda: loading.load_checkpoint(path), message)


def test_a_folder_without_a_manifest_is_refused(deepspeed: None, tmp_path: Path) -> None:
    path = folder(tmp_path / "a", "fsdp2")
    (path / MANIFEST).unlink()
    for loading in (FSDP2(), DeepSpeed()):
        refused(
            lambda loading=loading: loading.load_checkpoint(path),
            "--resume: .* is a folder that an unknown program wrote",
        )


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (4, 3)])
def test_deepspeed_refuses_another_number_of_processes(
    deepspeed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, now: int
) -> None:
    path = folder(tmp_path / "a", "deepspeed", before)
    monkeypatch.setattr(DeepSpeed, "world_size", now)
    refused(
        lambda: DeepSpeed().load_checkpoint(path),
        f"--resume: expected {before} processes, which wrote {path}: .* to {now}; use fsdp2",
    )


@pytest.mark.parametrize(
    ("weights", "word"),
    [({}, "weight"), ({"weight": torch.ones(2, 3)}, "weight"), ({"weight": torch.ones(3, 2)}, "bias")],
)
def test_fsdp2_refuses_the_file_of_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Any, word: str
) -> None:
    write_file({"state_dict": weights}, tmp_path / "a")
    loading = FSDP2()
    loading._model = nn.Linear(2, 3)  # type: ignore[assignment]

    class Copying(Sharding):
        def put(self, parameter: torch.Tensor, value: torch.Tensor) -> None:
            with torch.no_grad():
                parameter.copy_(value)

    monkeypatch.setattr(loading, "sharding", Copying)
    refused(
        lambda: loading.load_checkpoint(tmp_path / "a"),
        f"--resume: expected a checkpoint of this model, .*a is of another: {word}$",
    )


# --- through the command line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--trainer.strategy", "fsdp"], "trainer.strategy: fsdp .*fsdp2"),
        (
            ["--trainer.strategy", "ModelParallelStrategy", "--trainer.strategy.tensor_parallel_size", "2"],
            "trainer.strategy.tensor_parallel_size: .* use fsdp2",
        ),
        (["--checkpoints.keep_last", "0"], "checkpoints.keep_last: expected at least 1, got 0"),
        (["--model.lora", "LoRA", "--model.lora.r", "0"], "model.lora.r: expected at least 1, got 0"),
        (["--model.lora", "LoRA", "--model.lora.target_modules", "[q_prj]"], r"model.lora.target_modules: .*'q_prj'"),
    ],
)
def test_the_command_line_refuses_before_it_creates_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = config(tmp_path)
    refused(lambda: main(["fit", "--config", str(path), *flags]), words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("backend", ["None", "", "nope", "cpu:gloo,cuda:nope", "undefined"])
def test_an_unknown_backend_is_refused(backend: str) -> None:
    refused(
        lambda: check_supported(DDPStrategy(process_group_backend=backend)),
        "trainer.strategy.process_group_backend: expected a backend of torch.distributed",
    )


def test_a_backend_per_device_is_accepted() -> None:
    check_supported(DDPStrategy(process_group_backend="cpu:gloo"))
