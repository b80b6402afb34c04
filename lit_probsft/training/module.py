"""One step of fine-tuning with an objective: what is computed, how it is normalized, what is logged."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_probsft.data.tokens.added_tokens import added_token_ids
from lit_probsft.errors import UserError
from lit_probsft.head.layer import HeadRequest
from lit_probsft.head.loss import IGNORE_INDEX, HeadOutput
from lit_probsft.model.base import check_named, describe_base
from lit_probsft.model.fingerprint import fingerprint
from lit_probsft.model.forward import check_head, forward_with_objective, install_head, stop_generation_at
from lit_probsft.model.generation import Generation
from lit_probsft.model.lora import LoRA
from lit_probsft.model.packing import Packs, check_packing, takes_boundaries
from lit_probsft.model.reference import FrozenModel, Reference, check_reference, copied, load_reference
from lit_probsft.model.sources import ModelSource, source_of
from lit_probsft.model.vocabulary import check_rows_trained, check_trained, extend
from lit_probsft.objectives import NLL, Objective, TokenStats
from lit_probsft.objectives.base import NEEDS, REFERENCE
from lit_probsft.parallel.sharding import Sharding
from lit_probsft.parallel.strategies import DeepSpeed, check_supported, sharding_of
from lit_probsft.training.callbacks import NonFiniteGuard
from lit_probsft.training.compatibility import check_adapters, check_combination, check_fits
from lit_probsft.training.fitting import ObjectiveState
from lit_probsft.training.intervals import total_steps, validate_between_steps
from lit_probsft.training.metrics import Evaluation, TokenMeans
from lit_probsft.training.optim import OptimizerFactory, Schedule, check_optimizer, parameter_groups, total_norm
from lit_probsft.training.probing import measure
from lit_probsft.training.resuming import derived_seed, optimizer_anew, progress_of, restore, without_base

Normalize = Literal["tokens", "sequence", "kept", "micro_batch"]


def default_optimizer(params: Any) -> torch.optim.Optimizer:
    """AdamW as in the paper's recipe, at the learning rate it uses for Llama-3.1-8B."""
    return torch.optim.AdamW(params, lr=2e-5, betas=(0.9, 0.95), weight_decay=0.01)


