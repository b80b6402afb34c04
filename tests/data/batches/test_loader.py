import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_probsft.data import MicroBatch, Plan
from lit_probsft.data.batches.collate import collate
from lit_probsft.data.batches.loader import PlanLoader
from lit_probsft.data.batches.store import EmptyStoreError, TokenStore, write_store
from lit_probsft.storage.cache_entry import create_folder

PAD = 99


def documents(count=23):
    generator = np.random.default_rng(0)
    for row in range(count):
        ids = generator.integers(0, 90, generator.integers(3, 12)).tolist()
        yield 2 * row, ids, [-100, -100, *ids[2:]]


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store") / "tokens", documents(), lambda: {"rows": 23})


def make(store, workers=0, **kwargs):
    plan = Plan(store.lengths, store.supervised, batch_size=2, **{"accumulate": 2, "pool": 2, **kwargs})
    return PlanLoader(store, plan, pad_token_id=PAD, num_workers=workers)


def seen(loader):
    return [tuple(batch["documents"].tolist()) for batch in loader]


# The store.


def test_a_store_returns_what_was_written_and_counts_supervised_tokens_after_the_shift(store):
    for index, (row, ids, labels) in enumerate(documents()):
        assert [array.tolist() for array in store[index]] == [ids, labels]
        assert (store.rows[index], store.lengths[index], store.supervised[index]) == (row, len(ids), len(ids) - 2)
    assert store.meta["kept"] == len(store) == 23
    assert store.meta["tokens"] == store.lengths.sum()
    assert store.meta["max_token_id"] == max(max(ids) for _, ids, _ in documents())


def test_the_first_label_does_not_count_as_supervised(tmp_path):
    store = write_store(tmp_path / "x", [(0, [1, 2, 3], [1, -100, 3])], dict)
    assert store.supervised.tolist() == [1]


def test_an_interrupted_or_empty_store_leaves_no_files(tmp_path):
    def interrupted():
        yield 0, [1, 2], [-100, 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "x", interrupted(), dict)
    with pytest.raises(EmptyStoreError):
        write_store(tmp_path / "x", [], dict)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_of_two_processes_that_write_a_folder_the_first_wins(tmp_path):
    with create_folder(tmp_path / "x", "data.cache_dir") as second:
        (second / "who").write_text("second")
        with create_folder(tmp_path / "x", "data.cache_dir") as first:
            (first / "who").write_text("first")
    assert (tmp_path / "x" / "who").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "x"]


def test_a_pickled_store_holds_no_tokens(store):
    import pickle

    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    assert isinstance(pickle.loads(pickled), TokenStore)


# The tensors.


def test_training_pads_on_the_right_and_generation_on_the_left(store):
    batch = MicroBatch((0, 5, 7), 30, 3, 60)
    rows = [store[index] for index in batch.documents]
    right, left = collate(batch, rows, PAD), collate(batch, rows, PAD, prompts=True)
    for row, (ids, labels) in enumerate(rows):
        assert (
            right["input_ids"][row, : len(ids)].tolist() == left["input_ids"][row, -len(ids) :].tolist() == ids.tolist()
        )
        assert right["labels"][row, : len(ids)].tolist() == labels.tolist()
        assert (right["labels"][row, len(ids) :] == -100).all()
        assert (right["input_ids"][row, len(ids) :] == PAD).all()
        assert right["attention_mask"][row].tolist() == [1] * len(ids) + [0] * (right["input_ids"].shape[1] - len(ids))
        assert left["attention_mask"][row].tolist() == right["attention_mask"][row].tolist()[::-1]
    assert (right["window_tokens"], right["window_sequences"]) == (30, 3)
    assert right["num_tokens"] == sum(len(ids) for ids, _ in rows)
    assert {right[name].dtype for name in ("input_ids", "labels", "attention_mask", "documents")} == {torch.int64}
    assert "labels" not in left


def test_an_empty_micro_batch_has_one_token_that_is_not_supervised():
    batch = collate(MicroBatch((), 12, 2, 20), [], PAD)
    assert batch["input_ids"].tolist() == [[PAD]]
    assert batch["labels"].tolist() == [[-100]]
    assert batch["attention_mask"].tolist() == [[1]]
    assert batch["documents"].shape == (0,)
    assert (batch["window_tokens"], batch["num_tokens"]) == (12, 0)


# The loader.


