"""The frozen reference of anchored objectives: its weights, that they never change, and what does not contain it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lit_probsft.cli.commands import main
from lit_probsft.data import ByteTokenizer
from lit_probsft.errors import UserError
from lit_probsft.model import ModelSource, PretrainedCausalLM
from lit_probsft.model.lora import LoRA
from lit_probsft.model.lora_injection import inject_adapters
from lit_probsft.model.reference import FrozenModel, Reference, load_reference
from lit_probsft.objectives import ASFT, NLL, PSFT, Anchored, NegP, Objective
from lit_probsft.parallel.strategies import DeepSpeed
from lit_probsft.run.export import export_model
from lit_probsft.storage.atomic import remove
from lit_probsft.training.checkpoints import CheckpointOptions, Checkpoints
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule
from tests import tiny
from tests.cli.test_fit import config
from tests.parallel.launch import launch

EXACT = Reference(dtype="float64")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [20, 3, 44, 60, 1, 2]])
LABELS = torch.tensor([[-100, 6, 7, -100, 9, 10], [-100, -100, 44, 60, 1, -100]])
BATCH = {"input_ids": IDS, "labels": LABELS}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 20)


def disturb(model: Any) -> None:
    """Change all parameters a little."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


def fitted(rows: Path, objective: Objective, model: Any = None, **options: Any) -> ProbSFTModule:
    mine = {name: options.pop(name) for name in ("lora", "reference") if name in options}
    module = Watched(model or tiny.source(), objective, tiny.adamw, Schedule("constant", warmup=0), **mine)
    ckpt_path = options.pop("ckpt_path", None)
    trainer = tiny.trainer(**{"max_epochs": 2, "log_every_n_steps": 1, **options})
    trainer.fit(module, datamodule=tiny.data(rows), ckpt_path=ckpt_path)
    return module