class ProbSFTModule(L.LightningModule):
    """Fine-tunes a causal language model with an objective f(p).

    The gradient of an optimizer step is the sum over all its supervised tokens, on all ranks and micro-batches, divided
    by their number, which the batches carry (`window_tokens`): how a step is cut into micro-batches changes nothing.

    To change the objective in place, override `token_loss` in a subclass and name it by its class path.

    Args:
        model: where the model comes from; a string is a hub id or folder. A model itself may be given in Python.
        objective: f, a member of `lit_probsft.objectives` or your own.
        optimizer: takes parameter groups (norms and biases without decay), returns an optimizer.
        schedule: factor on the learning rate per optimizer step.
        normalize: what the sum over a step's tokens is divided by. `tokens`: all its supervised tokens. `sequence`:
            every sequence counts the same, whatever its length. `kept`: the tokens inside the objective's interval.
            `micro_batch`: as the paper's code, a sum over micro-batches of each one's mean over its kept tokens.
        lora: train low-rank adapters in place of the weights.
        generation: how `predict` writes answers.
        logits_budget_mb: memory for the logits of a chunk in MiB; None takes the default of the device.
        probe_rows: how many training documents, drawn at random, the model is run over before the first step where the
            objective reads its capability and names no source.
        reference: the frozen model that the objective is compared with, where it needs one.
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
        if probe_rows < 1:
            raise UserError("model.probe_rows", f"expected at least 1, got {probe_rows}")
        if logits_budget_mb is not None and not logits_budget_mb > 0:
            raise UserError("model.logits_budget_mb", f"expected more than 0 MiB, got {logits_budget_mb}")
        if unknown := sorted(objective.needs - NEEDS):
            raise UserError(
                "model.objective.needs",
                f"expected names among {', '.join(sorted(NEEDS))}, got {', '.join(unknown)}",
            )
        if lora is None and getattr(model, "quantization", "none") != "none":
            raise UserError(
                "model.model.quantization",
                f"expected model.lora beside {getattr(model, 'quantization', '')}, since "
                "quantized matrices cannot be trained, got none",
            )
        if lora is not None:
            place = model if isinstance(model, str) else getattr(model, "model_name_or_path", None)
            check_named(lora, type(model).__name__, "model.lora.export", place, getattr(model, "revision", None))
            if lora.dora and getattr(model, "quantization", "none") == "int8":
                raise UserError("model.lora.dora", "expected nf4 or no quantization beside it, got int8")
        if normalize not in ("tokens", "sequence", "kept", "micro_batch"):
            raise UserError("model.normalize", f"expected tokens, sequence, kept or micro_batch, got {normalize!r}")
        self.source = None if isinstance(model, nn.Module) else source_of(model)
        self.objective = objective
        self.optimizer_factory = optimizer
        self.schedule = schedule
        self.normalize = normalize
        self.lora = lora
        self.generation = generation
        self.logits_budget_mb = logits_budget_mb
        self.probe_rows = probe_rows
        self.objective_state = ObjectiveState(objective)
        """What the objective reads of the model before training, and of the steps so far."""
        self.reference = reference
        self.began_with = lora.start if lora is not None and reference.model is None else None
        """The folder of adapters that are part of the reference, since training began with them."""
        self.base_of_adapters: dict[str, Any] | None = None
        """How to load again what lies beside the adapters, where checkpoints hold those alone."""
        self.new_tokens: dict[str, int] = {}
        """Tokens that the model has been given rows for, by their texts."""
        self._frozen: FrozenModel | None = None  # no submodule: neither trained nor saved
        self._frozen_fingerprint: str | None = None
        self.train_means = TokenMeans(objective)
        self.evaluations = nn.ModuleList([Evaluation(objective)])
        """Of the validation (or test) set, and of each set that is watched beside it."""
        self._watch_interval()
        self.skipped_steps = 0
        """Optimizer steps so far that were skipped because loss or gradient was not finite."""
        self.last_step_skipped = False
        self.calibration: Tensor | None = None
        """Of the last evaluation, as `Calibration` gives its `bins`."""
        self.watched: tuple[str, ...] = ()
        """Names of the sets that are validated on beside the validation set."""
        self.initial_metrics: dict[str, float] = {}
        """Validation metrics before the first step, where the trainer's sanity check runs over the whole set."""
        self.changes_told = False  # to the user: what a run that goes on does otherwise
        self.stop_wanted = False  # was the trainer asked to stop in the midst of a window, at whose end it will?
        self._chosen: list[dict[str, Any]] = []
        self._logged_values: dict[str, float] = {}
        self._grad_norm: Tensor | None = None
        self._lr = math.nan
        self.seed = int(os.environ.get("PL_GLOBAL_SEED") or torch.initial_seed() % 2**32)
        self.model: Any = self._with_head(model) if isinstance(model, nn.Module) else None
        """The `PreTrainedModel`, once it is loaded."""

    # --- the model

    def configure_model(self) -> None:
        """Load the model, once, after the data have been read; refuse ids that are outside its vocabulary."""
        datamodule = self.datamodule
        check_supported(self.trainer.strategy)
        check_adapters(self)
        sharding = sharding_of(self.trainer.strategy)
        dtype = torch.bfloat16 if str(self.trainer.precision) == "bf16-true" else torch.float32
        tokenizer = getattr(datamodule, "tokenizer", None)
        if self.source is not None and self.model is None:
            tokens = dict(self.source.new_tokens(tokenizer))
            check_trained(tokens, self.lora)
            self.new_tokens = tokens
            model = self.source.load(tokenizer, dtype, sharding)
            self.model = self._with_head(model, sharding, tokens)
            self._load_reference(dtype, sharding)
        else:
            if self.source is None:  # handed in, and perhaps trained before by this very module
                tokens = {text: id for text, id in added_token_ids(tokenizer).items() if text not in self.new_tokens}
                check_trained(tokens, self.lora)
                extend(self.model, tokens)
                self.new_tokens.update(tokens)
            self._load_reference(dtype, sharding)  # a copy of the model, before that is cut
            self.model = self.model if sharding is None else sharding.shard(self.model)
        if isinstance(self.trainer.strategy, DeepSpeed):  # which writes the weights itself
            self.trainer.strategy.exclude_frozen_parameters = self.base_of_adapters is not None
        if (end := getattr(datamodule, "end_of_turn_id", None)) is not None:
            stop_generation_at(self.model, end)
        report = getattr(datamodule, "report", {})
        # Prompts are answered at any length: what the model makes of them is seen in the answers.
        longest = max((split.get("max_length", 0) for name, split in report.items() if name != "predict"), default=0)
        self.check_fits(getattr(datamodule, "max_token_id", -1), longest)

    def check_fits(self, largest: int, longest: int) -> None:
        """Refuse ids outside the model's vocabulary and documents longer than its positions.

        Args:
            largest: id in the data.
            longest: document, in tokens.
        """
        check_fits(self.model, largest, longest)

    def _with_head(self, model: Any, sharding: Sharding | None = None, new: Mapping[str, int] | None = None) -> Any:
        model = model if sharding is None else sharding.shard(model)
        if self.lora is not None:
            if self.source is not None and not new:  # a base that has grown lies nowhere
                device = torch.device("cpu") if self._trainer is None else self._trainer.strategy.root_device
                self.base_of_adapters = describe_base(self.source, model.dtype, fingerprint(model, device))
                self.strict_loading = self.base_of_adapters is None
            self.lora.inject(model, sharding)
            check_rows_trained(new or {}, model)
            if sharding is not None:
                sharding.shard_adapters(model)
        head = install_head(model)
        if self.logits_budget_mb is not None:
            head.chunk_size = max(1, int(self.logits_budget_mb * 2**20 / (4 * head.out_features)))
        return model

    def _load_reference(self, dtype: torch.dtype = torch.float32, sharding: Sharding | None = None) -> None:
        """The frozen model, where the objective needs one and none is there: before a checkpoint is read."""
        trainer = self._trainer
        if not self.objective.needs & REFERENCE or self._frozen or (trainer and trainer.state.fn == "predict"):
            return
        strategy = None if trainer is None else trainer.strategy
        source, wanted = self.reference.source_beside(self.source), self.reference.dtype_beside(self.model.dtype)
        bare = self.lora is not None and not self.lora.modules_to_save and self.began_with is None
        if bare and self.reference.model is None:
            self._frozen = FrozenModel(self.model, adapted=True)
        elif source is None:
            self._frozen = copied(self.model, wanted, sharding)
        else:
            tokenizer = getattr(self.datamodule, "tokenizer", None)
            own = self.reference.model is not None
            self._frozen = load_reference(source, tokenizer, dtype, wanted, sharding, own=own, adapters=self.began_with)
        check_reference(self._frozen.model, self.model)
        device = self.device if strategy is None else strategy.root_device
        if self._frozen.model is not self.model and not getattr(strategy, "cpu_offload", False):
            self._frozen.model.to(device)
        self._frozen_fingerprint = self._frozen.fingerprint(device)

    def describe_reference(self) -> dict[str, Any]:
        """The frozen model as plain data, for the run's record; empty where there is none."""
        if self._frozen is None:
            return {}
        source = self.reference.source_beside(self.source)
        name = "the model handed in" if source is None else source.name
        name += "" if self.began_with is None else f" with the adapters in {self.began_with}"
        dtype = str(self._frozen.model.dtype).removeprefix("torch.")
        commit = None if source is None else source.commit
        found = {"name": name, "dtype": dtype, "weights": self._frozen_fingerprint}
        return found if commit is None else {**found, "commit": commit}

    @property
    def datamodule(self) -> Any:
        """The trainer's, if there is one."""
        return getattr(self._trainer, "datamodule", None) if self._trainer is not None else None

    # --- one step

    def token_loss(self, tokens: TokenStats) -> Tensor:
        """The loss of each token, (N,): the objective's. Override it for an objective in place."""
        return self.objective.loss(tokens)

    def gradient_weight(self, tokens: TokenStats) -> Tensor:
        """(N,), the pull W of `token_loss` on each target's logit (see `Objective.gradient_weight`)."""
        return _TokenLoss(self, measures=False).gradient_weight(tokens)

    def compute(
        self, batch: dict[str, Any], normalizer: float | None = None
    ) -> tuple[HeadOutput, Tensor, Tensor | None]:
        """Head output, loss and auxiliary loss of a micro-batch; `normalizer` None divides by its own supervised
        tokens."""
        context = self.objective_state.context()
        if "progress" in self.objective.needs:
            context["progress"] = self.global_step / max(self.total_steps, 1)
        objective = _TokenLoss(self)
        if self.training and not self.objective_state.missing:
            self._logged_values = self.objective.logged_values(TokenStats(torch.zeros(0), **context))
        weight, packs = None, Packs.of(batch)
        if self.normalize == "sequence":
            supervised = batch["labels"] != IGNORE_INDEX
            supervised[:, 0] = False  # nothing predicts it
            counts = supervised.sum(-1, keepdim=True) if packs is None else packs.of_each(supervised)
            weight = (1 / counts.clamp(min=1)).expand_as(batch["labels"])
        if (of_rows := batch.get("token_weight")) is not None:
            weight = of_rows if weight is None else weight * of_rows
        request = HeadRequest(batch["labels"], objective, normalizer, weight, context)
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        self._load_reference()  # without a trainer
        with (
            self._frozen.saying(ids, batch["labels"], mask, packs) if self._frozen else contextlib.nullcontext() as said
        ):
            request.reference = said
            return forward_with_objective(self.model, ids, request, mask, packs)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a micro-batch, scaled so that Lightning's and DDP's means add up to the window's."""
        missing = [key for key in ("input_ids", "labels", "window_tokens", "window_sequences") if key not in batch]
        if missing:
            raise UserError(
                "batch", f"expected the keys that InstructionDataModule gives, {', '.join(missing)} missing"
            )
        # Lightning divides by the number of micro-batches on this rank, DDP and FSDP by the number of ranks.
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        whole = {"tokens": batch["window_tokens"], "sequence": batch["window_sequences"]}.get(self.normalize, 1)
        output, loss, auxiliary = self.compute(batch, normalizer=max(whole, 1) / parts)
        if self.normalize == "micro_batch":
            kept = self.train_means.inside(output).sum().clamp(min=1)
            loss = loss / kept / self.trainer.world_size
        if auxiliary is not None:
            if self.normalize == "kept":
                raise UserError(
                    "model.normalize", "kept would divide the auxiliary loss of a mixture of experts as well"
                )
            # Padding that fills the last window up has nothing to say about the balance of the experts.
            loss = loss + auxiliary * float(batch["documents"].numel() > 0)
        self.train_means.update(output, _sources(batch))
        # A loss that is not finite may have a finite gradient; 0 * loss makes every gradient NaN, on every rank.
        return loss * (1 + 0 * loss.detach())

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Normalize by `kept` tokens if asked to, measure the gradient, skip the step if it is not finite, clip it."""
        self._lr = float(optimizer.param_groups[0]["lr"])  # of this step: the schedule moves on before it is logged
        if isinstance(self.trainer.strategy, DeepSpeed):
            return  # its engine clips, skips and measures; see optimizer_step
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.normalize == "kept":
            kept = self.trainer.strategy.reduce(self.train_means.sums[-2].clone(), reduce_op="sum")
            for gradient in gradients:
                gradient.div_(kept.clamp(min=1).to(gradient.dtype))
        norm = total_norm(gradients)
        self._grad_norm = getattr(norm, "full_tensor", lambda: norm)()
        self.last_step_skipped = not math.isfinite(self._grad_norm.item())
        if self.last_step_skipped:
            self.skipped_steps += 1
            for parameter in parameters:
                parameter.grad = None  # the optimizer passes over it: weights and moments stay as they are
        elif gradient_clip_val:
            if gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(parameters, gradient_clip_val)
            else:
                nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def on_fit_start(self) -> None:
        """What could not be checked while ZeRO-3 held the model in parts, or before it was where it is trained."""
        if isinstance(self.trainer.strategy, DeepSpeed) and self.trainer.strategy.zero_stage_3:
            check_head(self.model)
        if getattr(self.datamodule, "packing", False):
            # Exact where it can be; flash attention takes nothing but 16 bits.
            rounded = takes_boundaries(self.model.config.get_text_config())
            with self.trainer.precision_plugin.forward_context() if rounded else contextlib.nullcontext():
                for model in dict.fromkeys([self.model, *([self._frozen.model] if self._frozen else [])]):
                    check_packing(model)
        if self.objective_state.missing and not self.trainer.ckpt_path:  # a run that goes on has it in its checkpoint
            self.objective_state.set(measure(self, self.probe_rows))
            self._watch_interval()

    def _watch_interval(self) -> None:
        for means in (self.train_means, *(evaluation.means for evaluation in self._evaluations())):
            means.watch(self.objective_state.interval)

    def _evaluations(self) -> list[Evaluation]:
        return cast("list[Evaluation]", list(self.evaluations))

    def on_train_start(self) -> None:
        """Validate, and so save, between two optimizer steps only: a window cut in two could not be resumed."""
        validate_between_steps(self.trainer)
        optimizer_anew(self.trainer, self._chosen, quietly=self.changes_told)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Random numbers (dropout, a sampling objective) are those of this micro-batch, whatever was drawn before."""
        part = batch_idx % self.trainer.accumulate_grad_batches
        torch.manual_seed(derived_seed(self.seed, self.global_step, part, self.global_rank))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's; then ask DeepSpeed's engine, which clips, skips and measures itself, what it did."""
        super().optimizer_step(*args, **kwargs)
        if self.trainer.fit_loop._should_accumulate():
            return
        if self.objective_state.follows:  # before a checkpoint is written
            means = self.train_means.compute()
            self.objective_state.follow(float(means["mean_p"]), float(means["nll"]))
        strategy = self.trainer.strategy
        if isinstance(strategy, DeepSpeed):
            self._grad_norm = torch.tensor(strategy.grad_norm)
            self.last_step_skipped = strategy.step_skipped
            self.skipped_steps += self.last_step_skipped

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the means over the window, once its optimizer step is done; whoever wants to stop in the midst of one
        waits for its end."""
        if self.trainer.should_stop and self.trainer.fit_loop._should_accumulate():
            self.trainer.should_stop, self.stop_wanted = False, True
        elif self.stop_wanted and not self.trainer.fit_loop._should_accumulate():
            self.trainer.should_stop, self.stop_wanted = True, False
        if self._grad_norm is None:
            return
        means = {f"train/{name}": value for name, value in self.train_means.compute().items()}
        for source in self.train_means.sources:  # Lightning would log what an earlier step has found once more
            for name in (f"train/nll/{source}", f"train/mean_p/{source}"):
                if name not in means:
                    self.trainer.fit_loop._results.pop(f"on_train_batch_end.{name}", None)
        shown = {name: means.pop(name) for name in ("train/loss", "train/nll", "train/mean_p")}
        self.train_means.reset()
        shown["lr"] = torch.tensor(self._lr)
        self.log_dict(shown, prog_bar=True)
        means |= {f"train/{name}": torch.tensor(value) for name, value in self._logged_values.items()}
        self.log_dict({**means, "train/grad_norm": self._grad_norm, "train/skipped_steps": float(self.skipped_steps)})
        self._grad_norm = None

    # --- evaluation

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Add a batch to the means of its set: the validation set comes first, those that are watched behind it.

        Returns:
            `log_probs` (N,) of the batch's supervised tokens in row-major order, nats.
        """
        output = self.compute(batch)[0]
        self._evaluations()[dataloader_idx].update(output, _sources(batch))
        return {"log_probs": output.log_probs}

    def on_validation_epoch_end(self) -> None:
        """Log `val/nll` and the others over all tokens of all ranks, and `val/SET/nll` of the sets that are watched."""
        self._log_evaluation("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """As validation."""
        return self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As validation."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        evaluation, *watched = self._evaluations()
        means = evaluation.take()
        self.calibration = means.pop("bins")
        for name, other in zip(self.watched, watched, strict=True):
            found = other.take()
            means |= {f"{name}/{key}": found[key] for key in ("nll", "mean_p", "ece")}
        if self.objective_state.missing:
            for name in ("loss", "inside"):
                means.pop(name)
        if (
            self.trainer.sanity_checking
        ):  # Lightning logs nothing then, but what the model knows at the start is worth a row
            if self.trainer.ckpt_path and self.initial_metrics:
                return  # a run that goes on knows them
            self.initial_metrics = {f"{stage}/{name}": value.item() for name, value in means.items()}
            for logger in self.trainer.loggers:
                logger.log_metrics(self.initial_metrics, step=0)
            return
        self.log_dict({f"{stage}/{name}": value for name, value in means.items() if name != "nll"}, rank_zero_only=True)
        self.log(f"{stage}/nll", means["nll"], prog_bar=True, rank_zero_only=True)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Answers to prompts padded on the left: `documents` (B,) and `answers` (B, T'), token ids after the prompt."""
        tokenizer = self.datamodule.tokenizer
        prompt = batch["input_ids"]
        produced = self.model.generate(
            prompt,
            attention_mask=batch["attention_mask"],
            pad_token_id=tokenizer.pad_token_id,
            synced_gpus=sharding_of(self.trainer.strategy) is not None and self.trainer.world_size > 1,
            **self.generation.as_kwargs(),
        )
        return {"documents": batch["documents"], "answers": produced[:, prompt.shape[1] :]}

    # --- what a checkpoint holds beside weights and optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Counters, first metrics, and what random numbers are derived from.

        Raises:
            UserError: in the midst of an optimizer step, whose gradients so far would be lost.
        """
        if self.base_of_adapters is not None and "state_dict" in checkpoint:
            checkpoint["state_dict"] = without_base(self.model, checkpoint["state_dict"])
        checkpoint["progress"] = progress_of(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """They go on where they were; a run that would be another one is refused by what differs. Windows may be cut
        into other micro-batches, for another number of processes: what is in them stays."""
        restore(self, checkpoint)
        self._watch_interval()

    # --- the optimizer

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, from the data's plan."""
        return total_steps(self.trainer)

    def configure_optimizers(self) -> Any:
        """The optimizer over two parameter groups and the schedule by step."""
        optimizer = self.optimizer_factory(parameter_groups(self.model))
        check_optimizer(optimizer, self.trainer.strategy)
        lr = optimizer.param_groups[0]["lr"]
        if str(self.trainer.precision) == "bf16-true" and lr < 1e-5:
            rank_zero_warn(
                f"trainer.precision bf16-true with lr {lr:g}: below 1e-5 most updates round to nothing in bf16 "
                "weights; use bf16-mixed, which keeps fp32 master weights"
            )
        self._chosen = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        scheduler = self.schedule.attach(optimizer, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """The guard that ends a run whose steps are no longer finite, for every trainer."""
        return [NonFiniteGuard()]

    def setup(self, stage: str) -> None:
        """Refuse what would silently train something else; tell the sources of the data apart."""
        check_combination(self, stage)
        name = None if self.source is None else self.source.name
        fingerprint = getattr(self.datamodule, "fingerprint", None) if stage == "fit" else None
        for mismatch in self.objective_state.mismatches(model=name, data_fingerprint=fingerprint):
            rank_zero_warn(
                f"model.objective.source: {self.objective_state.source} was measured with another {mismatch}"
            )
        sources_of = getattr(self.datamodule, "sources_of", lambda split: ())
        self.train_means.tell_apart(sources_of("train"))
        own = self._evaluations()[0]
        own.means.tell_apart(sources_of("test" if stage == "test" else "validation"))
        self.watched = getattr(self.datamodule, "watched", ()) if stage in ("fit", "validate") else ()
        self.evaluations = nn.ModuleList([own, *(Evaluation(self.objective) for _ in self.watched)])
        self._watch_interval()
        if self.watched:
            # Lightning would print all metrics once for each loader, though their names say what they are of.
            loop, show = self.trainer.validate_loop, self.trainer.validate_loop._print_results
            loop._print_results = lambda results, stage: show(results[:1], stage)  # type: ignore[method-assign]

    def teardown(self, stage: str) -> None:
        """Let go of a reference that can be loaded again."""
        if self.source is not None or self.reference.model is not None:
            self._frozen = None


class _TokenLoss(Objective):
    """The module's `token_loss` as the head sees it: an override there reaches the head, needs and interval stay."""

    def __init__(self, module: ProbSFTModule, measures: bool = True) -> None:
        self._module = module
        # A model that is validated alone was not probed: what is asked of it, all but the loss, is known without.
        self._known = not module.objective_state.missing
        # A pass over the logits that training does not pay for.
        self._measured = frozenset({"entropy"} if measures and not module.training else ())

    @property
    def needs(self) -> frozenset[str]:
        return (self._module.objective.needs if self._known else frozenset()) | self._measured

    @property
    def top_k(self) -> int:
        return self._module.objective.top_k

    @property
    def _label(self) -> str:
        return type(self._module.objective).__name__  # in what is said of a loss that is none

    def loss(self, tokens: TokenStats) -> Tensor:
        return self._module.token_loss(tokens) if self._known else -tokens.log_probs


def _sources(batch: dict[str, Any]) -> Tensor | None:
    """(N,) which source each supervised token is of, in the order of the head; None where the source is one."""
    if "token_source" not in batch:
        return None
    sources: Tensor = batch["token_source"][:, 1:][batch["labels"][:, 1:] != IGNORE_INDEX]
    return sources
