"""The Wan diffusion transformer with one timestep per latent frame.

`state_dict` keys are the official checkpoint's. The modulation is kept per frame (B, F, 6, D) and
broadcast over tokens. Knows no checkpoint, no task, no LoRA.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from pusa.models.attention import check_attention, many_in_few, masked_attention
from pusa.models.base import BlockRunner, PreparedText
from pusa.models.checkpointing import Checkpointing
from pusa.models.layers import (
    FeedForward,
    RMSNorm,
    add_gated,
    check_latents,
    check_text,
    modulate,
    plain_layer_norm,
    project,
    rope_table,
    rotate,
    sinusoid,
    working_dtype,
)
from pusa.types import Text

PATCH = (1, 2, 2)
FREQ_DIM = 256
IMAGE_DIM = 1280  # width of the CLIP tokens of Wan2.1 I2V
IMAGE_TOKENS = 257
PADDING = 3  # rows, at least, that stand for the padding of a caption: see many_in_few


@lru_cache(maxsize=64)
def _key_bias(
    length: int, few: int, count: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(1, length + few): 0 for a caption's keys, and what lets `few` stand for `count`."""
    with torch.inference_mode(False):  # the cached numbers serve training, too
        bias = torch.cat([torch.zeros(length, dtype=dtype), many_in_few(count, few, dtype)])
        return bias[None].to(device)


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


