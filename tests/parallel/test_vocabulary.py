"""Added tokens get the same embedding rows in a sharded model as in one process; no rank holds the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_probsft.data import ByteTokenizer
from lit_probsft.data.tokens.added_tokens import with_added_tokens
from lit_probsft.model import PretrainedCausalLM, RandomCausalLM
from tests import tiny
from tests.parallel.test_loading import LLAMA
from tests.parallel.worker import Fit, Load, digest, do_jobs

pytestmark = pytest.mark.slow

NEW = ["+ 1", "="]  # the first occurs in the rows, the second is in the vocabulary already
PHI = {k: v for k, v in tiny.LLAMA.items() if k != "num_key_value_heads"}
CONFIGS: dict[str, dict[str, Any]] = {
    "untied": LLAMA,
    "tied": {**tiny.LLAMA, "tie_word_embeddings": True},
    "bias": {**PHI, "model_type": "phi"},
    "room": {**tiny.LLAMA, "vocab_size": 300},
}
STRATEGIES = ("fsdp2", "zero3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folder of each model in bf16, so that loading in fp32 allocates memory."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for name, config in CONFIGS.items():
        model = RandomCausalLM(config, seed=5).load(ByteTokenizer().load(list), torch.bfloat16)
        if (bias := model.get_output_embeddings().bias) is not None:
            bias.data.normal_()
        found[name] = str(folder / name)
        model.save_pretrained(found[name])
    return found


@pytest.fixture(scope="module", params=STRATEGIES)
def seen(request: pytest.FixtureRequest, models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of two ranks and those of a single process, by name."""
    strategy = request.param
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    out = tmp_path_factory.mktemp(strategy)
    rows = str(tiny.write_rows(out / "rows.jsonl"))
    jobs: dict[str, Any] = {"first": (strategy, Load(rows, models["untied"]))}
    jobs |= {name: (strategy, Load(rows, model, "float32", NEW)) for name, model in models.items()}
    exact = strategy == "fsdp2"  # DeepSpeed trains in single precision
    fit: dict[str, Any] = {"epochs": 1, "add_tokens": NEW, "dtype": "float64" if exact else "float32"}
    jobs |= {f"fit {name}": (strategy, Fit(rows, model, **fit)) for name, model in models.items() if name != "untied"}
    do_jobs(jobs, out, timeout=600, MALLOC_MMAP_THRESHOLD_="65536")
    found = {name: [torch.load(out / f"{name}.{rank}.pt", weights_only=True) for rank in (0, 1)] for name in jobs}
    alone = {name: Fit(rows, model, accumulate=4, **fit).run() for name, model in models.items() if name != "untied"}
    return found, alone


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_equal_those_of_one_process_and_each_rank_holds_half(
    seen: Any, models: dict[str, str], name: str
) -> None:
    extended = with_added_tokens(ByteTokenizer().load(list), NEW)
    whole = PretrainedCausalLM(models[name]).load(extended, torch.float32)
    assert len(whole.get_input_embeddings().weight) == CONFIGS[name].get("vocab_size", 260)
    for rank in seen[0][name]:
        assert rank["digests"] == {key: digest(value) for key, value in whole.state_dict().items()}
        # small parameters do not divide evenly
        assert rank["shares"] == pytest.approx([0.5] * len(rank["shares"]), abs=0.07)


def test_no_rank_ever_holds_the_whole_model(seen: Any) -> None:
    for rank in seen[0]["untied"]:
        assert rank["size"] > 70e6
        assert 0.4 < rank["grown"] / rank["size"] < 0.85


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "untied"])
def test_new_tokens_train_as_in_one_process(seen: Any, name: str) -> None:
    expected = seen[1][name]["weights"]
    assert seen[1][name]["moved"] > 1e-3
    for rank in seen[0][f"fit {name}"]:
        assert set(rank["weights"]) == set(expected)
        for key, value in rank["weights"].items():
            tolerance = 1e-9 if value.dtype == torch.float64 else 1e-5
            torch.testing.assert_close(value, expected[key], rtol=tolerance, atol=tolerance)
