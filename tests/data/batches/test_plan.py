import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.data import Plan
from lit_probsft.errors import UserError


@st.composite
def data_sets(draw):
    lengths = draw(st.lists(st.integers(2, 60), min_size=1, max_size=90))
    supervised = [draw(st.integers(0, length - 1)) for length in lengths]
    return np.array(lengths), np.array(supervised)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
options = st.fixed_dictionaries({"pool": st.integers(0, 4), "seed": st.integers(0, 3), "shuffle": st.booleans()})


def make(data, shape, **kwargs):
    batch_size, accumulate, world_size = shape
    return Plan(*data, batch_size=batch_size, accumulate=accumulate, world_size=world_size, **kwargs)


def window(plan, epoch, index):
    steps = range(index * plan.accumulate, (index + 1) * plan.accumulate)
    return [plan.micro_batch(epoch, step, rank) for step in steps for rank in range(plan.world_size)]


def window_documents(plan, epoch):
    return [
        sorted(document for batch in window(plan, epoch, index) for document in batch.documents)
        for index in range(plan.num_windows)
    ]


@settings(max_examples=60, deadline=None)
@given(data_sets(), shapes, options, st.integers(0, 3))
def test_an_epoch_has_every_document_once_and_the_counts_are_those_of_the_window(data, shape, kwargs, epoch):
    plan = make(data, shape, **kwargs)
    assert plan.num_windows == -(-len(data[0]) // plan.window_size)
    assert plan.num_micro_batches == plan.num_windows * plan.accumulate
    seen = []
    for index in range(plan.num_windows):
        batches = window(plan, epoch, index)
        documents = [document for batch in batches for document in batch.documents]
        seen += documents
        assert {batch.window_tokens for batch in batches} == {int(data[1][documents].sum())}
        assert {batch.window_sequences for batch in batches} == {int((data[1][documents] > 0).sum())}
        sizes = [len(batch.documents) for batch in batches]
        assert max(sizes) <= plan.batch_size
        assert max(sizes) - min(sizes) <= 1
        assert sizes == [plan.batch_size] * len(sizes) or index == plan.num_windows - 1
    assert sorted(seen) == list(range(len(data[0])))


@settings(max_examples=40, deadline=None)
@given(data_sets(), options, st.integers(0, 2))
def test_windows_depend_on_their_size_only_not_on_its_factors(data, kwargs, epoch):
    shapes_of_8 = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 2, 1), (4, 1, 2), (1, 2, 4), (2, 2, 2)]
    plans = [make(data, shape, **kwargs) for shape in shapes_of_8]
    assert all(window_documents(plan, epoch) == window_documents(plans[0], epoch) for plan in plans)


@settings(max_examples=30, deadline=None)
@given(data_sets(), shapes, options, st.integers(0, 3))
def test_micro_batches_do_not_depend_on_earlier_calls(data, shape, kwargs, epoch):
    plan, fresh = make(data, shape, **kwargs), make(data, shape, **kwargs)
    everything = [plan.micro_batch(e, i, 0) for e in (0, 1, epoch) for i in range(plan.num_micro_batches)]
    middle = plan.num_micro_batches // 2
    rest = [fresh.micro_batch(epoch, i, 0) for i in range(middle, plan.num_micro_batches)]
    assert rest == everything[2 * plan.num_micro_batches + middle :]


@settings(max_examples=30, deadline=None)
@given(data_sets(), shapes, st.integers(0, 4))
def test_neighbours_in_length_are_in_the_same_step(data, shape, pool):
    plan = make(data, shape, pool=pool)
    for index in range(plan.num_windows):
        lengths = [data[0][document] for batch in window(plan, 0, index) for document in batch.documents]
        assert lengths == sorted(lengths)


def test_pools_make_windows_of_similar_length_that_differ_between_epochs():
    lengths = np.random.default_rng(0).integers(5, 500, 4000)

    def padded(plan):
        batches = [plan.micro_batch(0, i).documents for i in range(plan.num_micro_batches)]
        return sum(len(batch) * lengths[list(batch)].max() for batch in batches)

    pooled, unsorted = (Plan(lengths, lengths - 1, batch_size=8, accumulate=2, pool=pool) for pool in (50, 0))
    assert lengths.sum() > 0.95 * padded(pooled)
    assert padded(pooled) < padded(unsorted)
    assert window_documents(pooled, 0) != window_documents(pooled, 1)
    # The order of the windows is shuffled, not sorted by length.
    means = [lengths[documents].mean() for documents in window_documents(pooled, 0)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3


def test_the_seed_changes_the_order_and_evaluation_has_the_same_order_in_every_epoch():
    lengths = np.arange(2, 52)
    assert window_documents(Plan(lengths, lengths, batch_size=4), 0) != window_documents(
        Plan(lengths, lengths, batch_size=4, seed=1), 0
    )
    fixed = Plan(lengths, lengths, batch_size=4, shuffle=False)
    assert [fixed.micro_batch(0, i) for i in range(13)] == [fixed.micro_batch(7, i) for i in range(13)]


def test_a_million_documents_are_planned_in_seconds():
    import time

    lengths = np.random.default_rng(0).integers(10, 2000, 1_000_000)
    plan = Plan(lengths, lengths, batch_size=8, accumulate=4, world_size=8)
    start = time.perf_counter()
    plan.micro_batch(3, plan.num_micro_batches - 1, 7)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("argument", ["batch_size", "accumulate", "world_size", "seed", "pool"])
def test_values_out_of_range_are_refused_by_name(argument):
    with pytest.raises(UserError, match=f"^{argument}: expected at least"):
        Plan([3], [2], **{"batch_size": 1, argument: -1})


def test_micro_batches_outside_the_plan_are_index_errors():
    plan = Plan([3, 4], [2, 2], batch_size=1)
    for place in ((0, 2, 0), (0, 0, 1), (-1, 0, 0)):
        with pytest.raises(IndexError):
            plan.micro_batch(*place)
