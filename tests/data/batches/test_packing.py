import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.data import ByteTokenizer, InstructionDataModule, PackedPlan
from lit_probsft.data.batches.collate import collate
from lit_probsft.data.batches.loader import PlanLoader
from lit_probsft.data.batches.packing import packs_of_lengths
from lit_probsft.data.batches.plan import MicroBatch
from lit_probsft.data.batches.store import write_store
from lit_probsft.errors import UserError

PAD = 99


@st.composite
def data_sets(draw):
    max_length = draw(st.integers(2, 70))
    lengths = draw(st.lists(st.integers(1, max_length), min_size=1, max_size=90))
    supervised = [draw(st.integers(0, length - 1)) for length in lengths]
    return np.array(lengths), np.array(supervised), max_length


shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))


def make(data, shape, **kwargs):
    lengths, supervised, max_length = data
    batch_size, accumulate, world_size = shape
    sizes = {"batch_size": batch_size, "accumulate": accumulate, "world_size": world_size}
    return PackedPlan(lengths, supervised, max_length=max_length, **sizes, **kwargs)


def window(plan, epoch, index):
    steps = range(index * plan.accumulate, (index + 1) * plan.accumulate)
    return [plan.micro_batch(epoch, step, rank) for step in steps for rank in range(plan.world_size)]


def rows(batch):
    documents = list(batch.documents)
    return [[documents.pop(0) for _ in range(count)] for count in batch.packs]


def epoch_packs(plan, epoch):
    windows = range(plan.num_windows)
    return sorted(sorted(row) for index in windows for batch in window(plan, epoch, index) for row in rows(batch))


# Packs.


@settings(max_examples=60, deadline=None)
@given(data_sets())
def test_packs_of_lengths_hold_every_document_once_within_max_length(data):
    lengths, _, max_length = data
    counts = np.bincount(lengths, minlength=max_length + 1)
    held = np.zeros_like(counts)
    for times, pack in packs_of_lengths(counts, max_length):
        assert times > 0
        assert 0 < sum(length * number for length, number in pack.items()) <= max_length
        for length, number in pack.items():
            held[length] += times * number
    assert held.tolist() == counts.tolist()


