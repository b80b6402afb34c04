"""The options of low-rank adapters (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from lit_probsft.errors import UserError, check_range, first_line
from lit_probsft.parallel.seeds import run_seed
from lit_probsft.storage.adapter_folder import CONFIG, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoRA:
    """Train only a product B A of rank r next to chosen matrices, W + (alpha / r) B A, and freeze everything else.

    Args:
        r: rank, at least 1.
        alpha: scale of the adapters, above 0. B starts at zero, so that training starts at the base model.
        dropout: of the adapters' input during training, at least 0 and less than 1.
        target_modules: `all-linear` for every linear layer inside the decoder layers, or names of modules, such as
            `[q_proj, v_proj]`. The output layer (`lm_head`) is adapted if it is named and not tied to the embeddings;
            its gradient then has the size of the whole layer.
        seed: of A's initial values; None is the run's seed.
        dora: also train the length of each row of the adapted matrix (arXiv 2402.09353).
        rslora: scale by alpha / sqrt(r) (arXiv 2312.03732).
        modules_to_save: names of modules that are trained in full as well, such as `[embed_tokens, lm_head]`; if the
            two are tied, either name means both.
        start: a folder of adapters, from here or from peft, from which training starts.
        export: `merged` writes a plain model, `adapter` writes peft's folder of adapters, which needs their base.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    seed: int | None = None
    dora: bool = False
    rslora: bool = False
    modules_to_save: list[str] = field(default_factory=list)
    start: str | None = None
    export: Literal["merged", "adapter"] = "merged"

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", run_seed(self.seed))
        check_range("model.lora.r", self.r, 1, 2**16)
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError("model.lora.alpha", f"expected more than 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError("model.lora.dropout", f"expected at least 0 and less than 1, got {self.dropout}")
        if self.export not in ("merged", "adapter"):
            raise UserError("model.lora.export", f"expected merged or adapter, got {self.export!r}")
        if self.start is not None:
            saved = LoRA.from_folder(self.start, "model.lora.start")
            for name in ("r", "alpha", "dora", "rslora"):
                if (ours := getattr(self, name)) != (theirs := getattr(saved, name)):
                    raise UserError(
                        f"model.lora.{name}", f"expected {theirs}, as in the adapters of {self.start}, got {ours}"
                    )

    @classmethod
    def from_folder(cls, folder: str, argument: str) -> LoRA:
        """The options of the adapters in a folder.

        Raises:
            UserError: as `read_config`.
        """
        config = read_config(folder, argument)
        targets = config.get("target_modules") or "all-linear"
        try:
            return cls(
                r=operator.index(config["r"]),
                alpha=float(config["lora_alpha"]),
                target_modules=targets if isinstance(targets, str) else sorted(targets),
                dora=bool(config.get("use_dora")),
                rslora=bool(config.get("use_rslora")),
                modules_to_save=sorted(config.get("modules_to_save") or []),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(argument, f"{Path(folder) / CONFIG} has wrong contents: {first_line(error)}") from error

    @property
    def scaling(self) -> float:
        """alpha / r, or alpha / sqrt(r)."""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    @property
    def identity(self) -> dict[str, Any]:
        """The options that must be the same when a run resumes."""
        return {name: value for name, value in asdict(self).items() if name not in ("start", "export")}

    @property
    def target_names(self) -> list[str]:
        """The names in `target_modules`; none for `all-linear` or a pattern."""
        return [] if isinstance(self.target_modules, str) else self.target_modules

    def peft_config(self, model: nn.Module, targets: str | list[str]) -> Any:
        """The same options as a `peft.LoraConfig`."""
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type, unused-ignore]  # peft only multiplies by it
            lora_dropout=self.dropout,
            target_modules=targets,
            use_dora=self.dora,
            use_rslora=self.rslora,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            task_type="CAUSAL_LM",
        )

    def saved_modules(self, model: PreTrainedModel) -> list[str]:
        """Names of the modules that are trained in full; both of two that are tied."""
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        found = [n for n, _ in model.named_modules() if any(ends_with(n, wanted) for wanted in self.modules_to_save)]
        tied = [n for n, module in model.named_modules() if module in ends] if is_tied(model) else []
        return sorted({*found, *(tied if set(tied) & set(found) else [])})


def ends_with(name: str, wanted: str) -> bool:
    """Whether a module's full name ends with the parts of `wanted`."""
    return f".{name}".endswith(f".{wanted}")


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output layer has the same weight as the input embeddings."""
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight
