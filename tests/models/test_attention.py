"""Keys that stand for many, masks, and which kernel is chosen."""

import math
import sys
import types

import pytest
import torch

from pusa.models import attention as module
from pusa.models.attention import (
    attention,
    attention_within,
    check_attention,
    choose,
    many_in_few,
    masked_attention,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [4, 5, 36, 472, 505, 512])
def test_few_keys_weigh_what_the_many_do(count, dtype):
    biases = many_in_few(count, 3, dtype)
    assert biases.dtype == dtype
    assert float(biases.double().exp().sum()) == pytest.approx(count, rel=2e-6)


def test_bfloat16_alone_would_be_wrong_by_a_percent():
    one = many_in_few(472, 1, torch.bfloat16)
    assert abs(math.exp(float(one)) / 472 - 1) > 5e-4


def test_attention_to_few_keys_is_attention_to_the_many():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 2, 8, generator=generator) for n in (6, 5, 5))
    pad_k, pad_v = (torch.randn(1, 1, 2, 8, generator=generator) for _ in range(2))

    def joined(x, pad, count):
        return torch.cat([x, pad.expand(2, count, -1, -1)], dim=1)

    many = attention(q, joined(k, pad_k, 100), joined(v, pad_v, 100))
    bias = torch.cat([torch.zeros(5), many_in_few(100, 3, torch.float32)])[None]
    few = masked_attention(q, joined(k, pad_k, 3), joined(v, pad_v, 3), bias)
    torch.testing.assert_close(few, many, atol=1e-5, rtol=0)


def test_a_bool_mask_leaves_keys_out():
    q, k, v = torch.randn(3, 1, 4, 2, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    mask = torch.tensor([[True, True, False, True]])
    expected = attention(q, k[:, mask[0]], v[:, mask[0]])
    torch.testing.assert_close(masked_attention(q, k, v, mask), expected, atol=1e-6, rtol=0)


def test_padding_is_left_out_without_a_mask(monkeypatch):
    q, k, v = torch.randn(3, 3, 6, 2, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    q.requires_grad_()
    lengths, called = (6, 4, 1), []

    def kernel(*parts):
        called.append([len(part[0]) for part in parts])
        return module._sdpa(*parts)

    fake = types.ModuleType("flash_attn")
    fake.flash_attn_func = kernel
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    monkeypatch.setattr(module, "_chosen", lambda backend, *_: backend)
    out = attention_within(q, k, v, lengths, "flash_2")
    assert called == [[n, n, n] for n in lengths]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    expected = masked_attention(q, k, v, mask) * mask[..., None, None]
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    weights = torch.randn_like(out)
    (ours,) = torch.autograd.grad((out * weights).sum(), q)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), q)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.fixture
def gpu(monkeypatch):
    """As if there were a GPU of the given capability, with these packages."""

    def have(capability, *packages):
        monkeypatch.setattr(module, "_capability", lambda _: capability)
        monkeypatch.setattr(module, "_installed", lambda package: package in packages)
        choose.cache_clear()

    yield have
    choose.cache_clear()


@pytest.mark.parametrize(
    ("capability", "packages", "expected"),
    [
        ((9, 0), ("flash_attn_interface", "flash_attn", "sageattention"), "flash_3"),
        ((8, 9), ("flash_attn_interface", "flash_attn", "sageattention"), "flash_2"),
        ((7, 5), ("flash_attn",), "sdpa"),
        ((9, 0), ("sageattention",), "sdpa"),  # not exact: never chosen unasked
    ],
)
def test_auto_takes_the_fastest_exact_kernel_there_is(gpu, caplog, capability, packages, expected):
    caplog.set_level("INFO")
    gpu(capability, *packages)
    assert choose("auto", CUDA, torch.bfloat16) == expected
    assert caplog.messages == [f"attention on cuda:0 in bfloat16: {expected}"]
    assert choose("auto", CUDA, torch.float32) == "sdpa"
    assert choose("auto", CPU, torch.bfloat16) == "sdpa"


@pytest.mark.parametrize(
    ("backend", "device", "dtype", "words"),
    [
        ("flash_2", CPU, torch.bfloat16, "the tensors are on cpu"),
        ("flash_2", CUDA, torch.float32, "the tensors are float32"),
        ("flash_3", CUDA, torch.bfloat16, "capability 9.0, the GPU has 8.0"),
        ("sage", CUDA, torch.bfloat16, "package sageattention"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(gpu, backend, device, dtype, words):
    gpu((8, 0), "flash_attn", "flash_attn_interface")
    with pytest.raises(ValueError, match=words):
        choose(backend, device, dtype)


def test_names_are_checked_where_a_model_is_built():
    check_attention("sdpa")
    check_attention("auto")
    with pytest.raises(ValueError, match="attention='fast' is unknown; use one of sdpa, auto"):
        check_attention("fast")
    with pytest.raises(ValueError, match="needs the package sageattention, which is not installed"):
        check_attention("sage")


def test_other_kernels_get_what_they_expect_and_train_only_where_they_can(monkeypatch):
    called = []

    def kernel(q, k, v, **options):
        called.append((q.shape, q.dtype, options))
        return q

    for package, name in (("flash_attn", "flash_attn_func"), ("sageattention", "sageattn")):
        fake = types.ModuleType(package)
        setattr(fake, name, kernel)
        monkeypatch.setitem(sys.modules, package, fake)
    monkeypatch.setattr(module, "_chosen", lambda backend, *_: backend)
    q, v = torch.randn(1, 4, 2, 8, requires_grad=True), torch.randn(1, 4, 2, 8).bfloat16()
    attention(q, q, v, "flash_2")
    with torch.no_grad():
        attention(q, q, v, "sage")
    shape = torch.Size([1, 4, 2, 8])
    assert called == [
        (shape, torch.bfloat16, {}),
        (shape, torch.bfloat16, {"tensor_layout": "NHD"}),
    ]
    with pytest.raises(ValueError, match="'sage' has no gradients"):
        attention(q, q, v, "sage")
