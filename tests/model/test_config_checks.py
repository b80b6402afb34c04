"""Sizes that no model can have are refused, and those that models have are not."""

from __future__ import annotations

from typing import Any

import pytest

from lit_probsft.errors import UserError
from lit_probsft.model.config_checks import check_sizes

COMMON = ("llama", "gpt2", "qwen3", "gemma3_text", "gpt_neox", "deepseek_v3", "opt")


def configuration(kind: str) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[kind]()


@pytest.mark.parametrize("kind", COMMON)
def test_the_defaults_of_a_model_type_pass(kind: str) -> None:
    known = configuration(kind)
    check_sizes(known, known.to_dict(), "config")


@pytest.mark.slow
def test_the_defaults_of_every_model_type_pass() -> None:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    for kind in CONFIG_MAPPING:
        if CONFIG_MAPPING[kind] in MODEL_FOR_CAUSAL_LM_MAPPING and kind != "gemma4_assistant":  # has none that work
            known = configuration(kind)
            check_sizes(known, known.to_dict(), "config")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("llama", "num_hidden_layers"), ("gpt2", "n_layer"), ("gpt2", "hidden_size"), ("qwen3", "head_dim")],
)
@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True])
def test_a_size_is_a_positive_whole_number(kind: str, name: str, value: object) -> None:
    with pytest.raises(UserError, match="expected a whole number, at least 1"):
        check_sizes(configuration(kind), {name: value}, "config")


def test_a_token_id_and_a_number_of_special_layers_may_be_0() -> None:
    check_sizes(configuration("llama"), {"bos_token_id": 0, "eos_token_id": -1}, "config")
    check_sizes(configuration("deepseek_v3"), {"first_k_dense_replace": 0}, "config")
