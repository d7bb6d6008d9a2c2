"""The order of samples is a function of the step, for any split over ranks and any resume."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pusa.data.cache import Entry, LatentCache
from pusa.data.latents import LatentDataModule, OneShapeBatches
from pusa.data.order import CountedBatches

BUCKETS = st.lists(st.integers(0, 3), min_size=1, max_size=40)


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 5))
def test_every_epoch_shows_every_sample_once(num_samples, batch_size, seed):
    steps = 3 * num_samples
    flat = [i for batch in CountedBatches(num_samples, batch_size, seed, 0, steps) for i in batch]
    for epoch in range(len(flat) // num_samples):
        part = flat[epoch * num_samples : (epoch + 1) * num_samples]
        assert sorted(part) == list(range(num_samples))


@given(BUCKETS, st.integers(1, 4), st.integers(0, 5))
def test_with_buckets_a_step_has_one_shape_and_nobody_is_lost(buckets, batch_size, seed):
    """No sample is ever more than the waiting samples of its bucket behind the others."""
    count = len(buckets)
    order = CountedBatches(count, batch_size, seed, buckets=buckets)
    seen = [0] * count
    for batch in islice(order, 6 * count):
        assert len(batch) == batch_size
        assert len({buckets[i] for i in batch}) == 1
        for i in batch:
            seen[i] += 1
    stuck = batch_size * len(set(buckets)) / count + 1  # epochs that may still be waiting
    for bucket in set(buckets):
        shown = [n for n, b in zip(seen, buckets, strict=True) if b == bucket]
        assert max(shown) - min(shown) <= stuck + 1


@given(BUCKETS, st.integers(1, 4), st.integers(0, 20), st.booleans())
def test_starting_late_gives_the_rest_of_the_same_order(buckets, batch_size, start, single):
    given = None if single else buckets
    count = len(buckets)
    whole = list(CountedBatches(count, batch_size, 0, 0, 25, buckets=given))
    assert list(CountedBatches(count, batch_size, 0, start, 25, buckets=given)) == whole[start:]


@given(BUCKETS, st.integers(1, 3), st.integers(1, 4), st.integers(0, 9), st.booleans())
def test_ranks_see_together_what_one_process_sees(buckets, batch_size, ranks, start, single):
    given = None if single else buckets
    count, size = len(buckets), batch_size * ranks
    whole = list(CountedBatches(count, size, 3, start, 10, buckets=given))
    parts = [
        list(CountedBatches(count, size, 3, start, 10, rank, ranks, given)) for rank in range(ranks)
    ]
    together = [[i for batch in step for i in batch] for step in zip(*parts, strict=True)]
    assert together == whole


@given(BUCKETS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_passes_divide_a_ranks_part_of_a_step(buckets, pass_size, passes, ranks):
    size = pass_size * passes * ranks
    for rank in range(ranks):
        common = (len(buckets), size, 3, 2, 7, rank, ranks, buckets)
        whole, parts = CountedBatches(*common), CountedBatches(*common, pass_size)
        flat = list(parts)
        assert len(flat) == 5 * passes
        assert len(parts) == 7 * passes
        steps = [
            [i for part in flat[start : start + passes] for i in part]
            for start in range(0, len(flat), passes)
        ]
        assert steps == list(whole)


def test_epochs_and_seeds_are_shuffled_differently():
    batches = list(CountedBatches(50, 50, 0, 0, 2))
    assert batches[0] != batches[1]
    assert batches[0] != next(iter(CountedBatches(50, 50, 1, 0, 1)))


def test_its_length_is_the_whole_runs_as_lightning_counts_it():
    assert len(CountedBatches(11, 4, 0, start_step=7, num_steps=10)) == 10


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="empty"):
        CountedBatches(0, 1, 0)
    with pytest.raises(ValueError, match="batch_size"):
        CountedBatches(1, 0, 0)
    with pytest.raises(ValueError, match="2 buckets for 3 samples"):
        CountedBatches(3, 1, 0, buckets=[0, 1])
    with pytest.raises(ValueError, match="batch_size=8 clips a step do not divide over 3 proc"):
        CountedBatches(3, 8, 0, world_size=3)
    with pytest.raises(ValueError, match="micro_batch=3 does not divide the 4 clips"):
        CountedBatches(3, 8, 0, world_size=2, pass_size=3)


@given(BUCKETS, st.integers(1, 5))
def test_heldout_batches_hold_every_sample_once(buckets, batch_size):
    batches = list(OneShapeBatches(buckets, batch_size))
    assert sorted(i for batch in batches for i in batch) == list(range(len(buckets)))
    assert all(len({buckets[i] for i in batch}) == 1 for batch in batches)
    assert max(map(len, batches)) <= batch_size
    assert len(OneShapeBatches(buckets, batch_size)) == len(batches)


@given(BUCKETS, st.integers(1, 5), st.integers(1, 4))
def test_ranks_share_heldout_batches_evenly_and_know_the_repeats(buckets, batch_size, ranks):
    orders = [OneShapeBatches(buckets, batch_size, rank, ranks) for rank in range(ranks)]
    assert len({len(order) for order in orders}) == 1
    seen = [
        i
        for order in orders
        for number, batch in enumerate(order)
        if not order.is_repeat(number)
        for i in batch
    ]
    assert sorted(seen) == list(range(len(buckets)))


def make_module(folder, **options) -> LatentDataModule:
    cache = LatentCache(folder)
    entries = []
    for i in range(11):
        shape = (2, 1 + i % 2, 2, 2)
        cache.write("latents", f"{i:04x}", torch.full(shape, float(i)).bfloat16())
        cache.write("text", f"{i:04x}", torch.full((1 + i % 3, 4), float(i)).bfloat16())
        entries.append(Entry(f"{i}", f"{i}", f"{i:04x}", f"{i:04x}", shape))
    cache.write_index("set", "0" * 32, entries)
    return LatentDataModule(folder, "set", "set", num_steps=12, **options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("in_memory", [False, True])
def test_batches_do_not_depend_on_workers_or_memory(tmp_path, workers, in_memory):
    module = make_module(tmp_path, batch_size=2, num_workers=workers, in_memory=in_memory)
    expected = list(CountedBatches(11, 2, 0, 0, 12, buckets=[i % 2 for i in range(11)]))
    batches = list(module.train_dataloader())
    assert [batch.index.tolist() for batch in batches] == expected
    for batch in batches:
        values = batch.index.float()
        assert torch.equal(batch.latents[:, 0, 0, 0, 0], values)
        assert torch.equal(batch.text.embedding[:, 0, 0], values)
        assert batch.text.mask.sum(1).tolist() == [1 + int(i) % 3 for i in batch.index]
    heldout = [i for batch in module.val_dataloader() for i in batch.index.tolist()]
    assert sorted(heldout) == list(range(11))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_bucketed_run_that_was_stopped_goes_on_with_the_very_next_sample(tmp_path, batch_size):
    whole = list(make_module(tmp_path, batch_size=batch_size).train_dataloader())
    for stop in (1, 4, 11):  # also in the middle of an epoch of 11 samples
        stopped = make_module(tmp_path, batch_size=batch_size)
        stopped.start_step = stop
        resumed = make_module(tmp_path, batch_size=batch_size, num_workers=stop % 2)
        resumed.load_state_dict(stopped.state_dict())
        rest = list(resumed.train_dataloader())
        assert len(rest) == 12 - stop
        for batch, expected in zip(rest, whole[stop:], strict=True):
            assert torch.equal(batch.index, expected.index)
            assert torch.equal(batch.latents, expected.latents)


def test_a_resume_on_another_data_set_is_said(tmp_path, caplog):
    module = make_module(tmp_path, batch_size=4, indices={"set": "0" * 32})
    state = module.state_dict()
    module.load_state_dict(state)
    assert not caplog.text
    module.load_state_dict(state | {"index": "1" * 32})
    assert "have changed since the checkpoint" in caplog.text


def test_a_resume_with_other_samples_per_step_is_refused(tmp_path):
    module = make_module(tmp_path, batch_size=4)
    state = module.state_dict()
    other = make_module(tmp_path, batch_size=2)
    with pytest.raises(ValueError, match=r"4 samples a step, this has 2; set batch_size=4"):
        other.load_state_dict(state)
    other.load_state_dict({"step": 5})  # of an older version
    assert other.start_step == 5
