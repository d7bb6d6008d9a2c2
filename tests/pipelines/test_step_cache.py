"""Step caching: exact at threshold 0, decided by the frame that changes most, and forgotten at the
end of a sampling."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.flow import FlowMatching
from pusa.entry import build
from pusa.models.experts import Experts
from pusa.pipelines.generate import Request, Sampler, sample_latents
from pusa.pipelines.step_cache import Branch, Caching, StepCache, cached, change
from pusa.types import Text
from tests.conftest import compose_config, run_pusa
from tests.weights.conftest import make_twin

WAN, MOCHI = "wan22_t2v_a14b_tiny", "mochi_1_tiny"
FLOW = FlowMatching(5.0)
ALWAYS = StepCache(threshold=1e9)


def make_network(variant: str) -> Any:
    return make_twin(variant)


def make_experts(variant: str = WAN, boundary: float = 0.875) -> Experts:
    high, low = (make_twin(variant, seed) for seed in (0, 1))
    return Experts([(boundary, high), (0.0, low)])


def text(seed: int, length: int = 5) -> Text:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(1, length, 64, generator=generator)
    return Text(embedding, torch.ones(1, length, dtype=torch.bool))


def sample(
    experts: Experts | nn.Module, sampler: Sampler, channels: int = 16, given=(0,), frames=3
):
    """Two clips whose frames `given` are kept exactly."""
    generator = torch.Generator().manual_seed(9)
    medium = torch.randn(2, channels, 8, 8, generator=generator)
    conditioning = Conditioning.free((2, channels, frames, 8, 8))
    conditioning = conditioning.given(dict.fromkeys(given, (medium, 0.0)))
    requests = [Request(text(1), seed=7), Request(text(2), seed=8)]
    return sample_latents(experts, FLOW, sampler, conditioning, requests, text(3, 7))


def count_blocks(network: Any) -> Counter:
    calls = Counter()
    for i, block in enumerate(network.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.update([i]))
    return calls


@pytest.mark.parametrize("guidance", ["sequential", "batched"])
@pytest.mark.parametrize(
    ("variant", "channels", "method"),
    [(WAN, 16, "euler"), (WAN, 16, "heun"), (WAN, 16, "unipc"), (MOCHI, 12, "euler")],
)
def test_threshold_0_gives_the_bits_of_no_cache(variant, channels, method, guidance):
    experts = make_experts(variant)
    plain = Sampler(5, 3.0, method=method, guidance=guidance)
    none = replace(plain, cache=StepCache(threshold=0.0))
    assert torch.equal(sample(experts, plain, channels), sample(experts, none, channels))
    reused = sample(experts, replace(plain, cache=ALWAYS), channels)
    assert not torch.allclose(reused, sample(experts, plain, channels), atol=1e-3)


@pytest.mark.parametrize("warmup", [1, 3])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(("variant", "channels"), [(WAN, 16), (MOCHI, 12)])
def test_all_is_run_in_the_warmup_and_the_last_step(variant, channels, passes, warmup):
    network = make_network(variant)
    calls = count_blocks(network)
    cache = replace(ALWAYS, warmup=warmup)
    sample(network, Sampler(7, 2.0 * passes - 1, cache=cache), channels)
    blocks = range(1, len(network.blocks))
    assert calls == {0: 7 * passes} | dict.fromkeys(blocks, (warmup + 1) * passes)


def test_heun_reuses_its_second_look_too():
    network = make_network(WAN)
    calls = count_blocks(network)
    sample(network, Sampler(6, method="heun", cache=ALWAYS))
    assert (calls[0], calls[1]) == (11, 2 + 1)  # both calls of the first step, the last's one


def test_the_next_expert_begins_anew():
    experts = make_experts()
    high, low = (count_blocks(network) for _, network in experts.networks)
    sample(experts, Sampler(10, cache=ALWAYS))
    assert (high[0], low[0]) == (5, 5)
    assert (high[1], low[1]) == (1, 2)


def test_each_part_of_a_sampling_with_clean_conditions_has_its_first_and_last_step():
    experts = make_experts()
    high, low = (count_blocks(network) for _, network in experts.networks)
    sample(experts, Sampler(10, clean_above=0.875, cache=ALWAYS))
    assert (high[1], low[1]) == (2, 2)


def test_each_text_has_its_own_residuals():
    """In one batch they cannot be mixed up; one after the other they give the same."""
    experts = make_experts()
    sampler = Sampler(6, 3.0, cache=ALWAYS)
    batched = sample(experts, replace(sampler, guidance="batched"))
    torch.testing.assert_close(sample(experts, sampler), batched, atol=1e-5, rtol=1e-5)


def test_guidance_in_an_interval_reuses_what_its_own_text_had():
    network = make_network(WAN)
    calls = count_blocks(network)
    sample(network, Sampler(8, 3.0, guidance_interval=(0.5, 0.9), cache=ALWAYS))
    guided = sum(0.5 <= s <= 0.9 for s in FLOW.sigmas(8)[:-1].tolist())
    assert guided > 1
    assert (calls[0], calls[1]) == (8 + guided, 2 + 1)  # the negative text's first is full


def run_of(residual: Tensor, rest: float = 1.0):
    """Blocks of which the first adds `residual` (B, F, S, D), the others 1; and what was run."""
    spans = []

    def run(x: Tensor, start: int, end: int | None) -> Tensor:
        spans.append(start)
        return x + (residual if start == 0 else rest)

    return run, spans


def step(branch: Branch, levels: Tensor, residuals: list[Tensor]) -> list[bool]:
    """Whether each step of a plan (S+1, B, F) was full, its first block adding these."""
    full = []
    for residual, _ in zip(residuals, branch.caching.follow(iter, levels)(residuals), strict=True):
        run, spans = run_of(residual)
        branch(run, torch.zeros_like(residual))
        full.append(spans == [0, 1])
    return full


def one_of_21(frame: int, by: float) -> tuple[Tensor, list[Tensor]]:
    """A clip of which all frames but the last are given clean, and one's residual changes."""
    levels = torch.linspace(1, 0, 5)[:, None, None].repeat(1, 1, 21)
    levels[:, :, :20] = 0
    residuals = [torch.ones(1, 21, 2, 4) for _ in range(4)]
    for i, residual in enumerate(residuals):
        residual[:, frame] += by * i
    return levels, residuals


