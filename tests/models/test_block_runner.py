"""The hook around the blocks: split anywhere they give the same bits, and it costs no memory."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from pusa.models.variants import VARIANTS
from pusa.pipelines.tiny import random_backbone
from pusa.types import Text

NETWORKS = [("wan21_t2v_14b_tiny", 16), ("mochi_1_tiny", 12)]


@torch.no_grad()
def velocity(network: Any, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, channels, 3, 8, 8, generator=generator)
    text = Text(torch.randn(1, 5, 64, generator=generator), torch.ones(1, 5, dtype=torch.bool))
    return network(latents, torch.tensor([[0.2, 0.7, 1.0]]), text)


@pytest.mark.parametrize(("name", "channels"), NETWORKS)
def test_blocks_that_are_run_in_two_spans_give_the_same_bits(name, channels):
    network: Any = random_backbone(VARIANTS[name], 0).eval()
    expected = velocity(network, channels)
    for split in range(len(network.blocks) + 1):
        network.block_runner = lambda run, x, split=split: run(run(x, 0, split), split, None)
        assert torch.equal(velocity(network, channels), expected)
    network.block_runner = lambda run, x: run(x, 0, 1)
    assert not torch.allclose(velocity(network, channels), expected, atol=1e-3)


@pytest.mark.parametrize(("name", "channels"), NETWORKS)
def test_a_span_leaves_its_input_as_it_is(name, channels):
    network: Any = random_backbone(VARIANTS[name], 0).eval()
    seen = []

    def runner(run, x: Tensor) -> Tensor:
        before = x.clone()
        after = run(x, 0, 1)
        middle = after.clone()
        out = run(after, 1, None)
        seen.extend([torch.equal(x, before), torch.equal(after, middle)])
        return out

    network.block_runner = runner
    velocity(network, channels)
    assert seen == [True, True]


@pytest.mark.parametrize(("name", "channels"), NETWORKS)
def test_the_stream_before_the_blocks_is_not_kept_while_they_run(name, channels):
    network: Any = random_backbone(VARIANTS[name], 0).eval()
    first, alive = [], []
    network.blocks[0].register_forward_pre_hook(lambda _, x: first.append(weakref.ref(x[0])))
    network.blocks[1].register_forward_hook(lambda *_: alive.append(first[0]() is not None))
    velocity(network, channels)
    assert alive == [False]
