"""fit, validate, test and predict: LightningCLI with a run folder, our defaults and short error messages."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

from lit_probsft.cli.config.checks import (
    check_best,
    check_intervals,
    check_model,
    check_trainer,
    export_of,
    read_checkpoint,
)
from lit_probsft.cli.config.composition import Composer
from lit_probsft.cli.config.diagnosis import Diagnosis
from lit_probsft.cli.config.jsonargparse_internals import flags_of, place_and_reason
from lit_probsft.cli.config.lightning_errors import run_error, trainer_error
from lit_probsft.cli.config.parser import Parser, Refusal, import_named_optimizer
from lit_probsft.cli.flags import add_flags, run_folder
from lit_probsft.cli.lightning_internals import OpenCLI
from lit_probsft.cli.quiet import quieten
from lit_probsft.cli.seeding import chosen_seed
from lit_probsft.cli.trainer import complete_flags, fit_callbacks, loggers
from lit_probsft.cli.weights import Start, lend_tokenizer, lent_tokenizer_error, use_weights, warn_of_other_rows
from lit_probsft.data import InstructionDataModule
from lit_probsft.errors import UserError, first_rank
from lit_probsft.parallel.processes import use_launcher
from lit_probsft.parallel.strategies import FSDP2, DeepSpeed, check_supported
from lit_probsft.run.predictions import PredictionWriter
from lit_probsft.run.summary import summary
from lit_probsft.run.upload import HubOptions, ensure_repo, upload
from lit_probsft.storage.atomic import write_json
from lit_probsft.storage.checkpoint_files import damage, other_folder
from lit_probsft.storage.checkpoint_writing import WholeFileIO
from lit_probsft.storage.folder_lock import unlock_folders
from lit_probsft.training.callbacks import ProgressBar
from lit_probsft.training.checkpoints import where_to_continue
from lit_probsft.training.intervals import Every, ValidateEvery
from lit_probsft.training.lightning_internals import handle_signals
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import check_optimizer, check_step


class ProbSFTCLI(OpenCLI):
    """LightningCLI for a `ProbSFTModule` and an `InstructionDataModule`, or subclasses of them named by class path."""

    def __init__(self, args: Sequence[str]) -> None:
        self.command, self._args = args[0], list(args)
        self._checkpoint: dict[str, Any] = {}
        self._start: Start | None = None
        self._lent_tokenizer = False
        self._validate_every: Every | None = None
        self.hub: HubOptions | None = None
        # Lightning would build the flags of all four commands.
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

    # --- the parser

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs.setdefault("prog", "python -m lit_probsft")
        kwargs.setdefault("dump_header", [f"lightning.pytorch=={L.__version__}"])
        kwargs.setdefault("allow_abbrev", False)
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action="config", help="a configuration file; later ones win")
        return parser

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_flags(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the flags.

        Raises:
            UserError: a file, a flag or a value is wrong.
        """
        flags, switches = flags_of(self.parser_of(self.command))
        import_named_optimizer(args)
        composed = Composer(self.command, flags, switches).compose(list(args)[1:])
        try:
            if not composed.sound:
                raise Refusal("a value is missing, or is not of the type of its option")
            content = copy.deepcopy(composed.content)  # the parser changes it
            super().parse_arguments(parser, {"subcommand": self.command, self.command: content})
        except UserError:
            raise
        except Exception as error:  # a class's module may raise anything when it is imported
            Diagnosis(flags).check(composed.content)
            if isinstance(error, Refusal):
                raise UserError(*place_and_reason(str(error))) from error
            raise
        self.config[self.command].config = composed.files
        if composed.printed is not None:
            self._print_config(composed.printed)

    def _print_config(self, options: str) -> NoReturn:
        """Print the configuration, as `--print_config` asks for, and exit."""
        chosen = {option for option in options.split(",") if option}
        known = {"skip_default": "skip_default", "skip_unset": "skip_unset", "skip_null": "skip_unset"}
        if unknown := chosen - known.keys():
            raise UserError("--print_config", f"expected {' or '.join(known)}, got {sorted(unknown)[0]!r}")
        config = self.config[self.command].clone()
        config.pop("config")
        flags = {"skip_unset": False, **{known[option]: True for option in chosen}}
        if first_rank():
            print(self.parser_of(self.command).dump(config, **flags), end="")
        sys.exit(0)

    def read_hyperparameters(self) -> None:
        """Check the checkpoint before Lightning reads the module's arguments from it."""
        config = self.config[self.command]
        if config.get("ckpt_path") == "":
            raise UserError("--ckpt_path", "expected a checkpoint, got ''")
        if config.get("ckpt_path"):
            path = Path(config.ckpt_path)
            if (kind := other_folder(path)) is not None:
                raise UserError("--ckpt_path", f"expected a checkpoint, {path} is {kind}")
            if path.exists() and config.get("weights_only") is not False and (problem := damage(path)):
                raise UserError("--ckpt_path", f"expected an intact checkpoint, {path} is damaged: {problem}")
            self._checkpoint = read_checkpoint(path, "--ckpt_path", config.get("weights_only"))
        try:
            super().read_hyperparameters()
        except Refusal as error:
            reason = ": ".join(filter(None, place_and_reason(str(error))))
            raise UserError("--ckpt_path", f"its hyperparameters do not fit this configuration: {reason}") from error

    # --- before anything is built

    def seed(self) -> None:
        """Seed everything, and put the number into the configuration, which may have left it open."""
        config = self.config[self.command]
        self.run = run_folder(config)
        if self.command == "fit" and not config.dry_run and first_rank():
            self.run.lock_existing()  # first, so that nothing of a run that is still training is read
        given, config.seed_everything = config.seed_everything, chosen_seed(config)
        if given is not False:
            super().seed()

    def before_instantiate_classes(self) -> None:
        """Check the configuration, and complete it with the run's folder and weights."""
        config = self.config[self.command]
        self.run.check_path()
        if config.dry_run and "--dry_run" not in self._args:
            raise UserError("--dry_run", "expected on the command line of fit, not in a configuration file")
        check_trainer(config.trainer, self.command)
        if self.command == "fit":
            self.run.check(resume=config.resume, overwrite=config.overwrite)
            if config.resume and config.get("ckpt_path") is None:
                config.ckpt_path = str(where_to_continue(self.run.checkpoints))
                self._checkpoint = read_checkpoint(Path(config.ckpt_path), "--resume", None)
            if config.weights != "auto":
                raise UserError(
                    "--weights",
                    f"expected with validate, test and predict only; fit trains model.model, got {config.weights!r}",
                )
        elif config.resume or config.overwrite:
            raise UserError("--resume and --overwrite", f"expected only with fit, got them with {self.command}")
        check_model(config)
        if self.command == "fit":
            self._validate_every = check_intervals(config)
            export_of(config)
            check_best(config)
        self.config_text = self._text_of(config)
        if self.command != "fit":
            named = any(word.partition("=")[0] == "--name" for word in self._args)
            self._start = use_weights(config, self.command, self.run, named=named)
        self._lent_tokenizer = lend_tokenizer(config)
        complete_flags(config.trainer, self._validate_every)

    def _text_of(self, config: Namespace) -> str:
        """The configuration as the run's config.yaml keeps it: without the flags of this call alone."""
        kept = config.clone()
        run_flags = ("resume", "overwrite", "dry_run", "weights", "predictions_format")
        for flag in ("config", "ckpt_path", "weights_only", *run_flags):
            kept.pop(flag, None)
        kept.name = self.run.path.name
        return str(self.parser_of(self.command).dump(kept, skip_unset=False, skip_validation=True))

    # --- building

    def instantiate_classes(self) -> None:
        """Build data module, module and trainer, and check the optimizer and the upload."""
        super().instantiate_classes()
        if not dataclasses.is_dataclass(self.model.objective):
            kind = type(self.model.objective)
            problem = f"{kind.__module__}.{kind.__qualname__} must be decorated with @dataclass(frozen=True)"
            raise UserError("model.objective", problem)
        if self._start is not None:
            self.model.began_with = self._start.adapters
        if self.command == "fit":
            self._check_optimizer()
            self._ensure_repo()
        elif self.config[self.command].weights == "auto" and self.run.hf.is_dir():
            warn_of_other_rows(self.run.record, self.datamodule)

    def _check_optimizer(self) -> None:
        """Build the optimizer once over a small matrix, so that wrong arguments are refused before data are read."""
        optimizer = self.model.optimizer_factory([{"params": [torch.nn.Parameter(torch.zeros(2, 2))]}])
        check_optimizer(optimizer, self.trainer.strategy)
        check_step(optimizer)
        path = self.config[self.command].get("ckpt_path")
        states = self._checkpoint.get("optimizer_states") if path else None
        if states:
            before, now = (
                set(groups[0]) - {"params", "initial_lr"}
                for groups in (states[0]["param_groups"], optimizer.param_groups)
            )
            if before != now:
                raise UserError(
                    "--resume",
                    f"expected the optimizer that wrote {path}, got {type(optimizer).__name__}, whose arguments "
                    f"differ ({', '.join(sorted(before ^ now))})",
                )

    def _ensure_repo(self) -> None:
        """Create the repository to upload to. Comes last, when nothing else can be refused."""
        config = self.config_init[self.command]
        if config.push_to_hub.repo_id is None or config.trainer.fast_dev_run or config.dry_run:
            return
        if config.checkpoints.export == "none":
            raise UserError("push_to_hub", "expected checkpoints.export to leave a model to upload, got none")
        if first_rank():
            self.hub = ensure_repo(config.push_to_hub)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The configured trainer, with the run's loggers and callbacks in addition to the user's."""
        config = self.config_init[self.command]
        flags = config.trainer
        flags.logger = loggers(flags.logger, self.run) if self.command == "fit" else False
        flags.default_root_dir = flags.default_root_dir or str(self.run.path)
        callbacks: Any = flags.callbacks or []
        callbacks = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
        flags.callbacks = [*callbacks, *self._callbacks(config, callbacks)]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except UserError:
            raise
        except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
            raise trainer_error(error, vars(flags)) from error
        check_supported(trainer.strategy)
        if self.command != "fit" and not isinstance(trainer.strategy, FSDP2 | DeepSpeed):
            trainer.strategy.checkpoint_io = WholeFileIO("--ckpt_path")
        use_launcher(trainer.strategy)
        handle_signals(trainer, ())
        return trainer

    def _callbacks(self, config: Namespace, given: list[Callback]) -> list[Callback]:
        ours: list[Callback] = []
        if config.trainer.enable_progress_bar is not False:
            ours.append(ProgressBar())
        if self.command == "predict":
            ours.append(PredictionWriter(self.run, config.predictions_format))
        if self._validate_every is not None:
            ours.append(ValidateEvery(self._validate_every))
        if self.command != "fit" or config.trainer.fast_dev_run:
            return ours
        self.record, self._stop, callbacks = fit_callbacks(config, self.config_text, self.run, given)
        return [*ours, *callbacks]

    # --- the command

    def run_command(self, command: str) -> None:
        """Call the trainer.

        Raises:
            UserError: the error is one that the user can fix.
        """
        try:
            super().run_command(command)
        except UserError as error:
            raise (lent_tokenizer_error(error) if self._lent_tokenizer else error) from error.__cause__
        except (RuntimeError, ValueError, KeyError, OSError, MisconfigurationException) as error:
            if (ours := run_error(error, self.config[self.command])) is None:
                raise
            raise ours from error

    def after_fit(self) -> None:
        """Print where everything is and what to try next, and upload the model."""
        if not self.trainer.is_global_zero:
            return
        if self.config[self.command].trainer.fast_dev_run:
            print("trainer.fast_dev_run: a trial, nothing was saved")
            return
        if self.record.already_complete:
            print(f"{self.run.path}: the run is already complete, there was nothing left to train")
        elif self._stop.already_stopped:
            reason = self.record.content["stopped_early"]
            print(f"{self.run.path}: the run is complete, it stopped early: {reason}. More patience continues it")
        else:
            print("\n".join(summary(self.record.content, self.run, self.model.total_steps)))
        if self.hub is not None and self.record.content.get("status") == "completed":
            sys.stdout.flush()  # the run is complete whatever the upload does
            print(f"hub:     {upload(self.hub, self.run.hf)}")

    def after_validate(self) -> None:
        """Write validate.json into the run's folder, if it exists."""
        self._write_metrics()

    def after_test(self) -> None:
        """Write test.json into the run's folder, if it exists."""
        self._write_metrics()

    def _write_metrics(self) -> None:
        if self.trainer.is_global_zero and self.run.in_use:
            metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            write_json(self.run.path / f"{self.command}.json", metrics)


def run_training_command(args: Sequence[str], kind: type[ProbSFTCLI] = ProbSFTCLI) -> ProbSFTCLI:
    """Run fit, validate, test or predict.

    Args:
        args: the command and its flags.
        kind: a subclass that changes what the command does.
    """
    quieten()
    if "--dry_run" in args and args[0] != "fit":
        raise UserError("--dry_run", "expected with fit only")
    try:
        return kind(args)
    finally:
        unlock_folders()  # a notebook goes on, and may train in them again
