"""`ProbSFTModule`: one step of fine-tuning with an objective."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from typing_extensions import override

from lit_probsft.head.layer import HeadRequest
from lit_probsft.head.loss import HeadOutput
from lit_probsft.head.token_loss import TokenLoss
from lit_probsft.model.forward import forward_with_objective
from lit_probsft.model.generation import Generation
from lit_probsft.model.lora import LoRA
from lit_probsft.model.packing import Packs
from lit_probsft.model.pretrained import source_of
from lit_probsft.model.reference import Reference
from lit_probsft.model.source import ModelSource
from lit_probsft.objectives import NLL, Objective, TokenStats
from lit_probsft.objectives.base import gradient_weight
from lit_probsft.parallel.seeds import derived_seed, run_seed
from lit_probsft.parallel.strategies import DeepSpeed, sharding_of
from lit_probsft.training import checkpoint_contents
from lit_probsft.training.compatibility import check_arguments, check_combination, check_fits
from lit_probsft.training.evaluation_metrics import EvaluationMetrics
from lit_probsft.training.fitting import ObjectiveState
from lit_probsft.training.frozen_reference import FrozenReference
from lit_probsft.training.gradients import Gradients, NonFiniteGuard
from lit_probsft.training.intervals import complete_validation
from lit_probsft.training.lightning_internals import between_steps, print_one_column, trainer_of
from lit_probsft.training.metrics import token_sources
from lit_probsft.training.model_setup import check_in_place, load_model, with_head
from lit_probsft.training.normalization import Normalize, step_size, token_weights, with_auxiliary_loss
from lit_probsft.training.optim import OptimizerFactory, Schedule, build_optimizer, option_groups, reapply_options
from lit_probsft.training.postponed_stop import PostponedStop
from lit_probsft.training.probing import measure_capability
from lit_probsft.training.run_length import total_steps
from lit_probsft.training.step_end import end_steps
from lit_probsft.training.step_metrics import StepMetrics


def default_optimizer(params: Any) -> torch.optim.Optimizer:
    """AdamW as in the paper's recipe, at the learning rate it uses for Llama-3.1-8B."""
    return torch.optim.AdamW(params, lr=2e-5, betas=(0.9, 0.95), weight_decay=0.01)


