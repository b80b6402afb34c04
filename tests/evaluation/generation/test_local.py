"""An answer depends on its prompt, seed and temperature alone, and the greedy one is that of `generate`."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from scipy.stats import chisquare
from torch.distributed.fsdp import fully_shard

from benchmarks.architectures import FAMILIES, SMALL
from lit_probsft.data import ByteTokenizer
from lit_probsft.errors import UserError
from lit_probsft.evaluation.generation import local
from lit_probsft.evaluation.generation.local import LocalBackend
from lit_probsft.evaluation.generation.requests import Answer, Draw, Request
from lit_probsft.evaluation.generation.sampling import choose, uniform
from lit_probsft.head.layer import ObjectiveHead
from lit_probsft.model.forward import install_head
from tests import tiny

TOKENIZER = ByteTokenizer().load(list)
GREEDY, SAMPLED, OTHER = Draw(0, 0, 0.0), Draw(1, 5, 1.0), Draw(2, 6, 1.0)
RECURRENT = {
    "Mamba": {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "model_type": "mamba"},
    "LFM 2": {**SMALL, "model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
    "RWKV": {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "model_type": "rwkv"},
}


class Ids:
    """Decodes to the ids, so that tests see all of them."""

    eos_token_id = None

    def get_chat_template(self) -> str:
        raise ValueError("no template")

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, ids))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [str(id) for id in ids]


def sharpened(model: Any) -> Any:
    """The model with larger weights, so that its answers vary."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    model.generation_config.eos_token_id = [2]
    return model.eval()


def family(name: str) -> Any:
    fields = dict({**FAMILIES, **RECURRENT}[name])
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[fields.pop("model_type")](**fields)
    return sharpened(transformers.AutoModelForCausalLM.from_config(config))


@pytest.fixture(scope="module")
def llama() -> Any:
    return family("Llama")


def requests(draws: Sequence[Draw] = (GREEDY, SAMPLED, OTHER), max_new_tokens: int | None = None) -> list[Request]:
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 61) for _ in range(length)] for length in (3, 11, 7, 7, 18)]
    return [
        Request(index, [], prompt, draws, max_new_tokens or (6, 3, 8, 5, 6)[index])
        for index, prompt in enumerate(prompts)
    ]


def answers(model: Any, asked: Sequence[Request], **options: Any) -> dict[tuple[int, int], Answer]:
    backend = LocalBackend(model, Ids(), **options)
    found = {(answer.index, answer.sample): answer for answer in backend.answer(asked)}
    assert len(found) == sum(len(request.draws) for request in asked)
    return found


def generated(model: Any, request: Request, **options: Any) -> str:
    """The greedy answer of transformers' `generate`, alone."""
    prompt = torch.tensor([request.prompt])
    own = {"do_sample": False, "max_new_tokens": request.max_new_tokens, "pad_token_id": 0}
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), **{**own, **options})
    return Ids().decode(ids[0, len(request.prompt) :].tolist())


def some_in_the_default_run(names: Sequence[str]) -> list[Any]:
    quick = {"Llama", "Gemma 3", "Mamba"}
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some_in_the_default_run([*FAMILIES, *RECURRENT]))
def test_answers_do_not_depend_on_the_batch_and_greedy_ones_are_those_of_generate(name: str) -> None:
    model, asked = family(name), requests()
    whole = answers(model, asked)
    assert all(whole[request.index, 0].text == generated(model, request) for request in asked)
    assert len({answer.text for answer in whole.values()}) > 6
    assert answers(model, asked, batch_rows=4) == whole  # rows enter a running batch
    assert answers(model, asked[::-1], batch_tokens=45) == whole  # rows leave it and come back
    for request in asked[:1]:
        for draw in request.draws:  # alone, without a shared prefill
            ((key, answer),) = answers(model, [replace(request, draws=[draw])]).items()
            assert answer == whole[key]


def test_prompts_are_computed_once_for_all_their_answers(llama: Any) -> None:
    computed = []
    hook = llama.register_forward_pre_hook(
        lambda _, __, options: computed.append(options["input_ids"].shape), with_kwargs=True
    )
    answers(llama, requests([Draw(sample, sample, 1.0) for sample in range(6)], max_new_tokens=1))
    hook.remove()
    assert computed == [(5, 18)]


def test_an_objective_head_gives_the_same_answers(llama: Any) -> None:
    expected, model = answers(llama, requests()), family("Llama")
    install_head(model)
    assert isinstance(model.get_output_embeddings(), ObjectiveHead)
    model.train()
    assert answers(model, requests()) == expected
    assert model.training


