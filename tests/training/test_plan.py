"""Plans: closed forms of weights, laws of sharding, what fits and what to change."""

import functools
from dataclasses import replace
from itertools import pairwise

import pytest
from torch import nn

from pusa.diffusion.flow import FlowMatching
from pusa.models.variants import VARIANTS
from pusa.models.wan_dit import WanDiT
from pusa.pipelines.build import Model
from pusa.training import fitting, sharding
from pusa.training.footprint import Footprint, Moment
from pusa.training.gpus import GIB, GPU, Cluster, gpu_named
from pusa.training.plan import Job, Part, Planner
from pusa.training.sharding import STRATEGIES, Weights, shares, strategy_named
from pusa.types import LatentSpec
from pusa.weights.lora import LoRA

NOTHING = Part(0, Footprint(0, Moment(0), (), 0, 0, 0.0, 0.0))
RANK_512_OF_14B = 2_453_667_840


@pytest.fixture(scope="module")
def planner() -> Planner:
    arguments = {**VARIANTS["wan21_t2v_14b_tiny"].arguments, "num_layers": 3}
    model = Model(
        "tiny", functools.partial(WanDiT, **arguments), FlowMatching(), LatentSpec(16), None, "",
        "", 32, 17, 64, 64, 16, dtype="bfloat16",
    )  # fmt: skip
    return Planner(model, NOTHING, NOTHING)


def job(**changes) -> Job:
    fields = {
        "lora": LoRA(8, 8), "strategy": STRATEGIES["zero2"], "checkpointing": "none",
        "samples": 8, "size": (17, 64, 64), "max_steps": 900,
    }  # fmt: skip
    return Job(**(fields | changes))


def gpu(gib: float) -> GPU:
    return GPU("small", gib, 100, 2.0, 100, 10)


def weights_of_14b(lora: LoRA | None) -> Weights:
    return Weights.of(VARIANTS["wan21_t2v_14b"].build(), lora, 2)


def test_the_lora_and_the_base_of_14b_in_closed_form():
    held = weights_of_14b(LoRA(512, 512))
    assert held.trainable == RANK_512_OF_14B
    assert held.frozen == sum(p.numel() for p in VARIANTS["wan21_t2v_14b"].build().parameters())
    # float32: time path, modulation and norms; the rest 2 bytes.
    dim, layers = 5120, 40
    time = (256 * dim + dim) + (dim * dim + dim) + (dim * 6 * dim + 6 * dim)
    kept = time + layers * (6 * dim + 4 * dim + 2 * dim) + 2 * dim
    assert held.frozen_bytes == 2 * held.frozen + 2 * kept


def test_all_weights_train_in_float32():
    held = weights_of_14b(None)
    assert (held.frozen, held.frozen_bytes) == (0, 0)
    assert held.trainable_bytes == 4 * held.trainable


def test_buckets_are_those_of_the_strategy():
    from pusa.training import strategy

    assert strategy.BUCKET == sharding.BUCKET


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero3_offload", "zero2_offload"])
def test_more_processes_never_hold_more_each(name: str):
    weights = weights_of_14b(LoRA(512, 512))
    held = [shares(weights, STRATEGIES[name], ranks) for ranks in (1, 2, 4, 8, 64)]
    for fewer, more in pairwise(held):
        assert more.weights <= fewer.weights
        assert more.optimizer <= fewer.optimizer
        assert more.gradient_share <= fewer.gradient_share
        assert more.host <= fewer.host


