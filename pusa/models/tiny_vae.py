"""The replica's codec: a small causal autoencoder with the Wan VAE's interface and frame rule.

Frame 0 becomes latent 0 alone, every later group of four frames becomes one latent, and a latent
sees only its own frames and the group before it. A stand-in for use on a laptop: it shares the
interface of the Wan VAE, not its quality, and only the tiny models are trained on its latents.
"""

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from pusa.models.base import latents_of, needed_frames
from pusa.models.tiling import TURN, Scales, Tiling, in_tiles, joined, turns_of
from pusa.types import LatentSpec


class ChannelNorm(nn.Module):
    """RMS norm over channels of (B, C, H, W), as in the Wan VAE."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.gamma


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions on each latent frame, and a look at the frame before."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.conv1 = ChannelNorm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = ChannelNorm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.past = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(
        self, x: Tensor, num_frames: int, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x: (B*F, C, h, w); before, and the second result: what the next frame sees of the last,
        (B, 1, C, h, w), None for a first frame."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        seen = rearrange(
            self.past(functional.silu(hidden)), "(b f) c h w -> b f c h w", f=num_frames
        )
        before = torch.zeros_like(seen[:, :1]) if before is None else before.to(seen.device)
        shifted = torch.cat([before, seen[:, :-1]], dim=1)
        hidden = hidden + rearrange(shifted, "b f c h w -> (b f) c h w")
        return x + self.conv2(functional.silu(self.norm2(hidden))), seen[:, -1:]


class TinyVAE(nn.Module):
    """Causal 4x4x4 autoencoder with 16 channels.

    encode: frames (B, 3, T, H, W) in [-1, 1], T = 4k+1 -> normalized (B, 16, k+1, H/4, W/4);
    decode is its approximate inverse. `latents_mean` and `latents_std` are the statistics of the
    raw latents over the training clips, as a Wan VAE's config holds them; `tiling` is as the Wan
    VAE's, though so small a codec needs it only to run what the big ones run.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        width: int = 96,
        num_blocks: int = 2,
        channels: int = 16,
        temporal_stride: int = 4,
        spatial_stride: int = 4,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        tiling: Tiling | None = None,
    ):
        super().__init__()
        self.spec = LatentSpec(channels, temporal_stride, spatial_stride)
        self.tiling = tiling
        self.config = {
            "width": width, "num_blocks": num_blocks, "channels": channels,
            "temporal_stride": temporal_stride, "spatial_stride": spatial_stride,
        }  # fmt: skip
        folded = 3 * temporal_stride * spatial_stride**2
        self.encoder_in = nn.Conv2d(folded, width, 3, padding=1)
        self.encoder_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(num_blocks))
        self.encoder_out = nn.Conv2d(width, channels, 1)
        self.decoder_in = nn.Conv2d(channels, width, 3, padding=1)
        self.decoder_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(num_blocks))
        self.decoder_out = nn.Conv2d(width, folded, 3, padding=1)
        self.set_statistics(latents_mean or [0.0] * channels, latents_std or [1.0] * channels)

    def set_statistics(self, mean: list[float], std: list[float]) -> None:
        """Per-channel mean and standard deviation of the raw latents."""
        self.config |= {"latents_mean": list(mean), "latents_std": list(std)}
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1, 1), persistent=False)

    def encode(self, frames: Tensor, start: int = 0, num_latents: int | None = None) -> Tensor:
        """start, num_latents and ValueErrors: see `needed_frames`."""
        frames = needed_frames(frames, self.spec, start, num_latents)
        num_latents = self.spec.num_latent_frames(frames.shape[2])
        scales = Scales(given=self.spec.spatial_stride, made=1)
        pieces = in_tiles(
            lambda tile: iter([self.encode_raw(tile)]), frames, self.tiling, scales, [num_latents]
        )
        return (joined(pieces, num_latents) - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """ValueError for another number of channels, as of `decode_stream`."""
        num_latents = latents_of(self.spec, latents)
        pieces = self._decode_pieces(latents, turn=num_latents)
        return joined(pieces, self.spec.num_pixel_frames(num_latents))

    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]:
        """`decode` in pieces of TURN latents: frames (B, 3, t, H, W) in order."""
        return self._decode_pieces(latents, TURN)

    def _decode_pieces(self, latents: Tensor, turn: int) -> Iterator[Tensor]:
        turns = turns_of(self.spec, latents_of(self.spec, latents), turn)
        raw, scales = latents * self.std + self.mean, Scales(given=1, made=self.spec.spatial_stride)
        pieces = in_tiles(self._decode_tile, raw, self.tiling, scales, turns)
        return (piece.clamp(-1, 1) for piece in pieces)

    def _decode_tile(self, raw: Tensor) -> Iterator[Tensor]:
        """Always TURN latents at a time, so that a stream gives the same bits as the whole."""
        seen: list[Tensor] = []
        for start in range(0, raw.shape[2], TURN):
            frames, seen = self._decode_group(raw[:, :, start : start + TURN], seen)
            yield frames if start else frames[:, :, self.spec.temporal_stride - 1 :]

    def encode_raw(self, frames: Tensor) -> Tensor:
        """Frames -> latents before normalization; ValueError if T is not 4k+1."""
        num_frames = self.spec.num_latent_frames(frames.shape[2])
        stride, fold = self.spec.temporal_stride, self.spec.spatial_stride
        padded = functional.pad(frames, (0, 0, 0, 0, stride - 1, 0))
        x = rearrange(
            padded, "b c (f t) (h p) (w q) -> (b f) (c t p q) h w", t=stride, p=fold, q=fold
        )
        x = self.encoder_in(x)
        for block in self.encoder_blocks:
            x, _ = block(x, num_frames)
        return rearrange(self.encoder_out(x), "(b f) c h w -> b c f h w", f=num_frames)

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Latents before normalization -> frames, not clamped."""
        return self._decode_group(latents, [])[0][:, :, self.spec.temporal_stride - 1 :]

    def _decode_group(self, latents: Tensor, seen: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Four frames of every latent; seen: by each block of the latents before, if any."""
        num_frames = latents.shape[2]
        x = self.decoder_in(rearrange(latents, "b c f h w -> (b f) c h w"))
        before = seen or [None] * len(self.decoder_blocks)
        seen = []
        for block, last in zip(self.decoder_blocks, before, strict=True):
            x, last = block(x, num_frames, last)
            seen.append(last)
        fold = self.spec.spatial_stride
        frames = rearrange(
            self.decoder_out(x), "(b f) (c t p q) h w -> b c (f t) (h p) (w q)",
            f=num_frames, t=self.spec.temporal_stride, p=fold, q=fold,
        )  # fmt: skip
        return frames, seen
