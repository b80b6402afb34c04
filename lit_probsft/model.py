"""Where the causal language model comes from, what it does to its logits, and the objective head in place of its output
layer."""

from __future__ import annotations

import contextlib
import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from lit_probsft.adapters import adapters_at, is_adapter_folder, merged, read_config, stored_transposed
from lit_probsft.data.tokenizers import read_tokenizer
from lit_probsft.errors import UserError, near_matches
from lit_probsft.head import HeadOutput, HeadRequest, HiddenRequest, ObjectiveHead
from lit_probsft.loading import check_complete, check_place, told
from lit_probsft.logits import Outputs
from lit_probsft.lora import LoRA
from lit_probsft.packs import Packs
from lit_probsft.parallel.sharding import Sharding, decoder_layers, draw_weights, fill, global_numel, is_partitioned
from lit_probsft.quantization import Quantization, check_installed, loading_options, quiet, settled
from lit_probsft.remote import model_commit, warn_of_code
from lit_probsft.vocabulary import extend, grow, new_to, rows_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTypeName = Literal["auto", "float32", "bfloat16", "float64"]


@dataclass(frozen=True)
class ModelSource(ABC):
    """How a causal language model is obtained; members are frozen dataclasses, named in a config by class path."""

    @abstractmethod
    def load(
        self, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype, sharding: Sharding | None = None
    ) -> PreTrainedModel:
        """The model in training mode.

        Args:
            tokenizer: gives a randomly initialized model its vocabulary and special tokens.
            dtype: of the weights, unless the source names its own.
            sharding: how the trainer's strategy cuts models; None where every process holds the whole. With it no
                process ever holds the whole model.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """A few words for the model card and the run's record."""

    @property
    def tokenizer_name(self) -> str | None:
        """Hub id or folder where the model's own tokenizer lies, if it has one."""
        return None

    @property
    def commit(self) -> str | None:
        """The commit that is read, of a model on the hub."""
        return None

    def new_tokens(self, tokenizer: PreTrainedTokenizerBase | None) -> Mapping[str, int]:
        """Ids of the tokens that were added to `tokenizer` and that the model has not been trained with, by their
        texts. A model that has not been trained at all knows no token better than another: none."""
        return {}


@dataclass(frozen=True)
class PretrainedCausalLM(ModelSource):
    """A model from the hub or a local folder in Hugging Face's format.

    Args:
        model_name_or_path: hub id or folder.
        revision: branch, tag or commit on the hub; of adapters there their own, since they name that of their base.
        dtype: of the weights; `auto` is float32, the master weights, unless the trainer's precision is `bf16-true`.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2` ..., as transformers names them; None lets it choose.
        gradient_checkpointing: recompute each decoder layer in backward; the head is never recomputed.
        compile: run each decoder layer through torch.compile.
        trust_remote_code: run code that lies beside the weights, for a model that transformers does not know.
        quantization: `nf4` or `int8` keeps the frozen matrices of the decoder layers in 4 or 8 bits, beside which
            adapters are trained (QLoRA); `none` as `dtype` says. Not with strategies that cut the model.
    """

    model_name_or_path: str
    revision: str | None = None
    dtype: DTypeName = "auto"
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    trust_remote_code: bool = False
    quantization: Quantization = "none"

    def __post_init__(self) -> None:
        if self.quantization not in ("none", "nf4", "int8"):
            raise UserError(f"model.model.quantization: expected none, nf4 or int8, got {self.quantization!r}")
        if self.quantization != "none":
            check_installed()
        if self.revision is not None and is_adapter_folder(self.model_name_or_path):
            raise UserError(
                f"model.model.revision: expected none beside a folder of adapters, whose adapter_config.json names "
                f"that of their base, got {self.revision!r}"
            )

    @property
    def name(self) -> str:
        """The hub id or folder."""
        return self.model_name_or_path

    @property
    def tokenizer_name(self) -> str:
        """The same place."""
        return self.model_name_or_path

    @property
    def commit(self) -> str | None:
        """As the hub tells it."""
        return model_commit(self.model_name_or_path, self.revision)

    def new_tokens(self, tokenizer: PreTrainedTokenizerBase | None) -> Mapping[str, int]:
        """Those that the tokenizer beside the weights lacks."""
        return new_to(tokenizer, lambda: read_tokenizer(self.model_name_or_path, self.revision, self.trust_remote_code))

    def load(
        self, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype, sharding: Sharding | None = None
    ) -> PreTrainedModel:
        """The pretrained model; of adapters their base with the adapters merged into it."""
        from transformers import AutoModelForCausalLM

        place = self.model_name_or_path
        check_place(place)
        if (folder := adapters_at(place, self.commit or self.revision)) is not None:
            return self._merged(folder, tokenizer, dtype, sharding)
        wanted = dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        tokens = self.new_tokens(tokenizer)
        longer = partial(grow, rows=rows_for(tokens)) if tokens else None
        if self.trust_remote_code:
            warn_of_code("model.model.trust_remote_code", place, self.revision)
        with told(place, self.revision):
            reading: Any = contextlib.nullcontext({}) if sharding is None else sharding.reading(longer)
            with reading as options, quiet():
                model, loaded = AutoModelForCausalLM.from_pretrained(
                    place,
                    revision=self.commit or self.revision or "main",
                    dtype=wanted,
                    attn_implementation=self.attn_implementation,
                    trust_remote_code=self.trust_remote_code,
                    output_loading_info=True,
                    **loading_options(self.quantization, wanted),
                    **options,
                )
            check_complete(place, loaded)
        extend(model, tokens, sharding)
        return _prepared(settled(model), self.gradient_checkpointing, self.compile)

    def _merged(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase | None,
        dtype: torch.dtype,
        sharding: Sharding | None,
    ) -> PreTrainedModel:
        place, argument = self.model_name_or_path, "model.model.model_name_or_path"
        if sharding is not None or self.quantization != "none":
            raise UserError(
                f"{argument}: expected a model, got a folder of adapters, {place!r}, which cannot be merged into a "
                "base that is cut or quantized; name the base here and the folder as model.lora.start"
            )
        named = read_config(folder, argument)
        base, revision = named.get("base_model_name_or_path"), named.get("revision")
        if not base or adapters_at(base, revision) is not None:
            raise UserError(f"{argument}: expected adapters that name their base, {place!r} names {base!r}")
        model = replace(self, model_name_or_path=base, revision=revision).load(tokenizer, dtype)
        lora = replace(LoRA.of(str(folder), argument), start=str(folder))
        return without_adapters(model, lora)


