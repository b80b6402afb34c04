"""Low-rank adapters (Hu et al., arXiv 2106.09685) through peft: which ones, and how they come into a model."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lit_probsft.errors import UserError
from lit_probsft.head.adapted import ADAPTER, Magnitude
from lit_probsft.model.adapters import is_adapter, peft_name, within
from lit_probsft.model.quantization import plain_matrix, quantized_layer
from lit_probsft.parallel.sharding import Sharding, decoder_layers
from lit_probsft.storage.adapter_folder import read_config, read_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoRA:
    """Train only B A of rank r beside chosen matrices: W + (alpha / r) B A. Everything else is frozen.

    Args:
        r: rank, at least 1.
        alpha: scale of the adapters, above 0. B starts at zero, so that training starts at the base model.
        dropout: of the adapters' input during training, at least 0 and less than 1.
        target_modules: `all-linear` for every linear layer inside the decoder layers, or names of modules, such as
            `[q_proj, v_proj]`. The output layer (`lm_head`) is adapted where it is named and not tied to the
            embeddings, at the price of a gradient of its whole size.
        seed: of A's initial values.
        dora: learn the length of each row of the adapted matrix too (arXiv 2402.09353).
        rslora: scale by alpha / sqrt(r) (arXiv 2312.03732).
        modules_to_save: names of modules that are trained whole beside the adapters, such as `[embed_tokens, lm_head]`;
            of tied ones either stands for both.
        start: a folder of adapters, from here or from peft, with which training starts.
        export: `merged` writes a plain model, `adapter` peft's folder of adapters alone, to be loaded with their base.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    seed: int = 0
    dora: bool = False
    rslora: bool = False
    modules_to_save: list[str] = field(default_factory=list)
    start: str | None = None
    export: Literal["merged", "adapter"] = "merged"

    def __post_init__(self) -> None:
        if self.r < 1:
            raise UserError("model.lora.r", f"expected at least 1, got {self.r}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError("model.lora.alpha", f"expected more than 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError("model.lora.dropout", f"expected at least 0 and less than 1, got {self.dropout}")
        if self.export not in ("merged", "adapter"):
            raise UserError("model.lora.export", f"expected merged or adapter, got {self.export!r}")
        if self.start is not None:
            theirs = LoRA.of(self.start, "model.lora.start")
            for name in ("r", "alpha", "dora", "rslora"):
                if (ours := getattr(self, name)) != (found := getattr(theirs, name)):
                    raise UserError(
                        f"model.lora.{name}", f"expected {found}, as the adapters in {self.start}, got {ours}"
                    )

    @classmethod
    def of(cls, folder: str, argument: str) -> LoRA:
        """The options of a folder of adapters; its values are their start.

        Raises:
            UserError: as `read_config`.
        """
        found = read_config(folder, argument)
        targets = found.get("target_modules") or "all-linear"
        return cls(
            r=found["r"],
            alpha=float(found["lora_alpha"]),
            target_modules=targets if isinstance(targets, str) else sorted(targets),
            dora=bool(found.get("use_dora")),
            rslora=bool(found.get("use_rslora")),
            modules_to_save=sorted(found.get("modules_to_save") or []),
        )

    @property
    def scaling(self) -> float:
        """alpha / r, or alpha / sqrt(r)."""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        return {name: value for name, value in asdict(self).items() if name not in ("start", "export")}

    def inject(self, model: PreTrainedModel, sharding: Sharding | None = None) -> None:
        """Put adapters into `model`, in place, in fp32 at least, and freeze everything else.

        Args:
            model: perhaps in slices.
            sharding: which has cut it.

        Raises:
            UserError: a name means no module, or one that cannot be adapted or trained; or `start` is of another model.
        """
        from peft import inject_adapter_in_model

        head = model.get_output_embeddings()
        head_name = next(name for name, module in model.named_modules() if module is head)
        whole = self._check_names(model, head_name)
        given = [] if isinstance(self.target_modules, str) else self.target_modules
        inner = [wanted for wanted in given if not _ends(head_name, wanted)]
        on_head = len(inner) < len(given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if inner or not on_head:
                try:
                    with _looking_whole(model):
                        config = self.peft_config(model, inner or self.target_modules)
                        # peft would put copies in their place, and adapters inside them.
                        config.exclude_modules = [n for n, _ in model.named_modules() if within(f"{n}.", whole)]
                        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
                except (ValueError, re.error) as error:
                    raise self._no_targets(model) from error
            if on_head:
                self._adapt_head(head)
        self._check_layers(model, head)
        for name, parameter in model.named_parameters():
            adapter = is_adapter(name)
            parameter.requires_grad_(adapter or within(name, whole))
            if adapter and parameter.dtype.itemsize < 4:  # steps of a small learning rate would round to nothing
                parameter.data = parameter.data.float()
        narrow = model.dtype
        # Before any is widened: of tied ones that widens both, and each has hooks of its own.
        modules = [model.get_submodule(name) for name in whole]
        for module in [m for m in modules if any(p.dtype.itemsize < 4 for p in m.parameters())]:
            _widen(module, model, narrow, sharding)
        if self.start is not None:
            self._load(model, sharding)

    def peft_config(self, model: nn.Module, targets: str | list[str]) -> Any:
        """The same in peft's words."""
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type, unused-ignore]  # a number for all that is done with it
            lora_dropout=self.dropout,
            target_modules=targets,
            use_dora=self.dora,
            use_rslora=self.rslora,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            task_type="CAUSAL_LM",
        )

    def whole_modules(self, model: PreTrainedModel) -> list[str]:
        """Names of the modules that are trained whole; of two that share their weights both."""
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        found = [n for n, _ in model.named_modules() if any(_ends(n, wanted) for wanted in self.modules_to_save)]
        shared = [n for n, module in model.named_modules() if module in ends] if _tied(model) else []
        return sorted({*found, *(shared if set(shared) & set(found) else [])})

    def _check_names(self, model: PreTrainedModel, head_name: str) -> list[str]:
        names = [name for name, _ in model.named_modules()]
        given = [] if isinstance(self.target_modules, str) else self.target_modules
        for wanted in given:  # peft passes over a name beside one that it knows
            if not any(_ends(name, wanted) for name in names):
                raise self._no_targets(model)
        if any(_ends(head_name, wanted) for wanted in given):
            if _tied(model):
                raise UserError(
                    "model.lora.target_modules",
                    f"expected no {head_name}, which is tied to the embeddings and would be "
                    f"untied by adapters; model.lora.modules_to_save trains both whole; got {self.target_modules!r}",
                )
            if self.dropout:
                raise UserError(
                    "model.lora.dropout",
                    f"expected 0 with adapters of the output layer ({head_name}), whose effective "
                    f"weight the objective is computed with, got {self.dropout}",
                )
        for wanted in self.modules_to_save:
            found = [name for name in names if _ends(name, wanted)]
            if not any(list(model.get_submodule(name).parameters()) for name in found):
                raise UserError(
                    "model.lora.modules_to_save",
                    f"expected names of modules with weights, such as embed_tokens, got {wanted!r}",
                )
            if any(quantized_layer(m) for name in found for m in model.get_submodule(name).modules()):
                raise UserError(
                    "model.lora.modules_to_save",
                    "expected modules that are not quantized, since those cannot be "
                    f"trained whole, got {wanted!r}; name it in target_modules",
                )
            if wanted in given:
                raise UserError(
                    "model.lora.modules_to_save",
                    f"expected modules that are not among model.lora.target_modules, got {wanted!r} in both",
                )
        return self.whole_modules(model)

    def _check_layers(self, model: PreTrainedModel, head: nn.Module) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from transformers.pytorch_utils import Conv1D

        if model.get_output_embeddings() is not head:
            raise UserError(
                "model.lora.target_modules",
                f"expected the output layer in a list of names, got {self.target_modules!r}",
            )
        layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        if not all(isinstance(module.get_base_layer(), nn.Linear | Conv1D) for module in layers):
            raise self._no_targets(model)
        for layer in layers if self.dora else ():
            base = layer.get_base_layer()
            weight = _whole_matrix(base)
            magnitude = torch.linalg.norm(weight.T if isinstance(base, Conv1D) else weight, dim=1)
            layer.lora_magnitude_vector[ADAPTER].weight = nn.Parameter(magnitude)

    def _adapt_head(self, head: Any) -> None:
        """Adapters of the output layer are its children; it computes with the sum itself (see `head_weight`)."""
        local = getattr(head.weight.data, "to_local", lambda: head.weight)()
        options: Any = {"device": local.device, "dtype": torch.promote_types(local.dtype, torch.float32), "bias": False}
        a, b = nn.Linear(head.in_features, self.r, **options), nn.Linear(self.r, head.out_features, **options)
        nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
        nn.init.zeros_(b.weight)
        head.lora_A, head.lora_B = nn.ModuleDict({ADAPTER: a}), nn.ModuleDict({ADAPTER: b})
        head.head_scaling, head._disable_adapters = self.scaling, False
        if self.dora:
            magnitude = torch.linalg.vector_norm(_whole_matrix(head), dim=1)
            head.lora_magnitude_vector = nn.ModuleDict({ADAPTER: Magnitude(magnitude)})

    def _load(self, model: PreTrainedModel, sharding: Sharding | None) -> None:
        assert self.start is not None
        values = read_weights(self.start, "model.lora.start")
        # peft adds the base of an adapted embedding or output layer.
        values = {name: value for name, value in values.items() if ".base_layer." not in name}
        parameters = {peft_name(n): p for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        kinds = {"target_modules": True, "modules_to_save": False}
        for option, adapters in kinds.items():
            ours, theirs = ({n for n in names if (".lora_" in n) == adapters} for names in (parameters, values))
            if ours != theirs:
                raise UserError(
                    f"model.lora.{option}",
                    f"expected that of the adapters in {self.start} ({_modules(theirs)}), "
                    f"got {getattr(self, option)!r} ({_modules(ours)})",
                )
        for name, parameter in parameters.items():
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            if shape != tuple(values[name].shape):
                raise UserError(
                    "model.lora.start",
                    f"expected adapters of this model, in {self.start} {name} is "
                    f"{tuple(values[name].shape)} instead of {shape}",
                )
            if sharding is not None and ".lora_" not in name:
                sharding.put(parameter, values[name])
            else:
                with torch.no_grad():
                    parameter.copy_(values[name])

    def _no_targets(self, model: PreTrainedModel) -> UserError:
        from transformers.pytorch_utils import Conv1D

        inside = (pair for layer in decoder_layers(model) for pair in layer.named_modules())
        # An adapted module holds its matrix one level below.
        found = (name.removesuffix(".base_layer") for name, m in inside if isinstance(m, nn.Linear | Conv1D))
        names = sorted({name.rsplit(".", 1)[-1] for name in found if ".lora_" not in name})
        return UserError(
            "model.lora.target_modules",
            f"expected all-linear or a list of names among {', '.join(names)}, got {self.target_modules!r}",
        )


def _ends(name: str, wanted: str) -> bool:
    return f".{name}".endswith(f".{wanted}")


def _modules(names: set[str]) -> str:
    """The modules of parameters by the ends of their names, for a message."""
    stems = {re.sub(r"\.(lora_.*|weight|bias)$", "", name).rsplit(".", 1)[-1] for name in names}
    return ", ".join(sorted(stems)) or "none"


def _tied(model: PreTrainedModel) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def _whole_matrix(layer: Any) -> Tensor:
    """In fp32 at least, whatever it is kept as."""
    weight = plain_matrix(layer)
    weight = getattr(weight, "full_tensor", lambda: weight)()
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _widen(module: nn.Module, model: PreTrainedModel, narrow: torch.dtype, sharding: Sharding | None) -> None:
    """What is trained whole is fp32 at least; it takes and gives what the others do."""
    if sharding is not None:
        raise UserError(
            "model.lora.modules_to_save",
            "expected weights in float32 (model.model.dtype) where a strategy cuts them, "
            f"got {str(narrow).removeprefix('torch.')}",
        )
    wide = torch.float32
    for parameter in module.parameters():
        parameter.data = parameter.data.to(wide)

    def cast(value: Any, dtype: torch.dtype) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    module.register_forward_pre_hook(lambda _, inputs: tuple(cast(value, wide) for value in inputs))
    if module is not model.get_output_embeddings():  # whose logits, and losses, are better wide
        module.register_forward_hook(lambda _, __, output: cast(output, narrow))


@contextlib.contextmanager
def _looking_whole(model: nn.Module) -> Iterator[None]:
    """peft takes a sharded matrix for tensor parallel and would adapt this rank's slice; for a moment it sees a matrix
    of the whole shape, which takes no memory."""
    from torch.distributed.tensor import DTensor
    from transformers.pytorch_utils import Conv1D

    linear = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    slices: list[tuple[nn.Module, Any]] = [(m, m.weight) for m in linear if isinstance(m.weight.data, DTensor)]
    for module, weight in slices:
        local = weight.to_local()
        module._parameters["weight"] = nn.Parameter(local.new_zeros(()).expand(weight.shape))
    try:
        yield
    finally:
        for module, weight in slices:
            module._parameters["weight"] = weight
