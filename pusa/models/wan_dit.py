"""The Wan diffusion transformer with one timestep per latent frame.

`state_dict` keys are the official checkpoint's. The modulation is kept per frame (B, F, 6, D) and
broadcast over tokens. Knows no checkpoint, no task, no LoRA.
"""

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from pusa.models.attention import check_attention, many_in_few
from pusa.models.base import BlockGuard, BlockRunner, PreparedText
from pusa.models.checkpointing import Checkpointing
from pusa.models.layers import check_latents, check_text, rope_table, sinusoid
from pusa.models.precision import working_dtype
from pusa.models.wan_blocks import IMAGE_DIM, PATCH, Attended, Block, Head, ImageEmbedding
from pusa.types import Text

FREQ_DIM = 256
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
        compile: bool = False,
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
        self.block_guard: BlockGuard = nullcontext
        self.head = Head(dim, out_channels, eps)
        self.img_emb = ImageEmbedding(dim) if image_branch else None
        self.reset_parameters()
        self.compiled = False
        if compile:
            self.compile_blocks()

    def compile_blocks(self, **options: Any) -> None:
        """Let torch.compile make one graph of a block that all blocks share, at their first call
        (and once more for other sizes). Names of weights stay; LoRAs may come later.

        options: of torch.compile. ValueError with checkpointing=selective, which looks into blocks.
        """
        if self.checkpointing.attention:
            raise ValueError(
                "compile=true hides a block's attention from checkpointing=selective; use blocks."
            )
        self.compiled = True
        for block in self.blocks:
            block.compile(**options)

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
            with self.block_guard(i):
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
            context, image, bias = self._tokens(text, image, batch)
            if self.compiled and bias is not None:  # captions differ in length from step to step
                for tensor in (context, bias):
                    torch._dynamo.maybe_mark_dynamic(tensor, 1)
            return [(context, image, bias)] * len(self.blocks)
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
