"""Activation checkpointing: no policy changes a gradient; each recomputes what it says."""

import weakref
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pusa.models.checkpointing import CHECKPOINT_POLICIES, Checkpointing
from pusa.models.mochi_dit import MochiDiT
from pusa.models.wan_dit import WanDiT
from pusa.types import Text
from pusa.weights.lora import LoRA, inject_lora

NUM_LAYERS = 5
POLICIES = ("none", "blocks", "selective", "every_2", "every_3", "offload")


def make_wan(policy: str) -> WanDiT:
    return WanDiT(
        dim=48, ffn_dim=64, num_heads=2, num_layers=NUM_LAYERS, in_channels=4, out_channels=4,
        text_dim=16, text_len=8, checkpointing=policy,
    )  # fmt: skip


def make_mochi(policy: str) -> MochiDiT:
    return MochiDiT(
        dim=48, text_stream_dim=24, num_heads=2, num_layers=NUM_LAYERS, in_channels=4, text_dim=16,
        text_tokens=8, checkpointing=policy,
    )  # fmt: skip


MODELS = {"wan": make_wan, "mochi": make_mochi}
LORAS = {
    "wan": LoRA(2, 2.0, dropout=0.2),
    "mochi": LoRA(2, 2.0, ("attn.qkv_x", "attn.qkv_y", "attn.proj_x", "mlp_x.w1"), dropout=0.2),
}


def make_model(name: str, policy: str, lora: bool = False) -> WanDiT | MochiDiT:
    torch.manual_seed(0)
    model = MODELS[name](policy)
    if lora:
        inject_lora(model, LORAS[name])
    for parameter in model.parameters():  # zeros would hide gradients
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.train()


def loss_of(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 3, 4, 4, generator=generator)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    text = Text(torch.randn(2, 6, 16, generator=generator), mask)
    sigma = torch.tensor([[0.1, 0.5, 0.9], [0.0, 1.0, 0.4]])
    torch.manual_seed(2)  # of the LoRA's dropout, which a recomputation has to repeat
    return model(latents, sigma, text).square().mean()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    loss_of(model).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_no_policy_changes_a_gradient(name, lora):
    expected = gradients(make_model(name, "none", lora))
    trained = [n for n, p in make_model(name, "none", lora).named_parameters() if p.requires_grad]
    assert list(expected) == trained
    assert all(".lora_" in n for n in trained) == lora
    still = [n for n, gradient in expected.items() if not gradient.any()]
    assert still in (
        [],
        ["blocks.4.attn.q_norm_y.weight"],
    )  # the last text queries lead nowhere
    for policy in POLICIES[1:]:
        found = gradients(make_model(name, policy, lora))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[n], expected[n]) for n in expected), policy


def runs_of(model: WanDiT | MochiDiT, call: Callable[[], None]) -> list[int]:
    """How often each block ran."""
    runs = [0] * NUM_LAYERS

    def count(block: nn.Module, _) -> None:
        runs[blocks.index(block)] += 1

    blocks = list(model.blocks.children())
    for block in blocks:
        block.register_forward_pre_hook(count)
    call()
    return runs


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("none", [1, 1, 1, 1, 1]),
        ("blocks", [2, 2, 2, 2, 2]),
        ("every_2", [2, 1, 2, 1, 2]),
        ("every_3", [2, 1, 1, 2, 1]),
        ("every_40", [2, 1, 1, 1, 1]),
        ("offload", [2, 2, 2, 2, 2]),
        ("selective", [2, 2, 2, 2, 2]),
        ("blocks_half", [2, 2, 2, 2, 2]),
        ("every_3_half", [2, 1, 1, 2, 1]),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_the_blocks_that_the_policy_names_are_recomputed(name, policy, expected):
    model = make_model(name, policy)
    assert runs_of(model, lambda: loss_of(model).backward()) == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_without_grad_nothing_is_checkpointed(policy, monkeypatch):
    model = make_model("wan", policy)
    monkeypatch.setattr("pusa.models.checkpointing.checkpoint", None)  # not to be called
    with torch.no_grad():
        loss_of(model)


