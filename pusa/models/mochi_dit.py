"""The Mochi diffusion transformer (AsymmDiT) with one timestep per latent frame.

`state_dict` keys are the official checkpoint's. The modulation is kept per frame (B, F, D) and
broadcast over tokens. Knows no checkpoint, no task, no LoRA.
"""

import math
import weakref
from contextlib import nullcontext
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from pusa.models.attention import attention_within, check_attention, masked_attention
from pusa.models.base import BlockGuard, BlockRunner, PreparedText
from pusa.models.checkpointing import Checkpointing
from pusa.models.layers import (
    RMSNorm,
    add_gated,
    check_latents,
    check_text,
    modulate,
    plain_layer_norm,
    rms_norm,
    rotate,
    sinusoid,
)
from pusa.models.precision import working_dtype
from pusa.types import Text

PATCH = 2
FREQ_DIM = 256
POOL_HEADS = 8
EPS, QK_EPS = 1e-6, 1e-5
REFERENCE_SIDE = 192  # rows and columns are spread over an area of 192 x 192, whatever their number
# Of each sample the number of tokens, of pixels and text, that are no padding; None: all are none.
Lengths = tuple[int, ...] | None


def modulation(linear: nn.Linear, conditioning: Tensor) -> Tensor:
    """SiLU and projection of the conditioning (B, F, D), in the weights' dtype; float32 out."""
    with torch.autocast(conditioning.device.type, enabled=False):
        return linear(functional.silu(conditioning).to(linear.weight.dtype)).float()


def scaled(x: Tensor, scale: Tensor) -> Tensor:
    """Normalized tokens (B, F, S, D) times 1 + their frame's scale (B, F, D), in x's dtype."""
    return (rms_norm(x, None, EPS) * (1 + scale[:, :, None])).to(x.dtype)