@pytest.mark.parametrize("of", ["model", "tokenizer", "template"])
def test_every_end_of_turn_ends_an_answer(of: str) -> None:
    model, tokenizer = sharpened(tiny.model()), ByteTokenizer().load(list)
    model.generation_config.eos_token_id = None
    asked = [Request(0, [], tokenizer("2 + 2 =")["input_ids"], [Draw(0, 3, 2.0)], 40)]
    written = [int(id) for id in next(LocalBackend(model, Ids()).answer(asked)).text.split()]
    stop = written[7]
    assert len(written) == 40
    assert written.index(stop) == 7
    text = tokenizer.convert_ids_to_tokens(stop)
    if of == "model":
        model.generation_config.eos_token_id = [1, stop]
    elif of == "tokenizer":
        tokenizer.eos_token = text
    else:
        tokenizer.add_special_tokens({"additional_special_tokens": [text]})
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", text)
    answer = next(LocalBackend(model, tokenizer).answer(asked))
    assert (answer.tokens, answer.finish_reason) == (8, "stop")
    assert answer.text == tokenizer.decode(written[:8], skip_special_tokens=True)


def test_the_models_own_penalties_are_dropped_and_named_or_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = family("Llama"), requests([GREEDY], max_new_tokens=12)
    plain = answers(model, asked)
    model.generation_config.update(repetition_penalty=3.0, no_repeat_ngram_size=2, top_k=5)
    said: list[str] = []
    monkeypatch.setattr("lit_probsft.model.generation.rank_zero_info", said.append)
    assert answers(model, asked) == plain
    assert said == ["not used from generation_config.json: repetition_penalty 3.0, no_repeat_ngram_size 2"]
    kept = answers(model, asked, keep_generation_config=True)
    assert len(said) == 1
    assert all(kept[request.index, 0].text == generated(model, request) for request in asked)
    assert kept != plain
    model.generation_config.update(top_k=1)
    first = answers(model, requests([SAMPLED], 12), keep_generation_config=True)
    assert [answer.text for answer in first.values()] == [answer.text for answer in kept.values()]


def test_out_of_memory_makes_batches_smaller_and_loses_nothing(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")
    asked, said = requests(), []
    expected = answers(llama, asked)
    forward = llama.forward

    def small(*args: Any, input_ids: Any, **options: Any) -> Any:
        if len(input_ids) * (options["position_ids"].max() + 1) > 60:
            raise error
        return forward(*args, input_ids=input_ids, **options)

    monkeypatch.setattr(local, "rank_zero_info", said.append)
    monkeypatch.setattr(llama, "forward", functools.wraps(forward)(small))
    assert answers(llama, asked) == expected
    assert len(said) == 1
    with pytest.raises(RuntimeError, match="not enough memory"):
        answers(llama, [Request(0, [], [5] * 61, [GREEDY], 9)])
    assert local._out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


def answer_sharded(rank: int, store: str) -> None:
    """Answer on one of two ranks that share a model, and compare with the whole model."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model, asked = family("Llama"), requests()
    expected = answers(model, asked)
    install_head(model)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    for mine in (asked[rank : 3 + rank : 2], asked if rank else [], []):
        found = answers(model, mine, synced=True, batch_rows=4)
        assert found == {key: answer for key, answer in expected.items() if key in found}
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_that_share_a_model_have_different_numbers_of_requests(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(answer_sharded, (str(tmp_path / "store"),), nprocs=2)


# --- sampling


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5, 1.0, -30.0]).expand(4000, -1)
    numbers = [uniform(seed, 3) for seed in range(4000)]
    for temperature, top_p, kept in ((1.0, 1.0, range(6)), (2.0, 1.0, range(6)), (1.0, 0.7, (1, 3, 4))):
        chosen = Counter(choose(logits, [temperature] * 4000, numbers, top_p))
        p = torch.zeros(6, dtype=torch.float64)
        p[list(kept)] = (logits[0, list(kept)].double() / temperature).softmax(-1)
        assert set(chosen) <= set(kept)
        likely = [token for token in kept if p[token] > 1e-6]
        expected = 4000 * p[likely] / p[likely].sum()
        assert chisquare([chosen[token] for token in likely], expected.tolist()).pvalue > 0.01


def test_a_damaged_model_does_not_answer() -> None:
    model = tiny.model(seed=0)
    model.lm_head.weight.data.fill_(torch.nan)
    backend = LocalBackend(model, ByteTokenizer().load(list))
    with pytest.raises(UserError, match="computes NaN"):
        list(backend.answer([Request(0, [], [1, 2], [Draw(0, 0, 0.0)], 3)]))


def test_the_extremes_of_sampling() -> None:
    logits = torch.tensor([[-torch.inf, 3.0, 2.0, -torch.inf], [0.0, 5.0, 1.0, 2.0]])
    last = (2**24 - 1) / 2**24
    assert choose(logits, [1.0, 1e-30], [0.0, last]) == [1, 1]
    assert choose(logits, [1.0, 1e-30], [last, 0.0]) == [2, 1]
    assert choose(logits, [5.0, 5.0], [last, last], top_p=1e-9) == [1, 1]
    assert choose(logits, [1e-300, 1e-300], [0.0, last], top_p=1e-300) == [1, 1]
    assert choose(logits, [1e300, 1e300], [0.0, last]) == [1, 3]
    assert choose(logits.bfloat16(), [0.0, 0.0], [0.5, 0.5]) == [1, 1]
    assert len({uniform(seed, step) for seed in range(50) for step in range(50)}) > 2490