class Watched(ProbSFTModule):
    """Keeps its losses, and the frozen model after the end of the fit."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.losses: list[float] = []
        self.seen: FrozenModel | None = None

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.losses.append(float(self.trainer.callback_metrics["train/loss"]))
        self.seen = self.frozen_reference.loaded


def full_logits(model: Any) -> Tensor:
    return model(input_ids=IDS).logits[:, :-1][LABELS[:, 1:] != -100]


def obvious(model: Any, reference: Any, direction: str) -> Tensor:
    """DFT plus 0.3 times a divergence, from all logits of both models."""
    log_p, log_q = full_logits(model).log_softmax(-1), full_logits(reference).log_softmax(-1).detach()
    log_target = log_p.gather(-1, LABELS[:, 1:][LABELS[:, 1:] != -100][:, None])[:, 0]
    kl = (log_q.exp() * (log_q - log_p)) if direction == "forward" else (log_p.exp() * (log_p - log_q))
    return (0.3 * kl.sum(-1) - log_target.exp().detach() * log_target).mean()


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gradients_equal_those_through_all_logits_of_both_models(name: str, direction: Any) -> None:
    fields: dict[str, Any] = (
        {} if name == "llama" else {"model_type": name, "head_dim": 8, "final_logit_softcapping": 2.0}
    )
    model = tiny.model(torch.float64, **fields)
    module = ProbSFTModule(model, ASFT(0.3, direction), reference=EXACT, logits_budget_mb=1e-3)
    module.frozen_reference.load(module)
    disturb(model)
    _, loss, _ = module.compute(BATCH)
    expected = obvious(model, tiny.model(torch.float64, **fields), direction)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = dict(model.named_parameters())
    wanted = torch.autograd.grad(expected, list(parameters.values()))
    got = torch.autograd.grad(loss, list(parameters.values()))
    assert max(float(gradient.abs().max()) for gradient in wanted) > 1e-3
    for key, one, other in zip(parameters, got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("lora", [None, LoRA(r=2, dropout=0.5)])
def test_training_starts_at_the_reference(direction: Any, lora: LoRA | None) -> None:
    """Only the trained model has dropout, in its adapters as well."""
    gradients = []
    for objective in (NegP(), Anchored(NegP(), 5.0, direction)):
        torch.manual_seed(0)
        module = ProbSFTModule(tiny.model(torch.float64), objective, reference=EXACT, lora=lora)
        output, loss, _ = module.compute(BATCH)
        gradients.append(torch.autograd.grad(loss, [p for p in module.model.parameters() if p.requires_grad]))
    expected = NegP().loss(module_stats(output.log_probs))
    torch.testing.assert_close(output.token_losses, expected, rtol=0, atol=1e-14)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def module_stats(log_probs: Tensor) -> Any:
    from lit_probsft.objectives import TokenStats

    return TokenStats(log_probs)


def test_the_reference_of_adapters_is_the_model_without_them() -> None:
    model = tiny.model(torch.float64)
    module = ProbSFTModule(model, Anchored(NLL(), 1.0), reference=EXACT, lora=LoRA(r=2))
    disturb(module.model)
    changed = {name: p.requires_grad for name, p in model.named_parameters()}
    output, _, _ = module.compute(BATCH)
    assert module.frozen_reference.loaded is not None
    assert module.frozen_reference.loaded.model is model
    log_p, log_q = full_logits(model).log_softmax(-1), full_logits(tiny.model(torch.float64)).log_softmax(-1)
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    assert kl.min() > 1e-6
    torch.testing.assert_close(output.token_losses + output.log_probs, kl, rtol=1e-9, atol=1e-14)
    assert model.training
    assert {name: p.requires_grad for name, p in model.named_parameters()} == changed


def started(folder: Path, **options: Any) -> LoRA:
    """A folder of adapters of the tiny model, far from zero, from which training starts."""
    lora = LoRA(r=2, export="adapter", **options)
    model = tiny.model()
    inject_adapters(model, lora)
    disturb(model)
    export_model(model, ByteTokenizer().load(list), folder, lora=lora, base=PretrainedCausalLM("base"))
    return replace(lora, start=str(folder), export="merged")


@pytest.mark.parametrize("whole", [[], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("as_module", [False, True])
def test_training_from_adapters_starts_at_the_reference(
    rows: Path, tmp_path: Path, whole: list[str], as_module: bool
) -> None:
    lora, exact = started(tmp_path / "start", modules_to_save=whole), Reference(dtype="float32")
    first = []
    for objective in (NLL(), Anchored(NLL(), 1000.0)):
        model = tiny.model() if as_module else None
        module = fitted(rows, objective, model, lora=lora, reference=exact, max_steps=1)
        first.append(module.losses[0])
    assert first[1] == pytest.approx(first[0], abs=1e-3)  # a divergence of 1e-6 at most
    without = fitted(rows, NLL(), lora=replace(lora, start=None), max_steps=1)
    assert abs(without.losses[0] - first[0]) > 1e-4


def test_an_anchor_of_weight_zero_equals_its_base_bit_for_bit(rows: Path) -> None:
    one, other = fitted(rows, NegP()), fitted(rows, Anchored(NegP(), 0.0))
    assert other.seen is None
    assert one.losses == other.losses
    expected = tiny.weights(one)
    for name, value in tiny.weights(other).items():
        assert torch.equal(value, expected[name]), name


def test_an_anchor_keeps_the_model_near_the_reference(rows: Path) -> None:
    log_q = full_logits(tiny.model()).log_softmax(-1)
    left = []
    for objective in (NLL(), Anchored(NLL(), 100.0)):
        log_p = full_logits(fitted(rows, objective, max_epochs=4).model).log_softmax(-1)
        left.append(float((log_q.exp() * (log_q - log_p)).sum(-1).mean()))
    assert 0 < left[1] < left[0] / 2


@pytest.mark.parametrize("objective", [ASFT(), PSFT()], ids=repr)
def test_the_reference_is_frozen_in_bf16_and_in_no_checkpoint(rows: Path, objective: Objective, tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, CheckpointOptions(save_every=1, keep_last=9))
    module = fitted(rows, objective, callbacks=[saved], enable_checkpointing=True)
    assert module.seen is not None
    reference = module.seen.model
    assert {(p.dtype, p.requires_grad) for p in reference.parameters()} == {(torch.bfloat16, False)}
    start = tiny.model()
    for name, value in reference.named_parameters():  # unchanged by training
        assert torch.equal(value, start.get_parameter(name).bfloat16()), name
    assert not {id(p) for p in reference.parameters()} & {id(p) for p in module.parameters()}
    held = {id(p) for group in module.trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in module.model.parameters()}
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    plain = ProbSFTModule(tiny.model())
    assert content["state_dict"].keys() == plain.state_dict().keys()
    assert module.frozen_reference.loaded is None  # and gone with the fit


def test_the_described_dtype_is_that_after_the_trainers_cast(rows: Path) -> None:
    described = []

    class Describe(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            described.append(pl_module.frozen_reference.description["dtype"])

    fitted(rows, ASFT(), tiny.model(), lora=LoRA(r=2), precision="bf16-true", callbacks=[Describe()], max_epochs=1)
    assert described == ["bfloat16"]


def test_a_resumed_run_equals_the_uninterrupted_run(rows: Path, tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, CheckpointOptions(save_every=2, keep_last=9))
    objective = Anchored(NLL(), 0.5)
    whole = fitted(rows, objective, callbacks=[saved], enable_checkpointing=True)
    middle = tmp_path / "step-00000002.ckpt"
    resumed = fitted(rows, objective, ckpt_path=middle)
    assert resumed.losses == whole.losses[2:]
    expected = tiny.weights(whole)
    for name, value in tiny.weights(resumed).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    "change", [{"model": tiny.source(seed=1)}, {"reference": Reference(tiny.source(seed=1))}, {"reference": EXACT}]
)
def test_a_run_whose_reference_has_changed_does_not_resume(rows: Path, tmp_path: Path, change: Any) -> None:
    saved = Checkpoints(tmp_path, CheckpointOptions(save_every=2, keep_last=9))
    fitted(rows, PSFT(), callbacks=[saved], enable_checkpointing=True, max_epochs=1)
    with pytest.raises(UserError, match="--resume: expected the reference's weights as in the checkpoint"):
        fitted(rows, PSFT(), ckpt_path=tmp_path / "step-00000002.ckpt", **change)


def test_the_fingerprint_depends_on_every_weight() -> None:
    def fingerprint(model: Any) -> str:
        return FrozenModel(model).fingerprint(torch.device("cpu"))

    base = fingerprint(tiny.model())
    assert base == fingerprint(tiny.model())
    assert base != fingerprint(tiny.model(seed=1))
    for name in dict(tiny.model().named_parameters()):
        changed = tiny.model()
        flat = changed.get_parameter(name).data.view(-1)
        flat[0] = torch.nextafter(flat[0], torch.tensor(2.0))
        assert fingerprint(changed) != base, name


def test_a_reference_from_a_folder_is_loaded_in_its_own_dtype(tmp_path: Path) -> None:
    model = tiny.model()
    model.save_pretrained(tmp_path)
    read = PretrainedCausalLM(str(tmp_path), gradient_checkpointing=True, compile=True)
    frozen = load_reference(read, None, torch.float32, torch.bfloat16, None)
    for name, value in frozen.model.named_parameters():
        assert torch.equal(value, model.get_parameter(name).bfloat16()), name
    assert not frozen.model.training
    assert not frozen.model.is_gradient_checkpointing
    assert "forward" not in vars(frozen.model.model.layers[0])  # a compiled forward would be an attribute of the layer


class NeverLoaded(ModelSource):
    name = "never"

    def load(self, *args: Any) -> Any:
        raise AssertionError("it was loaded")


def test_zero_3_is_rejected_before_the_model_is_loaded(rows: Path) -> None:
    pytest.importorskip("deepspeed")
    module = ProbSFTModule(NeverLoaded(), ASFT())
    trainer = tiny.trainer(strategy=DeepSpeed(stage=3))
    module._trainer = trainer  # type: ignore[assignment]  # this check needs no process group
    with pytest.raises(UserError, match="model.objective: ASFT needs reference_logits of a second model, which ZeRO-3"):
        module.setup("fit")


def test_a_reference_with_another_vocabulary_is_rejected(rows: Path) -> None:
    other = Reference(tiny.source(vocab_size=1000))
    with pytest.raises(
        UserError, match=r"model.reference.model: expected .* vocabulary of \d+ tokens, got one with 1000"
    ):
        fitted(rows, ASFT(), reference=other)
    with pytest.raises(UserError, match="model.reference.dtype: expected auto, bfloat16, .* got 'int8'"):
        Reference(dtype="int8")  # type: ignore[arg-type]


@pytest.mark.parametrize("lora", [(), pytest.param(("--model.lora", "LoRA"), marks=pytest.mark.slow)])
def test_validation_compares_with_the_model_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    anchored = {"class_path": "Anchored", "init_args": {"base": {"class_path": "NegP"}, "weight": 500.0}}
    path = str(config(tmp_path, model__objective=anchored, model__reference={"dtype": "float32"}))
    after = main(["fit", "--config", path, *lora]).trainer.callback_metrics
    again = main(["validate", "--config", path, *lora]).trainer.callback_metrics
    if not lora:
        record = json.loads((tmp_path / "runs/tiny/run.json").read_text())["reference"]
        assert (record["name"], record["dtype"]) == ("llama from random weights (seed 0)", "float32")
    assert float(after["val/loss"]) > 1 - float(after["val/mean_p"]) + 1e-2
    assert float(again["val/loss"]) == pytest.approx(float(after["val/loss"]), rel=1e-5)


def test_the_head_alone_reports_a_missing_reference() -> None:
    from lit_probsft.head.loss import objective_loss

    hidden, weight, labels = torch.randn(3, 2), torch.randn(5, 2), torch.tensor([0, 1, 2])
    with pytest.raises(
        ValueError, match="PSFT needs reference_log_probs, for which objective_loss takes a `reference`"
    ):
        objective_loss(hidden, weight, labels, PSFT())


def test_a_bf16_reference_is_close_to_fp32(rows: Path) -> None:
    exact, rounded = (fitted(rows, Anchored(NLL(), 1.0), reference=Reference(dtype=d)) for d in ("float32", "bfloat16"))
    assert exact.losses != rounded.losses
    assert rounded.losses == pytest.approx(exact.losses, rel=1e-3)


def test_a_random_reference_has_the_trained_models_weights_in_any_dtype() -> None:
    frozen = load_reference(tiny.source(), ByteTokenizer().load(list), torch.float32, torch.float64, None)
    assert torch.equal(frozen.model.lm_head.weight, tiny.model().lm_head.weight.double())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_validation_compares_with_the_adapters_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.model().save_pretrained("base")
    ByteTokenizer().load(list).save_pretrained("base")
    started(tmp_path / "start")
    anchored = {"class_path": "Anchored", "init_args": {"base": {"class_path": "NegP"}, "weight": 500.0}}
    path = str(config(tmp_path, model__model="base", model__objective=anchored, model__reference={"dtype": "float32"}))
    flags = ["--model.lora", "LoRA", "--model.lora.r", "2", "--model.lora.start", str(tmp_path / "start")]
    flags += ["--model.lora.export", form]
    after = main(["fit", "--config", path, *flags]).trainer.callback_metrics
    record = json.loads((tmp_path / "runs/tiny/run.json").read_text())["reference"]
    assert record["name"] == f"base with the adapters in {tmp_path / 'start'}"
    again = main(["validate", "--config", path, *flags]).trainer.callback_metrics
    assert float(after["val/loss"]) > 1 - float(after["val/mean_p"]) + 1e-2
    assert float(again["val/loss"]) == pytest.approx(float(after["val/loss"]), rel=1e-4)


@pytest.mark.slow
def test_a_sharded_reference_has_the_fingerprint_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run under FSDP2 resumes with another number of processes, and not from another model."""
    monkeypatch.chdir(tmp_path)
    anchored = {"class_path": "ASFT", "init_args": {"weight": 0.5}}
    path = config(tmp_path, model__objective=anchored, checkpoints={"save_every": 1, "keep_last": 9})
    command = ["fit", "--config", str(path), "--trainer.strategy", "fsdp2", "--trainer.max_epochs=2"]
    two = ["--data.batch_size=4", "--trainer.devices=2"]
    launch(["-m", "lit_probsft", *command, *two], timeout=240, cwd=tmp_path)
    folder = tmp_path / "runs" / "tiny"
    whole = AutoModelForCausalLM.from_pretrained(folder / "hf").state_dict()
    for step in (4, 5, 6):
        remove(folder / "checkpoints" / f"step-{step:08d}.ckpt")
    one = ["-m", "lit_probsft", *command, "--resume", "--trainer.devices=1"]
    with pytest.raises(AssertionError, match="--resume: expected the reference's weights as in the checkpoint"):
        launch([*one, "--model.model.init_args.seed=1"], timeout=240, cwd=tmp_path)
    launch(one, timeout=240, cwd=tmp_path)
    resumed = AutoModelForCausalLM.from_pretrained(folder / "hf").state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-4, atol=1e-5)
