"""Counted randomness, and the frame rule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pusa.rng import generator_for
from pusa.types import LatentSpec

WAN, MOCHI = LatentSpec(16, 4, 8), LatentSpec(12, 6, 8)


def draw(*arguments) -> torch.Tensor:
    return torch.randn(4, generator=generator_for(*arguments))


def test_draws_depend_on_seed_purpose_and_index_and_nothing_else():
    torch.manual_seed(1)
    first = draw(0, "noise", 3, 4)
    torch.manual_seed(2)
    assert torch.equal(first, draw(0, "noise", 3, 4))
    for other in ((1, "noise", 3, 4), (0, "sigma", 3, 4), (0, "noise", 34), (0, "noise", 4, 3)):
        assert not torch.equal(first, draw(*other))


def test_latent_frames_cover_upstreams_pixel_frames():
    assert [list(WAN.pixel_frames(k)) for k in (0, 1, 20)] == [[0], [1, 2, 3, 4], [77, 78, 79, 80]]
    assert WAN.num_latent_frames(81) == 21
    assert MOCHI.num_latent_frames(163) == 28


@given(st.integers(0, 40), st.sampled_from([WAN, MOCHI]))
def test_pixel_and_latent_frames_map_both_ways(index, spec):
    assert {spec.latent_index(frame) for frame in spec.pixel_frames(index)} == {index}
    assert spec.num_latent_frames(spec.num_pixel_frames(index + 1)) == index + 1


def test_illegal_sizes_name_the_legal_ones():
    with pytest.raises(ValueError, match="use 77 or 81"):
        WAN.num_latent_frames(80)
    with pytest.raises(ValueError, match="height=475 is not a multiple of 16; use 480"):
        WAN.latent_size(475, 832)
