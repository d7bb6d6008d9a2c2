"""Which network works at which noise level; test_arrival has where the others are meanwhile."""

import pytest
import torch
from torch import nn

from pusa.diffusion.flow import FlowMatching
from pusa.models.experts import Experts


def two(floor: float = 0.875) -> tuple[Experts, nn.Module, nn.Module]:
    high, low = nn.Linear(1, 1), nn.Linear(1, 1)
    return Experts([(floor, high), (0.0, low)]), high, low


@pytest.mark.parametrize(("steps", "expected"), [(4, 2), (10, 5), (12, 6), (30, 13), (50, 21)])
def test_so_many_steps_of_shift_5_belong_to_the_high_noise_expert(steps, expected):
    """Counted in upstream's code at boundary 0.875; of 12 steps the sixth is at 0.875 itself."""
    experts, high, low = two()
    chosen = [experts.at(sigma) for sigma in FlowMatching(5.0).sigmas(steps)[:-1]]
    assert chosen == [high] * expected + [low] * (steps - expected)


@pytest.mark.parametrize("floor", [0.875, 0.9])
def test_at_its_floor_the_noisier_one_works(floor):
    experts, high, low = two(floor)
    level = torch.tensor(floor)  # float32 holds 0.9 as 0.89999998
    assert experts.at(level) is high
    assert experts.at(floor) is high
    assert experts.at(torch.nextafter(level, torch.tensor(0.0))) is low
    assert experts.at(0.0) is low


def test_any_number_of_experts_and_one_alone():
    networks = [nn.Linear(1, 1) for _ in range(3)]
    experts = Experts(list(zip((0.9, 0.5, 0.0), networks, strict=True)))
    assert [experts.at(s) for s in (1.0, 0.7, 0.1)] == networks
    assert Experts([(0.0, networks[0])]).at(1.0) is networks[0]


@pytest.mark.parametrize("floors", [(), (0.5,), (0.0, 0.5), (0.5, 0.5, 0.0), (0.5, 0.0, -0.1)])
def test_floors_that_do_not_come_down_to_0_are_refused(floors):
    with pytest.raises(ValueError, match="the last to 0"):
        Experts([(floor, nn.Linear(1, 1)) for floor in floors])
