"""`capability`: what a model makes of its training rows before it is trained on them, and which objective that asks
for."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser

from lit_probsft.analysis.advice import PAPER, Command, advise, compare, enough, level, warnings
from lit_probsft.analysis.pictures import draw_capability
from lit_probsft.analysis.survey import Survey, calibration, clustered_interval, means
from lit_probsft.callbacks import ProgressBar
from lit_probsft.data import InstructionDataModule
from lit_probsft.data.loader import PlanLoader
from lit_probsft.data.store import Documents
from lit_probsft.disk import beside, told
from lit_probsft.errors import UserError
from lit_probsft.lightning_cli import ProbSFTCLI, run_training_command
from lit_probsft.measured import Capability
from lit_probsft.metrics import ProbHistogram, share_above
from lit_probsft.module import ProbSFTModule
from lit_probsft.objectives import Objective
from lit_probsft.probing import Recorder, loader_of, look, training_documents
from lit_probsft.record import model_name, versions
from lit_probsft.runs import write_json, write_text

QUANTILES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_LISTED = 10
"""So many examples with the smallest and the largest mean p are named in the JSON; the table has all."""


class TrainingRows(LightningDataModule):
    """The training rows of a data module, each once, in the place of validation rows.

    Args:
        data: of the configuration; everything else that is asked for is answered by it.
        sample: how many rows; None for all.

    After `setup`:
        `documents`, and `total`, how many there are to choose from (None in a stream).
    """

    def __init__(self, data: InstructionDataModule, sample: int | None) -> None:
        super().__init__()
        if data.streaming and sample is None:
            raise UserError("--sample: expected a number of rows with data.streaming, since a stream has no end")
        self.data, self.sample = data, sample
        self.documents: Documents
        self.total: int | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "data":
            raise AttributeError(name)
        return getattr(self.data, name)

    @property
    def max_token_id(self) -> int:
        """The largest id, where it is known without a look at all tokens."""
        return max(self.data.max_token_id, int(getattr(self.documents, "max_token_id", -1)))

    @property
    def report(self) -> dict[str, dict[str, Any]]:
        """What the model's positions are compared with."""
        return {"train": {"max_length": int(self.documents.lengths.max(initial=0))}}

    def prepare_data(self) -> None:
        """Tokenize as for training, in one process per machine."""
        self.data.setup("fit")

    def setup(self, stage: str | None = None) -> None:
        """Choose the documents."""
        self.data.setup("fit")
        self.documents = training_documents(self.data, self.sample)
        self.total = None if self.data.streaming else int(self.data.report["train"]["kept"])
        self.data.trainer = self.trainer  # which rank this is

    def val_dataloader(self) -> PlanLoader:
        """This rank's share."""
        return loader_of(self.documents, self.data)


