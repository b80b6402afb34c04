"""Which weights and which tokenizer validate, test and predict use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_probsft.errors import UserError, near_matches
from lit_probsft.model.lora import LoRA
from lit_probsft.run.folder import RunFolder
from lit_probsft.storage.adapter_folder import is_adapter_folder, read_config
from lit_probsft.storage.atomic import read_json
from lit_probsft.storage.gguf import gguf_at


class Start(NamedTuple):
    """What training began with, for an objective that is compared with the model before training."""

    adapters: str | None
    """The folder of adapters that training began with."""


def use_weights(config: Namespace, command: str, run: RunFolder, *, named: bool = False) -> Start | None:
    """Replace the configuration's model and tokenizer by what `--weights` names.

    Args:
        config: of the command; changed in place.
        command: for messages.
        run: whose export `auto` takes.
        named: whether the user typed the run's name.

    Returns:
        What training began with, where the objective's reference is the model before training.

    Raises:
        UserError: there is no model in the folder that is named, or the run's name is misspelled.
    """
    wanted = config.weights
    if wanted == "base" or config.get("ckpt_path") is not None:
        return None
    is_model = is_adapter_folder(wanted) or (Path(wanted) / "config.json").is_file()
    if wanted != "auto" and not is_model and gguf_at(wanted) is None:
        raise UserError("--weights", f"expected `auto`, `base`, a folder with a model or a GGUF file, got {wanted!r}")
    folder = run.hf if wanted == "auto" else Path(wanted)
    if wanted == "auto" and not folder.is_dir():
        if named and wanted == "auto":
            _check_name(run)
        rank_zero_info(f"{command}: {folder} does not exist yet, using the base model")
        return None
    rank_zero_info(f"{command}: using weights and tokenizer of {folder}")
    model = config.model.init_args
    reference, lora = model.get("reference"), model.get("lora")
    anchored = isinstance(reference, Namespace) and reference.get("model") is None
    start = Start(lora.get("init_args", lora).get("start") if isinstance(lora, Namespace) else None)
    if is_adapter_folder(folder):
        _use_adapters(config, folder)
    else:
        if "lora" in model:
            model.lora = None  # merged into the weights
        if anchored:
            reference.model = model.model
        _use_model(config, folder)
    return start if anchored else None


def warn_of_other_rows(record: Path, datamodule: Any) -> None:
    """Warn if a data module holds out other rows than the run did, and so measures the model on rows it has seen.

    Args:
        record: the run's run.json; nothing is known if it does not exist.
        datamodule: of the command.
    """
    if not getattr(datamodule, "validation_fraction", 0):
        return
    try:
        seeds = (read_json(record) or {}).get("seeds")
    except UserError as error:
        rank_zero_warn(f"{error}; unknown whether data.validation_fraction holds out the rows that the run did")
        return
    before = seeds.get("held_out") if isinstance(seeds, dict) else None
    if before not in (None, datamodule.seed):
        rank_zero_warn(
            f"data.validation_fraction: seed {datamodule.seed} holds out other rows than the run did with {before}; "
            f"the model has seen most of them. --config {record.parent / 'config.yaml'} holds out the same"
        )


def _check_name(run: RunFolder) -> None:
    """Refuse the name of a run that does not exist if it looks like a misspelled one. Any other name is a new run's."""
    others = run.path.parent.iterdir() if not run.path.exists() and run.path.parent.is_dir() else ()
    if hint := near_matches(run.path.name, [path.name for path in others if (path / run.hf.name).is_dir()]):
        raise UserError("--name", f"{run.path} does not exist.{hint} For a new name, add --weights base")


def _use_adapters(config: Namespace, folder: Path) -> None:
    """Load adapters on top of the configuration's model, which works under any strategy."""
    model = config.model.init_args
    base = read_config(folder, "--weights").get("base_model_name_or_path")
    ours = model.model.init_args.get("model_name_or_path") if isinstance(model.model, Namespace) else model.model
    if base and ours and Path(base).resolve() != Path(ours).resolve():
        rank_zero_warn(f"--weights: the adapters in {folder} belong to {base}, but model.model is {ours}")
    config.data.init_args.tokenizer = str(folder)
    model.lora = Namespace(**(dataclasses.asdict(LoRA.from_folder(str(folder), "--weights")) | {"start": str(folder)}))


def _use_model(config: Namespace, folder: Path) -> None:
    """Load a whole model in place of the configuration's, with the same options."""
    model = config.model.init_args
    options = model.model.init_args if isinstance(model.model, Namespace) else Namespace()
    kept = {name: options[name] for name in ("dtype", "attn_implementation", "trust_remote_code") if name in options}
    model.model = Namespace(
        class_path="lit_probsft.model.PretrainedCausalLM",
        init_args=Namespace(model_name_or_path=str(folder), **kept),
    )
    config.data.init_args.tokenizer = _tokenizer_of(model.model.init_args)


def lend_tokenizer(config: Namespace) -> bool:
    """Use the model's own tokenizer where the data name none; returns whether they do now."""
    data, source = config.data.init_args, config.model.init_args.model
    if data.get("tokenizer") is not None:
        return False
    if isinstance(source, str):
        data.tokenizer = source
    elif "init_args" in source and "model_name_or_path" in source.init_args:
        data.tokenizer = _tokenizer_of(source.init_args)
    return data.get("tokenizer") is not None


def _tokenizer_of(model: Namespace) -> Namespace:
    """The tokenizer in a model's folder, at the same revision."""
    options = {name: model[name] for name in ("revision", "trust_remote_code") if name in model}
    return Namespace(
        class_path="lit_probsft.data.tokens.tokenizers.PretrainedTokenizer",
        init_args=Namespace(name_or_path=model.model_name_or_path, **options),
    )


def lent_tokenizer_error(error: UserError) -> UserError:
    """`error` of a tokenizer that the model lends, as an error of `model.model`, which the user has written."""
    options = {"data.tokenizer.name_or_path": "", "data.tokenizer.trust_remote_code": ".trust_remote_code"}
    if error.argument not in options:
        return error
    problem = f"{error.problem} (data.tokenizer is not given, so the tokenizer comes from the model)"
    return UserError(f"model.model{options[error.argument]}", problem)
