"""Answers depend on `Generation` and the tokens that end an answer, not on the rest of generation_config."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from lit_probsft.model.generation import Generation
from tests import tiny

PROMPTS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [1, 2, 3, 4]])


def model(**generation: Any) -> Any:
    """A model whose answers are not all alike, with this generation_config."""
    made = tiny.model(initializer_range=0.5).eval()
    made.generation_config = GenerationConfig(**generation)
    return made


def answers(model: Any, generation: Generation, prompts: torch.Tensor = PROMPTS, pad: int | None = 256) -> Any:
    produced = generation.answer(model, prompts, torch.ones_like(prompts), pad_token_id=pad)
    return produced[:, prompts.shape[1] :].tolist()


@torch.no_grad()
def most_likely(model: Any, tokens: int) -> list[list[int]]:
    """The largest logit at every step."""
    ids = PROMPTS
    for _ in range(tokens):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids[:, PROMPTS.shape[1] :].tolist()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8},
        {"repetition_penalty": 9.0},
        {"no_repeat_ngram_size": 1, "min_new_tokens": 3, "max_length": 2},
        {"num_beams": 3, "length_penalty": 2.0},
        {"suppress_tokens": list(range(256))},
        {"forced_eos_token_id": 258, "stop_strings": ["a"]},
    ],
)
def test_at_temperature_zero_answers_are_greedy_whatever_generation_config_says(fields: dict[str, Any]) -> None:
    made = model(**fields)
    kept = made.generation_config
    assert answers(made, Generation(6)) == most_likely(made, 6)
    assert made.generation_config is kept


def test_no_field_of_generation_config_changes_greedy_answers() -> None:
    plain, fields = model(), set(GenerationConfig().to_dict()) - {"eos_token_id", "pad_token_id", "bos_token_id"}
    expected = most_likely(plain, 3)
    for value in (3, True, [5], 0.5):
        for name in fields:
            setattr(plain.generation_config, name, value)
        assert answers(plain, Generation(3)) == expected


def test_fields_that_are_not_used_are_named(caplog: pytest.LogCaptureFixture) -> None:
    made = model(repetition_penalty=1.1, no_repeat_ngram_size=3, do_sample=True, temperature=0.6, eos_token_id=258)
    with caplog.at_level("INFO"):
        Generation(3).report_unused(made)
    assert "not used from generation_config.json: repetition_penalty 1.1, no_repeat_ngram_size 3" in caplog.text


def test_sampling_uses_temperature_and_top_p_alone() -> None:
    flat = tiny.model().eval()  # nearly uniform over 259 tokens
    flat.generation_config = GenerationConfig(top_k=1, repetition_penalty=9.0)
    prompts = PROMPTS[:1].expand(400, -1)
    assert len({token for (token,) in answers(flat, Generation(1, temperature=1.0), prompts)}) > 150
    assert len({token for (token,) in answers(flat, Generation(1, temperature=1.0, top_p=1e-9), prompts)}) == 1


def test_an_answer_ends_with_a_token_of_generation_config_and_needs_no_row_for_padding() -> None:
    free = most_likely(model(), 8)
    stop = free[0][2]
    assert stop not in free[1]
    made = model(eos_token_id=[stop, 258], repetition_penalty=9.0)
    for pad in (1000, None):  # the model has 259 rows
        first, second, _ = answers(made, Generation(8), pad=pad)
        assert first == [*free[0][: free[0].index(stop) + 1], *[stop] * (7 - free[0].index(stop))]
        assert second == free[1]