def test_each_stage_divides_one_thing_more():
    weights = weights_of_14b(LoRA(512, 512))
    train = weights.trainable_bytes
    of = {name: shares(weights, STRATEGIES[name], 8) for name in STRATEGIES if name != "single"}
    assert of["ddp"].optimizer == 2 * train  # moments
    assert of["zero1"].optimizer == of["zero2"].optimizer == 3 * train / 8  # and masters
    assert (of["zero1"].gradient_share, of["zero2"].gradient_share) == (1.0, 1 / 8)
    assert of["zero2"].base == weights.frozen_bytes
    assert of["zero3"].base == -(-weights.frozen_bytes // 8)
    assert of["zero2_offload"].optimizer == 0
    assert of["zero2_offload"].host == 4 * train / 8  # masters, moments, gradients
    assert of["zero3_offload"].weights == of["zero3"].gathered


def test_memory_grows_with_the_rank_and_the_frames(planner: Planner):
    cluster = Cluster(gpu(80), 8)
    ranks = [planner.estimate(job(lora=LoRA(r, r)), cluster).largest.total for r in (1, 8)]
    frames = [planner.estimate(job(size=(n, 64, 64)), cluster).largest.total for n in (5, 17)]
    assert ranks == sorted(set(ranks))
    assert frames == sorted(set(frames))


def test_passes_add_time_and_hold_the_gradients(planner: Planner):
    cluster = Cluster(gpu(80), 1)
    single = {"strategy": STRATEGIES["single"]}
    whole = planner.estimate(job(**single), cluster)
    parts = planner.estimate(job(**single, micro_batch=2), cluster)
    assert parts.job.passes(1) == 4
    train = next(phase for phase in parts.phases if phase.name == "train")
    assert train.items["gradients"] == 4 * parts.trainable
    assert train.items["activations"] < max(p.items.get("activations", 0) for p in whole.phases)
    assert parts.seconds["arithmetic"] == pytest.approx(whole.seconds["arithmetic"], rel=0.05)


def test_time_and_price_follow_from_the_flops(planner: Planner):
    one = planner.estimate(job(), Cluster(gpu(80), 8, price=3.0, utilisation=0.5))
    assert one.seconds["arithmetic"] == one.footprint.flops / (100e12 * 0.5)
    assert one.hours == pytest.approx(900 * one.step_seconds / 3600)
    assert one.dollars == pytest.approx(one.hours * 8 * 3.0)


@pytest.mark.parametrize("limit", range(-1, 12))
@pytest.mark.parametrize("start", [0, 4, 7, 100])
def test_the_search_finds_the_largest(limit: int, start: int):
    values = [0, 1, 2, 3, 5, 8, 9, 10]
    found = fitting.largest_that(values, lambda value: (limit - value) * (1 + value % 3), start)
    assert found == max((value for value in values if value <= limit), default=None)


def test_the_search_asks_for_few_when_room_falls_on_a_line():
    asked = []
    fitting.largest_that(range(1000), lambda v: asked.append(v) or 333.3 - v, 500)
    assert len(asked) <= 5


def test_the_cheapest_change_recomputes_as_little_as_will_do(planner: Planner):
    wanted = job(strategy=STRATEGIES["ddp"])
    roomy = Cluster(gpu(80), 8)
    by_policy = fitting.policies(planner, wanted, roomy)
    between = (by_policy["none"].largest.total + by_policy["every_2"].largest.total) / 2 / GIB
    tight = Cluster(gpu(between), 8)
    assert not planner.estimate(wanted, tight).fits
    found = fitting.largest(planner, wanted, tight)
    best, *others = fitting.changes(planner, wanted, tight, found)
    assert best.estimate.fits
    assert not best.lossy
    lossless = [change for change in others if not change.lossy]
    assert all(best.estimate.dollars <= change.estimate.dollars + 0.01 for change in lossless)
    assert all(change.estimate.fits for change in others)
    assert found.frames is None or found.frames < 17


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gpu_named("v100"), "unknown"),
        (lambda: strategy_named("zero4", 8), "unknown"),
        (lambda: strategy_named("single", 8), "one process"),
        (lambda: Cluster(gpu(80), 0), "at least 1"),
        (lambda: Cluster(gpu(80), 12, 8), "whole nodes"),
        (lambda: Cluster(gpu(80), 1, price=-1), "price"),
        (lambda: Cluster(gpu(80), 1, utilisation=1.5), "mfu"),
        (lambda: job(samples=12).batch(8), "batch_size=16"),
        (lambda: job(micro_batch=3).batch(1), "micro_batch=3"),
    ],
)
def test_what_cannot_be_is_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_nodes_talk_through_the_network():
    assert Cluster(gpu(80), 16).nodes == 2
    assert Cluster(gpu(80), 16).link < Cluster(gpu(80), 8).link


