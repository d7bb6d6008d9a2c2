"""The traced footprint beside real steps, closed forms and the whole network."""

import functools
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pusa.diffusion.flow import FlowMatching
from pusa.models.mochi_dit import MochiDiT
from pusa.models.variants import VARIANTS
from pusa.models.wan_dit import WanDiT
from pusa.pipelines.build import Model
from pusa.training import footprint
from pusa.training.footprint import (
    Footprint,
    Moment,
    Work,
    outline,
    run_step,
    step_footprint,
)
from pusa.types import LatentSpec, Text
from pusa.weights.lora import LoRA


@pytest.fixture(autouse=True, scope="module")
def each_shallow_network_once():
    """Many of the deep networks here are told from the same two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(footprint, "_shallow", functools.cache(footprint._shallow))
        yield


LORA = LoRA(8, 8)
SHAPE = (16, 3, 8, 8)


def model_of(variant: str, **changes) -> Model:
    arguments = {**VARIANTS[variant].arguments, **changes}
    network = MochiDiT if "mochi" in variant else WanDiT
    return Model(
        variant, functools.partial(network, **arguments), FlowMatching(), LatentSpec(16), None, "",
        "", 32, 9, 64, 64, 16, dtype="bfloat16",
    )  # fmt: skip


@functools.cache
def tiny(**changes) -> Model:
    return model_of("wan21_t2v_14b_tiny", **changes)


@functools.cache
def told_of_tiny(policy: str, depth: int, shape=SHAPE) -> Footprint:
    return step_footprint(tiny(), LORA, work(shape), policy, depth)


def work(shape=SHAPE, autocast=True) -> Work:
    return Work(1, shape, 32, 64, autocast)


@pytest.mark.parametrize(
    ("policy", "depth"), [("none", 6), ("blocks", 6), ("every_2", 9), ("offload", 6)]
)
def test_a_deep_network_is_told_from_two_shallow_ones(policy: str, depth: int):
    model = tiny()
    whole = run_step(
        outline(model, LORA, num_layers=depth, checkpointing=policy), model.flow, work()
    )
    told = step_footprint(model, LORA, work(), policy, depth)
    for share in (0.0, 0.125, 1.0, 50.0):
        assert told.fullest(share) == whole.fullest(share)
    assert told.flops == pytest.approx(whole.flops, rel=1e-12)
    assert (told.host, told.modulation) == (whole.host, whole.modulation)


def test_a_deep_mochi_whose_last_block_differs():
    model = model_of("mochi_1_tiny")
    shape, lora = (12, 3, 8, 8), LoRA(8, 8, ("attn.qkv_x",))
    network = outline(model, lora, num_layers=7, checkpointing="blocks")
    whole = run_step(network, model.flow, work(shape))
    told = step_footprint(model, lora, work(shape), "blocks", 7)
    # Two moments are equally full here: which of them is called the fullest says nothing.
    assert most(told) == most(whole)


def most(footprint: Footprint) -> int:
    fullest = footprint.fullest()
    return fullest.activations + fullest.gradients


@pytest.mark.parametrize(("policy", "lora"), [("none", LORA), ("blocks", LORA), ("none", None)])
def test_a_real_step_holds_what_was_predicted(policy: str, lora: LoRA | None):
    """Within 8 percent: what a CPU's products of bfloat16 hold within themselves is not seen."""
    model = tiny(dim=128, ffn_dim=512, num_layers=3)
    what = work((16, 5, 32, 32), autocast=lora is not None)
    told = step_footprint(model, lora, what, policy, 3)
    predicted = max(p.activations + p.gradients for p in (told.forward, *told.backward))
    network = outline(model, lora, num_layers=3, checkpointing=policy).to_empty(device="cpu")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    assert peak_of_a_real_step(network, model, what) == pytest.approx(predicted, rel=0.08)


