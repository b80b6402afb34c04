"""Every configuration trains for a step, with a tiny model and tiny data in place of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_probsft.cli.commands import main
from lit_probsft.cli.fit import ProbSFTCLI
from lit_probsft.objectives import NLL, NegP, Power, Threshold
from lit_probsft.parallel.strategies import resolve_strategy
from tests import tiny

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
LLAMA = ["llama_neg_p", "llama_nll", "llama_power", "llama_threshold"]


def substitute(folder: Path) -> list[str]:
    """Flags that replace what a configuration loads from the hub."""
    rows = tiny.write_rows(folder / "rows.jsonl", 40)
    nested = [{"extra_info": json.loads(line)} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in nested))
    model = {"class_path": "RandomCausalLM", "init_args": {"config": tiny.LLAMA, "gradient_checkpointing": True}}
    return [
        f"--model.model={json.dumps(model)}",
        f"--data.train.path={rows}",
        "--data.tokenizer=ByteTokenizer",
        "--data.validation_fraction=0.1",
        "--trainer.strategy=auto",  # sharding would leave a process group behind for the other tests
    ]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in (*LLAMA[1:], "mixture") else name for name in NAMES
    ],  # one objective each
)
def test_every_configuration_trains_a_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = {"mixture": [], "quickstart": ["--data.train.count=16", "--data.validation.count=8"]}.get(name)
    flags = substitute(tmp_path) if flags is None else flags
    cli: Any = main(
        ["fit", "--config", str(CONFIGS / f"{name}.yaml"), *flags, "--trainer.max_steps=1", "--trainer.accelerator=cpu",
         "--trainer.devices=1", "--trainer.enable_progress_bar=false", "--validate_every=epoch"]
    )  # fmt: skip
    assert cli.trainer.global_step == 1
    assert (tmp_path / "runs" / name / "hf" / "model.safetensors").exists()


@pytest.mark.parametrize("name", NAMES)
def test_the_header_has_the_exact_command(name: str) -> None:
    header = [line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert f"#   python -m lit_probsft fit --config configs/{name}.yaml" in header


def parsed(name: str, monkeypatch: pytest.MonkeyPatch, *more: Path) -> dict[str, Any]:
    """The parsed configuration that the classes get."""
    monkeypatch.setattr(ProbSFTCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(ProbSFTCLI, "_run_subcommand", lambda self, command: None)
    files = [f"--config={path}" for path in (CONFIGS / f"{name}.yaml", *more)]
    return yaml.safe_load(ProbSFTCLI(["fit", *files]).config_text)


@pytest.mark.parametrize("path", sorted((CONFIGS / "parallel").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_strategy_file_changes_only_the_strategy_of_a_recipe(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if "zero" in path.stem:
        pytest.importorskip("deepspeed")
    monkeypatch.chdir(tmp_path)
    plain, sharded = parsed("quickstart", monkeypatch), parsed("quickstart", monkeypatch, path)
    chosen, _ = sharded["trainer"].pop("strategy"), plain["trainer"].pop("strategy")
    assert sharded == plain  # the run keeps the recipe's name too
    if "zero" in path.stem:
        built = resolve_strategy(chosen)
        assert built.class_path == "lit_probsft.parallel.strategies.DeepSpeed"
        assert str(built.init_args.stage) in path.stem
        assert bool(built.init_args.get("offload_parameters")) == ("offload" in path.stem)
    else:
        kind = chosen if isinstance(chosen, str) else chosen["class_path"].rsplit(".", 1)[-1].lower()
        assert kind == path.stem.removesuffix("_offload")
    assert f"--config configs/parallel/{path.name}" in path.read_text()


def test_the_llama_configurations_differ_only_in_the_objective(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seen = {name: parsed(name, monkeypatch) for name in LLAMA}
    objectives = {}
    for name, config in seen.items():
        objectives[name] = config["model"]["init_args"].pop("objective")
        assert config.pop("name") == name
    assert all(config == seen["llama_nll"] for config in seen.values())
    expected = [NegP(), NLL(), Power(10.0), Threshold(NLL(), 0.2)]
    for name, objective in zip(LLAMA, expected, strict=True):
        assert objectives[name]["class_path"] == objective.as_config()["class_path"]
    assert objectives["llama_power"]["init_args"] == {"alpha": 10.0}
    assert objectives["llama_threshold"]["init_args"]["min_prob"] == 0.2


def test_the_llama_configurations_follow_the_papers_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = parsed("llama_neg_p", monkeypatch)
    optimizer = config["model"]["init_args"]["optimizer"]["init_args"]
    data, trainer = config["data"]["init_args"], config["trainer"]
    assert (optimizer["lr"], optimizer["betas"], optimizer["weight_decay"]) == (2e-5, [0.9, 0.95], 0.01)
    assert config["model"]["init_args"]["schedule"]["decay"] == "cosine"
    assert config["model"]["init_args"]["schedule"]["warmup"] == 0.1
    assert (data["max_length"], trainer["max_epochs"], trainer["gradient_clip_val"]) == (3072, 1, 1.0)
    assert data["batch_size"] * trainer["accumulate_grad_batches"] * 8 == 256
