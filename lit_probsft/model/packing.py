"""Attention over packs: what a model is told about the documents that share its rows, and whether it listens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_probsft.errors import UserError
from lit_probsft.model.modes import evaluation_mode


@dataclass(frozen=True)
class Packs:
    """Where documents lie in rows that they share (see `data.collate`).

    transformers makes attention block-diagonal of positions that begin anew, where it is given neither a mask nor a
    cache; kernels for sequences of unequal length are given the boundaries, made once for all layers.

    Attributes:
        position_ids: (B, T), beginning at 0 with each document; padding is divided into documents as well.
        boundaries: (S + 1,), int32: the ends of the S documents in the B rows laid one after the other, after a 0.
        longest: tokens of the longest document.
    """

    position_ids: Tensor
    boundaries: Tensor
    longest: int

    @classmethod
    def of(cls, batch: dict[str, Any]) -> Packs | None:
        """Those of a batch; None where each document has a row of its own."""
        if "boundaries" not in batch:
            return None
        return cls(batch["position_ids"], batch["boundaries"], batch["longest"])

    @classmethod
    def of_lengths(cls, *lengths: int, device: torch.device) -> Packs:
        """One row of documents that are so long."""
        positions = torch.cat([torch.arange(length, device=device) for length in lengths]).unsqueeze(0)
        ends = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
        return cls(positions, ends, max(lengths))

    def arguments(self, config: Any) -> dict[str, Any]:
        """What the forward of a model of this configuration takes, beside the ids."""
        arguments: dict[str, Any] = {"position_ids": self.position_ids, "attention_mask": None, "use_cache": False}
        if takes_boundaries(config):
            arguments |= {"cu_seq_lens_q": self.boundaries, "cu_seq_lens_k": self.boundaries}
            arguments |= {"max_length_q": self.longest, "max_length_k": self.longest}
        return arguments

    def without_padding(self, real: Tensor) -> Packs:
        """One row of the documents alone; `real` (B, T) marks their tokens."""
        positions = self.position_ids[real].unsqueeze(0)
        starts = (positions[0] == 0).nonzero().squeeze(-1)
        ends = torch.cat([starts, starts.new_tensor([positions.shape[1]])])
        return Packs(positions, ends.to(torch.int32), self.longest)

    def of_each(self, supervised: Tensor) -> Tensor:
        """(B, T): at each token, how many of its document's tokens are marked in `supervised` (B, T)."""
        document = (self.position_ids == 0).flatten().cumsum(0) - 1
        counts = supervised.new_zeros(len(self.boundaries) - 1, dtype=torch.long)
        return counts.index_add_(0, document, supervised.flatten().long())[document].reshape(supervised.shape)


def takes_boundaries(config: Any) -> bool:
    """Is a model of this configuration's attention a kernel for sequences of unequal length (some flash attention)?"""
    return "flash" in str(config._attn_implementation)


def check_packing(model: Any) -> None:
    """Refuse a model that does not keep packed documents apart, found by sending it two of them, together and alone.

    Raises:
        UserError: a document sees its neighbour (recurrent models do, and those that make their masks themselves), or
            knows its place in the pack, or the model takes no positions.
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
                packs = Packs.of_lengths(*(ids.shape[1] for ids in row), device=device)
                model(input_ids=torch.cat(row, dim=1), **packs.arguments(model.config.get_text_config()))
    except (TypeError, ValueError) as error:
        raise UserError(
            "data.packing", f"expected a model that takes the positions of packed documents, {kind} does not: {error}"
        ) from error
    finally:
        hook.remove()
    # What another neighbour changes is nothing at all, or rounding where a mixture of experts groups its tokens anew;
    # a recurrent model may forget all but a thousandth. Alone, a document meets kernels for another size.
    rounded = hidden[0].dtype == torch.bfloat16 or torch.is_autocast_enabled(device.type)
    tolerance = 1e-3 if rounded else 1e-4
    alone, packed, with_other = (states.float() for states in hidden)
    if not (packed - with_other).norm() <= tolerance * alone.norm():
        raise UserError(
            "data.packing", f"expected a model that keeps packed documents apart, in {kind} one sees another"
        )
    if not (packed - alone).norm() <= 0.05 * alone.norm():
        raise UserError(
            "data.packing",
            f"expected a model that takes the positions of packed documents, {kind} takes their places in the pack",
        )
