"""Pieces that overlap, put together as they come."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pusa.pipelines.sequence import Chain, after, assemble, crossfade, hold_back


def clip(*levels: int) -> Tensor:
    """Frames of one colour each."""
    values = torch.tensor(levels, dtype=torch.uint8)
    return values.view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()


def levels(pieces) -> list[int]:
    return torch.cat(list(pieces))[:, 0, 0, 0].tolist()


def in_pieces(frames: Tensor, sizes):
    for size in sizes:
        yield frames[:size]
        frames = frames[size:]
    if len(frames):
        yield frames


def test_a_blend_goes_evenly_from_old_to_new():
    assert levels([crossfade(clip(0, 0, 0), clip(100, 100, 100), "blend")]) == [25, 50, 75]
    assert levels([crossfade(clip(0, 0, 0), clip(100, 100, 100), "cut")]) == [0, 0, 0]


@given(sizes=st.lists(st.integers(1, 4), max_size=8), overlap=st.integers(0, 6))
def test_how_the_frames_come_does_not_matter(sizes, overlap):
    frames = clip(*range(100, 112))
    old = clip(*[0] * overlap)
    whole = levels(after(old, iter([frames]), "cut"))
    assert levels(after(old, in_pieces(frames, sizes), "cut")) == whole
    assert whole == [0] * overlap + list(range(100 + overlap, 112))


@given(sizes=st.lists(st.integers(1, 4), max_size=8), count=st.integers(0, 6))
def test_the_last_frames_are_held_back(sizes, count):
    held, passed = [], []

    def run():
        rest = yield from hold_back(in_pieces(clip(*range(12)), sizes), count)
        held.append(rest)

    passed += list(run())
    assert levels(passed) == list(range(12 - count))
    assert len(held[0]) == count
    assert not count or levels(held) == list(range(12 - count, 12))


def test_a_chain_goes_on_from_its_own_end_and_is_joined_to_both_clips():
    asked = []

    def generate(number: int, old: Tensor):
        asked.append((number, levels([old]) if len(old) else []))
        begin = 10 * (number + 1)
        return in_pieces(clip(*range(begin, begin + 9)), (1, 4))

    chain = Chain(2, overlap=5, multipliers=(0.0,), seam="cut")
    before = iter([clip(1, 2)]), clip(3, 4)
    behind = clip(90, 91), iter([clip(92)])
    found = levels(assemble(generate, chain, before, behind, "cut"))
    first = [1, 2, 3, 4, 12, 13, 14, 15, 16, 17, 18]  # cut: the clip's own 3, 4 stay
    assert found == [*first, 25, 26, 27, 28, 35, 36, 90, 91, 92]
    assert asked == [(0, [3, 4]), (1, [14, 15, 16, 17, 18]), (2, [18, 25, 26, 27, 28])]
    assert chain.num_frames(9) == 17


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"segments": -1}, "segments must be 0 or more"),
        ({"overlap": -1}, "overlap must be 0 or more"),
        ({"seam": "sew"}, "seam='sew' is unknown; use blend or cut"),
    ],
)
def test_bad_chains_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Chain(**arguments)
