"""Many devices, and nothing lost: strategies, sharded loading, checkpoints that survive a crash, stopping."""

from lit_probsft.parallel.strategies import FSDP2, DeepSpeed

__all__ = ["FSDP2", "DeepSpeed"]