class WanDiT(nn.Module):
    """Wan2.1 and Wan2.2 DiT, exact to the official weights, with a sigma per latent frame.

    The time path (sinusoid, time MLPs, modulation, gates, head modulation) and the residual stream
    are float32, also under bf16 autocast or bf16 weights, as in the official code.
    """

    # Cast to a lower precision, these would lose what the time path is: keep them float32.
    keep_float32 = ("time_embedding", "time_projection", "modulation", "norm")

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        num_layers: int,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        text_len: int = 512,
        image_branch: bool = False,
        eps: float = 1e-6,
        attention: str = "sdpa",
        checkpointing: str = "none",
    ):
        super().__init__()
        if dim % num_heads or (dim // num_heads) % 2 or dim // num_heads < 12:
            raise ValueError(f"dim={dim} over num_heads={num_heads} needs an even head of >= 12.")
        check_attention(attention)
        self.dim, self.num_heads, self.out_channels = dim, num_heads, out_channels
        self.in_channels, self.text_dim, self.text_len = in_channels, text_dim, text_len
        self.checkpointing = Checkpointing.named(checkpointing)
        self.patch_embedding = nn.Conv3d(in_channels, dim, PATCH, PATCH)
        gelu = nn.GELU(approximate="tanh")
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), gelu, nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(
            nn.Linear(FREQ_DIM, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            Block(dim, ffn_dim, num_heads, eps, attention, image_branch) for _ in range(num_layers)
        )
        self.block_runner: BlockRunner | None = None  # None: all in turn
        self.head = Head(dim, out_channels, eps)
        self.img_emb = ImageEmbedding(dim) if image_branch else None
        self.reset_parameters()

    def prepare_text(self, text: Text, image: Tensor | None = None) -> PreparedText:
        """The text embedding and every block's cross-attention keys and values, for many calls.

        text, image: as of `forward`, of which the result stands for both. Keeps num_layers x B x K
        x dim x 2 numbers, for K keys of a caption, its tokens and up to 10: 0.08 GB for 100 tokens
        in bfloat16 and a 14B model (40 x 104 x 5120 x 2), at most 0.42 GB, twice that in float32.
        ValueError for any shape that does not fit.
        """
        context, image, bias = self._tokens(text, image, batch=None)
        parts = [
            (cast(Block, block).cross_attn.attended(context, image), bias) for block in self.blocks
        ]
        return PreparedText(weakref.ref(self), len(context), context.dtype, tuple(parts))

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        text: Text | PreparedText,
        image: Tensor | None = None,
    ) -> Tensor:
        """Velocity, noise - clean, of noisy latents.

        latents: (B, C, F, h, w), h and w even; sigma: (B,) or (B, F) in [0, 1], 1 = noise;
        text: embedding (B, L <= text_len, text_dim), or what `prepare_text` made of it; image: CLIP
        tokens (B, 257, 1280), only with an image branch and a plain text. Returns (B, out_channels,
        F, h, w) in the latents' dtype. ValueError for any shape that does not fit.
        """
        check_latents(latents, sigma, self.in_channels)
        batch, _, frames, height, width = latents.shape
        sigma = sigma.float()
        if sigma.ndim == 1:
            sigma = sigma[:, None].expand(batch, frames)
        time, modulation = self._time(sigma)
        contexts = self._contexts(text, image, batch)
        grid = (frames, height // PATCH[1], width // PATCH[2])
        rope = rope_table(grid, self.dim // self.num_heads, latents.device)
        # The first stream has no name here: it would be kept as long as the blocks run.
        x = self._run_blocks(self._patches(latents), modulation, rope, contexts)
        x = self.head(x, time, contexts[0][0].dtype)
        return rearrange(
            x, "b f (h w) (p q c) -> b c f (h p) (w q)",
            h=grid[1], w=grid[2], p=PATCH[1], q=PATCH[2],
        ).to(latents.dtype)  # fmt: skip

    def _patches(self, latents: Tensor) -> Tensor:
        """(B, C, F, h, w) -> (B, F, S, D)."""
        weight = self.patch_embedding.weight
        x = rearrange(self.patch_embedding(latents.to(weight.dtype)), "b d f h w -> b f (h w) d")
        return x.contiguous()  # else every sum of the stream keeps the convolution's order

    def _run_blocks(
        self,
        x: Tensor,
        modulation: Tensor,
        rope: Tensor,
        contexts: Sequence[tuple],
        span: slice | None = None,
    ) -> Tensor:
        """x (B, F, S, D) through the blocks, or those of a span; the rest as of `Block.forward`."""
        if span is None and self.block_runner is not None:
            shared = modulation, rope, contexts
            return self.block_runner(lambda x, *ends: self._run_blocks(x, *shared, slice(*ends)), x)
        for i in range(len(self.blocks))[span or slice(None)]:
            x = self.checkpointing.run(self.blocks[i], i, x, modulation, rope, *contexts[i])
        return x

    def _time(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """sigma (B, F) -> time (B, F, D) and modulation (B, F, 6, D), float32."""
        with torch.autocast(sigma.device.type, enabled=False):
            first = next(self.time_embedding.parameters())
            embedding = sinusoid(1000 * sigma, FREQ_DIM).to(first.dtype)
            time = self.time_embedding(embedding)
            modulation = self.time_projection(time).unflatten(-1, (6, self.dim))
        return time.float(), modulation.float()

    def _padded(self, text: Text) -> tuple[Tensor, Tensor | None]:
        """Rows of text (B, K, text_dim), and what is added to their logits (1, K), None for zeros.

        Rows past the caption are zeros up to text_len, and they are attended to (sic). All of them
        have the same key and the same value, so that a few stand for the many.
        """
        embedding = text.embedding.masked_fill(~text.mask[..., None], 0.0)
        length = embedding.shape[1]
        few = PADDING + -(length + PADDING) % 8  # attention kernels like multiples of 8
        if length + few >= self.text_len:
            return functional.pad(embedding, (0, 0, 0, self.text_len - length)), None
        kept = functional.pad(embedding, (0, 0, 0, few))
        weight = self.patch_embedding.weight
        return kept, _key_bias(
            length, few, self.text_len - length, working_dtype(weight), weight.device
        )

    def _tokens(
        self, text: Text, image: Tensor | None, batch: int | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What cross-attention looks at: text (B, K, D), image (B, 257, D) or None, and the bias of
        the text's keys (1, K) or None."""
        check_text(text, batch, self.text_dim, self.text_len)
        if (image is None) != (self.img_emb is None):
            need = "needs" if image is None else "takes no"
            raise ValueError(f"this model {need} image tokens (B, {IMAGE_TOKENS}, {IMAGE_DIM}).")
        dtype = self.patch_embedding.weight.dtype
        padded, bias = self._padded(text)
        context = self.text_embedding(padded.to(dtype))
        image = self.img_emb(image.to(dtype)) if image is not None and self.img_emb else None
        return context, image, bias

    def _contexts(
        self, text: Text | PreparedText, image: Tensor | None, batch: int
    ) -> list[tuple[Tensor | Attended, Tensor | None, Tensor | None]]:
        """What each block's cross-attention is given."""
        if not isinstance(text, PreparedText):
            return [self._tokens(text, image, batch)] * len(self.blocks)
        if image is not None:
            raise ValueError("a prepared text has its image tokens; give them to prepare_text.")
        text.check(self, batch, working_dtype(self.patch_embedding.weight))
        return [(part, None, bias) for part, bias in text.parts]

    def reset_parameters(self) -> None:
        """Upstream's initialization for training from scratch; nothing happens on meta."""
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                continue
            if name.endswith("modulation"):
                nn.init.normal_(parameter, std=self.dim**-0.5)
            elif name == "head.head.weight" or name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.startswith(("text_embedding", "time_embedding")):
                nn.init.normal_(parameter, std=0.02)
            elif parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter.flatten(1))
