"""`capability --config C`: measures what a model knows of its training rows, and suggests an objective."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_probsft.cli.arguments import CommandParser
from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from lit_probsft.analysis.advice import Command
    from lit_probsft.cli.probe import ProbeCLI


def run(args: Sequence[str]) -> ProbeCLI:
    """Measure, then write and print the findings.

    Returns:
        The command line object, with `result`, the content of capability.json.

    Raises:
        UserError: for a wrong flag, and whatever `fit` refuses of the model, the data and the trainer.
    """
    parser = CommandParser(
        prog="python -m lit_probsft capability",
        description="Run a model over the training rows without training it, report what it knows, and suggest an "
        "objective.",
        epilog="--config FILE and all other flags are those of validate. See validate --help, or --help model.lora.",
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="measure N rows drawn at random (of a stream, the first N)"
    )
    parser.add_argument(
        "--weights",
        metavar="FOLDER",
        help="folder of the model to measure; `auto` is the one that the run exported (default: base, the base model)",
    )
    parser.add_argument("--name", help="name of the run whose folder gets the files")
    options, flags = parser.parse_known_args(args)
    if options.sample is not None and options.sample < 2:
        raise UserError("--sample", f"expected at least 2 rows, got {options.sample}")
    from lit_probsft.cli.fit import run_training_command
    from lit_probsft.cli.probe import ProbeCLI

    own = [f"--{name}={value}" for name, value in vars(options).items() if value is not None]
    cli = run_training_command(["validate", "--weights=base", *flags, *own], ProbeCLI)
    assert isinstance(cli, ProbeCLI)
    if cli.trainer.is_global_zero:
        _write(cli, flags)
    return cli


def _write(cli: ProbeCLI, flags: Sequence[str]) -> None:
    """Write capability.json, its table and its figure, and print a summary."""
    from lit_probsft.analysis.capability_figure import draw_capability
    from lit_probsft.analysis.findings import Findings, in_words
    from lit_probsft.run.facts import model_name, versions
    from lit_probsft.storage.atomic import atomic_write, report_write_errors, write_json, write_text

    probe, data, run = cli.model, cli.model.data, cli.run
    findings = Findings(
        probe.sums,
        probe.counts,
        probe.bins,
        probe.documents,
        total=probe.total,
        streaming=data.streaming,
        sources=data.sources_of("train"),
        locate=lambda row: data.locate("train", row)[1],
        decode=lambda ids: data.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
    )
    result: dict[str, Any] = {
        **findings.result(cli.objective, _command(cli, flags)),
        "model": model_name(probe),
        "data_fingerprint": data.fingerprint,
        "measured": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "world_size": cli.trainer.world_size,
        "precision": str(cli.trainer.precision),
        "versions": versions(),
    }
    with report_write_errors("--runs_dir", run.path):
        run.path.mkdir(parents=True, exist_ok=True)
    write_json(run.capability, result)
    write_text(run.capability_examples, findings.table())
    with (
        report_write_errors("--runs_dir", run.capability_picture),
        atomic_write(run.capability_picture) as partial,
    ):
        draw_capability(result, findings.in_bins(), findings.audit, partial)
    print("\n".join(in_words(result)))
    print(f"files:   {run.capability}, {run.capability_examples}, {run.capability_picture}")
    cli.result = result


def _command(cli: ProbeCLI, flags: Sequence[str]) -> Command:
    """The commands to suggest: `fit` with the same configuration, and pilots of a quarter of an epoch, but of
    `PILOT_STEPS` at least."""
    from lit_probsft.analysis.advice import PILOT_STEPS, Command
    from lit_probsft.storage.adapter_folder import is_adapter_folder

    data, trainer, config = cli.model.data, cli.trainer, cli.config[cli.command]
    rows_per_step = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    total = cli.model.total
    in_epoch = trainer.max_steps if total is None else -(-total // rows_per_step)
    steps = max(1, -(-in_epoch // 4), PILOT_STEPS)
    if total is not None and trainer.max_epochs is not None and trainer.max_epochs >= 0:
        steps = min(steps, in_epoch * trainer.max_epochs)
    if trainer.max_steps >= 0:
        steps = min(steps, trainer.max_steps)
    same = [*flags]
    if config.weights != "base":
        folder = str(cli.run.hf) if config.weights == "auto" else config.weights
        same += ["--model.lora.start" if is_adapter_folder(folder) else "--model.model", folder]
    if not data.streaming and "validation" not in data.report:
        same += ["--data.validation_fraction", "0.05"]
    pilot = ["--trainer.max_steps", str(steps)]
    if cli.schedule.warmup >= 1:  # steps of a longer run
        pilot += ["--model.schedule.warmup", "0.1"]
    return Command(same, cli.run.path.name, pilot, str(cli.run.capability))
