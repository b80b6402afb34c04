"""Loads causal language models, makes the head their output layer, and adds adapters and quantization."""

from lit_probsft.model.pretrained import PretrainedCausalLM
from lit_probsft.model.random_weights import RandomCausalLM
from lit_probsft.model.source import ModelSource

__all__ = ["ModelSource", "PretrainedCausalLM", "RandomCausalLM"]