def add_normed(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """Residual sum with a branch that is normalized and gated by its frame's tanh(gate)."""
    return add_gated(x, rms_norm(branch, None, EPS), gate.tanh()).to(x.dtype)


@lru_cache(maxsize=16)
def axis_positions(
    grid: tuple[int, int, int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of frames, rows and columns, float32.

    Frames are counted from 0. Rows and columns are bin centres around 0, stretched so that the
    picture has the area of the reference square.
    """
    with torch.inference_mode(False):  # the cached positions serve training, too
        stretch = REFERENCE_SIDE / math.sqrt(grid[1] * grid[2])
        frames, rows, columns = (torch.arange(count, dtype=torch.float64) for count in grid)
        rows = (rows + 0.5 - grid[1] / 2) * stretch
        columns = (columns + 0.5 - grid[2] / 2) * stretch
        return frames.float().to(device), rows.float().to(device), columns.float().to(device)


class PatchEmbedding(nn.Module):
    """Latents (B, C, F, h, w) -> tokens (B, F, S, D)."""

    def __init__(self, in_channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, PATCH, PATCH)

    def forward(self, latents: Tensor) -> Tensor:
        pictures = rearrange(latents.to(self.proj.weight.dtype), "b c f h w -> (b f) c h w")
        tokens = rearrange(self.proj(pictures), "(b f) d h w -> b f (h w) d", b=latents.shape[0])
        return tokens.contiguous()  # else every sum of the stream keeps the convolution's order


class TimeEmbedding(nn.Module):
    """sigma (B, F) -> (B, F, D), float32 also under autocast. Mochi's time runs from noise, 0."""

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQ_DIM, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, sigma: Tensor) -> Tensor:
        with torch.autocast(sigma.device.type, enabled=False):
            first = next(self.mlp.parameters())
            return self.mlp(sinusoid(1000 * (1 - sigma), FREQ_DIM).to(first.dtype)).float()


class TextPooling(nn.Module):
    """A caption as one vector: its mean token attends to itself and to the caption's tokens."""

    def __init__(self, text_dim: int, dim: int):
        super().__init__()
        self.to_kv = nn.Linear(text_dim, 2 * text_dim)
        self.to_q = nn.Linear(text_dim, text_dim)
        self.to_out = nn.Linear(text_dim, dim)

    def forward(self, embedding: Tensor, mask: Tensor) -> Tensor:
        """embedding: (B, L, text_dim), zero where mask (B, L) is False -> (B, 1, D).

        An empty caption has a mean token of zeros and attends to nothing else.
        """
        count = mask.sum(1).clamp(min=1)[:, None, None]
        mean = (embedding.float().sum(1, keepdim=True) / count).to(embedding.dtype)
        q = self.to_q(mean).unflatten(-1, (POOL_HEADS, -1))
        tokens = self.to_kv(torch.cat([mean, embedding], dim=1))
        k, v = tokens.unflatten(-1, (2, POOL_HEADS, -1)).unbind(2)
        kept = functional.pad(mask, (1, 0), value=True)
        return self.to_out(masked_attention(q, k, v, kept).flatten(-2))


class JointAttention(nn.Module):
    """Attention over visual and text tokens together; each stream has its own projections."""

    def __init__(
        self, dim: int, text_stream_dim: int, num_heads: int, backend: str, update_text: bool
    ):
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
        self.qkv_x = nn.Linear(dim, 3 * dim, bias=False)
        self.qkv_y = nn.Linear(text_stream_dim, 3 * dim, bias=False)
        head_dim = dim // num_heads
        self.q_norm_x, self.k_norm_x = RMSNorm(head_dim, QK_EPS), RMSNorm(head_dim, QK_EPS)
        self.q_norm_y, self.k_norm_y = RMSNorm(head_dim, QK_EPS), RMSNorm(head_dim, QK_EPS)
        self.proj_x = nn.Linear(dim, dim)
        self.proj_y = nn.Linear(dim, text_stream_dim) if update_text else None

    def forward(
        self, x: Tensor, y: Tensor, rope: Tensor, lengths: Lengths
    ) -> tuple[Tensor, Tensor | None]:
        """x: (B, N, D); y: (B, L, D_text)."""
        q_x, k_x, v_x = self.qkv_x(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        q_y, k_y, v_y = self.qkv_y(y).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        # The last block's text queries are asked, too: unused weights would stop data parallelism.
        q = torch.cat([self._rotate(self.q_norm_x(q_x), rope), self.q_norm_y(q_y)], dim=1)
        k = torch.cat([self._rotate(self.k_norm_x(k_x), rope), self.k_norm_y(k_y)], dim=1)
        v = torch.cat([v_x, v_y], dim=1)
        out = attention_within(q, k, v, lengths, self.backend).flatten(-2)
        out_x, out_y = out.split([x.shape[1], y.shape[1]], dim=1)
        return self.proj_x(out_x), self.proj_y(out_y) if self.proj_y is not None else None

    def _rotate(self, x: Tensor, rope: Tensor) -> Tensor:
        """Every head has angles of its own: for rope, the heads of a token are tokens."""
        return rotate(x.flatten(1, 2)[:, :, None], rope).view_as(x)


class SwiGLU(nn.Module):
    """Feed-forward w2(silu(a) * g) with a, g = w1(x), without biases.

    The official width is 8/3 of dim rounded up to 256; it is not rounded here, so that small models
    stay small. Mochi-1's own dims divide (tests/models/test_mochi_dit.py counts parameters).
    """

    def __init__(self, dim: int):
        super().__init__()
        hidden = 8 * dim // 3
        self.w1 = nn.Linear(dim, 2 * hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated, linear = self.w1(x).chunk(2, dim=-1)
        return self.w2(functional.silu(activated) * linear)


class Block(nn.Module):
    """Joint attention and feed-forward, each between two norms: scaled before, gated after.

    The last block of a model has update_text=False: its text tokens are only looked at.
    """

    def __init__(
        self, dim: int, text_stream_dim: int, num_heads: int, backend: str, update_text: bool
    ):
        super().__init__()
        self.mod_x = nn.Linear(dim, 4 * dim)
        self.mod_y = nn.Linear(dim, (4 if update_text else 1) * text_stream_dim)
        self.attn = JointAttention(dim, text_stream_dim, num_heads, backend, update_text)
        self.mlp_x = SwiGLU(dim)
        self.mlp_y = SwiGLU(text_stream_dim) if update_text else None

    def forward(
        self, x: Tensor, y: Tensor, conditioning: Tensor, rope: Tensor, lengths: Lengths
    ) -> tuple[Tensor, Tensor]:
        """x: (B, F, S, D); y: (B, 1, L, D_text); conditioning: (B, F, D) float32.

        The text belongs to no frame: the mean of the frames' conditioning modulates it.
        """
        scale, gate, mlp_scale, mlp_gate = modulation(self.mod_x, conditioning).chunk(4, dim=-1)
        mean = conditioning.mean(1, keepdim=True)
        text_scale, *text = modulation(self.mod_y, mean).split(y.shape[-1], dim=-1)
        visual_branch, text_branch = self.attn(
            scaled(x, scale).flatten(1, 2), scaled(y, text_scale)[:, 0], rope, lengths
        )
        x = add_normed(x, visual_branch.view_as(x), gate)
        x = add_normed(x, self.mlp_x(scaled(x, mlp_scale)), mlp_gate)
        if self.mlp_y is not None:
            text_gate, text_mlp_scale, text_mlp_gate = text
            y = add_normed(y, text_branch[:, None], text_gate)
            y = add_normed(y, self.mlp_y(scaled(y, text_mlp_scale)), text_mlp_gate)
        return x, y


class FinalLayer(nn.Module):
    """The modulated output projection."""

    def __init__(self, dim: int, out_channels: int):
        super().__init__()
        self.mod = nn.Linear(dim, 2 * dim)
        self.linear = nn.Linear(dim, PATCH * PATCH * out_channels)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """x: (B, F, S, D); conditioning: (B, F, D) float32 -> (B, F, S, 4*C)."""
        shift, scale = modulation(self.mod, conditioning).chunk(2, dim=-1)
        return self.linear(modulate(plain_layer_norm(x, EPS), shift, scale).to(x.dtype))


class MochiDiT(nn.Module):
    """Mochi-1's DiT, exact to the official weights, with a sigma per latent frame.

    The time path (sinusoid, time MLP, last modulation), norms and rope angles are float32, also
    under bf16 autocast or bf16 weights; the residual streams have the weights' (or autocast's)
    dtype, as in the official code. The width of the text stream is text_stream_dim.
    """

    # Cast to a lower precision, these would lose what the time path and the angles are.
    # Not the blocks' own modulation, 2.7 B parameters: it is bf16 in the official code, too.
    keep_float32 = ("t_embedder", "final_layer.mod", "norm", "pos_frequencies")
    keep_dense = (".mod_",)  # but not kept in 8 bits (stored.py): it is how the time enters

    def __init__(
        self,
        dim: int,
        text_stream_dim: int,
        num_heads: int,
        num_layers: int,
        in_channels: int = 12,
        text_dim: int = 4096,
        text_tokens: int = 256,
        attention: str = "sdpa",
        checkpointing: str = "none",
    ):
        super().__init__()
        if dim % num_heads or (dim // num_heads) % 2:
            raise ValueError(f"dim={dim} over num_heads={num_heads} needs an even head.")
        if text_dim % POOL_HEADS:
            raise ValueError(f"text_dim={text_dim} is no multiple of {POOL_HEADS} (pooling heads).")
        check_attention(attention)
        self.dim, self.num_heads = dim, num_heads
        self.in_channels = self.out_channels = in_channels
        self.text_dim, self.text_len = text_dim, text_tokens
        self.checkpointing = Checkpointing.named(checkpointing)
        self.x_embedder = PatchEmbedding(in_channels, dim)
        self.t_embedder = TimeEmbedding(dim)
        self.t5_y_embedder = TextPooling(text_dim, dim)
        self.t5_yproj = nn.Linear(text_dim, text_stream_dim)
        self.pos_frequencies = nn.Parameter(torch.empty(3, num_heads, dim // num_heads // 2))
        self.blocks = nn.ModuleList(
            Block(dim, text_stream_dim, num_heads, attention, update_text=i < num_layers - 1)
            for i in range(num_layers)
        )
        self.block_runner: BlockRunner | None = None  # None: all in turn
        self.block_guard: BlockGuard = nullcontext
        self.final_layer = FinalLayer(dim, self.out_channels)
        self.reset_parameters()

    def prepare_text(self, text: Text) -> PreparedText:
        """The caption's pooled vector and its tokens as they enter the text stream, for many calls.

        In the blocks the text depends on the picture, so that nothing more can be kept; it takes
        1.6 MB a caption of Mochi-1 in float32. ValueError for any shape that does not fit.
        """
        check_text(text, None, self.text_dim, self.text_len)
        embedding, mask, uneven = self._trimmed(text)
        pooled = self.t5_y_embedder(embedding, mask).float()
        tokens = self.t5_yproj(embedding)[:, None]
        return PreparedText(weakref.ref(self), len(mask), tokens.dtype, (pooled, tokens, uneven))

    def forward(self, latents: Tensor, sigma: Tensor, text: Text | PreparedText) -> Tensor:
        """Velocity, noise - clean, of noisy latents.

        latents: (B, C, F, h, w), h and w even; sigma: (B,) or (B, F) in [0, 1], 1 = noise;
        text: embedding (B, L <= text_len, text_dim), of which only tokens in the mask count, or
        what `prepare_text` made of it; an empty mask is an empty caption. Returns (B, C, F, h, w)
        in the latents' dtype. ValueError for any shape that does not fit.
        """
        check_latents(latents, sigma, self.in_channels)
        batch, _, frames, height, width = latents.shape
        sigma = sigma.float()
        if sigma.ndim == 1:
            sigma = sigma[:, None].expand(batch, frames)
        pooled, y, uneven = self._prepared(text, batch).parts
        conditioning = self.t_embedder(sigma) + pooled
        grid = (frames, height // PATCH, width // PATCH)
        rope = self._rope(grid)
        lengths = None if uneven is None else tuple(math.prod(grid) + length for length in uneven)
        # The first stream has no name here: it would be kept as long as the blocks run.
        x, _ = self._run_blocks(self.x_embedder(latents), y, conditioning, rope, lengths)
        clean_minus_noise = rearrange(
            self.final_layer(x, conditioning), "b f (h w) (p q c) -> b c f (h p) (w q)",
            h=grid[1], w=grid[2], p=PATCH, q=PATCH,
        )  # fmt: skip
        return -clean_minus_noise.to(latents.dtype)

    def _run_blocks(
        self, x: Tensor, y: Tensor, conditioning: Tensor, rope: Tensor, lengths: Lengths,
        span: slice | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """x, y through the blocks, or those of a span; arguments as of `Block.forward`."""
        if span is None and self.block_runner is not None:

            def run(x: Tensor, start: int, end: int | None) -> Tensor:
                nonlocal y
                x, y = self._run_blocks(x, y, conditioning, rope, lengths, slice(start, end))
                return x

            return self.block_runner(run, x), y
        for i in range(len(self.blocks))[span or slice(None)]:
            with self.block_guard(i):
                x, y = self.checkpointing.run(self.blocks[i], i, x, y, conditioning, rope, lengths)
        return x, y

    def _prepared(self, text: Text | PreparedText, batch: int) -> PreparedText:
        if not isinstance(text, PreparedText):
            check_text(text, batch, self.text_dim, self.text_len)
            return self.prepare_text(text)
        text.check(self, batch, working_dtype(self.t5_yproj.weight))
        return text

    def _trimmed(self, text: Text) -> tuple[Tensor, Tensor, list[int] | None]:
        """Embedding and mask of every caption's tokens without what its mask leaves out: as long as
        the longest, zeros where a caption is shorter. And their numbers, unless all are equal."""
        embedding, mask, uneven = text.embedding, text.mask, None
        if not bool(mask.all()):
            lengths = mask.sum(1).tolist()
            uneven = lengths if min(lengths) < max(lengths) else None
            order = mask.int().argsort(dim=1, descending=True, stable=True)[:, : max(lengths)]
            embedding = embedding.masked_fill(~mask[..., None], 0.0)
            embedding, mask = embedding.take_along_dim(order[..., None], 1), mask.gather(1, order)
        return embedding.to(self.t5_yproj.weight.dtype), mask, uneven

    def _rope(self, grid: tuple[int, int, int]) -> Tensor:
        """cos and sin (N * heads, head_dim/2, 2), tokens in (f, h, w) order, heads fastest.

        The angle of a pair is the sum over the axes of position times learned frequency.
        """
        frequencies = self.pos_frequencies.float()
        positions = axis_positions(grid, frequencies.device)
        frames, rows, columns = (
            position[:, None, None] * frequency
            for position, frequency in zip(positions, frequencies, strict=True)
        )
        angle = (frames[:, None, None] + rows[:, None] + columns).flatten(0, 3)
        return torch.stack([angle.cos(), angle.sin()], dim=-1)

    def reset_parameters(self) -> None:
        """A start for training from scratch; nothing happens on meta.

        The vendor gives none. Modulation and output start at zero, as in DiT (adaLN-Zero). The
        pairs of a head are dealt to the axes in turn, each axis with a ladder of frequencies from 1
        down towards 1/192, one radian over the side of the reference square.
        """
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                continue
            if name == "pos_frequencies":
                nn.init.zeros_(parameter)
                for axis, frequencies in enumerate(parameter.data):
                    pairs = frequencies[:, axis::3]
                    exponent = torch.arange(pairs.shape[1]) / pairs.shape[1]
                    pairs.copy_(torch.pow(float(REFERENCE_SIDE), -exponent))
            elif name.endswith("bias") or ".mod" in name or name == "final_layer.linear.weight":
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            elif name.startswith("t_embedder"):
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.xavier_uniform_(parameter.flatten(1))