@contextmanager
def residual_streams(model: WanDiT | MochiDiT):
    """Weak references to the memory of the blocks' inputs (B, F, S, D)."""
    streams: list[weakref.ref] = []
    hooks = [
        block.register_forward_pre_hook(
            lambda _, inputs: streams.append(weakref.ref(inputs[0].untyped_storage()))
        )
        for block in model.blocks.children()
    ]
    yield streams
    for hook in hooks:
        hook.remove()


KEPT = [("blocks", NUM_LAYERS), ("offload", 0), ("blocks_half", 0), ("offload_half", 0)]


@pytest.mark.parametrize(("policy", "kept"), KEPT)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_streams_that_wait_elsewhere_are_not_kept_on_the_device(name, policy, kept, lora):
    model = make_model(name, policy, lora)
    with residual_streams(model) as streams:
        loss = loss_of(model)
    assert len(streams) == NUM_LAYERS
    assert sum(stream() is not None for stream in streams) == kept
    loss.backward()
    assert not any(stream() is not None for stream in streams)


@pytest.mark.parametrize("policy", ["blocks_half", "offload_half", "selective_half"])
@pytest.mark.parametrize("name", MODELS)
def test_streams_of_half_the_bits_change_gradients_by_their_rounding(name, policy):
    expected, found = gradients(make_model(name, "blocks")), gradients(make_model(name, policy))
    assert found.keys() == expected.keys()
    largest = max(
        float((found[n] - gradient).norm() / gradient.norm())
        for n, gradient in expected.items() if gradient.any()
    )  # fmt: skip
    assert 1e-5 < largest < 0.05


class CountAttention(TorchDispatchMode):
    """How often attention was computed, of tokens to one another and of others."""

    def __init__(self):
        super().__init__()
        self.own = self.other = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            alike = args[0].shape == args[1].shape
            self.own, self.other = self.own + alike, self.other + (not alike)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("policy", "own"), [("blocks", 2), ("selective", 1)])
def test_selective_does_not_compute_self_attention_again(policy, own):
    model = make_model("wan", policy, lora=True)
    with CountAttention() as counted:
        loss_of(model).backward()
    assert counted.own == own * NUM_LAYERS
    assert counted.other == 2 * NUM_LAYERS


@pytest.mark.parametrize("name", MODELS)
def test_offload_moves_each_stream_once_and_nothing_else(name, monkeypatch):
    moved = []
    empty_like = torch.empty_like

    def host(tensor: Tensor, **options) -> Tensor:
        moved.append(tensor.shape)
        return empty_like(tensor, **options)

    model = make_model(name, "offload")
    monkeypatch.setattr("pusa.models.checkpointing.torch.empty_like", host)
    loss = loss_of(model)
    monkeypatch.undo()
    assert moved == [(2, 3, 4, 48)] * NUM_LAYERS
    loss.backward()


@pytest.mark.parametrize(
    "policy",
    ["all", "every_K", "every_1", "every_0", "every_-2", "every_2x", "", "none_half", "_half"],
)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_an_unknown_policy_is_refused_with_the_known_ones(make, policy):
    with pytest.raises(ValueError, match="checkpointing=") as caught:
        make(policy)
    assert all(known in str(caught.value) for known in CHECKPOINT_POLICIES)


def test_the_policies_by_name():
    assert Checkpointing.named("none") == Checkpointing(every=0)
    assert Checkpointing.named("blocks") == Checkpointing(every=1)
    assert Checkpointing.named("every_12") == Checkpointing(every=12)
    assert Checkpointing.named("offload") == Checkpointing(every=1, offload=True)
    assert Checkpointing.named("selective") == Checkpointing(every=1, attention=True)
    assert Checkpointing.named("every_2_half") == Checkpointing(every=2, half=True)
