"""Makes the plans of a data module: for its training set or stream, and for evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lit_probsft.data.batches.epoch_sampling import sampler_for
from lit_probsft.data.batches.packing import PackedPlan
from lit_probsft.data.batches.plan import Plan
from lit_probsft.data.batches.store import Documents
from lit_probsft.data.batches.stream_plan import StreamPlan

if TYPE_CHECKING:
    from lit_probsft.data.datamodule import InstructionDataModule
    from lit_probsft.data.rows.splits import LoadedSource


def training_plan(data: InstructionDataModule, loaded: LoadedSource, accumulate: int, world_size: int) -> Plan:
    """Plans the training set, whose rows come from `loaded`."""
    store = data.documents("train")
    shape: dict[str, Any] = {"batch_size": data.batch_size, "accumulate": accumulate, "world_size": world_size}
    shape |= {"seed": data.seed, "sampler": sampler_for(store, loaded, seed=data.seed)}
    if not data.packing:
        return Plan(store.lengths, store.supervised, pool=data.length_pool, **shape)
    assert data.max_length is not None
    return PackedPlan(store.lengths, store.supervised, max_length=data.max_length, **shape)


def stream_plan(data: InstructionDataModule, accumulate: int, world_size: int) -> StreamPlan:
    """Plans a stream of training rows."""
    return StreamPlan(
        batch_size=data.batch_size,
        accumulate=accumulate,
        world_size=world_size,
        seed=data.seed,
        pool=data.length_pool,
        max_length=data.max_length if data.packing else None,
        buffer=data.shuffle_buffer,
        num_windows=None if data.trainer is None else data.trainer.max_steps,
    )


def evaluation_plan(data: InstructionDataModule, documents: Documents, world_size: int) -> Plan:
    """Plans documents for evaluation: each once, in a row of its own, sorted by length."""
    return Plan(
        documents.lengths,
        documents.supervised,
        batch_size=data.eval_batch_size,
        world_size=world_size,
        seed=data.seed,
        shuffle=False,
    )


def data_ranks(trainer: Any) -> tuple[int, int]:
    """Returns the number of ranks that see different data, and the index of this one; 1 and 0 without a trainer."""
    if trainer is None:
        return 1, 0
    try:  # ranks that share a replica of the model see the same data
        kwargs = trainer.strategy.distributed_sampler_kwargs
    except (AttributeError, AssertionError):  # one device, or processes not set up yet
        return trainer.world_size, trainer.global_rank
    return int(kwargs["num_replicas"]), int(kwargs["rank"])
