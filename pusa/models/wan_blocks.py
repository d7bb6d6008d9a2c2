"""The parts of a Wan diffusion transformer: attention, block, head, image embedding.

The modulation is kept per frame (B, F, 6, D) and broadcast over tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pusa.models.attention import masked_attention
from pusa.models.layers import (
    FeedForward,
    RMSNorm,
    add_gated,
    modulate,
    plain_layer_norm,
    project,
    rotate,
)

PATCH = (1, 2, 2)
IMAGE_DIM = 1280  # width of the CLIP tokens of Wan2.1 I2V


class Attention(nn.Module):
    """Multi-head attention whose queries and keys are RMS-normalized over all heads together."""

    def __init__(self, dim: int, num_heads: int, eps: float, backend: str):
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, eps), RMSNorm(dim, eps)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return masked_attention(q, k, v, bias, self.backend).flatten(-2)


class SelfAttention(Attention):
    """Attention over all tokens of all frames, with rope."""

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """x: (B, N, D)."""
        if torch.is_grad_enabled():
            q, k, v = project(x, self.q, self.k, self.v)
            q, k = self._turned(self.norm_q(q), rope, v), self._turned(self.norm_k(k), rope, v)
        else:  # one after the other, for less memory
            v = self.v(x)
            q = self._turned(self.norm_q(self.q(x)), rope, v)
            k = self._turned(self.norm_k(self.k(x)), rope, v)
        return self.o(self.attend(q, k, self.heads(v)))

    def _turned(self, x: Tensor, rope: Tensor, like: Tensor) -> Tensor:
        return rotate(self.heads(x), rope).to(like.dtype)


@dataclass(frozen=True)
class Attended:
    """What a block's cross-attention looks at, whatever its queries: keys, normed, and values, each
    (B, K, heads, head_dim), of the text and, with an image branch, of the image."""

    text: tuple[Tensor, Tensor]
    image: tuple[Tensor, Tensor] | None

    @property
    def dtype(self) -> torch.dtype:
        return self.text[1].dtype


class CrossAttention(Attention):
    """Attention over the text (and, with an image branch, separately over image tokens)."""

    def __init__(self, dim: int, num_heads: int, eps: float, backend: str, image_branch: bool):
        super().__init__(dim, num_heads, eps, backend)
        if image_branch:
            self.k_img, self.v_img = nn.Linear(dim, dim), nn.Linear(dim, dim)
            self.norm_k_img = RMSNorm(dim, eps)

    def attended(self, context: Tensor, image: Tensor | None) -> Attended:
        """context: (B, K, D); image: (B, 257, D) or None."""
        k, v = project(context, self.k, self.v)
        text = self.heads(self.norm_k(k)).to(v.dtype), self.heads(v)
        if image is None:
            return Attended(text, None)
        k, v = self.heads(self.norm_k_img(self.k_img(image))), self.heads(self.v_img(image))
        return Attended(text, (k.to(v.dtype), v))

    def forward(
        self, x: Tensor, context: Tensor | Attended, image: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """x: (B, N, D); context and image as in `attended`, or what that made of both, and None;
        bias: (1, K) of the text's keys, or None for equal ones."""
        q = self.heads(self.norm_q(self.q(x)))
        seen = context if isinstance(context, Attended) else self.attended(context, image)
        out = self.attend(q, *seen.text, bias)
        if seen.image is not None:
            out = out + self.attend(q, *seen.image)
        return self.o(out)


class Block(nn.Module):
    """Self-attention and feed-forward, both modulated per frame, around a plain cross-attention."""

    def __init__(self, dim, ffn_dim, num_heads, eps, backend, image_branch):
        super().__init__()
        self.eps = eps
        self.self_attn = SelfAttention(dim, num_heads, eps, backend)
        self.norm3 = nn.LayerNorm(dim, eps)
        self.cross_attn = CrossAttention(dim, num_heads, eps, backend, image_branch)
        self.ffn = FeedForward(dim, ffn_dim)
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rope: Tensor,
        context: Tensor | Attended,
        image: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """x: (B, F, S, D) residual stream; modulation: (B, F, 6, D) float32."""
        frames, dtype = x.shape[1], context.dtype
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.modulation + modulation).unbind(
            2
        )
        hidden = modulate(plain_layer_norm(x, self.eps), shift, scale).to(dtype)
        hidden = self.self_attn(hidden.flatten(1, 2), rope).unflatten(1, (frames, -1))
        x = add_gated(x, hidden, gate)
        hidden = self._affine_norm(x).to(dtype).flatten(1, 2)
        x = x + self.cross_attn(hidden, context, image, bias).unflatten(1, (frames, -1))
        hidden = modulate(plain_layer_norm(x, self.eps), ffn_shift, ffn_scale).to(dtype)
        return add_gated(x, self.ffn(hidden), ffn_gate)

    def _affine_norm(self, x: Tensor) -> Tensor:
        norm = self.norm3
        return functional.layer_norm(
            x.float(), x.shape[-1:], norm.weight.float(), norm.bias.float(), norm.eps
        )


class Head(nn.Module):
    """The modulated output projection."""

    def __init__(self, dim: int, out_channels: int, eps: float):
        super().__init__()
        self.eps = eps
        self.head = nn.Linear(dim, out_channels * PATCH[0] * PATCH[1] * PATCH[2])
        self.modulation = nn.Parameter(torch.empty(1, 2, dim))

    def forward(self, x: Tensor, time: Tensor, dtype: torch.dtype) -> Tensor:
        """x: (B, F, S, D); time: (B, F, D) float32 -> (B, F, S, 4*C)."""
        shift, scale = (self.modulation + time[:, :, None]).unbind(2)
        return self.head(modulate(plain_layer_norm(x, self.eps), shift, scale).to(dtype))


class ImageEmbedding(nn.Module):
    """CLIP tokens (B, 257, 1280) -> context tokens (B, 257, D), as Wan2.1 I2V has it."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(IMAGE_DIM), nn.Linear(IMAGE_DIM, IMAGE_DIM), nn.GELU(),
            nn.Linear(IMAGE_DIM, dim), nn.LayerNorm(dim),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image)
