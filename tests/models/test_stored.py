"""8-bit frozen layers: how far rounding goes, what they compute, which layers, what is kept."""

from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pusa.models.mochi_dit import MochiDiT
from pusa.models.stored import FLOAT8, StoredLinear, dense, pack, store_layers, stored_layers
from pusa.models.variants import VARIANTS
from pusa.models.wan_dit import WanDiT
from pusa.weights.doctor import fixed_velocity
from pusa.weights.lora import VTA_TARGETS

STORAGES = ("int8", "float8")


def numbers_of(packed: Tensor, storage: str) -> Tensor:
    return packed.view(FLOAT8) if storage == "float8" else packed


def random_weight(seed: int, spread: float) -> Tensor:
    """Rows whose sizes differ by factors of up to e^(+-3 spread)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.exp(spread * torch.randn(8, 1, generator=generator))
    return rows * torch.randn(8, 64, generator=generator)


@given(seed=st.integers(0, 2**31), spread=st.floats(0, 6))
def test_int8_is_off_by_half_a_step_of_its_row_at_most(seed, spread):
    weight = random_weight(seed, spread)
    numbers, scale = pack(weight, "int8")
    assert (numbers.dtype, scale.shape, scale.dtype) == (torch.int8, (8, 1), torch.float32)
    step = weight.abs().amax(1, keepdim=True).double() / 127
    error = (dense(numbers, scale, torch.float64) - weight).abs()
    assert (error <= step * (0.5 + 1e-4)).all()
    assert (numbers.abs().amax(1) == 127).all()


@given(seed=st.integers(0, 2**31), spread=st.floats(0, 6))
def test_float8_is_off_by_a_sixteenth_at_most_above_its_subnormals(seed, spread):
    weight = random_weight(seed, spread)
    numbers, scale = pack(weight, "float8")
    assert numbers.dtype == torch.int8
    error = (dense(numbers.view(FLOAT8), scale, torch.float64) - weight).abs()
    normal = weight.abs() >= scale * 2**-6
    assert normal.any()
    assert (error <= torch.where(normal, weight.abs() / 16, scale * 2**-10) * (1 + 1e-4)).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_of_zeros_stay_zeros_and_what_is_not_finite_stays_so(storage):
    weight = torch.tensor([[0.0, 0.0], [1.0, torch.nan], [1.0, torch.inf], [-3.0, 1.5]])
    numbers, scale = pack(weight, storage)
    found = dense(numbers_of(numbers, storage), scale, torch.float32)
    assert (found[0] == 0).all()
    assert not torch.isfinite(found[1]).any()
    assert not torch.isfinite(found[2]).all()
    assert found[3, 0] == -3.0


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_the_linear_layer_of_its_dense_weight(dtype, bias, storage):
    torch.manual_seed(0)
    layer = nn.Linear(6, 5, bias=bias)
    stored = StoredLinear(layer, storage)
    x = torch.randn(2, 3, 6, dtype=dtype, requires_grad=True)
    expected = functional.linear(
        x, stored.dense_weight(dtype), None if layer.bias is None else layer.bias.to(dtype)
    )
    found = stored(x)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    ours, torchs = (torch.autograd.grad(out.square().sum(), x)[0] for out in (found, expected))
    torch.testing.assert_close(ours, torchs)
    with torch.autocast("cpu", torch.bfloat16):
        assert stored(x).dtype == torch.bfloat16


@pytest.mark.parametrize("storage", STORAGES)
def test_nothing_dense_is_kept_for_the_backward_pass(storage):
    stored = StoredLinear(nn.Linear(64, 32), storage)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        stored(torch.randn(4, 64, requires_grad=True)).sum()
    assert sorted(t.element_size() for t in kept if t.numel() >= 32 * 64) == [1]


@pytest.mark.parametrize("storage", STORAGES)
def test_casts_and_moves_of_the_module_leave_the_numbers_alone(storage):
    stored = StoredLinear(nn.Linear(8, 4), storage)
    before = stored.weight.clone()
    stored.to(torch.bfloat16)
    assert stored.weight.dtype == torch.int8
    assert torch.equal(stored.weight, before)


def build(kind: type, **arguments) -> nn.Module:
    with torch.device("meta"):
        return kind(**arguments)


def test_of_wan_it_is_the_blocks_projections_and_nothing_else():
    model = build(WanDiT, dim=48, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16)
    assert stored_layers(model) == [f"blocks.{i}.{name}" for i in range(2) for name in VTA_TARGETS]


def test_of_mochi_the_modulation_of_the_blocks_stays_as_it_is():
    model = build(MochiDiT, dim=48, text_stream_dim=24, num_heads=2, num_layers=2, text_dim=16)
    names = stored_layers(model)
    assert "blocks.0.attn.qkv_x" in names
    assert "blocks.0.mlp_y.w2" in names
    assert not [name for name in names if ".mod_" in name]
    assert all(name.startswith("blocks.") for name in names)


def random_network(name: str) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = VARIANTS[name].build().to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    return model.requires_grad_(False)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ["wan_tiny", "mochi_1_tiny"])
def test_a_network_with_stored_layers_is_the_one_with_their_dense_weights(name, storage):
    model, rounded = random_network(name), random_network(name)
    before = fixed_velocity(model)
    store_layers(model, storage)
    for layer in stored_layers(model):
        weight = cast(StoredLinear, model.get_submodule(layer)).dense_weight()
        cast(nn.Linear, rounded.get_submodule(layer)).weight.data = weight
    found = fixed_velocity(model)
    torch.testing.assert_close(found, fixed_velocity(rounded), atol=1e-6, rtol=1e-5)
    assert 1e-4 < (found - before).norm() / before.norm() < 0.1
