"""Many devices, and nothing lost: strategies, sharded loading, checkpoints that survive a crash, stopping on a signal."""

from lit_probsft.parallel.strategies import FSDP2, DeepSpeed

__all__ = ["FSDP2", "DeepSpeed"]