def test_a_single_moving_frame_among_still_ones_is_seen():
    """The mean of 21 frames hides it."""
    levels, residuals = one_of_21(20, 0.5)
    found = {
        frames: step(Branch(Caching(StepCache(0.1, frames=frames))), levels, residuals)
        for frames in ("worst", "mean")
    }
    assert found["worst"] == [True] * 4
    assert found["mean"] == [True, False, False, True]


def test_a_frame_that_stands_still_has_no_say():
    levels, residuals = one_of_21(3, 50.0)
    assert step(Branch(Caching(StepCache(0.1))), levels, residuals) == [True, False, False, True]


def test_a_frame_that_stops_short_of_0_is_looked_at_once_more():
    """UniPC's corrector asks for the velocity where it stopped."""
    levels = torch.tensor([[1, 1], [0.8, 0.8], [0.6, 0.6], [0.6, 0.4], [0.6, 0.2], [0, 0.0]])
    residuals = [torch.ones(1, 2, 2, 4) for _ in range(5)]
    for residual in residuals[2:]:
        residual[:, 0] += 1
    full = step(Branch(Caching(StepCache(0.1))), levels[:, None], residuals)
    assert full == [True, False, True, False, True]
    residuals[2], residuals[3] = residuals[1], residuals[2]
    full = step(Branch(Caching(StepCache(0.1))), levels[:, None], residuals)
    assert full == [True, False, False, False, True]


def test_the_worst_sample_decides_and_so_does_the_worse_half_of_batched_guidance():
    counted = torch.ones(2, 3, dtype=torch.bool)
    before = torch.ones(4, 3, 2, 4)
    now = before.clone()
    now[3, 1] += 0.25
    assert change(now, before, counted).item() == pytest.approx(0.25)
    assert change(now, before, None).item() == pytest.approx(0.25 / 12)
    counted[1, 1] = False
    assert change(now, before, counted).item() == 0