def peak_of_a_real_step(network: torch.nn.Module, model: Model, what: Work) -> int:
    """Of the allocator's events; the inputs included."""
    latents, sigma = torch.randn(1, *what.shape), torch.rand(1, what.shape[1])
    noise = torch.randn_like(latents)
    text = Text(torch.randn(1, 32, 64), torch.ones(1, 32, dtype=torch.bool))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=what.autocast):
            velocity = network(model.flow.add_noise(latents, noise, sigma), sigma, text)
        model.flow.loss(velocity, latents, noise, sigma).backward()
        network.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events: list[Any] = profiler.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    live = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak + 2 * latents.nbytes + text.embedding.nbytes


def test_attention_is_not_counted_as_a_square_of_the_tokens():
    small = told_of_tiny("none", 4, (16, 4, 16, 16)).fullest(0)
    large = told_of_tiny("none", 4, (16, 16, 16, 16)).fullest(0)
    assert large.activations < 4.1 * small.activations
    tokens, heads = 16 * 64, 4
    scores = 4 * heads * 4 * tokens**2  # of four blocks, float32
    assert large.activations < scores, "one stored score matrix a block would be more"


def test_checkpoints_keep_the_residual_stream_and_offload_moves_it():
    def host_and_device(policy: str, depth: int) -> tuple[int, int]:
        told = told_of_tiny(policy, depth)
        return told.host, told.fullest(0).activations

    stream = 4 * 3 * 16 * 64  # float32, F * S * D
    # The first block's input comes from the patch embedding, in bfloat16.
    assert host_and_device("offload", 20)[0] == 19.5 * stream
    assert host_and_device("blocks", 20)[0] == 0
    slope = (host_and_device("blocks", 20)[1] - host_and_device("blocks", 3)[1]) / 17
    assert slope == stream
    assert host_and_device("offload", 20)[1] == host_and_device("offload", 3)[1]


def test_recomputing_every_block_costs_their_forward_pass_once_more():
    kept, again = (told_of_tiny(p, 20) for p in ("none", "blocks"))
    assert kept.forward_flops == again.forward_flops
    assert 0.8 * kept.forward_flops < again.flops - kept.flops < kept.forward_flops
    half = told_of_tiny("every_2", 20)
    assert half.flops == pytest.approx((kept.flops + again.flops) / 2)


def test_flops_of_a_full_step_are_thrice_the_forward_pass_but_for_attention():
    told = step_footprint(tiny(), None, work((16, 1, 4, 4)), "none", 12)
    assert told.backward_flops == pytest.approx(2 * told.forward_flops, rel=0.02)


def test_flops_of_a_lora_in_closed_form():
    """Whatever operations it is computed with."""
    model = tiny(num_layers=1)
    shallow, deep = (step_footprint(model, LoRA(r, r), work(), "none", 1) for r in (8, 16))
    tokens, text, dim, ffn = 3 * 16, 32, 64, 176
    per_rank = tokens * (6 * 2 * dim + 2 * (dim + ffn)) + text * 2 * 2 * dim
    assert deep.forward_flops - shallow.forward_flops == 2 * 8 * per_rank


def test_gradients_are_counted_by_the_share_that_is_kept():
    told = Footprint(2, Moment(9), (Moment(10, 0), Moment(6, 4), Moment(2, 8)), 0, 0, 0.0, 0.0)
    assert told.fullest(0) == Moment(10, 0)
    assert told.fullest(1) in (Moment(10, 0), Moment(6, 4), Moment(2, 8))
    assert told.fullest(4) == Moment(2, 32)
    assert told.fullest(0.5, fixed=True) == Moment(10, 4)


def test_modulation_is_per_frame_not_per_token():
    told = told_of_tiny("blocks", 4, (16, 3, 32, 32))
    table = 4 * 3 * 6 * 64  # float32, F * 6 * D
    assert table <= told.modulation < 8 * table


def test_a_trace_leaves_no_false_table_behind_for_real_networks():
    model = tiny()
    step_footprint(model, LORA, work(), "none", 2)
    network = model.backbone().eval()
    text = Text(torch.zeros(1, 1, 64), torch.zeros(1, 1, dtype=torch.bool))
    assert torch.isfinite(network(torch.zeros(1, *SHAPE), torch.zeros(1), text)).all()
