"""fit, validate, test and predict: LightningCLI with our defaults, our run folder and our way of saying what is
wrong."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from lit_probsft.callbacks import PredictionWriter, ProgressBar, Throughput
from lit_probsft.data import InstructionDataModule
from lit_probsft.errors import UserError
from lit_probsft.module import ProbSFTModule
from lit_probsft.parsing import explain, with_own_defaults
from lit_probsft.record import MetricsCSV, RunRecord
from lit_probsft.runs import RunFolder, write_json

OUR_DEFAULTS: dict[str, Any] = {
    "trainer.gradient_clip_val": 1.0,
    "trainer.log_every_n_steps": 10,
    "trainer.num_sanity_val_steps": -1,
    "trainer.use_distributed_sampler": False,
}
"""Clipping as in the paper; the whole validation set before the first step; the plan deals the data out to the ranks
itself."""


_NOT_FOR_OUR_USERS = (
    "does not have many workers",  # batches are small arrays
    "LightningCLI's args parameter is intended",  # main() gives it what the shell gave
    "LeafSpec.*is deprecated",  # between Lightning and torch
    "Total length of `list` across ranks is zero",  # no validation rows, which is allowed
    "The number of training batches .* is smaller than the logging interval",  # the last step is logged in any case
    "You defined a `validation_step` but have no `val_dataloader`",
)


class Parser(LightningArgumentParser):
    """Raises a `UserError` with one message instead of printing hundreds of lines of usage."""

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """An objective that is named on the command line starts from its own defaults.

        jsonargparse would hand it the old one's arguments of the same name: alpha = 10 of a Power in the config would
        silently become the alpha of whatever class is named after it.
        """
        return super().parse_args(None if args is None else with_own_defaults(list(args)), *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what jsonargparse says; parsers within parsers keep its own way, and only the outermost knows the
        argument."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UserError(message) from ex


class ProbSFTCLI(LightningCLI):
    """LightningCLI for a `ProbSFTModule` and an `InstructionDataModule`, or subclasses of them named by class path."""

    def __init__(self, args: Sequence[str]) -> None:
        self.command = args[0]
        # Lightning builds the flags of every command at each start; one of the four is asked for.
        wanted = {self.command: LightningCLI.subcommands()[self.command]}
        self.subcommands = lambda: wanted  # type: ignore[method-assign]
        super().__init__(
            ProbSFTModule,
            InstructionDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            seed_everything_default=0,
            args=list(args),
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Our parser in the place of Lightning's."""
        kwargs.setdefault("dump_header", [f"lightning.pytorch=={L.__version__}"])
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action="config", help="a configuration file; later ones win")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """One message in place of jsonargparse's nested one."""
        try:
            super().parse_arguments(parser, args)
        except UserError as error:
            flags = [action.dest for action in self._parser(self.command)._actions if action.dest]
            raise UserError(explain(str(error), flags)) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run's own flags, and our defaults."""
        parser.add_argument(
            "--name", type=str | None, default=None, help="of the run; by default the config file's name"
        )
        parser.add_argument("--runs_dir", type=str, default="runs", help="where run folders lie")
        parser.add_argument("--resume", action="store_true", help="continue the run of this name")
        parser.add_argument("--overwrite", action="store_true", help="replace the run of this name")
        parser.add_argument(
            "--weights",
            type=str,
            default="auto",
            help="for validate, test and predict: a folder, `base` for the model before training, or `auto` for what "
            "the run of this name has exported, else the base",
        )
        parser.set_defaults(
            {
                "model": {"class_path": "lit_probsft.ProbSFTModule"},
                "data": {"class_path": "lit_probsft.InstructionDataModule"},
                **OUR_DEFAULTS,
            }
        )

    # --- before anything is built

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder, the weights and what the configuration leaves to us."""
        config = self.config[self.command]
        self.run = RunFolder(Path(config.runs_dir) / _run_name(config))
        if self.command == "fit":
            self.run.check(resume=config.resume, overwrite=config.overwrite)
            if config.resume and config.get("ckpt_path") is None:
                config.ckpt_path = str(self.run.last_checkpoint)
        elif config.resume or config.overwrite:
            raise UserError(f"--resume and --overwrite: expected only with fit, got them with {self.command}")
        if "init_args" not in config.model or config.model.init_args.get("model") is None:
            raise UserError("model.model: expected a model (a hub id, a folder, or RandomCausalLM), got none")
        self.config_text = self._whole_config(config)
        if self.command != "fit":
            self._use_weights(config)
        _default_tokenizer(config)
        trainer = config.trainer
        if trainer.max_epochs is None and trainer.max_steps == -1:
            trainer.max_epochs = 1
        if trainer.precision is None:
            trainer.precision = "bf16-mixed" if _on_gpu(trainer) else "32-true"

    def _use_weights(self, config: Namespace) -> None:
        wanted = config.weights
        if wanted == "base" or config.get("ckpt_path") is not None:
            return
        if wanted != "auto" and not Path(wanted).is_dir():
            raise UserError(f"--weights: expected `auto`, `base` or a folder with a model, got {wanted!r}")
        folder = self.run.hf if wanted == "auto" else Path(wanted)
        if not folder.is_dir():
            rank_zero_info(f"{self.command}: {folder} does not exist yet, taking the base model")
            return
        rank_zero_info(f"{self.command}: weights and tokenizer of {folder}")
        source = config.model.init_args.model
        options = source.init_args if isinstance(source, Namespace) else Namespace()
        kept = {k: options[k] for k in ("dtype", "attn_implementation", "trust_remote_code") if k in options}
        config.model.init_args.model = Namespace(
            class_path="lit_probsft.model.PretrainedCausalLM",
            init_args=Namespace(model_name_or_path=str(folder), **kept),
        )
        config.data.init_args.tokenizer = str(folder)

    def _whole_config(self, config: Namespace) -> str:
        kept = config.clone()
        for flag in ("config", "resume", "overwrite", "ckpt_path", "weights", "weights_only"):
            kept.pop(flag, None)
        kept.name = self.run.path.name
        return str(self._parser(self.command).dump(kept, skip_none=False, skip_validation=True))

    def instantiate_classes(self) -> None:
        """Lightning's, with a `UserError` from inside a constructor freed of what jsonargparse wraps around it."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, UserError):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
            raise cause from None

    # --- the trainer

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The configured trainer with the run's loggers and callbacks beside the user's."""
        config = self.config_init[self.command]
        chosen = config.trainer.logger
        own = MetricsCSV(self.run, resume=config.resume)
        if self.command != "fit":
            config.trainer.logger = False
        elif chosen in (None, True, False):
            config.trainer.logger = own
        else:
            config.trainer.logger = [own, *(chosen if isinstance(chosen, list) else [chosen])]
        config.trainer.default_root_dir = config.trainer.default_root_dir or str(self.run.path)
        config.trainer.enable_model_summary = (
            False if config.trainer.enable_model_summary is None else config.trainer.enable_model_summary
        )
        callbacks: Any = config.trainer.callbacks or []
        callbacks = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
        config.trainer.callbacks = [*callbacks, *self._callbacks(config, callbacks)]
        return super().instantiate_trainer(**kwargs)

    def _callbacks(self, config: Namespace, given: list[Callback]) -> list[Callback]:
        ours: list[Callback] = []
        if config.trainer.enable_progress_bar is not False:
            ours.append(ProgressBar())
        if self.command == "predict":
            ours.append(PredictionWriter(self.run.predictions))
        if self.command != "fit":
            return ours
        record = RunRecord(
            self.run, resume=config.resume, config=self.config_text, context={"seed": config.seed_everything}
        )
        ours += [Throughput(), record]
        if config.trainer.enable_checkpointing is not False and not any(isinstance(c, ModelCheckpoint) for c in given):
            data = self.config[self.command].data.init_args
            validated = bool(data.get("validation") or data.get("validation_fraction"))
            ours += _checkpoints(self.run, validated)
        return ours

    # --- after a command

    def after_fit(self) -> None:
        """Say where everything is and what to try next."""
        if not self.trainer.is_global_zero:
            return
        before, metrics = self.model.initial_metrics.get("val/nll"), self.trainer.callback_metrics
        lines = [""]
        if before is not None and "val/nll" in metrics:
            after, mean_p = float(metrics["val/nll"]), float(metrics["val/mean_p"])
            lines.append(f"val/nll {before:.3f} -> {after:.3f} nats, mean p {mean_p:.3f}")
        lines += [
            f"model:   {self.run.hf}  (transformers.AutoModelForCausalLM.from_pretrained loads it as it is)",
            f"record:  {self.run.record}, {self.run.metrics}, {self.run.checkpoints}/",
            "next:    the same run with another objective, under another name:",
            f"         python -m lit_probsft fit --config {self.run.config} --name {self.run.path.name}-power "
            "--model.objective Power --model.objective.alpha 0.5",
            "         answers of the trained model:",
            f"         python -m lit_probsft predict --config {self.run.config}",
        ]
        print("\n".join(lines))

    def after_validate(self) -> None:
        """Leave the numbers beside the run, if there is one."""
        self._write_metrics("validate")

    def after_test(self) -> None:
        """Leave the numbers beside the run, if there is one."""
        self._write_metrics("test")

    def _write_metrics(self, command: str) -> None:
        if self.trainer.is_global_zero and self.run.in_use:
            metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            write_json(self.run.path / f"{command}.json", metrics)


def run_training_command(args: Sequence[str]) -> ProbSFTCLI:
    """Run fit, validate, test or predict with its flags."""
    for message in _NOT_FOR_OUR_USERS:
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(("💡", "TPU available")))
    return ProbSFTCLI(args)


def _checkpoints(run: RunFolder, validated: bool) -> list[ModelCheckpoint]:
    """`last` at each validation (at the end of each epoch without one), `best` by val/nll."""
    # Not save_last: Lightning writes it only when the monitored value has improved.
    common: dict[str, Any] = {
        "dirpath": run.checkpoints,
        "enable_version_counter": False,
        "save_on_train_epoch_end": not validated,
    }
    last = ModelCheckpoint(filename="last", **common)
    return [ModelCheckpoint(filename="best", monitor="val/nll", **common), last] if validated else [last]


def _run_name(config: Namespace) -> str:
    if config.name:
        return str(config.name)
    files = config.get("config") or []
    for path in reversed(files):
        stem = Path(str(getattr(path, "absolute", path))).stem
        if stem:
            return stem
    return "run"


def _default_tokenizer(config: Namespace) -> None:
    """A model with a tokenizer of its own lends it to the data, unless they name one."""
    data, source = config.data.init_args, config.model.init_args.model
    if data.get("tokenizer") is not None:
        return
    if isinstance(source, str):
        data.tokenizer = source
    elif "init_args" in source and "model_name_or_path" in source.init_args:
        data.tokenizer = source.init_args.model_name_or_path


def _on_gpu(trainer: Namespace) -> bool:
    import torch

    return (
        trainer.accelerator in ("auto", "gpu", "cuda")
        and torch.cuda.is_available()
        and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    )