def test_change_is_measured_from_the_last_full_pass_so_that_small_ones_add_up():
    levels = torch.linspace(1, 0, 9)[:, None, None]
    residuals = [torch.full((1, 1, 2, 4), 1 + 0.04 * i) for i in range(8)]
    full = step(Branch(Caching(StepCache(0.1))), levels, residuals)
    assert full == [True, False, False, True, False, False, True, True]


def test_a_clip_of_given_frames_reuses_less_than_its_mean_would():
    """Through a network: eight of nine frames are given, one is made."""
    network = make_network(WAN)
    calls = count_blocks(network)
    full = {}
    for frames in ("worst", "mean"):
        calls.clear()
        cache = StepCache(threshold=0.3, frames=frames)
        sample(network, Sampler(12, cache=cache), given=range(8), frames=9)
        full[frames] = calls[1]
    assert full["worst"] > full["mean"]


def test_given_frames_come_back_bit_for_bit():
    result = sample(make_experts(), Sampler(6, 3.0, cache=ALWAYS))
    plain = sample(make_experts(), Sampler(6, 3.0))
    assert torch.equal(result[:, :, 0], plain[:, :, 0])


def test_nothing_is_left_of_a_sampling():
    experts = make_experts()
    sampler = Sampler(6, 3.0, cache=StepCache(0.5))
    first = sample(experts, sampler)
    sample(experts, Sampler(4, cache=ALWAYS), given=(1, 2))
    assert torch.equal(sample(experts, sampler), first)
    networks: list[Any] = [network for _, network in experts.networks]
    assert all(network.block_runner is None for network in networks)


def test_an_error_leaves_the_network_as_it_was():
    network = make_network(WAN)
    network.blocks[2].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample(network, Sampler(4, cache=ALWAYS))
    assert network.block_runner is None


def test_a_network_without_the_hook_is_named():
    with (
        pytest.raises(ValueError, match="Linear is none"),
        cached(nn.Linear(1, 1), Branch(Caching(ALWAYS))),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": -0.1}, "threshold=-0.1"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"warmup": 0}, "warmup must be at least 1"),
        ({"frames": "best"}, "frames='best' is unknown; use worst, mean"),
    ],
)
def test_a_cache_that_cannot_be_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        StepCache(**arguments)


def test_upstreams_sampling_has_no_cache():
    with pytest.raises(ValueError, match=r"cache is not upstream's"):
        Sampler(4, method="upstream", cache=StepCache())


@pytest.mark.parametrize(("entry", "more"), [("generate", ("prompt=a", "output=b")),
                                             ("evaluate", ("experiment=tiny_vta",))])  # fmt: skip
def test_the_config_says_it(root, entry, more):
    cfg = compose_config(entry, "sampler=cached", "sampler.cache.threshold=0.2",
                         "sampler.method=unipc", *more)  # fmt: skip
    sampler = build(cfg.sampler)
    assert (sampler.method, sampler.cache) == ("unipc", StepCache(threshold=0.2))
    assert build(compose_config(entry, *more).sampler).cache is None


def test_a_video_tells_it_and_is_made_again(root):
    flags = ("--prompt", "a red one", "--steps", 4, "--sampler", "cached")
    for name, threshold in (("all", 0), ("few", 5)):
        more = ("--set", f"sampler.cache.threshold={threshold}", "-o", root / f"{name}.mp4")
        assert run_pusa("generate", *flags, *more) == 0
    recipe = json.loads((root / "few.json").read_text())["recipe"]
    assert recipe["sampler"]["cache"]["threshold"] == 5
    assert run_pusa("generate", "--from", root / "few.json", "-o", root / "again.mp4") == 0
    again, few, full = ((root / f"{n}.mp4").read_bytes() for n in ("again", "few", "all"))
    assert again == few != full
