"""fit, validate, test and predict: LightningCLI with our defaults, our run folder and our way of saying what is
wrong."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

import lit_probsft.data.rows.choices
import lit_probsft.data.rows.figlet
import lit_probsft.data.rows.mixture  # noqa: F401  by their short names the parser finds only what is imported
from lit_probsft.cli.config.checks import (
    check_intervals,
    check_trainer,
    export_of,
    in_our_words,
    not_built,
    read_checkpoint,
    with_prefix,
)
from lit_probsft.cli.config.explain import explain
from lit_probsft.cli.config.parser import Parser, _Complaint, _import_named
from lit_probsft.cli.config.yaml_files import check_config_files
from lit_probsft.cli.quiet import quieten
from lit_probsft.data import InstructionDataModule
from lit_probsft.errors import UserError, first_line, first_rank
from lit_probsft.model.lora import LoRA
from lit_probsft.parallel.processes import follow_parent, use_launcher
from lit_probsft.parallel.strategies import FSDP2, DeepSpeed, resolve_strategy
from lit_probsft.run.folder import RunFolder
from lit_probsft.run.metrics_csv import MetricsCSV
from lit_probsft.run.model_exports import ModelExports
from lit_probsft.run.predictions import PredictionWriter
from lit_probsft.run.record import RunRecord
from lit_probsft.run.summary import summary
from lit_probsft.run.timer import RunTimer
from lit_probsft.run.token_changes import TokenChanges
from lit_probsft.run.upload import HubOptions, ensure_repo, upload
from lit_probsft.storage.adapter_folder import is_adapter_folder, read_config
from lit_probsft.storage.atomic import write_json
from lit_probsft.storage.checkpoint_files import damage
from lit_probsft.storage.checkpoint_writing import WholeFileIO
from lit_probsft.training.callbacks import ProgressBar, Throughput
from lit_probsft.training.checkpoints import CheckpointOptions, Checkpoints, where_to_continue
from lit_probsft.training.early_stopping import EarlyStop, StoppingOptions
from lit_probsft.training.graceful_stop import GracefulStop
from lit_probsft.training.intervals import Every, ValidateEvery
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import check_optimizer

OUR_DEFAULTS: dict[str, Any] = {
    "trainer.gradient_clip_val": 1.0,
    "trainer.log_every_n_steps": 10,
    "trainer.num_sanity_val_steps": -1,
    "trainer.use_distributed_sampler": False,
    "trainer.enable_model_summary": False,
}
"""Clipping as in the paper; the whole validation set before the first step; the plan deals the data out to the ranks
itself."""


# A default of the user's callback may be a member of an enumeration (Lightning's Timer has one): its value is what a
# configuration says.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


class ProbSFTCLI(LightningCLI):
    """LightningCLI for a `ProbSFTModule` and an `InstructionDataModule`, or subclasses of them named by class path."""

    def __init__(self, args: Sequence[str]) -> None:
        self.command, self._args = args[0], list(args)
        self._checkpoint: dict[str, Any] = {}
        self._began_with: tuple[str | None] | None = None
        self._lent_tokenizer = False
        self._validate_every: Every | None = None
        self.hub: HubOptions | None = None
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
        flags = [action.dest for action in self._parser(self.command)._actions if action.dest]
        known = dict.fromkeys(flag.split(".")[0] for flag in flags)
        check_config_files(list(args), [*known, self.command])
        _import_named(args)
        try:
            super().parse_arguments(parser, args)
        except SyntaxError as error:  # of a module of the user's that the configuration names
            where = f"{error.filename} line {error.lineno}"
            raise UserError("--config", f"a class's module cannot be imported: {where}: {error.msg}") from error
        except _Complaint as error:
            raise explain(str(error), flags, list(args)) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run's own flags, and our defaults."""
        parser.add_argument(
            "--name", type=str | None, default=None, help="of the run; by default the first config file's name"
        )
        parser.add_argument("--runs_dir", type=str, default="runs", help="where run folders lie")
        parser.add_argument("--resume", action="store_true", help="continue the run of this name")
        parser.add_argument("--overwrite", action="store_true", help="replace the run of this name")
        parser.add_argument(
            "--dry_run",
            action="store_true",
            help="fit: build everything, make a step over the longest documents, say what the run needs, write nothing",
        )
        parser.add_argument(
            "--checkpoints", type=CheckpointOptions, default=CheckpointOptions(), help="when and what is saved"
        )
        parser.add_argument(
            "--early_stopping",
            type=StoppingOptions,
            default=StoppingOptions(),
            help="when the run ends before its last step",
        )
        parser.add_argument(
            "--validate_every",
            type=int | float | Literal["epoch"] | None,
            default=None,
            help="an integer: optimizer steps between validations; between 0 and 1: a share of an epoch; `epoch`: one; "
            "also after the last step. By default as the trainer's flags say, at the end of each epoch",
        )
        parser.add_argument(
            "--push_to_hub", type=HubOptions, default=HubOptions(), help="where fit uploads the model that it exports"
        )
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
        self.run = RunFolder(Path(config.runs_dir).expanduser() / run_name(config))
        self.run.check_path()
        if config.dry_run and "--dry_run" not in self._args:
            raise UserError("--dry_run", "expected on the command line of fit, not in a configuration file")
        check_trainer(config.trainer, self.command)
        if self.command == "fit":
            self.run.check(resume=config.resume, overwrite=config.overwrite)
            if config.resume and config.get("ckpt_path") is None:
                config.ckpt_path = str(where_to_continue(self.run.checkpoints))
                self._checkpoint = read_checkpoint(Path(config.ckpt_path), "--resume", None)
        elif config.resume or config.overwrite:
            raise UserError("--resume and --overwrite", f"expected only with fit, got them with {self.command}")
        if "init_args" not in config.model or config.model.init_args.get("model") is None:
            raise UserError("model.model", "expected a model (a hub id, a folder, or RandomCausalLM), got none")
        if config.model.init_args.get("objective", ...) is None:
            raise UserError("model.objective", "expected an objective, such as NLL, got none")
        if self.command == "fit":
            self._validate_every = check_intervals(config)
            export_of(config)
        self.config_text = self._whole_config(config)
        if self.command != "fit":
            self._use_weights(config)
        self._lent_tokenizer = lend_tokenizer(config)
        trainer = config.trainer
        trainer.strategy = resolve_strategy(trainer.strategy)
        if self._validate_every is not None:
            trainer.val_check_interval, trainer.check_val_every_n_epoch = 1, None  # ours decides, see `ValidateEvery`
        if trainer.max_epochs is None and trainer.max_steps == -1:
            trainer.max_epochs = 1
        if trainer.precision is None:
            trainer.precision = "bf16-mixed" if _on_gpu(trainer) else "32-true"

    def _use_weights(self, config: Namespace) -> None:
        wanted = config.weights
        if wanted == "base" or config.get("ckpt_path") is not None:
            return
        if wanted != "auto" and not (is_adapter_folder(wanted) or (Path(wanted) / "config.json").is_file()):
            raise UserError("--weights", f"expected `auto`, `base` or a folder with a model, got {wanted!r}")
        folder = self.run.hf if wanted == "auto" else Path(wanted)
        if not folder.is_dir():
            rank_zero_info(f"{self.command}: {folder} does not exist yet, taking the base model")
            return
        rank_zero_info(f"{self.command}: weights and tokenizer of {folder}")
        source, lora = config.model.init_args.model, config.model.init_args.get("lora")
        reference = config.model.init_args.get("reference")
        anchored = isinstance(reference, Namespace) and reference.get("model") is None
        if anchored:  # what was trained is compared with what it began as, adapters among it
            self._began_with = (lora.get("init_args", lora).get("start") if isinstance(lora, Namespace) else None,)
        if is_adapter_folder(folder):  # beside the configuration's model, under any strategy
            config.data.init_args.tokenizer = str(folder)
            start = dataclasses.asdict(LoRA.from_folder(str(folder), "--weights")) | {"start": str(folder)}
            theirs = read_config(folder, "--weights").get("base_model_name_or_path")
            ours = source.init_args.get("model_name_or_path") if isinstance(source, Namespace) else source
            if theirs and ours and Path(theirs).resolve() != Path(ours).resolve():
                rank_zero_warn(f"--weights: the adapters in {folder} are of {theirs}, model.model is {ours}")
            config.model.init_args.lora = Namespace(**start)
            return
        if "lora" in config.model.init_args:
            config.model.init_args.lora = None  # it is merged
        if anchored:
            reference.model = source
        options = source.init_args if isinstance(source, Namespace) else Namespace()
        kept = {k: options[k] for k in ("dtype", "attn_implementation", "trust_remote_code") if k in options}
        config.model.init_args.model = Namespace(
            class_path="lit_probsft.model.PretrainedCausalLM",
            init_args=Namespace(model_name_or_path=str(folder), **kept),
        )
        config.data.init_args.tokenizer = _lent(config.model.init_args.model.init_args)

    def _whole_config(self, config: Namespace) -> str:
        kept = config.clone()
        for flag in ("config", "resume", "overwrite", "dry_run", "ckpt_path", "weights", "weights_only"):
            kept.pop(flag, None)
        kept.name = self.run.path.name
        return str(self._parser(self.command).dump(kept, skip_unset=False, skip_validation=True))

    def instantiate_classes(self) -> None:
        """Lightning's, with a `UserError` from inside a constructor freed of what jsonargparse wraps around it."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise cause_of(error, self.config[self.command]) from None
        if not dataclasses.is_dataclass(self.model.objective):
            raise UserError(
                "model.objective",
                "expected a class decorated with @dataclass(frozen=True), "
                f"{type(self.model.objective).__name__} is not",
            )
        if self._began_with is not None:
            self.model.began_with = self._began_with[0]
        if self.command == "fit":
            self._check_optimizer()
            self._make_hub_ready()

    def _make_hub_ready(self) -> None:
        """Once nothing else can be refused, as a repository may be created: by the first rank, and for no trial."""
        config = self.config_init[self.command]
        if config.push_to_hub.repo_id is None or config.trainer.fast_dev_run or config.dry_run:
            return
        if config.checkpoints.export == "none":
            raise UserError("push_to_hub", "expected checkpoints.export to leave a model to upload, got none")
        if first_rank():
            self.hub = ensure_repo(config.push_to_hub)

    def _check_optimizer(self) -> None:
        """Build the optimizer once over a small matrix: its arguments are refused before any data are read."""
        try:
            trial = self.model.optimizer_factory([{"params": [torch.nn.Parameter(torch.zeros(2, 2))]}])
        except (ValueError, TypeError) as error:
            name = self.config[self.command].model.init_args.optimizer.class_path.rsplit(".", 1)[-1]
            raise UserError("model.optimizer", f"{name} refuses its arguments: {first_line(error)}") from error
        check_optimizer(trial, self.trainer.strategy)
        path = self.config[self.command].get("ckpt_path")
        states = self._checkpoint.get("optimizer_states") if path else None
        if states:
            before, now = (
                set(groups[0]) - {"params", "initial_lr"} for groups in (states[0]["param_groups"], trial.param_groups)
            )
            if before != now:
                raise UserError(
                    "--resume",
                    f"expected the optimizer that wrote {path}, got {type(trial).__name__}, whose arguments "
                    f"differ ({', '.join(sorted(before ^ now))})",
                )

    def _parse_ckpt_path(self) -> None:
        """Lightning's, once the checkpoint is known to be whole."""
        config = self.config[self.command]
        if config.get("ckpt_path"):
            path = Path(config.ckpt_path)
            if path.exists() and config.get("weights_only") is not False and (wrong := damage(path)):
                raise UserError("--ckpt_path", f"expected a whole checkpoint, {path} is damaged: {wrong}")
            self._checkpoint = read_checkpoint(path, "--ckpt_path", config.get("weights_only"))
        super()._parse_ckpt_path()

    def _run_subcommand(self, subcommand: str) -> None:
        """Lightning's; what a checkpoint of another model makes it raise is the user's to mend."""
        try:
            super()._run_subcommand(subcommand)
        except UserError as error:
            of = {"data.tokenizer.name_or_path": "", "data.tokenizer.trust_remote_code": ".trust_remote_code"}.get(
                error.argument
            )
            if self._lent_tokenizer and of is not None:
                raise UserError(
                    f"model.model{of}", f"{error.problem} (it names the tokenizer too, as data.tokenizer is not given)"
                ) from error
            raise
        except (RuntimeError, ValueError, KeyError, MisconfigurationException) as error:
            if (ours := in_our_words(str(error))) is not None:
                raise ours from error
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            named = re.match(r"`(\w+)`", lines[0]) if lines else None
            if named and named[1] in self.config[self.command].trainer:
                raise UserError(f"trainer.{named[1]}", f"{lines[0]}") from error
            if not lines or not re.search(r"loading state_dict|loaded state dict", lines[0]):
                raise
            config = self.config[self.command]
            flag = "--resume" if config.get("resume") else "--ckpt_path"
            raise UserError(
                flag, f"expected a checkpoint of this model, {config.ckpt_path} is of another: {lines[-1]}"
            ) from error

    # --- the trainer

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The configured trainer with the run's loggers and callbacks beside the user's."""
        config = self.config_init[self.command]
        chosen = config.trainer.logger
        own = MetricsCSV(self.run)
        if self.command != "fit":
            config.trainer.logger = False
        elif chosen in (None, True, False):
            config.trainer.logger = own
        else:
            config.trainer.logger = [own, *(chosen if isinstance(chosen, list) else [chosen])]
        config.trainer.default_root_dir = config.trainer.default_root_dir or str(self.run.path)
        callbacks: Any = config.trainer.callbacks or []
        callbacks = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
        config.trainer.callbacks = [*callbacks, *self._callbacks(config, callbacks)]
        try:
            trainer = super().instantiate_trainer(**kwargs)
            if self.command != "fit" and not isinstance(trainer.strategy, FSDP2 | DeepSpeed):
                trainer.strategy.checkpoint_io = WholeFileIO("--ckpt_path")
            use_launcher(trainer.strategy)
            return trainer
        except UserError:
            raise
        except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
            if (ours := in_our_words(str(error))) is not None:
                raise ours from error
            message = first_line(error)
            found = {key: re.search(rf"\b{key}\b", message) for key in vars(config.trainer)}
            places = {key: match.start() for key, match in found.items() if match}
            argument = min(places, key=places.__getitem__, default="")
            if not argument and re.search("accelerator|backend", message, re.IGNORECASE):
                argument = "accelerator"
            raise UserError(f"trainer{'.' * bool(argument)}{argument}", f"{message}") from error

    def _callbacks(self, config: Namespace, given: list[Callback]) -> list[Callback]:
        ours: list[Callback] = []
        if config.trainer.enable_progress_bar is not False:
            ours.append(ProgressBar())
        if self.command == "predict":
            ours.append(PredictionWriter(self.run.predictions))
        if self._validate_every is not None:
            ours.append(ValidateEvery(self._validate_every))
        if self.command != "fit" or config.trainer.fast_dev_run:
            return ours
        options = config.checkpoints
        self.record = record = RunRecord(
            self.run,
            resume=config.resume,
            config=self.config_text,
            context={"seed": config.seed_everything},
        )
        exports = ModelExports(record, export_of(config))
        again = f"python -m lit_probsft fit --config {self.run.config} --resume"
        stop = EarlyStop(config.early_stopping, given)
        ours += [Throughput(), RunTimer(), stop, TokenChanges(), record, exports, GracefulStop(again)]
        self._stop = stop
        if any(isinstance(callback, ModelCheckpoint) for callback in given):
            raise UserError(
                "trainer.callbacks",
                "expected no ModelCheckpoint: --checkpoints.save_every, keep_last and export say "
                "what is kept, the best by val/nll among it",
            )
        if config.trainer.enable_checkpointing is not False:
            checkpoints = Checkpoints(self.run.checkpoints, options)
            checkpoints.on_saved, checkpoints.on_resumed = exports.on_saved, exports.on_resumed
            ours.append(checkpoints)
        return ours

    # --- after a command

    def after_fit(self) -> None:
        """Say where everything is and what to try next."""
        if not self.trainer.is_global_zero:
            return
        if self.config[self.command].trainer.fast_dev_run:
            print("trainer.fast_dev_run: a trial, nothing was kept")
            return
        if self.record.already_complete:
            print(f"{self.run.path}: the run is complete already, there was nothing left to train")
            self._push()
            return
        if self._stop.nothing_left:
            print(
                f"{self.run.path}: the run was stopped early and is complete: {self.record.content['stopped_early']}. "
                "More patience lets it go on"
            )
            self._push()
            return
        print("\n".join(summary(self.record.content, self.run, self.model.total_steps)))
        self._push()

    def _push(self) -> None:
        """The last thing of all: whatever happens here, the run is complete."""
        if self.hub is not None and self.record.content.get("status") == "completed":
            sys.stdout.flush()
            print(f"hub:     {upload(self.hub, self.run.hf)}")

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


def run_training_command(args: Sequence[str], kind: type[ProbSFTCLI] = ProbSFTCLI) -> ProbSFTCLI:
    """Run fit, validate, test or predict with its flags, or what a subclass makes of one of them."""
    follow_parent()
    quieten()
    if "--dry_run" in args and args[0] != "fit":
        raise UserError("--dry_run", "expected with fit only")
    return kind(args)


def run_name(config: Namespace) -> str:
    """As it was given, or the first configuration file's."""
    if config.name:
        name = str(config.name)
        if name in (".", "..") or re.search(r"[/\\\0]", name):
            raise UserError(
                "--name", f"expected a folder's name, without separators; --runs_dir says where; got {name!r}"
            )
        if len(name.encode()) > 255:
            raise UserError("--name", f"expected at most 255 bytes, got {len(name.encode())}")
        return name
    files = config.get("config") or []
    for path in files:  # the recipe; those behind it change a detail
        stem = Path(str(getattr(path, "absolute", path))).stem
        if stem:
            return stem
    return "run"