def test_ranks_share_the_documents_and_have_equal_numbers_of_micro_batches(store):
    plan = Plan(store.lengths, store.supervised, batch_size=2, accumulate=2, world_size=3)
    ranks = [seen(PlanLoader(store, plan, rank=rank, pad_token_id=PAD)) for rank in range(3)]
    assert {len(rank) for rank in ranks} == {plan.num_micro_batches}
    assert sorted(document for rank in ranks for batch in rank for document in batch) == list(range(23))


@pytest.mark.parametrize("given", range(13))
def test_a_loader_continues_exactly_at_its_saved_state(store, given):
    whole = make(store)
    whole.set_epoch(1)
    order, iterator = [], iter(whole)
    for _ in range(given):
        order.append(tuple(next(iterator)["documents"].tolist()))
    state = whole.state_dict()
    rest = [tuple(batch["documents"].tolist()) for batch in iterator]
    resumed = make(store)
    resumed.load_state_dict(state)
    if given == len(whole):  # at the end of an epoch the next one begins
        assert seen(resumed) == epoch_order(store, 2)
    else:
        assert resumed.state_dict() == state
        assert order + seen(resumed) == order + rest == epoch_order(store, 1)
        resumed.set_epoch(2)
        assert seen(resumed) == epoch_order(store, 2)


def epoch_order(store, epoch):
    loader = make(store)
    loader.set_epoch(epoch)
    return seen(loader)


def test_set_epoch_resets_the_state(store):
    loader = make(store)
    assert loader.state_dict() == {"epoch": 0, "batches": 0, "accumulate": 2}
    seen(loader)
    assert loader.state_dict() == {"epoch": 0, "batches": len(loader), "accumulate": 2}
    loader.set_epoch(1)
    assert loader.state_dict() == {"epoch": 1, "batches": 0, "accumulate": 2}


KILLED = """
import os, signal, sys
from pathlib import Path
from lit_probsft.data import Plan
from lit_probsft.data.batches.loader import PlanLoader
from lit_probsft.data.batches.store import TokenStore

if __name__ == "__main__":
    store = TokenStore(Path(sys.argv[1]))
    plan = Plan(store.lengths, store.supervised, batch_size=2)
    loader = PlanLoader(store, plan, pad_token_id=0, num_workers=1)
    next(iter(loader))
    print(*[process.pid for process in loader._iterator._workers], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_when_their_run_is_killed(store, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    with (tmp_path / "output").open("w") as output:
        subprocess.run([sys.executable, str(script), str(store.folder)], stdout=output, timeout=100, check=False)
    (worker,) = map(int, (tmp_path / "output").read_text().split())
    until = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()


@pytest.mark.slow  # worker processes import the whole stack
def test_workers_give_the_same_batches_and_state(store):
    loader, reference = make(store, workers=2), make(store)
    iterator = iter(loader)
    first = [tuple(next(iterator)["documents"].tolist()) for _ in range(3)]
    assert loader.state_dict() == {"epoch": 0, "batches": 3, "accumulate": 2}  # not what the workers fetched ahead
    assert first + [tuple(batch["documents"].tolist()) for batch in iterator] == seen(reference)
    loader.load_state_dict({"epoch": 1, "batches": 5, "accumulate": 2})
    assert seen(loader) == epoch_order(store, 1)[5:]


# With a trainer.


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.order = []

    def training_step(self, batch, index):
        self.order.append(tuple(batch["documents"].tolist()))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    def __init__(self, path, steps):
        self.path, self.steps = path, steps

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step in self.steps and not trainer.fit_loop._should_accumulate():
            trainer.save_checkpoint(self.path / f"{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.path / f"epoch{trainer.current_epoch}.ckpt")


def fit(store, epochs=3, ckpt_path=None, callbacks=()):
    module = Recorder()
    trainer = Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, make(store), ckpt_path=ckpt_path)
    return module.order


def test_a_resumed_fit_sees_exactly_the_remaining_batches(store, tmp_path):
    order = fit(store, callbacks=[SaveAt(tmp_path, {2, 8, 12})])
    assert order == [batch for epoch in range(3) for batch in epoch_order(store, epoch)]
    for name, given in {"2": 4, "8": 16, "12": 24, "epoch0": 12, "epoch1": 24}.items():
        assert fit(store, ckpt_path=tmp_path / f"{name}.ckpt") == order[given:], name
