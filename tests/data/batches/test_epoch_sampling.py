"""Which documents of each source an epoch visits."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.data import PackedPlan, Plan
from lit_probsft.data.batches.epoch_sampling import EpochSampler


@st.composite
def visited(draw):
    counts = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any))
    quotas = [draw(st.integers(0, 30)) if count else 0 for count in counts]
    lengths = draw(st.lists(st.integers(2, 40), min_size=sum(counts), max_size=sum(counts)))
    sources = np.random.default_rng(draw(st.integers(0, 3))).permutation(np.repeat(np.arange(len(counts)), counts))
    return np.array(lengths), sources, quotas


@settings(max_examples=150, deadline=None)
@given(visited(), st.integers(0, 3))
def test_each_source_fills_its_quota_and_rotates_its_documents(data, seed):
    lengths, sources, quotas = data
    sampler = EpochSampler(lengths, sources, quotas, seed=seed)
    total = Counter()
    rounds = math.lcm(*(max(int((sources == source).sum()), 1) for source in range(len(quotas))))
    epochs = min(rounds, 60)
    for epoch in range(epochs):
        chosen = sampler.documents(epoch)
        assert len(chosen) == len(sampler.lengths) == sum(quotas)
        assert (lengths[chosen] <= sampler.lengths).all()
        assert np.bincount(sources[chosen], minlength=len(quotas)).tolist() == quotas
        for source, quota in enumerate(quotas):
            documents = np.flatnonzero(sources == source)
            times = Counter(chosen.tolist())
            assert {times[d] - quota // len(documents) for d in documents} <= {0, 1}
        total.update(chosen.tolist())
    for source, quota in enumerate(quotas):
        documents = np.flatnonzero(sources == source)
        if len(documents) and epochs % len(documents) == 0:
            assert {total[d] for d in documents} == {epochs * quota // len(documents)}


@pytest.mark.parametrize(("count", "quota"), [(3, 2), (101, 100), (100, 67), (150, 100), (7, 3), (1, 5), (64, 64)])
def test_documents_of_a_source_are_visited_equally_often(count, quota):
    sampler = EpochSampler(np.arange(2, count + 2), np.zeros(count, dtype=int), [quota])
    times = np.zeros(count, dtype=int)
    for epoch in range(2 * count):
        chosen = sampler.documents(epoch)
        assert (sampler.lengths - (chosen + 2)).max() <= -(
            -count // quota
        )  # each slot holds documents of similar length
        times += np.bincount(chosen, minlength=count)
        # After every epoch, and not only in the end.
        expected = (epoch + 1) * quota / count
        assert expected - 1 < times.min() <= times.max() < expected + 1
    assert set(times.tolist()) == {2 * quota}


def test_a_quota_of_half_the_documents_visits_all_in_two_epochs():
    lengths = np.arange(2, 22)
    sampler = EpochSampler(lengths, np.zeros(20, dtype=int), [10])
    first, second = sampler.documents(0), sampler.documents(1)
    assert sorted([*first, *second]) == list(range(20))
    assert (sampler.documents(2) == first).all()
    # Each half has short and long ones.
    assert abs(lengths[first].mean() - lengths[second].mean()) < 2


@settings(max_examples=60, deadline=None)
@given(visited().filter(lambda data: sum(data[2]) > 0), st.tuples(*[st.integers(1, 3)] * 3), st.booleans())
def test_a_plan_with_an_epoch_sampler_has_whole_windows_in_every_epoch(data, shape, packed):
    lengths, sources, quotas = data
    supervised = lengths // 2
    options = dict(zip(("batch_size", "accumulate", "world_size"), shape, strict=True))
    sampler = EpochSampler(lengths, sources, quotas)
    kind, more = (PackedPlan, {"max_length": 40}) if packed else (Plan, {"pool": 2})
    plan = kind(lengths, supervised, sampler=sampler, **options, **more)
    for epoch in range(3):
        seen = []
        for window in range(plan.num_windows):
            places = range(window * plan.accumulate, (window + 1) * plan.accumulate)
            batches = [plan.micro_batch(epoch, i, rank) for i in places for rank in range(plan.world_size)]
            documents = [document for batch in batches for document in batch.documents]
            assert {batch.window_tokens for batch in batches} == {int(supervised[documents].sum())}
            assert {batch.window_length for batch in batches} == {int(lengths[documents].sum())}
            if packed:
                for batch in batches:
                    ends = np.cumsum(batch.packs)
                    sums = [
                        lengths[list(batch.documents[e - n : e])].sum() for e, n in zip(ends, batch.packs, strict=True)
                    ]
                    assert all(total <= 40 for total in sums)
            seen += documents
        assert sorted(seen) == sorted(sampler.documents(epoch).tolist())