def without_adapters(model: PreTrainedModel, lora: LoRA) -> PreTrainedModel:
    """A model with the adapters that `lora.start` holds merged into it, as if it had been read so."""
    adapted = copy.deepcopy(model)
    lora.inject(adapted)
    weights = merged(adapted.state_dict(), lora.scaling, stored_transposed(model))
    model.load_state_dict(weights)
    return model


@dataclass(frozen=True)
class RandomCausalLM(ModelSource):
    """A model built from a configuration, with random weights: the weak end of the capability continuum.

    Args:
        config: fields of the transformers configuration, `model_type` among them. Vocabulary size and special tokens
            are the tokenizer's where they are not given.
        seed: of the weights; the same seed gives the same weights whatever else is random, sharded or not.
        dtype: as in `PretrainedCausalLM`.
        attn_implementation: as there.
        gradient_checkpointing: as there.
        compile: as there.
    """

    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    dtype: DTypeName = "auto"
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    compile: bool = False

    @property
    def name(self) -> str:
        """Type and seed."""
        return f"{self.config.get('model_type', '?')} from random weights (seed {self.seed})"

    def load(
        self, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype, sharding: Sharding | None = None
    ) -> PreTrainedModel:
        """The model with freshly drawn weights."""
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM
        from transformers.modeling_utils import set_zero3_state

        fields = dict(self.config)
        kind = fields.pop("model_type", None)
        if kind not in CONFIG_MAPPING:
            got = "none" if kind is None else f"{kind!r}.{near_matches(str(kind), CONFIG_MAPPING.keys())}"
            raise UserError(f"model.model.config.model_type: expected a model type of transformers, got {got}")
        if CONFIG_MAPPING[kind] not in AutoModelForCausalLM._model_mapping:
            raise UserError(f"model.model.config.model_type: expected a causal language model's, got {kind!r}")
        if tokenizer is not None:
            fields.setdefault("vocab_size", len(tokenizer))
            for token in ("pad", "bos", "eos"):
                fields.setdefault(f"{token}_token_id", getattr(tokenizer, f"{token}_token_id"))
            if fields["vocab_size"] < len(tokenizer):
                raise UserError(
                    f"model.model.config.vocab_size: expected at least {len(tokenizer)}, the tokenizer's vocabulary, "
                    f"got {fields['vocab_size']}"
                )
        known = CONFIG_MAPPING[kind]()
        for name in fields:
            if not hasattr(known, name):
                hint = near_matches(name, known.to_dict())
                raise UserError(f"model.model.config.{name}: expected a field of {type(known).__name__}.{hint}")
        dtype = dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        kwargs = {} if self.attn_implementation is None else {"attn_implementation": self.attn_implementation}

        def shell() -> PreTrainedModel:
            # The latter keeps ZeRO-3 from cutting it.
            with torch.device("meta"), set_zero3_state():
                return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields), dtype=dtype, **kwargs)

        try:
            drawn = shell()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                if sharding is None:
                    model = drawn
                    draw_weights(model, None)
                else:
                    model = sharding.empty(shell)
                    torch.manual_seed(self.seed)  # an empty model may have drawn numbers of its own
                    fill(model, drawn, sharding)
        except UserError:
            raise
        except Exception as error:  # transformers' checks of its configurations share no base class
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            said = lines[-1] if "alidation error" in lines[0] else lines[0]
            said = re.sub(r"^\w+Error: ", "", said)
            part = "attn_implementation" if re.search("attn_implementation=|FlashAttention", said) else "config"
            given = self.attn_implementation if part == "attn_implementation" else self.config
            raise UserError(
                f"model.model.{part}: expected what {kind} can be built from, got {given!r}: {said}"
            ) from error
        return _prepared(model, self.gradient_checkpointing, self.compile)