class ProbSFTModule(L.LightningModule):
    """Fine-tunes a causal language model with an objective f(p).

    The gradient of an optimizer step is the sum over all its supervised tokens, on all ranks and micro-batches, divided
    by their number, which the batches carry (`window_tokens`). The number and size of micro-batches change nothing.

    To change the objective in place, override `token_loss` in a subclass and name it by its class path.

    Args:
        model: where the model comes from; a text is a hub id or folder. In Python also a model itself.
        objective: the objective f(p), a class of `lit_probsft.objectives` or your own.
        optimizer: the optimizer's class, or a function that makes one from parameter groups. Norms and biases have no
            weight decay.
        schedule: factor on the learning rate per optimizer step.
        normalize: the divisor of the sum over a step's tokens. `tokens`: all its supervised tokens. `sequence`: every
            sequence counts the same, whatever its length. `kept`: the tokens inside the objective's interval.
            `micro_batch`: as the paper's code, a sum over micro-batches of the mean over their kept tokens.
        lora: train low-rank adapters instead of the weights.
        generation: how `predict` writes answers.
        logits_budget_mb: memory for the logits of a chunk in MiB; None takes the default of the device.
        probe_rows: number of random training documents that the model is run over before the first step if the
            objective reads its capability and names no source.
        reference: the frozen model that the objective is compared with, if it needs one.
    """

    def __init__(
        self,
        model: ModelSource | str | nn.Module,
        objective: Objective = NLL(),  # noqa: B008  frozen
        optimizer: OptimizerFactory = default_optimizer,
        schedule: Schedule = Schedule(),  # noqa: B008  frozen
        normalize: Normalize = "tokens",
        lora: LoRA | None = None,
        generation: Generation = Generation(),  # noqa: B008  frozen
        logits_budget_mb: float | None = None,
        probe_rows: int = 2000,
        reference: Reference = Reference(),  # noqa: B008  frozen
    ) -> None:
        super().__init__()
        check_arguments(model, objective, normalize, lora, logits_budget_mb, probe_rows)
        self.source = None if isinstance(model, nn.Module) else source_of(model)
        self.objective, self.normalize, self.probe_rows = objective, normalize, probe_rows
        self.optimizer_factory, self.schedule, self.generation = optimizer, schedule, generation
        self.lora, self.reference, self.logits_budget_mb = lora, reference, logits_budget_mb
        self.objective_state = ObjectiveState(objective)
        self.began_with = lora.start if lora is not None and reference.model is None else None
        """The folder of the adapters that training starts from, which then belong to the reference."""
        self.base_of_adapters: dict[str, Any] | None = None
        """How to load the base model again, if checkpoints hold only the adapters."""
        self.new_tokens: dict[str, int] = {}
        """Ids of the tokens that the model was given rows for, by text."""
        self.step_metrics, self.evaluation_metrics = StepMetrics(objective), EvaluationMetrics(objective)
        self.frozen_reference, self.gradients, self.postponed_stop = FrozenReference(), Gradients(), PostponedStop()
        self.calibration: Tensor | None = None  # `bins` of the last evaluation, as `Calibration` returns them
        self.initial_metrics: dict[str, float] = {}  # val/... before the first step, of the trainer's sanity check
        self.changes_reported = False  # to the user, of a resumed run
        self._optimizer_options: list[dict[str, Any]] = []
        self.seed = run_seed()
        self.model: Any = with_head(self, model) if isinstance(model, nn.Module) else None
        """The `PreTrainedModel`; None until it is loaded."""

    @property
    def datamodule(self) -> Any:
        """The trainer's data module, if there is one."""
        return getattr(trainer_of(self), "datamodule", None)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, from the data's plan."""
        return total_steps(self.trainer)

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps so far that were skipped because loss or gradient was not finite."""
        return self.gradients.skipped_steps

    @override
    def setup(self, stage: str) -> None:
        check_combination(self, stage)
        data, name = self.datamodule, None if self.source is None else self.source.name
        known = getattr(data, "fingerprint", None) if stage == "fit" else None
        self.objective_state.warn_of_mismatches(model=name, data_fingerprint=known)
        self.step_metrics.configure(data)
        self.evaluation_metrics.configure(data, stage)
        self._set_interval()
        if self.evaluation_metrics.watched:
            print_one_column(self.trainer)

    @override
    def configure_model(self) -> None:
        load_model(self)

    def check_fits(self, largest: int, longest: int) -> None:
        """Check the largest id and the longest document of the data, or of a stream's block, against the model."""
        check_fits(self.model, largest, longest)

    @override
    def on_fit_start(self) -> None:
        check_in_place(self)
        if self.objective_state.missing and not self.trainer.ckpt_path:  # a checkpoint contains it
            self.objective_state.set(measure_capability(self, self.probe_rows))
            self._set_interval()

    def _set_interval(self) -> None:
        for means in (self.step_metrics, *(each.means for each in self.evaluation_metrics.sets)):
            means.set_interval(self.objective_state.interval)

    @override
    def teardown(self, stage: str) -> None:
        if self.source is not None or self.reference.model is not None:  # it can be loaded again
            self.frozen_reference.release()

    def token_loss(self, tokens: TokenStats) -> Tensor:
        """The loss of each token, (N,): the objective's. Override it for an objective in place."""
        return self.objective.loss(tokens)

    def gradient_weight(self, tokens: TokenStats) -> Tensor:
        """(N,), the pull W of `token_loss` on each target's logit (see `Objective.gradient_weight`)."""
        return gradient_weight(self.token_loss, self.objective.needs, tokens, type(self.objective).__name__)

    def requested_loss(self) -> TokenLoss:
        """What the head is asked for: `token_loss`, and in evaluation the entropy, which takes another pass over the
        logits. In `validate`, before the capability that an objective reads is known, the loss is NLL."""
        statistics = () if self.training else ("entropy",)
        if self.objective_state.missing:
            return TokenLoss.of(NLL(), statistics)
        return dataclasses.replace(TokenLoss.of(self.objective, statistics), loss=self.token_loss)

    def compute(
        self, batch: dict[str, Any], normalizer: float | None = None
    ) -> tuple[HeadOutput, Tensor, Tensor | None]:
        """Head output, loss and auxiliary loss of a micro-batch; `normalizer` None: its number of supervised tokens."""
        progress = self.global_step / max(self.total_steps, 1) if "progress" in self.objective.needs else None
        context = self.objective_state.context(progress)
        if self.training:
            self.step_metrics.objective_values = self.objective_state.logged_values(context)
        packs, mask = Packs.from_batch(batch), batch.get("attention_mask")
        weights = token_weights(batch, self.normalize, packs)
        request = HeadRequest(batch["labels"], self.requested_loss(), normalizer, weights, context)
        self.frozen_reference.load(self)  # without a trainer it is not loaded yet
        with self.frozen_reference.outputs(batch, packs) as request.reference:
            return forward_with_objective(self.model, batch["input_ids"], request, mask, packs)

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        # Lightning divides by the number of micro-batches on this rank, DDP and FSDP by the number of ranks.
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        output, loss, auxiliary = self.compute(batch, normalizer=step_size(batch, self.normalize) / parts)
        if self.normalize == "micro_batch":
            kept = self.step_metrics.inside(output).sum().clamp(min=1)
            loss = loss / kept / self.trainer.world_size
        loss = with_auxiliary_loss(loss, auxiliary, batch, self.normalize)
        self.step_metrics.update(output, token_sources(batch))
        # A loss that is not finite may have a finite gradient; 0 * loss makes every gradient NaN, on every rank.
        return loss * (1 + 0 * loss.detach())

    @override
    def on_train_start(self) -> None:
        complete_validation(self.trainer)
        end_steps(self.trainer)
        reapply_options(self.trainer, self._optimizer_options, quiet=self.changes_reported)

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # The random numbers of a micro-batch (dropout, a sampling objective) do not depend on earlier ones.
        part = batch_idx % self.trainer.accumulate_grad_batches
        torch.manual_seed(derived_seed(self.seed, self.global_step, part, self.global_rank))

    @override
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        self.gradients.lr = float(optimizer.param_groups[0]["lr"])  # the schedule changes it before it is logged
        if isinstance(self.trainer.strategy, DeepSpeed):
            return  # its engine clips, skips and measures; see optimizer_step
        kept = self.step_metrics.tokens_inside(self.trainer) if self.normalize == "kept" else None
        self.gradients.clip(optimizer, gradient_clip_val, gradient_clip_algorithm, divisor=kept)

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if not between_steps(self.trainer):
            return
        if self.objective_state.reads_steps:  # before a checkpoint is saved
            means = self.step_metrics.compute()
            self.objective_state.add_step(float(means["mean_p"]), float(means["nll"]))
        if isinstance(self.trainer.strategy, DeepSpeed):
            self.gradients.read(self.trainer.strategy)

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.postponed_stop.after_micro_batch(self.trainer)
        if self.gradients.norm is not None:
            self.step_metrics.log(self)
            self.gradients.norm = None

    # --- evaluation

    @override
    def on_predict_start(self) -> None:
        self.generation.report_unused(self.model)

    @override
    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        # Sampled answers do not depend on earlier ones either. Ranks have different documents, or the same replica.
        torch.manual_seed(derived_seed(self.seed, *batch["documents"].tolist()))

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Returns `log_probs` (N,) of the supervised tokens in row-major order, in nats."""
        output = self.compute(batch)[0]
        self.evaluation_metrics.sets[dataloader_idx].update(output, token_sources(batch))
        return {"log_probs": output.log_probs}

    @override
    def on_validation_epoch_end(self) -> None:
        self.evaluation_metrics.log(self, "val")

    @override
    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        return self.validation_step(batch, batch_idx)

    @override
    def on_test_epoch_end(self) -> None:
        self.evaluation_metrics.log(self, "test")

    @override
    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """`documents` (B,) and `answers` (B, T'), the token ids after prompts that are padded on the left."""
        prompt, sharded = batch["input_ids"], sharding_of(self.trainer.strategy) is not None
        produced = self.generation.answer(
            self.model,
            prompt,
            batch["attention_mask"],
            pad_token_id=self.datamodule.tokenizer.pad_token_id,
            synced_gpus=sharded and self.trainer.world_size > 1,
        )
        return {"documents": batch["documents"], "answers": produced[:, prompt.shape[1] :]}

    # --- checkpoints and optimizer

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint_contents.save(self, checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint_contents.load(self, checkpoint)
        self._set_interval()

    @override
    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.optimizer_factory, self.model, self.trainer)
        self._optimizer_options = option_groups(optimizer)
        scheduler = self.schedule.attach(optimizer, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @override
    def configure_callbacks(self) -> list[Callback]:
        return [NonFiniteGuard()]
