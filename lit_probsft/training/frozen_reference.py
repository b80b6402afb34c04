"""The frozen model of a module, which anchored objectives are compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from lit_probsft.head.logits import Outputs
from lit_probsft.model.packing import Packs
from lit_probsft.model.reference import FrozenModel, check_reference, freeze_copy, load_reference
from lit_probsft.objectives.base import REFERENCE
from lit_probsft.parallel.sharding import Sharding
from lit_probsft.training.lightning_internals import trainer_of

if TYPE_CHECKING:
    from lit_probsft.training.module import ProbSFTModule


class FrozenReference:
    """Holds the frozen model outside the module's submodules, so that it is neither trained nor saved.

    Attributes:
        loaded: the model; None until `load`, and for an objective that needs none.
    """

    def __init__(self) -> None:
        self.loaded: FrozenModel | None = None
        self._facts: dict[str, Any] = {}

    @property
    def description(self) -> dict[str, Any]:
        """`name`, `dtype`, `weights` (a fingerprint) and `commit`, plain data; empty without a model."""
        if self.loaded is None:
            return {}
        # With adapters it is the trained model, which the trainer's precision may cast after it is loaded.
        dtype = str(self.loaded.model.dtype).removeprefix("torch.")
        return {"name": self._facts["name"], "dtype": dtype, **self._facts}

    def load(self, module: ProbSFTModule, dtype: torch.dtype = torch.float32, sharding: Sharding | None = None) -> None:
        """Load the model once, if the module's objective needs it; before a checkpoint is read.

        Args:
            module: with its model, not yet sharded if that was handed in.
            dtype: in which the trained model was loaded.
            sharding: of the trainer's strategy.
        """
        trainer = trainer_of(module)
        if not module.objective.needs & REFERENCE or self.loaded or (trainer and trainer.state.fn == "predict"):
            return
        strategy: Any = None if trainer is None else trainer.strategy
        reference, lora = module.reference, module.lora
        source, wanted = reference.source_for(module.source), reference.dtype_for(module.model.dtype)
        adapters_only = lora is not None and not lora.modules_to_save and module.began_with is None
        if adapters_only and reference.model is None:
            self.loaded = FrozenModel(module.model, adapted=True)
        elif source is None:
            self.loaded = freeze_copy(module.model, wanted, sharding)
        else:
            tokenizer, own = getattr(module.datamodule, "tokenizer", None), reference.model is not None
            self.loaded = load_reference(
                source, tokenizer, dtype, wanted, sharding, own=own, adapters=module.began_with
            )
        frozen = self.loaded.model
        check_reference(frozen, module.model)
        device = module.device if strategy is None else strategy.root_device
        if frozen is not module.model and not getattr(strategy, "cpu_offload", False):
            frozen.to(device)
        name = "the model handed in" if source is None else source.name
        name += "" if module.began_with is None else f" with the adapters in {module.began_with}"
        self._facts = {"name": name, "weights": self.loaded.fingerprint(device)}
        if source is not None and source.commit is not None:
            self._facts["commit"] = source.commit

    @contextlib.contextmanager
    def outputs(self, batch: dict[str, Any], packs: Packs | None) -> Iterator[Outputs | None]:
        """The model's outputs for the supervised positions of a micro-batch, valid inside the context; None without a
        model."""
        if self.loaded is None:
            yield None
        else:
            with self.loaded.outputs(
                batch["input_ids"], batch["labels"], batch.get("attention_mask"), packs
            ) as outputs:
                yield outputs

    def release(self) -> None:
        """Free its memory."""
        self.loaded = None