def _prepared(model: PreTrainedModel, gradient_checkpointing: bool, compile_layers: bool) -> PreTrainedModel:
    # Torch gives the padding token's embedding no gradient. Padding is masked and has none anyway; but where the token
    # that ends turns pads too, it is a token like others.
    model.get_input_embeddings().padding_idx = None
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if compile_layers:
        # The forward alone: hooks that gather a layer's weights, and recomputation, stay around it.
        for layer in decoder_layers(model):
            layer.forward = torch.compile(layer.forward)
    return model.train()


def logit_transform(config: Any) -> tuple[float, float | None]:
    """What a model of this configuration does to its output layer's result: (factor, soft cap).

    Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`, Gemma 2 and 3 cap by a tanh.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
    return scale, getattr(text, "final_logit_softcapping", None)


def install_head(model: PreTrainedModel) -> ObjectiveHead:
    """Put an `ObjectiveHead` in the place of the model's output layer, sharing its parameters; twice is once.

    Raises:
        UserError: the model has no output layer, one that is no plain linear layer, or does something to its logits
            that `logit_transform` does not know, found by sending known logits through the rest of its forward.
    """
    get_output = getattr(model, "get_output_embeddings", None)
    layer = get_output() if get_output is not None else None
    kind = type(model).__name__
    if layer is None:
        raise UserError(f"model: expected a causal language model with an output layer, got {kind}, which has none")
    if isinstance(layer, ObjectiveHead):
        return layer
    sharded = type(layer).__name__ == "FSDPLinear"  # whatever FSDP2 shards gets a class of its own
    if type(layer) is not nn.Linear and not sharded:
        raise UserError(
            f"model: expected an output layer that is a plain torch.nn.Linear, {kind} has a {type(layer).__name__}"
        )
    scale, soft_cap = logit_transform(model.config)
    head = ObjectiveHead.replacing(layer, logit_scale=scale, soft_cap=soft_cap)
    if not (head.weight.is_meta or is_partitioned(head.weight)):
        check_head(model)
    return head


def check_head(model: PreTrainedModel) -> None:
    """Refuse a model that is not causal, or whose logits `logit_transform` does not explain. `install_head` calls it
    where it can; parameters that ZeRO-3 holds in parts cannot run before the engine is there.

    Raises:
        UserError: as `install_head`.
    """
    head = model.get_output_embeddings()
    device = next((buffer.device for buffer in model.buffers() if buffer.device.type != "cpu"), head.weight.device)
    probe = torch.linspace(-3, 3, head.out_features, device=device, dtype=torch.float32).reshape(1, 1, -1)
    hidden: list[Tensor] = []

    def answer(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> Tensor:
        hidden.append(inputs[0].detach()[0, 0].float())
        return probe.clone()

    hook, training = head.register_forward_hook(answer), model.training
    model.eval()  # dropout would make two passes differ
    try:
        with torch.no_grad():
            for last in (0, 1):
                seen = model(input_ids=torch.tensor([[0, last]], device=device), use_cache=False).logits
    finally:
        hook.remove()
        model.train(training)
    if not torch.allclose(hidden[0], hidden[1], rtol=1e-3, atol=1e-4):
        raise UserError(
            f"model: expected a causal language model, in {type(model).__name__} a token sees those after it"
        )
    expected = probe * head.logit_scale
    if head.soft_cap is not None:
        expected = head.soft_cap * torch.tanh(expected / head.soft_cap)
    if seen.shape != expected.shape or not torch.allclose(seen.float(), expected, rtol=1e-5, atol=1e-5):
        raise UserError(
            f"model: {type(model).__name__} changes its logits after the output layer in a way that the objective head "
            "does not know (it knows a factor, `logit_scale` or `logits_scaling`, and a soft cap, "
            "`final_logit_softcapping`)"
        )


def forward_with_objective(
    model: PreTrainedModel,
    input_ids: Tensor,
    request: HeadRequest,
    attention_mask: Tensor | None = None,
    packs: Packs | None = None,
) -> tuple[HeadOutput, Tensor, Tensor | None]:
    """One forward pass of the whole model, the head answering `request` instead of returning logits.

    Args:
        model: a model with an installed head.
        input_ids: (B, T), padded on the right. A causal model never sees padding from a real position, so that no mask
            is passed on, except to a mixture of experts, whose auxiliary loss would count the padding.
        request: labels, objective and normalizer.
        attention_mask: (B, T).
        packs: where documents lie that share rows.

    Returns:
        The head's output, the loss as it left the model (the same value, with hooks of sharding strategies on it), and
        the auxiliary loss of a mixture of experts times its coefficient, or None.
    """
    request, output = _answered(model, input_ids, request, attention_mask, packs)
    assert request.output is not None
    auxiliary = getattr(output, "aux_loss", None)
    if auxiliary is not None:
        auxiliary = auxiliary * getattr(model.config.get_text_config(), "router_aux_loss_coef", 0.0)
    return request.output, output.logits.reshape(()) / model.get_output_embeddings().logit_scale, auxiliary


@torch.no_grad()
def outputs_of(
    model: PreTrainedModel,
    input_ids: Tensor,
    labels: Tensor,
    attention_mask: Tensor | None = None,
    packs: Packs | None = None,
) -> Outputs:
    """What a model says about the supervised positions, in row-major order, before it is multiplied out; without
    gradient and without dropout. Arguments as `forward_with_objective`, with labels (B, T)."""
    training = model.training
    model.eval()
    try:
        request, _ = _answered(model, input_ids, HiddenRequest(labels), attention_mask, packs)
    finally:
        model.train(training)
    assert request.outputs is not None
    return request.outputs


_Request = TypeVar("_Request", HeadRequest, HiddenRequest)


def _answered(
    model: PreTrainedModel, input_ids: Tensor, request: _Request, attention_mask: Tensor | None, packs: Packs | None
) -> tuple[_Request, Any]:
    """The request, answered, and what came out of the model's forward."""
    head = install_head(model)
    config = model.config.get_text_config()
    router = bool(getattr(config, "output_router_logits", False))
    if packs is None:
        arguments = {"attention_mask": attention_mask if router else None, "use_cache": False}
    elif router and attention_mask is not None:
        # A mask would undo the division into documents: a mixture of experts is given no padding in the first place.
        real = attention_mask.bool()
        request = replace(request, labels=request.labels[real].unsqueeze(0))
        if isinstance(request, HeadRequest) and request.token_weight is not None:
            request.token_weight = request.token_weight[real].unsqueeze(0)
        input_ids, packs = input_ids[real].unsqueeze(0), packs.without_padding(real)
    if packs is not None:
        arguments = packs.arguments(config)
    with head.answering(request), _uncapped(config):
        return request, model(input_ids=input_ids, **arguments)