def cause_of(error: BaseException, config: Namespace) -> BaseException:
    """The `UserError` that `error` has wrapped, with its place in the configuration; `error` itself without one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    if cause is None and (told := re.search(r"^ *- (\w+(\.[\w-]+)*: expected .*, got .*)$", str(error), re.MULTILINE)):
        argument, _, problem = told[1].partition(": ")
        cause = UserError(
            argument, problem
        )  # of several types that a value may have, the chain knows the first one's error only
    if cause is None:
        return not_built(error, config) or error
    return with_prefix(cause, config)


def lend_tokenizer(config: Namespace) -> bool:
    """A model with a tokenizer of its own lends it to the data, unless they name one; was it lent?"""
    data, source = config.data.init_args, config.model.init_args.model
    if data.get("tokenizer") is not None:
        return False
    if isinstance(source, str):
        data.tokenizer = source
    elif "init_args" in source and "model_name_or_path" in source.init_args:
        data.tokenizer = _lent(source.init_args)
    return data.get("tokenizer") is not None


def _lent(model: Namespace) -> Namespace:
    """The tokenizer that lies beside a model, of the same revision."""
    options = {name: model[name] for name in ("revision", "trust_remote_code") if name in model}
    return Namespace(
        class_path="lit_probsft.data.tokens.tokenizers.PretrainedTokenizer",
        init_args=Namespace(name_or_path=model.model_name_or_path, **options),
    )


def _on_gpu(trainer: Namespace) -> bool:
    return (
        trainer.accelerator in ("auto", "gpu", "cuda")
        and torch.cuda.is_available()
        and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    )