class Probe(ProbSFTModule):
    """Looks at tokens in `validate` instead of evaluating an objective; without adapters, which change nothing yet."""

    def __init__(self, configured: ProbSFTModule) -> None:
        super().__init__(configured.source or configured.model, logits_budget_mb=configured.logits_budget_mb)
        self.configured_objective: Objective = configured.objective
        self.histogram = ProbHistogram()

    def setup(self, stage: str) -> None:
        """As many examples as there are."""
        super().setup(stage)
        self.survey = Survey(len(self._datamodule().documents))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a micro-batch."""
        recorder = Recorder(*Survey.NEEDS)
        output = look(self.model, batch, recorder)
        self.survey.update(batch, output, recorder)
        self.histogram.update(output.log_probs, recorder.seen("log_complement", output.log_probs))

    def on_validation_epoch_end(self) -> None:
        """Add up the ranks."""
        self.sums, self.counts = self.survey.compute(), self.histogram.compute().cpu()


class _Bar(ProgressBar):
    @property
    def validation_description(self) -> str:
        """What it counts."""
        return "Probing"


class CapabilityCLI(ProbSFTCLI):
    """Reads a configuration as `validate` does, and runs a `Probe` over `TrainingRows`."""

    sample: int | None = None
    flags: Sequence[str] = ()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The base model is what is meant."""
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"weights": "base"})

    def before_instantiate_classes(self) -> None:
        """All rows that were asked for, whatever limits the configuration sets to a validation."""
        config = self.config[self.command]
        if config.get("ckpt_path") is not None:
            raise UserError("--ckpt_path: expected none with capability; --weights takes a folder with a model")
        config.verbose = False
        trainer = config.trainer
        trainer.limit_val_batches, trainer.fast_dev_run, trainer.overfit_batches = None, False, 0.0
        self.steps = trainer.max_steps
        trainer.max_steps, trainer.callbacks = -1, None
        super().before_instantiate_classes()

    def instantiate_classes(self) -> None:
        """What the configuration names, and ours around it."""
        super().instantiate_classes()
        self.model = Probe(self.model)
        self.datamodule = TrainingRows(self.datamodule, self.sample)

    def _callbacks(self, config: Any, given: list[Callback]) -> list[Callback]:
        return [_Bar()] if config.trainer.enable_progress_bar is not False else []

    def after_validate(self) -> None:
        """Leave the files, and say what they say."""
        if not self.trainer.is_global_zero:
            return
        self.result = result = self._result()
        path = self.run.capability
        with told("--runs_dir", self.run.path):
            self.run.path.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
        write_text(self.run.capability_examples, self._table())
        with told("--runs_dir", self.run.capability_picture), beside(self.run.capability_picture) as partial:
            draw_capability(result, self.counts_in_bins(), partial)
        print("\n".join(told_of(result)))
        print(f"files:   {path}, {self.run.capability_examples}, {self.run.capability_picture}")

    def counts_in_bins(self) -> list[tuple[float, int]]:
        """The histogram in log-odds, coarse: centre and tokens of bins of a quarter."""
        wide = ProbHistogram.PER_UNIT // 4
        coarse = self.model.counts.reshape(-1, wide).sum(-1).tolist()
        return [(-ProbHistogram.EDGE + (place + 0.5) / 4, count) for place, count in enumerate(coarse)]

    def _command(self) -> Command:
        plan, trainer = self.datamodule, self.trainer
        step = plan.batch_size * trainer.accumulate_grad_batches * trainer.world_size
        steps = self.steps if plan.total is None else -(-plan.total // step)
        flags = [*self.flags]
        weights = self.config[self.command].weights
        if weights != "base":
            flags += ["--model.model", str(self.run.hf) if weights == "auto" else weights]
        if not plan.streaming and "validation" not in plan.data.report:
            flags += ["--data.validation_fraction", "0.05"]
        return Command(flags, self.run.path.name, max(1, -(-steps // 4)), str(self.run.capability))

    def _result(self) -> dict[str, Any]:
        sums, counts, rows = self.model.sums, self.model.counts, self.datamodule
        examples = sums["of_examples"]
        tokens, p, nll, correct, entropy = examples.sum(0).tolist()
        mean = p / tokens
        interval = clustered_interval(examples[:, 0], examples[:, 1])
        capability = Capability.of(mean, counts)
        above = share_above(counts, 0.55)
        compared = compare(self.model.configured_objective.fitted(capability), counts)
        quantiles = {str(q): _of_odds(capability.log_odds[round(1000 * q) - 1]) for q in QUANTILES}
        means_of = ("mean_prob", "accuracy")
        return {
            "mean_prob": mean,
            "interval": interval,
            "level": level(mean),
            "advice": {**advise(mean, above, self._command()), "warnings": warnings(compared)},
            "sample": {
                "rows": len(examples),
                "of": rows.total,
                "drawn": "the first" if rows.streaming else "at random" if len(examples) != rows.total else "all",
                **enough(mean, interval, len(examples)),
            },
            "rows": len(examples),
            "tokens": int(tokens),
            "share_above_0.55": above,
            "nll": nll / tokens,
            "accuracy": correct / tokens,
            "entropy": entropy / tokens,
            "quantiles": quantiles,
            "calibration": calibration(sums["of_confidences"]),
            "by_source": self._by_source(examples),
            "by_position": [
                {"from": 2**k - 1, "to": 2 ** (k + 1) - 2, **entry}
                for k, entry in enumerate(means(sums["of_places"], means_of))
                if entry["tokens"]
            ],
            "by_tenth": means(sums["of_tenths"], means_of),
            "by_example": self._by_example(examples),
            "objectives": compared,
            "paper": PAPER,
            "model": model_name(self.model),
            "data_fingerprint": rows.fingerprint,
            "measured": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "world_size": self.trainer.world_size,
            "precision": str(self.trainer.precision),
            "versions": versions(),
            "permilles": list(capability.log_odds),
        }

    def _by_source(self, examples: Any) -> dict[str, Any]:
        rows, found = self.datamodule, {}
        for number, name in enumerate(rows.sources_of("train")):
            chosen = examples[rows.documents.sources == number]
            (entry,) = means(chosen.sum(0, keepdims=True), ("mean_prob", "nll", "accuracy", "entropy"))
            found[name] = {
                "rows": len(chosen),
                **entry,
                "interval": clustered_interval(chosen[:, 0], chosen[:, 1]),
            }
        return found

    def _by_example(self, examples: Any) -> dict[str, Any]:
        used = np.flatnonzero(examples[:, 0])
        mean = examples[used, 1] / examples[used, 0]
        order = used[np.argsort(mean, kind="stable")]
        named = [self._example(int(index), examples) for index in [*order[:_LISTED], *order[-_LISTED:]]]
        return {
            "quantiles_of_mean_prob": {str(q): float(np.quantile(mean, q)) for q in QUANTILES},
            "lowest": named[:_LISTED],
            "highest": named[-_LISTED:][::-1],
        }

    def _example(self, index: int, examples: Any) -> dict[str, Any]:
        documents, names = self.datamodule.documents, self.datamodule.sources_of("train")
        source = {"source": names[int(documents.sources[index])]} if documents.sources is not None else {}
        tokens, p, nll, *_ = examples[index].tolist()
        mean = {"mean_prob": p / tokens, "nll": nll / tokens} if tokens else {"mean_prob": None, "nll": None}
        return {"row": int(documents.rows[index]), **source, "tokens": int(tokens), **mean}

    def _table(self) -> str:
        examples = self.model.sums["of_examples"]
        text = io.StringIO()
        found = [self._example(index, examples) for index in range(len(examples))]
        writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
        return text.getvalue()


def _of_odds(odds: float) -> dict[str, float]:
    return {"prob": float(1 / (1 + np.exp(-odds))), "one_minus_prob": float(1 / (1 + np.exp(odds))), "log_odds": odds}


def told_of(result: dict[str, Any]) -> list[str]:
    """A result in a few lines."""
    sample, interval = result["sample"], result["interval"]
    band = "no interval from one row" if interval is None else f"95 % interval {interval[0]:.4f} to {interval[1]:.4f}"
    part = f"{result['rows']} rows" + (f" of {sample['of']}" if sample["drawn"] == "at random" else "")
    quantiles = {q: result["quantiles"][q] for q in ("0.1", "0.5", "0.9")}
    shown = ", ".join(
        f"{q}: {v['prob']:.4g}" if v["prob"] < 0.99 else f"{q}: 1 - {v['one_minus_prob']:.2g}"
        for q, v in quantiles.items()
    )
    lines = [
        "",
        f"mean p   {result['mean_prob']:.4f}, {band}; {part}, {result['tokens']} tokens; level: {result['level']}",
        f"         nll {result['nll']:.3f} nats, accuracy {result['accuracy']:.3f}, entropy {result['entropy']:.3f} "
        f"nats, calibration error {result['calibration']['error']:.3f}",
        f"p        quantiles {shown}; {result['share_above_0.55']:.1%} above .55",
        "paper    mean p " + ", ".join(f"{k} {low:.2f} to {high:.2f}" for k, (low, high) in PAPER["mean_prob"].items()),
    ]
    if not sample["enough"]:
        more = f"; about {sample['rows_needed']} would do" if sample["rows_needed"] else ""
        lines.append(f"sample   too small: the interval reaches into another level{more}")
    else:
        lines.append("sample   large enough: the whole interval lies within one level")
    advice = result["advice"]
    lines += [f"advice   {advice['objective'] or 'none prevails: run the pilots'}. {advice['reason']}"]
    lines += [f"         {command}" for command in advice["commands"]]
    return lines + [f"warning  {text}" for text in advice["warnings"]]


def run_capability(sample: int | None, rest: Sequence[str]) -> CapabilityCLI:
    """The command.

    Args:
        sample: at most so many rows; None for all.
        rest: the configuration's flags, as `fit` takes them.

    Raises:
        UserError: a flag, or what `fit` would refuse of model, data and trainer.
    """
    if sample is not None and sample < 2:
        raise UserError(f"--sample: expected at least 2 rows, got {sample}")

    class Asked(CapabilityCLI):
        flags = _without(rest, ("--name", "--weights"))

    Asked.sample = sample
    cli = run_training_command(["validate", *rest], Asked)
    assert isinstance(cli, CapabilityCLI)
    return cli


def _without(args: Sequence[str], names: Sequence[str]) -> list[str]:
    """The flags but those of these names, and their values."""
    kept: list[str] = []
    skip = False
    for arg in args:
        if skip:
            skip = False
        elif re.fullmatch("|".join(names), arg):
            skip = True
        elif arg.partition("=")[0] not in names:
            kept.append(arg)
    return kept