def test_rank_768_of_14b_fits_where_its_checkpoints_wait_in_host_memory():
    """8 x 80 GB, ZeRO-2, 81 frames of 480x832; docs/planning.md on what is said of upstream."""
    arguments = VARIANTS["wan21_t2v_14b"].arguments
    model = Model(
        "14B", functools.partial(WanDiT, **arguments), FlowMatching(), LatentSpec(16), None, "",
        "", 512, 81, 480, 832, 16, dtype="bfloat16",
    )  # fmt: skip
    big = job(lora=LoRA(768, 768), size=(81, 480, 832), checkpointing="offload")
    one = Planner(model, NOTHING, NOTHING).estimate(big, Cluster(gpu_named("h100-80g"), 8))
    assert one.fits
    assert one.trainable == RANK_512_OF_14B * 3 // 2
    assert one.footprint.flops == pytest.approx(6.9e15, rel=0.05)  # rank 512 has 6.9 PFLOP


def test_a_plan_needs_no_memory_of_its_own(planner: Planner):
    assert all(p.is_meta for p in planner._plain.parameters())


def test_a_vae_too_large_for_the_gpu_encodes_on_the_cpu(planner: Planner):
    vae = Part(10 * GIB, NOTHING.footprint)
    other = Planner(planner.model, vae, NOTHING)
    cluster = Cluster(gpu(8), 8)
    assert not other.estimate(job(), cluster).fits
    best = fitting.changes(other, job(), cluster, fitting.Largest(None, None, None))[0]
    assert best.overrides == ("model.device=cpu",)


@pytest.mark.parametrize("storage", ["int8", "float8"])
def test_a_base_in_8_bits_takes_a_byte_an_element_and_a_float_a_row(storage):
    """Of 14B: q, k, v, o twice, 5120 x 5120, and the feed-forward, 5120 x 13824, 40 times."""
    with_rows = Weights.of(VARIANTS["wan21_t2v_14b"].build(), LoRA(512, 512), 2, stored=True)
    elements = 40 * (8 * 5120 * 5120 + 2 * 5120 * 13824)
    rows = 40 * (8 * 5120 + 13824 + 5120)
    plain = weights_of_14b(LoRA(512, 512))
    assert with_rows.frozen_bytes == plain.frozen_bytes - elements + 4 * rows
    assert with_rows.frozen == plain.frozen


def test_the_plan_of_a_stored_base_has_less_of_it_and_refuses_what_cannot_be(planner: Planner):
    model = replace(planner.model, storage="int8")
    stored, cluster = Planner(model, NOTHING, NOTHING), Cluster(gpu(80), 2)
    ours, plain = (p.estimate(job(), cluster) for p in (stored, planner))
    base = [e.phases[0].items["frozen base"] for e in (ours, plain)]
    network = model.build_backbone()
    assert base[0] == sum(p.numel() * p.element_size() for p in lowered(network).parameters())
    assert base[0] < 0.75 * base[1]
    assert ours.footprint.flops == plain.footprint.flops
    assert ours.host["base, of each process"] == 2 * base[0]
    assert ours.disk["base, cast for all to map"] == 0
    with pytest.raises(ValueError, match="lora=none trains all weights"):
        stored.estimate(job(lora=None), cluster)
    with pytest.raises(ValueError, match="ZeRO-3 divides"):
        stored.estimate(job(strategy=STRATEGIES["zero3"]), cluster)
    small = replace(cluster, gpu=gpu(1.5))
    changes = fitting.changes(stored, job(), small, fitting.Largest(None, None, None))
    assert not [c for c in changes if "strategy=zero3" in c.overrides]


def lowered(network: nn.Module) -> nn.Module:
    """As the loader has it: bfloat16, but for the 8-bit weights and what stays float32."""
    for name, parameter in network.named_parameters():
        kept = any(part in name for part in (*WanDiT.keep_float32, ".scale"))
        if not kept and parameter.is_floating_point():
            parameter.data = parameter.data.bfloat16()
    return network
