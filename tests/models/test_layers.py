"""The DiTs' shared layers against torch's own and finite differences."""

import pytest
import torch
from torch.nn import functional

from pusa.models import gelu
from pusa.models.layers import FeedForward, _RMSNorm, add_gated, rms_norm, rotate


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_torchs(dtype, weighted):
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(2, 5, 3, 16, generator=generator)).to(dtype)
    weight = torch.rand(16, generator=generator).to(dtype) if weighted else None
    expected = functional.rms_norm(
        x.float(), (16,), weight if weight is None else weight.float(), 1e-6
    )
    found = rms_norm(x, weight, 1e-6)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weighted", [True, False])
def test_gradients_of_rms_norm_agree_with_finite_differences(weighted):
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(8, dtype=torch.float64, requires_grad=True) if weighted else None
    assert torch.autograd.gradcheck(lambda a, b: _RMSNorm.apply(a, b, 1e-3), (x, weight))


def test_rms_norm_of_zeros_is_zero_with_finite_gradients():
    x = torch.zeros(2, 8, requires_grad=True)
    rms_norm(x, None, 1e-6).sum().backward()
    assert x.grad is not None
    assert torch.equal(rms_norm(x, None, 1e-6), torch.zeros(2, 8))
    assert x.grad.isfinite().all()


def test_rope_turns_each_pair_by_its_angle():
    x = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0))
    angle = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    turned = rotate(x.bfloat16(), torch.stack([angle.cos(), angle.sin()], -1))
    assert turned.dtype == torch.float32
    cos, sin = angle[4, 2].cos(), angle[4, 2].sin()
    even, odd = x.bfloat16().float()[1, 4, 0, 4:6]
    expected = torch.stack([even * cos - odd * sin, even * sin + odd * cos])
    torch.testing.assert_close(turned[1, 4, 0, 4:6], expected, atol=1e-6, rtol=0)


def test_a_gate_reaches_its_own_frame_and_the_sum_stays_float32():
    x, branch = torch.ones(1, 2, 3, 4), torch.full((1, 2, 3, 4), 2.0).bfloat16()
    out = add_gated(x, branch, torch.tensor([0.0, 0.5])[None, :, None].expand(1, 2, 4))
    assert out.dtype == torch.float32
    assert torch.equal(out, torch.tensor([1.0, 2.0])[None, :, None, None].expand(1, 2, 3, 4))


def test_rms_norm_of_bfloat16_keeps_it_as_it_came():
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        out = rms_norm(x, torch.ones(8), 1e-6)
    assert out.dtype == torch.float32
    assert torch.bfloat16 in kept
    (found,) = torch.autograd.grad(out.square().sum(), x)
    wide = x.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(
        functional.rms_norm(wide, (8,), eps=1e-6).square().sum(), wide
    )
    torch.testing.assert_close(found.float(), expected, atol=1e-2, rtol=1e-2)


def feed_forward(frozen: bool) -> tuple[FeedForward, torch.nn.Sequential]:
    torch.manual_seed(0)
    ours = FeedForward(6, 12).double()
    plain = torch.nn.Sequential(*ours)
    return ours.requires_grad_(not frozen), plain


@pytest.mark.parametrize("frozen", [False, True])
def test_feed_forward_is_linear_gelu_linear(frozen, monkeypatch):
    monkeypatch.setattr(gelu, "ROWS", 3)  # what is recomputed comes in several parts
    ours, plain = feed_forward(frozen)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    wanted = [x, *(p for p in ours.parameters() if p.requires_grad)]
    found = [torch.autograd.grad(f(x).square().sum(), wanted) for f in (ours, plain)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x))


def test_feed_forward_keeps_the_input_of_the_gelu_alone():
    ours, plain = feed_forward(frozen=False)
    x = torch.randn(5, 6, dtype=torch.float64)

    def wide(call) -> int:
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.__setitem__(t.data_ptr(), t.shape) or t, lambda t: t
        ):
            call(x)
        return sum(shape == (5, 12) for shape in kept.values())

    assert wide(ours) == 1
    assert wide(plain) == 2