def best_fit_decreasing(lengths, max_length):
    """The number of packs that the textbook algorithm makes."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        room = min(fitting, default=max_length)
        if fitting:
            rooms.remove(room)
        rooms.append(room - length)
    return len(rooms)


SHAPES_OF_DATA = {
    "short": lambda generator: generator.lognormal(5.0, 0.4, 3000),
    "wide": lambda generator: generator.lognormal(5.8, 0.8, 3000),
    "none is short": lambda generator: generator.integers(300, 900, 3000),
}


@pytest.mark.parametrize("name", SHAPES_OF_DATA)
def test_packs_are_full_and_no_more_than_with_best_fit_decreasing(name):
    lengths = SHAPES_OF_DATA[name](np.random.default_rng(0)).astype(int).clip(10, 2048)
    plan = PackedPlan(lengths, lengths - 1, max_length=2048, batch_size=1)
    assert plan.share_full == lengths.sum() / (2048 * plan.num_rows)
    assert plan.share_full > 0.99
    assert plan.num_rows <= best_fit_decreasing(lengths, 2048)


def a_million():
    lengths = np.random.default_rng(0).lognormal(5.0, 0.3, 1_000_000).astype(int).clip(10, 2048)
    plan = PackedPlan(lengths, lengths - 1, max_length=2048, batch_size=2, accumulate=4, world_size=8)
    plan.micro_batch(3, plan.num_micro_batches - 1, 7)
    return plan


def test_a_million_documents_are_packed_in_seconds():
    start = time.perf_counter()
    assert a_million().share_full > 0.998
    assert time.perf_counter() - start < 3


def test_a_million_documents_are_packed_in_little_memory():
    tracemalloc.start()
    try:
        a_million()
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


# The plan.


@settings(max_examples=80, deadline=None)
@given(data_sets(), shapes, st.integers(0, 3))
def test_an_epoch_has_every_document_once_in_packs_within_max_length(data, shape, epoch):
    lengths, supervised, max_length = data
    plan = make(data, shape)
    assert plan.num_micro_batches == plan.num_windows * plan.accumulate
    assert plan.num_windows == -(-plan.num_rows // plan.window_size)
    seen, packs = [], 0
    for index in range(plan.num_windows):
        batches = window(plan, epoch, index)
        documents = [document for batch in batches for document in batch.documents]
        seen += documents
        assert {batch.window_tokens for batch in batches} == {int(supervised[documents].sum())}
        assert {batch.window_sequences for batch in batches} == {int((supervised[documents] > 0).sum())}
        assert {batch.window_length for batch in batches} == {int(lengths[documents].sum())}
        for batch in batches:
            assert len(batch.packs) <= plan.batch_size
            assert sum(batch.packs) == len(batch.documents)
            assert all(0 < lengths[row].sum() <= max_length for row in rows(batch))
            assert len(batch.packs) == plan.batch_size or index == plan.num_windows - 1
            packs += len(batch.packs)
    assert sorted(seen) == list(range(len(lengths)))
    assert packs == plan.num_rows


@settings(max_examples=40, deadline=None)
@given(data_sets(), st.integers(0, 3), st.integers(0, 2))
def test_windows_depend_on_their_size_only_not_on_its_factors(data, seed, epoch):
    shapes_of_8 = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 1, 2), (1, 2, 4), (2, 2, 2)]
    plans = [make(data, shape, seed=seed) for shape in shapes_of_8]
    windows = [
        [sorted(sorted(row) for batch in window(plan, epoch, index) for row in rows(batch)) for index in range(n)]
        for plan in plans
        for n in [plan.num_windows]
    ]
    assert all(other == windows[0] for other in windows)


@settings(max_examples=40, deadline=None)
@given(data_sets(), shapes, st.integers(0, 3), st.data())
def test_micro_batches_do_not_depend_on_earlier_calls(data, shape, epoch, draw):
    plan = make(data, shape, seed=1)
    places = [(e, i, r) for e in (0, epoch) for i in range(plan.num_micro_batches) for r in range(plan.world_size)]
    everything = {place: plan.micro_batch(*place) for place in places}
    fresh = make(data, shape, seed=1)
    for place in draw.draw(st.permutations(places))[:6]:
        assert fresh.micro_batch(*place) == everything[place]


@settings(max_examples=60, deadline=None)
@given(data_sets(), shapes, st.integers(0, 2))
def test_the_totals_of_ranks_differ_by_no_more_than_the_packs_of_one_round(data, shape, epoch):
    plan = make(data, shape)
    for index in range(plan.num_windows):
        batches = window(plan, epoch, index)
        packs = sorted((int(data[1][row].sum()) for batch in batches for row in rows(batch)), reverse=True)
        packs += [0] * (plan.window_size - len(packs))
        rounds = [packs[i : i + plan.world_size] for i in range(0, len(packs), plan.world_size)]
        ranks = [
            sum(int(data[1][list(batch.documents)].sum()) for batch in batches[rank :: plan.world_size])
            for rank in range(plan.world_size)
        ]
        assert max(ranks) - min(ranks) <= max(turn[0] - turn[-1] for turn in rounds)


def test_ranks_have_nearly_equal_numbers_of_supervised_tokens():
    generator = np.random.default_rng(0)
    lengths = generator.lognormal(5.0, 0.4, 4000).astype(int).clip(10, 2048)
    supervised = (lengths * generator.uniform(0.2, 0.9, 4000)).astype(int)
    plan = PackedPlan(lengths, supervised, max_length=2048, batch_size=1, accumulate=4, world_size=4)
    shares = []
    for index in range(plan.num_windows - 1):
        batches = window(plan, 0, index)
        ranks = [sum(supervised[list(b.documents)].sum() for b in batches[rank::4]) for rank in range(4)]
        shares.append((max(ranks) - min(ranks)) / np.mean(ranks))
    assert np.median(shares) < 0.03


def test_epochs_and_seeds_group_documents_differently():
    lengths = np.random.default_rng(0).integers(5, 60, 400)
    plan = PackedPlan(lengths, lengths - 1, max_length=128, batch_size=2)
    first = epoch_packs(plan, 0)
    assert first == epoch_packs(plan, 0)
    for other in (epoch_packs(plan, 1), epoch_packs(make((lengths, lengths, 128), (2, 1, 1), seed=1), 0)):
        assert len(other) == len(first)
        assert sum(pack in first for pack in other) < 0.2 * len(first)


def test_no_documents_make_no_packs():
    plan = PackedPlan([], [], max_length=8, batch_size=2)
    assert (plan.num_rows, plan.num_windows, plan.share_full) == (0, 0, 0)


@pytest.mark.parametrize("lengths", [[3, 9], [0, 3]])
def test_empty_or_too_long_documents_are_refused(lengths):
    with pytest.raises(UserError, match="max_length: expected documents of 1 to 8 tokens"):
        PackedPlan(lengths, [0, 0], max_length=8, batch_size=1)


# The tensors.


def documents_of(lengths, seed=0):
    generator = np.random.default_rng(seed)
    for row, length in enumerate(lengths):
        ids = generator.integers(0, 90, length).tolist()
        yield row, ids, ids


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), max_size=4))
def test_a_packed_batch_has_its_documents_at_their_boundaries(packs):
    lengths = [length for pack in packs for length in pack]
    documents = [(np.array(ids), np.array(labels)) for _, ids, labels in documents_of(lengths)]
    sizes = tuple(len(pack) for pack in packs)
    batch = collate(MicroBatch(tuple(range(len(lengths))), 30, 3, 60, sizes), documents, PAD)
    shape = max(len(packs), 1), max((sum(pack) for pack in packs), default=1)
    ids, labels, positions = (batch[name].reshape(-1) for name in ("input_ids", "labels", "position_ids"))
    assert {tuple(batch[n].shape) for n in ("input_ids", "labels", "position_ids", "attention_mask")} == {shape}
    bounds = batch["boundaries"].tolist()
    assert batch["boundaries"].dtype == torch.int32
    assert (bounds[0], bounds[-1]) == (0, ids.numel())
    real = batch["attention_mask"].reshape(-1).bool()
    found = []
    for start, end in pairwise(bounds):
        assert 0 < end - start <= batch["longest"]
        assert positions[start:end].tolist() == list(range(end - start))
        assert start // shape[1] == (end - 1) // shape[1]
        if real[start] and lengths:
            assert real[start:end].all()
            found.append(ids[start:end].tolist())
            assert labels[start:end].tolist() == [-100, *found[-1][1:]]
        else:
            assert not lengths or not real[start:end].any()
            assert (ids[start:end] == PAD).all()
            assert (labels[start:end] == -100).all()
    assert found == [ids.tolist() for ids, _ in documents]
    assert batch["longest"] == max(lengths, default=1)
    assert (batch["num_tokens"], batch["window_tokens"], batch["window_sequences"]) == (sum(lengths), 30, 3)
    assert batch["documents"].tolist() == list(range(len(lengths)))


# The loader.


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    lengths = np.random.default_rng(1).integers(3, 20, 41)
    return write_store(tmp_path_factory.mktemp("store") / "tokens", documents_of(lengths), dict)


def loader(store, accumulate=2, batch_size=2, **kwargs):
    shape = {"batch_size": batch_size, "accumulate": accumulate, "world_size": kwargs.pop("world_size", 1)}
    plan = PackedPlan(store.lengths, store.supervised, max_length=32, **shape)
    return PlanLoader(store, plan, pad_token_id=PAD, **kwargs)


def seen(loader):
    return [tuple(batch["documents"].tolist()) for batch in loader]


def test_a_packed_run_continues_at_any_step(store):
    whole = loader(store)
    whole.set_epoch(1)
    order = seen(whole)
    assert len(order) == len(whole) > 6
    for given_so_far in range(len(whole)):
        resumed = loader(store)
        resumed.load_state_dict({"epoch": 1, "batches": given_so_far, "accumulate": 2})
        assert seen(resumed) == order[given_so_far:]


def test_a_packed_run_continues_with_another_number_of_micro_batches_per_window(store):
    def windows(order, accumulate):
        return [sorted(sum(order[i : i + accumulate], ())) for i in range(0, len(order), accumulate)]

    whole, other = loader(store), loader(store, accumulate=4, batch_size=1)
    other.load_state_dict({"epoch": 0, "batches": 4, "accumulate": 2})
    assert windows(seen(other), 4) == windows(seen(whole), 2)[2:]


def test_packed_ranks_share_all_documents(store):
    ranks = [seen(loader(store, rank=rank, world_size=3)) for rank in range(3)]
    assert len({len(rank) for rank in ranks}) == 1
    assert sorted(document for rank in ranks for batch in rank for document in batch) == list(range(41))


# The data module.


def packed(path, **options):
    options = {"max_length": 400, "packing": True, "batch_size": 2, **options}
    return InstructionDataModule(path, tokenizer=ByteTokenizer(), **options)


def test_a_packed_data_module_reports_how_full_packs_are(jsonl, questions, caplog):
    module = packed(jsonl(questions), validation_fraction=0.2)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        module.setup("fit")
    lengths = module.documents("train").lengths
    assert module.report["train"]["packs"] == module.plan.num_rows == -(-lengths.sum() // 400)
    assert module.report["train"]["share_full"] == lengths.sum() / (400 * module.plan.num_rows)
    assert f"{module.report['train']['share_full']:.2%} full" in caplog.text
    assert all("boundaries" in batch for batch in module.train_dataloader())
    assert not any("boundaries" in batch for batch in module.val_dataloader())
    assert module.describe()["packing"] is True


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": None}, "data.packing: needs data.max_length, the tokens of a pack"),
        ({"length_pool": 7}, "data.length_pool: cannot be combined with data.packing.*got 7"),
    ],
)
def test_options_that_packing_rules_out_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        packed("rows.jsonl", **options)
