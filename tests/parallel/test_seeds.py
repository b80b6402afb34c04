"""Every source of randomness in a run follows the run's seed, unless it has a seed of its own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import Namespace

from lit_probsft.cli.seeding import chosen_seed
from lit_probsft.cli.weights import warn_of_other_rows
from lit_probsft.data import InstructionDataModule, Mixture
from lit_probsft.data.batches.stream_plan import StreamPlan
from lit_probsft.data.batches.streaming import StreamLoader
from lit_probsft.data.rows.mixture import Part
from lit_probsft.errors import UserError
from lit_probsft.evaluation.options import EvaluationOptions
from lit_probsft.model import RandomCausalLM
from lit_probsft.model.lora import LoRA
from lit_probsft.model.lora_injection import inject_adapters
from lit_probsft.parallel.seeds import LARGEST, run_seed, with_run_seed
from lit_probsft.run.facts import describe_seeds
from lit_probsft.run.folder import RunFolder
from lit_probsft.training.module import Generation, ProbSFTModule
from lit_probsft.training.probing import training_documents
from tests import tiny

Options = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def _rows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, before = tmp_path_factory.mktemp("rows"), Path.cwd()
    tiny.write_rows(folder / "rows.jsonl")
    os.chdir(folder)
    yield
    os.chdir(before)


def data(seed: Options, **options: Any) -> InstructionDataModule:
    return tiny.data(Path("rows.jsonl"), **seed, **options)


def epoch(data: InstructionDataModule) -> list[tuple[int, ...]]:
    plan: Any = data.plan
    return [plan.micro_batch(0, index).documents for index in range(plan.num_micro_batches)]


def held_out(seed: Options) -> list[int]:
    return data(seed, validation_fraction=0.5).documents("validation").rows.tolist()


def capped(seed: Options) -> set[int]:
    source = Mixture({"all": Part(tiny.rows(Path("rows.jsonl")), cap=6)})
    return {document for documents in epoch(data(seed, train=source)) for document in documents}


def stream(seed: Options, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """The rows of this rank's micro-batches in one block of a stream. The other ranks seem to have as many."""
    streamed = data(seed, streaming=True)
    plan = StreamPlan(4, world_size=world_size, seed=streamed.seed, buffer=24, num_windows=24 // 4 // world_size)
    tokenizer = streamed._tokenized.row_tokenizer("train")
    loader = StreamLoader(tokenizer, plan, rank=rank, pad_token_id=0, gather=lambda mine: [mine] * world_size)
    return [batch["documents"].tolist() for batch in loader]


def rank_of_stream(seed: Options) -> list[int]:
    return sorted(document for documents in stream(seed, rank=1, world_size=2) for document in documents)


def sample(seed: Options) -> list[int]:
    return training_documents(data(seed), 6).rows.tolist()


def weights(seed: Options) -> list[float]:
    return next(RandomCausalLM({**tiny.LLAMA, "vocab_size": 9}, **seed).load(None, torch.float32).parameters()).tolist()


def adapters(seed: Options) -> list[float]:
    model = tiny.model()
    inject_adapters(model, LoRA(r=1, **seed))
    return next(value for name, value in model.named_parameters() if ".lora_A." in name).tolist()


def dropout(seed: Options) -> list[float]:
    module = ProbSFTModule(tiny.source(attention_dropout=0.5), optimizer=tiny.sgd)
    tiny.trainer(max_steps=1).fit(module, datamodule=data({"seed": 0}))
    return next(module.model.parameters()).tolist()


def answers(seed: Options) -> list[list[int]]:
    module = ProbSFTModule(tiny.source(), generation=Generation(2, temperature=1.0))
    torch.manual_seed(123)  # what was drawn before does not matter
    batches = tiny.trainer().predict(module, datamodule=data({"seed": 0}, predict=tiny.rows(Path("rows.jsonl"))))
    return [batch["answers"].tolist() for batch in batches]


WITH_A_SEED: dict[str, Callable[[Options], Any]] = {
    "order": lambda seed: epoch(data(seed)),
    "order of packs": lambda seed: epoch(data(seed, packing=True, max_length=128)),
    "order of a stream": stream,
    "rows of a rank": rank_of_stream,
    "capped mixture": capped,
    "held-out rows": held_out,
    "sample of capability": sample,
    "random model": weights,
    "adapters": adapters,
    "answers of an evaluation": lambda seed: (
        EvaluationOptions("gsm8k", temperature=1.0, **seed).settings().draws("a", "0")
    ),
}
"""What has an option `seed`: a function of that option, which may be missing."""

WITHOUT: dict[str, Callable[[Options], Any]] = {"dropout": dropout, "sampled answers": answers}


@pytest.mark.parametrize("name", [*WITH_A_SEED, *WITHOUT])
def test_everything_random_follows_the_seed_of_the_run(name: str) -> None:
    draw = {**WITH_A_SEED, **WITHOUT}[name]
    found = []
    for seed in (7, 8, 7):
        L.seed_everything(seed, verbose=False)
        found.append(draw({}))
    assert found[0] == found[2]
    assert found[0] != found[1]


@pytest.mark.parametrize("name", WITH_A_SEED)
def test_a_seed_of_its_own_wins_over_the_seed_of_the_run(name: str) -> None:
    found = []
    for run, own in ((7, {"seed": 3}), (8, {"seed": 3}), (3, {})):
        L.seed_everything(run, verbose=False)
        found.append(WITH_A_SEED[name](own))
    assert found[0] == found[1] == found[2]


def test_without_seed_everything_all_seeds_are_zero_and_an_object_keeps_the_seed_it_was_built_with() -> None:
    built = [data({}), tiny.source(), LoRA(), ProbSFTModule(RandomCausalLM(tiny.LLAMA), lora=LoRA())]
    L.seed_everything(7, verbose=False)
    assert [thing.seed for thing in built] == [0, 0, 0, 0]
    module = ProbSFTModule(RandomCausalLM(tiny.LLAMA), lora=LoRA(seed=2))
    seeds = {"order": 7, "held_out": 7, "model": 7, "adapters": 2, "dropout": 7}
    assert describe_seeds(module, data({}, validation_fraction=0.5)) == seeds


def test_the_flag_gives_a_number_that_repeats_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def number(given: bool | int, name: str = "new", overwrite: bool = False) -> int:
        config = {"seed_everything": given, "runs_dir": str(tmp_path), "name": name, "overwrite": overwrite}
        return chosen_seed(Namespace(config))

    assert [number(seed) for seed in (0, 7, LARGEST)] == [0, 7, LARGEST]
    assert number(False) == 0
    L.seed_everything(7, verbose=False)
    assert number(False) == 7
    RunFolder(tmp_path / "old").path.mkdir()
    RunFolder(tmp_path / "old").record.write_text('{"seed": 12}')
    assert number(True, "old") == 12
    drawn = {number(True, name, overwrite=name == "old") for name in ("old", "new") * 2}
    assert len(drawn) == 4
    assert all(0 <= seed <= LARGEST for seed in drawn)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert number(True) == 7  # of the process that started this one
    monkeypatch.delenv("PL_GLOBAL_SEED")
    with pytest.raises(UserError, match="^seed_everything: "):
        number(True)


def test_a_run_that_held_out_other_rows_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"seeds": {"held_out": 7}}')
    for seed, fraction, record in ((7, 0.5, "run.json"), (8, 0.0, "run.json"), (8, 0.5, "other.json")):
        with warnings.catch_warnings(action="error"):
            warn_of_other_rows(tmp_path / record, data({"seed": seed}, validation_fraction=fraction))
    with pytest.warns(UserWarning, match="seed 8 holds out other rows than the run did with 7"):
        warn_of_other_rows(tmp_path / "run.json", data({"seed": 8}, validation_fraction=0.5))


def test_a_seed_within_a_block_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    with with_run_seed(5):
        assert run_seed() == 5
    assert run_seed() == 0
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setenv("PL_GLOBAL_SEED", "x")
    with pytest.raises(UserError, match="PL_GLOBAL_SEED: "):
        run_seed()
    assert run_seed(3) == 3
