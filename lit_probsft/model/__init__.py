"""Where a causal language model comes from, the head as its output layer, adapters, quantization."""

from lit_probsft.model.sources import ModelSource, PretrainedCausalLM, RandomCausalLM

__all__ = ["ModelSource", "PretrainedCausalLM", "RandomCausalLM"]
