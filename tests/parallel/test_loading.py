"""No process ever holds a whole sharded model, and its weights equal the ones that one process loads."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.data import ByteTokenizer
from lit_probsft.model import PretrainedCausalLM, RandomCausalLM
from tests import tiny
from tests.parallel.worker import Load, digest, do_jobs

pytestmark = pytest.mark.slow

LLAMA = {
    **tiny.LLAMA,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
}
"""79 MB in fp32: 6.5 MB in each layer, and less outside the layers."""
GPT2 = {"model_type": "gpt2", "n_embd": 384, "n_layer": 12, "n_head": 6, "n_positions": 256}
"""85 MB in fp32, with biases and transposed matrices."""
CONFIGS = {"untied": LLAMA, "tied": {**LLAMA, "tie_word_embeddings": True}, "gpt2": GPT2}
FILES = {"one file": "1GB", "several files": "10MB"}
SOURCES = (*FILES, "random")
STRATEGIES = ("ddp", "fsdp2", "zero3")
NAMES = {
    strategy: [f"{name}, {SOURCES[(row + column) % 3]}" for column, name in enumerate(CONFIGS)]
    for row, strategy in enumerate(STRATEGIES)
}
"""A Latin square: each strategy covers every architecture and every source, and all of their pairs are covered."""


@functools.cache
def alone(model: str) -> dict[str, str]:
    """Digests of the weights that a single process loads."""
    source = PretrainedCausalLM(model) if Path(model).is_dir() else RandomCausalLM(json.loads(model))
    whole = source.load(ByteTokenizer().load(list), torch.float32)
    return {name: digest(value) for name, value in whole.state_dict().items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The source of each model by name. The files hold bf16 and are loaded in fp32, which takes memory; weights in the
    dtype of the file would stay in its mapped pages, which are not counted."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for name, config in CONFIGS.items():
        model = RandomCausalLM(config, seed=5).load(ByteTokenizer().load(list), torch.bfloat16)
        for files, size in FILES.items():
            path = folder / f"{name}, {files}"
            model.save_pretrained(path, max_shard_size=size)
            assert (len(list(path.glob("*.safetensors"))) > 3) == (files == "several files")
            found[path.name] = str(path)
        found[f"{name}, random"] = json.dumps(config)
    return found


Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def launched(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Ranks]]:
    """The results of two ranks, by strategy and model. Each strategy is launched on first use."""

    @functools.cache
    def launch(strategy: str) -> dict[str, Ranks]:
        if strategy.startswith("zero"):
            pytest.importorskip("deepspeed")
        out = tmp_path_factory.mktemp(strategy)
        rows = str(tiny.write_rows(out / "rows.jsonl"))
        # The first job triggers late imports, which would count as memory of a model.
        first, small = models["untied, one file"], json.dumps(tiny.LLAMA)
        jobs: dict[str, Any] = {"first": (strategy, Load(rows, first)), "small": (strategy, Load(rows, small))}
        jobs |= {name: (strategy, Load(rows, models[name], "float32")) for name in NAMES[strategy]}
        # Freed memory returns to the system at once, so that allocating it again counts.
        do_jobs(jobs, out, timeout=600, MALLOC_MMAP_THRESHOLD_="65536")
        return {
            name: [torch.load(out / f"{name}.{rank}.pt", weights_only=True) for rank in (0, 1)]
            for name in NAMES[strategy]
        }

    return launch


@pytest.fixture
def ranks(launched: Callable[[str], dict[str, Ranks]], strategy: str, name: str) -> Ranks:
    return launched(strategy)[name]


def under(*strategies: str, sources: tuple[str, ...] = SOURCES) -> Any:
    names = [(strategy, name) for strategy in strategies for name in NAMES[strategy] if name.endswith(sources)]
    return pytest.mark.parametrize(("strategy", "name"), names)


@under("fsdp2", "zero3", sources=tuple(FILES))
def test_no_process_ever_holds_the_whole_pretrained_model(ranks: Ranks) -> None:
    for rank in ranks:
        assert rank["size"] > 70e6
        # Half of the model, one layer in transit, and memory of the libraries.
        assert 0.4 < rank["grown"] / rank["size"] < 0.85


@under("fsdp2", "zero3")
def test_each_process_holds_half_of_every_parameter(ranks: Ranks) -> None:
    for rank in ranks:
        assert len(rank["shares"]) > 100
        # Whole rows are distributed; if their number is odd, the first rank has one more.
        assert rank["shares"] == pytest.approx([0.5] * len(rank["shares"]), abs=0.01)


@under(*STRATEGIES)
def test_the_weights_equal_those_of_one_process(ranks: Ranks, models: dict[str, str], name: str) -> None:
    for rank in ranks:
        assert rank["digests"] == alone(models[name])


@under("ddp")
def test_a_whole_model_would_be_detected(ranks: Ranks) -> None:
    """Under DDP each process holds the whole model, and the measurements show it."""
    for rank in ranks:
        assert rank["shares"] == [1.0] * len(rank["shares"])
        assert rank["grown"] > 0.95 * rank["size"]
