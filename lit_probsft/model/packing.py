"""Attention arguments for packed rows, and a check that a model honours them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_probsft.errors import UserError
from lit_probsft.model.modes import evaluation_mode


@dataclass(frozen=True)
class Packs:
    """The positions of documents that share rows (see `lit_probsft.data.batches.collate`).

    transformers makes attention block-diagonal if positions restart at 0 and it gets neither a mask nor a cache.
    Kernels for sequences of unequal length get the boundaries, computed once for all layers.

    Attributes:
        position_ids: (B, T), starting at 0 in each document; padding is divided into documents as well.
        boundaries: (S + 1,), int32: a 0 and the ends of the S documents in the concatenation of the B rows.
        longest: tokens of the longest document.
    """

    position_ids: Tensor
    boundaries: Tensor
    longest: int

    @classmethod
    def from_batch(cls, batch: dict[str, Any]) -> Packs | None:
        """The packs of a batch; None if each document has a row of its own."""
        if "boundaries" not in batch:
            return None
        return cls(batch["position_ids"], batch["boundaries"], batch["longest"])

    @classmethod
    def from_lengths(cls, *lengths: int, device: torch.device) -> Packs:
        """One row of documents with these lengths."""
        positions = torch.cat([torch.arange(length, device=device) for length in lengths]).unsqueeze(0)
        ends = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
        return cls(positions, ends, max(lengths))

    def arguments(self, config: Any) -> dict[str, Any]:
        """Arguments of the forward of a model with this configuration, apart from the ids."""
        arguments: dict[str, Any] = {"position_ids": self.position_ids, "attention_mask": None, "use_cache": False}
        if takes_boundaries(config):
            arguments |= {"cu_seq_lens_q": self.boundaries, "cu_seq_lens_k": self.boundaries}
            arguments |= {"max_length_q": self.longest, "max_length_k": self.longest}
        return arguments

    def without_padding(self, real: Tensor) -> Packs:
        """One row of the documents without padding; `real` (B, T) marks their tokens."""
        positions = self.position_ids[real].unsqueeze(0)
        starts = (positions[0] == 0).nonzero().squeeze(-1)
        ends = torch.cat([starts, starts.new_tensor([positions.shape[1]])])
        return Packs(positions, ends.to(torch.int32), self.longest)

    def supervised_per_document(self, supervised: Tensor) -> Tensor:
        """(B, T): at each token, the number of its document's tokens that are marked in `supervised` (B, T)."""
        document = (self.position_ids == 0).flatten().cumsum(0) - 1
        counts = supervised.new_zeros(len(self.boundaries) - 1, dtype=torch.long)
        return counts.index_add_(0, document, supervised.flatten().long())[document].reshape(supervised.shape)


def takes_boundaries(config: Any) -> bool:
    """Whether the model's attention is a kernel for sequences of unequal length (a flash attention).

    `_attn_implementation` is the only private name of transformers here; there is no public one.
    """
    return "flash" in str(config._attn_implementation)


def check_packing(model: Any) -> None:
    """Check that a model keeps packed documents apart, by running it on two of them, packed and alone.

    Raises:
        UserError: a document attends to its neighbour (in recurrent models and models that make their own masks), or
            its hidden states depend on its place in the pack, or the model takes no positions.
    """
    kind = type(model).__name__
    head = model.get_output_embeddings()
    device = next((buffer.device for buffer in model.buffers() if buffer.device.type != "cpu"), head.weight.device)
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(head.out_features, model.get_input_embeddings().num_embeddings)
    neighbour, other, document = torch.randint(vocabulary, (3, 1, 7), generator=generator).to(device)
    hidden: list[Tensor] = []

    def seen(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        hidden.append(inputs[0].detach()[0, -document.shape[1] :])

    hook = head.register_forward_pre_hook(seen)
    try:
        with torch.no_grad(), evaluation_mode(model):
            for row in ([document], [neighbour, document], [other, document]):
                packs = Packs.from_lengths(*(ids.shape[1] for ids in row), device=device)
                model(input_ids=torch.cat(row, dim=1), **packs.arguments(model.config.get_text_config()))
    except (TypeError, ValueError) as error:
        raise UserError(
            "data.packing", f"expected a model that takes positions of packed documents, but {kind} does not: {error}"
        ) from error
    finally:
        hook.remove()
    # Another neighbour changes nothing, or only the rounding in a mixture of experts, which groups its tokens
    # differently; in a recurrent model it may change a thousandth only. A document alone uses kernels of another size.
    rounded = hidden[0].dtype == torch.bfloat16 or torch.is_autocast_enabled(device.type)
    tolerance = 1e-3 if rounded else 1e-4
    alone, packed, with_other = (states.float() for states in hidden)
    if not (packed - with_other).norm() <= tolerance * alone.norm():
        raise UserError(
            "data.packing", f"expected a model that keeps packed documents apart, but in {kind} one affects another"
        )
    if not (packed - alone).norm() <= 0.05 * alone.norm():
        raise UserError(
            "data.packing",
            f"expected a model that takes positions of packed documents, but {kind} uses their places in the pack",
        )