@contextlib.contextmanager
def _uncapped(config: Any) -> Iterator[None]:
    """The head has applied the soft cap itself; the model must not apply it to the loss that leaves in the logits'
    place."""
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is None:
        yield
        return
    config.final_logit_softcapping = None
    try:
        yield
    finally:
        config.final_logit_softcapping = cap


def stop_generation_at(model: PreTrainedModel, token: int) -> None:
    """Let `generate` end at `token` too, beside what already ends it; it is saved with the model."""
    config = model.generation_config
    known = config.eos_token_id
    known = known if isinstance(known, list) else [known]
    stops = list(dict.fromkeys([*(id for id in known if id is not None), token]))
    config.eos_token_id = stops if len(stops) > 1 else stops[0]


def source_of(model: ModelSource | str) -> ModelSource:
    """A string stands for `PretrainedCausalLM` of that hub id or folder."""
    return PretrainedCausalLM(model) if isinstance(model, str) else model


def describe(model: PreTrainedModel) -> Mapping[str, Any]:
    """Type and size of a model, for the run's record."""
    return {
        "architecture": type(model).__name__,
        "parameters": sum(global_numel(p) for p in model.parameters()),
        "trainable_parameters": sum(global_numel(p) for p in model.parameters() if p.requires_grad),
    }
