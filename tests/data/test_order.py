"""The order of samples is a function of the step, for any split over ranks and any resume."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pusa.data.order import CountedBatches


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 5))
def test_every_epoch_shows_every_sample_once(num_samples, batch_size, seed):
    steps = 3 * num_samples
    flat = [i for batch in CountedBatches(num_samples, batch_size, seed, 0, steps) for i in batch]
    for epoch in range(len(flat) // num_samples):
        part = flat[epoch * num_samples : (epoch + 1) * num_samples]
        assert sorted(part) == list(range(num_samples))


@given(st.integers(1, 30), st.integers(0, 20))
def test_starting_late_gives_the_rest_of_the_same_order(num_samples, start):
    whole = list(CountedBatches(num_samples, 4, 0, 0, 25))
    assert list(CountedBatches(num_samples, 4, 0, start, 25)) == whole[start:]


def test_two_ranks_see_together_what_one_process_sees():
    whole = list(CountedBatches(11, 8, 3, 0, 10))
    ranks = [list(CountedBatches(11, 4, 3, 0, 10, rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole


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
