"""Attention: which kernel computes it, keys that are left out, and keys that stand for many."""

import importlib.util
import logging
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

log = logging.getLogger(__name__)
# (q, k, v), each (B, N, heads, head_dim) of one dtype -> as q
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
HALF = (torch.float16, torch.bfloat16)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _flash_2(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return importlib.import_module("flash_attn").flash_attn_func(q, k, v)


def _flash_3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = importlib.import_module("flash_attn_interface").flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out  # early releases also gave the softmax's sums


def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return importlib.import_module("sageattention").sageattn(q, k, v, tensor_layout="NHD")


# name -> (kernel, the package it comes from, the least CUDA capability; gradients?)
_KERNELS: dict[str, tuple[Kernel, str, tuple[int, int], bool]] = {
    "flash_3": (_flash_3, "flash_attn_interface", (9, 0), True),
    "flash_2": (_flash_2, "flash_attn", (8, 0), True),
    "sage": (_sage, "sageattention", (8, 0), False),
}
ATTENTION = ("sdpa", "auto", *_KERNELS)


def check_attention(backend: str) -> None:
    """ValueError for a backend that is unknown, or whose package is not installed."""
    if backend not in ATTENTION:
        raise ValueError(f"attention={backend!r} is unknown; use one of {', '.join(ATTENTION)}.")
    if backend in _KERNELS and not _installed(package := _KERNELS[backend][1]):
        raise ValueError(
            f"attention={backend!r} needs the package {package}, which is not installed; install "
            "it, or use attention=sdpa, or auto, which takes what is there."
        )


@lru_cache
def choose(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """What `backend` means for tensors of a device and dtype: itself, or for "auto" the fastest
    that is exact (flash 3, flash 2, torch's own), which is logged once. ValueError, with the
    reason, where it cannot run."""
    if backend == "sdpa":
        return backend
    if backend == "auto":
        exact = (name for name, entry in _KERNELS.items() if entry[-1])
        found = next((name for name in exact if _obstacle(name, device, dtype) is None), "sdpa")
        log.info("attention on %s in %s: %s", device, str(dtype)[6:], found)
        return found
    if (obstacle := _obstacle(backend, device, dtype)) is not None:
        raise ValueError(f"attention={backend!r} {obstacle}; use attention=sdpa, or auto.")
    return backend


@torch.compiler.assume_constant_result  # a compiler need not look into it
def _chosen(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    return choose(backend, device, dtype)


def _obstacle(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    _, package, least, _ = _KERNELS[backend]
    if device.type != "cuda":
        return f"runs on CUDA, the tensors are on {device.type}"
    if dtype not in HALF:
        return f"computes in float16 or bfloat16, the tensors are {str(dtype)[6:]}"
    if not _installed(package):
        return f"needs the package {package}"
    if (found := _capability(device.index or 0)) < least:
        return f"needs compute capability {least[0]}.{least[1]}, the GPU has {found[0]}.{found[1]}"
    return None


@lru_cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@lru_cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str = "sdpa") -> Tensor:
    """Full attention of (B, N, heads, head_dim) queries over keys and values; same shape as q.

    q and k are cast to v's dtype. backend: of ATTENTION. ValueError where it cannot run, and for
    gradients of "sage", which has none.
    """
    q, k = q.to(v.dtype), k.to(v.dtype)
    if (name := _chosen(backend, v.device, v.dtype)) == "sdpa":
        return _sdpa(q, k, v)
    kernel, _, _, has_gradients = _KERNELS[name]
    if not has_gradients and torch.is_grad_enabled() and q.requires_grad:
        raise ValueError(
            f"attention={name!r} has no gradients; train with attention=sdpa, or auto."
        )
    return kernel(q, k, v)


def attention_within(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int] | None, backend: str = "sdpa"
) -> Tensor:
    """`attention` of every sample's first tokens to one another, so many as `lengths` (B) says; of
    those behind, which are padding, zeros come out. None: no sample has any.

    Sample by sample, so that the kernels without masks can do it, which are the fastest.
    """
    if lengths is None:
        return attention(q, k, v, backend)
    out = v.new_zeros(q.shape)
    for i, length in enumerate(lengths):
        own = slice(i, i + 1), slice(length)
        out[own] = attention(q[own], k[own], v[own], backend)
    return out


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: str = "sdpa"
) -> Tensor:
    """`attention` with a mask over the keys: bool (B, num_keys), keys where it is False left out,
    or numbers, added to the logits; None keeps them all as they are.

    A mask always takes torch's own kernel, so that no backend has to support one: it is for few
    keys, those of a caption. Every sample needs a key that is kept, else its rows are NaN.
    """
    if mask is None:
        return attention(q, k, v, backend)
    q, k, v = (part.to(v.dtype).transpose(1, 2) for part in (q, k, v))
    mask = mask if mask.dtype == torch.bool else mask.to(v.dtype)
    return functional.scaled_dot_product_attention(q, k, v, mask[:, None, None]).transpose(1, 2)


def many_in_few(count: int, keys: int, dtype: torch.dtype) -> Tensor:
    """Biases (keys,) by which so many equal keys stand for `count` of them: their e^b sum up to the
    count, to 1e-6 of it with three keys, though each is a number of the dtype.

    Softmax gives equal keys equal weights: m of them are one whose logit is log(m) higher. bfloat16
    has log(m) to 1%, so that the rest of it is left to the next key, and so on.
    """
    biases, rest = torch.empty(keys, dtype=dtype), float(count)
    for i in range(keys):
        bias = torch.tensor(math.log(max(rest, 1e-12)), dtype=torch.float64).to(dtype)
        if float(bias.double().exp()) > rest:  # never more than there is
            bias = torch.nextafter(bias, torch.tensor(-math.inf, dtype=dtype))
        biases[i] = bias
        rest -= math.exp(float(bias))
    return biases
