"""Weights that come block by block: the same numbers, and no more of them there than was promised.

There is no GPU here: the device is the CPU, with copies of its own, made at once. What CUDA streams
add, that a copy waits for its place and a block for its copy, is not seen by these tests.
"""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import LiveMemory
from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.flow import FlowMatching
from pusa.models.arrival import Arrival, Home
from pusa.models.experts import Experts
from pusa.models.mochi_dit import MochiDiT
from pusa.models.stored import store_layers
from pusa.models.variants import VARIANTS
from pusa.models.wan_dit import WanDiT
from pusa.pipelines.generate import Request, Sampler, sample_latents
from pusa.pipelines.step_cache import StepCache
from pusa.types import Text
from pusa.weights.lazy import num_bytes
from pusa.weights.lora import load_lora
from tests.weights.conftest import make_adapter

CPU = torch.device("cpu")
BLOCKS = 5


def wan(seed: int, **changes) -> nn.Module:
    torch.manual_seed(seed)
    arguments = {**VARIANTS["wan21_t2v_1_3b_tiny"].arguments, "num_layers": BLOCKS, **changes}
    network = WanDiT(**arguments).eval().requires_grad_(False)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.02)
    return network


def mochi(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    arguments = {**VARIANTS["mochi_1_tiny"].arguments, "num_layers": 3}
    return MochiDiT(**arguments).eval().requires_grad_(False)


def text(seed: int = 1) -> Text:
    generator = torch.Generator().manual_seed(seed)
    return Text(torch.randn(1, 5, 64, generator=generator), torch.ones(1, 5, dtype=torch.bool))


def run(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, network.in_channels, 3, 8, 8, generator=generator)
    with torch.no_grad():
        return network(latents, torch.tensor([[0.0, 0.4, 0.9]]), text())


def away(network: nn.Module, home: Home) -> list[int]:
    """Blocks whose weights are copies."""
    return [
        i
        for i, block in enumerate(network.blocks)
        if any(p.data_ptr() != home.source(p).data_ptr() for p in block.parameters())
    ]


def counted(network: nn.Module, homes: dict[nn.Module, Home]) -> list[list[list[int]]]:
    """Of each block's work, the blocks of each network that were there; filled as it is called."""
    seen: list[list[list[int]]] = []

    def note(*_) -> None:
        seen.append([away(one, home) for one, home in homes.items()])

    for block in network.blocks:
        block.register_forward_hook(note)
    return seen


@pytest.mark.parametrize("make", [wan, mochi])
@pytest.mark.parametrize("stays", [True, False])
def test_the_same_numbers_while_the_blocks_come_and_after(make, stays):
    network = make(0)
    expected, home = run(network), Home(network)
    arrival = Arrival(network, home, CPU, stays=stays)
    assert not arrival.whole
    for _ in range(3):
        torch.testing.assert_close(run(network), expected, rtol=0, atol=0)
        assert arrival.whole == stays
    arrival.send_home()
    assert not away(network, home)
    assert network.block_guard is nullcontext
    torch.testing.assert_close(run(network), expected, rtol=0, atol=0)


def test_of_a_streamed_network_two_blocks_are_there():
    network = wan(0)
    home = Home(network)
    seen = counted(network, {network: home})
    Arrival(network, home, CPU, stays=False)
    for _ in range(2):
        run(network)
        assert [blocks for (blocks,) in seen[-BLOCKS:]] == [[0], [1], [2], [3], [4]]
        assert away(network, home) == [0, 4]  # the first has come for the next pass
    size = sum(num_bytes(tensor) for tensor in home.blocks[0])
    assert size < peak(network) - peak(wan(0)) <= 2 * size  # a block at work, one that comes


def peak(network: nn.Module) -> int:
    """The most that a pass holds at once beyond the weights that are there before."""
    with LiveMemory() as memory:
        memory.ignore(*network.parameters(), *network.buffers())
        run(network)
    return memory.peak


def test_one_network_takes_the_places_of_the_other():
    first, second = wan(0), wan(1)
    homes = {network: Home(network) for network in (first, second)}
    expected = run(second)
    here = Arrival(first, homes[first], CPU)
    run(first)
    assert away(first, homes[first]) == list(range(BLOCKS))
    seen = counted(second, homes)
    Arrival(second, homes[second], CPU, here)
    torch.testing.assert_close(run(second), expected, rtol=0, atol=0)
    assert [[len(old), len(new)] for old, new in seen] == [[3, 1], [2, 2], [1, 3], [0, 4], [0, 5]]
    assert second.block_guard is nullcontext


class BrokenOffError(Exception): ...


@pytest.mark.parametrize("stays", [True, False])
def test_a_pass_that_was_broken_off_is_made_good(stays):
    network = wan(0)
    expected, home = run(network), Home(network)
    Arrival(network, home, CPU, stays=stays)

    def fail(*_) -> None:
        raise BrokenOffError

    hook = network.blocks[2].register_forward_pre_hook(fail)
    for _ in range(2):
        with pytest.raises(BrokenOffError):
            run(network)
    hook.remove()
    torch.testing.assert_close(run(network), expected, rtol=0, atol=0)
    assert len(away(network, home)) == (BLOCKS if stays else 2)


@pytest.mark.parametrize("change", ["lora", "int8"])
def test_with_a_lora_and_with_weights_of_8_bits(change):
    network = wan(0)
    if change == "lora":
        load_lora(network, make_adapter(network))
    else:
        store_layers(network, "int8")
    expected = run(network)
    Arrival(network, Home(network), CPU, stays=False)
    torch.testing.assert_close(run(network), expected, rtol=0, atol=0)


@pytest.mark.parametrize("cache", [None, StepCache(threshold=10.0, warmup=1)])
@pytest.mark.parametrize("way", ["one_at_a_time", "streamed"])
def test_two_experts_sample_the_same(monkeypatch, way, cache):
    networks = wan(0), wan(1)
    sampler = Sampler(6, 3.0, cache=cache)

    def sample(experts: Experts) -> Tensor:
        given = Conditioning.free((1, 16, 3, 8, 8))
        request = [Request(text())]
        return sample_latents(experts, FlowMatching(5.0), sampler, given, request, text(2))

    floors = list(zip((0.875, 0.0), networks, strict=True))
    expected = sample(Experts(floors))
    experts = Experts(floors, **{way: True})
    monkeypatch.setattr(Experts, "_apart", lambda self: True)
    experts.to("cpu")
    homes = [Home(network) for network in networks]
    for _ in range(2):  # the second time from the low-noise network to the other
        torch.testing.assert_close(sample(experts), expected, rtol=1e-6, atol=1e-6)
        assert not away(networks[0], homes[0])
    experts.rest()
    assert not away(networks[1], homes[1])


def test_in_main_memory_nothing_is_copied():
    networks = wan(0), wan(1)
    places = [p.data_ptr() for network in networks for p in network.parameters()]
    experts = Experts(list(zip((0.5, 0.0), networks, strict=True)), one_at_a_time=True).to("cpu")
    for sigma in (0.9, 0.1):
        run(experts.at(sigma))
        assert experts.whole(experts.at(sigma))
    assert places == [p.data_ptr() for network in networks for p in network.parameters()]
