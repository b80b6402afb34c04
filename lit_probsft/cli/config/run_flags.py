"""The flags that fit, validate, test and predict have besides Lightning's, and the defaults of the trainer, as data."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

OUR_DEFAULTS: dict[str, Any] = {
    "trainer.gradient_clip_val": 1.0,
    "trainer.log_every_n_steps": 10,
    "trainer.num_sanity_val_steps": -1,
    "trainer.use_distributed_sampler": False,
    "trainer.enable_model_summary": False,
}
"""Gradient clipping as in the paper, and the whole validation set before the first step. The plan distributes the data
over the ranks, so Lightning's sampler is off."""

OUR_CHOICES = {"trainer.precision": "32-true, bf16-mixed or bf16-true"}
"""Options of Lightning that take less here than there."""

OUR_TEXTS = {
    "trainer.accumulate_grad_batches": "micro-batches per optimizer step on each rank.",
    "trainer.callbacks": "Lightning's or your own, in addition to those of the run.",
    "trainer.enable_checkpointing": "whether to save checkpoints.",
    "trainer.enable_progress_bar": "whether to show a progress bar.",
    "trainer.fast_dev_run": "a trial that saves nothing: `true` runs one batch of each stage, a number that many.",
    "trainer.max_time": "end after this time: days:hours:minutes:seconds, such as 00:12:00:00.",
    "trainer.num_sanity_val_steps": "validation batches before the first step; -1 takes all.",
    **{
        f"trainer.limit_{stage}_batches": f"{name} batches to use: a whole number, or a share such as 0.1 (1.0 is all)."
        for stage, name in (("train", "training"), ("val", "validation"), ("test", "test"), ("predict", "prediction"))
    },
    "trainer.accelerator": "cpu, gpu or mps; `auto` takes the best that the machine has.",
    "trainer.logger": "loggers to use in addition to metrics.csv.",
    "trainer.precision": "dtype of the computation. `mixed` keeps the weights in float32.",
    "trainer.strategy": "how several devices share the work: ddp, fsdp2, or deepspeed_stage_1, _2 or _3.",
}
"""What these options of Lightning do here."""

LEFT_OPEN = {
    "trainer.max_epochs": "1 without max_steps",
    "trainer.max_steps": "-1, no limit",
    "trainer.precision": "bf16-mixed on a GPU, else 32-true",
}
"""What the trainer gets where the configuration says nothing, in words."""


TEXT_MEANS = {
    "lit_probsft.model.source.ModelSource": "lit_probsft.model.pretrained.PretrainedCausalLM",
    "lit_probsft.data.rows.source.Source": "lit_probsft.data.rows.row_source.Rows",
    "lit_probsft.data.tokens.tokenizers.TokenizerSource": "lit_probsft.data.tokens.tokenizers.PretrainedTokenizer",
}
"""The class whose first argument is the text, where an option takes a text or a class of this family."""


class RunFlag(NamedTuple):
    """A flag of the run.

    Attributes:
        name: without dashes.
        text: what it does.
        kind: its type; a text is the import path of a dataclass whose fields are the options of a group.
        default: False for a switch, which takes no value.
    """

    name: str
    text: str
    kind: Any = bool
    default: Any = False


RUN_FLAGS = (
    RunFlag("name", "name of the run; default: the name of the first configuration file", str | None, None),
    RunFlag("runs_dir", "folder of all runs", str, "runs"),
    RunFlag("resume", "continue the run of this name"),
    RunFlag("overwrite", "replace the run of this name"),
    RunFlag(
        "dry_run",
        "build everything, do a step over the longest documents, report what the run needs, write nothing; fit only",
    ),
    RunFlag("checkpoints", "what is saved, and when", "lit_probsft.training.checkpoints.CheckpointOptions"),
    RunFlag(
        "early_stopping", "when to end before the last step", "lit_probsft.training.early_stopping.StoppingOptions"
    ),
    RunFlag(
        "evaluation", "tasks that the run evaluates its model on", "lit_probsft.evaluation.options.EvaluationOptions"
    ),
    RunFlag(
        "validate_every",
        "an integer: optimizer steps between validations; between 0 and 1: a share of an epoch; `epoch`: one epoch. "
        "Validates after the last step as well. Default: as the trainer's flags say, at the end of each epoch",
        int | float | Literal["epoch"] | None,
        None,
    ),
    RunFlag("push_to_hub", "where fit uploads the exported model", "lit_probsft.run.upload.HubOptions"),
    RunFlag(
        "weights",
        "for validate, test and predict: a folder with a model, `base` for the model before training, or `auto` for "
        "the export of the run of this name, or the base if it has none",
        str,
        "auto",
    ),
    RunFlag(
        "predictions_format",
        "for predict: also write the answers to alpaca_eval.json or evalplus.jsonl, the input files of these graders",
        Literal["jsonl", "alpaca_eval", "evalplus"],
        "jsonl",
    ),
)


class OtherFlag(NamedTuple):
    """A flag that Lightning or jsonargparse adds.

    Attributes:
        name: without dashes.
        text: what it does.
        words: its type, in words.
        default: as a configuration writes it; empty without one.
        commands: that have it.
    """

    name: str
    text: str
    words: str
    default: str = ""
    commands: tuple[str, ...] = ("fit", "validate", "test", "predict")


OTHER_FLAGS = (
    OtherFlag("config", "a configuration file, also -c; can be repeated, and later ones win", "a YAML file"),
    OtherFlag("print_config", "print the configuration that results from all files and flags, and exit", "no value"),
    OtherFlag("seed_everything", "seed of the run; true draws one", "a whole number, true or false", "0"),
    OtherFlag("ckpt_path", "checkpoint to continue or to evaluate", "a file or null", "null"),
    OtherFlag(
        "weights_only",
        "false lets a checkpoint contain pickled objects, which can run code",
        "true, false or null",
        "null",
    ),
    OtherFlag("verbose", "print the metrics", "true or false", "true", ("validate", "test")),
    OtherFlag("return_predictions", "keep the answers in memory", "true, false or null", "null", ("predict",)),
)
