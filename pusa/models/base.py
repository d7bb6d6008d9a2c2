"""What the other rooms may rely on: a backbone, a VAE and a text encoder, as protocols, and the
rule by which every VAE takes the frames it is asked for."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pusa.types import LatentSpec, Text


@dataclass(frozen=True)
class PreparedText:
    """What a backbone computes from its text alone, once for all steps of a sampling.

    network: the one that made it, the only one that takes it, while its weights and their LoRAs
    stay as they are; batch: of the text; dtype: of the computation, autocast's if that was on;
    parts: what the network goes on with.
    """

    network: "weakref.ref[nn.Module]"
    batch: int
    dtype: torch.dtype
    parts: tuple[Any, ...]

    def check(self, network: nn.Module, batch: int, dtype: torch.dtype) -> None:
        """ValueError unless it was made by this network, for this batch, in this precision."""
        if self.network() is not network:
            raise ValueError(
                "this text was prepared by another network; use this one's prepare_text."
            )
        if self.batch != batch:
            raise ValueError(
                f"this text was prepared for a batch of {self.batch}, the latents are {batch}; "
                "prepare one text for each of them."
            )
        if self.dtype != dtype:
            raise ValueError(
                f"this text was prepared in {self.dtype}, the network runs in {dtype}; "
                "prepare it under the same autocast."
            )


# Runs a network's blocks: (run, x) -> x after the last of them. run(x, start, end) is
# blocks[start:end] on the residual stream x (B, F, S, D), which it leaves as it is; it is to be
# called in order.
BlockRunner = Callable[[Callable[[Tensor, int, int | None], Tensor], Tensor], Tensor]
# What is around the i-th block's work: see models/arrival.py.
BlockGuard = Callable[[int], AbstractContextManager]


class VideoBackbone(Protocol):
    """latents (B, C, F, h, w), sigma (B,) or (B, F) in [0, 1], text -> velocity, noise - clean.

    A prepared text gives the same bits as the text that it was made of.
    """

    text_dim: int

    def prepare_text(self, text: Text) -> PreparedText: ...

    def __call__(self, latents: Tensor, sigma: Tensor, text: Text | PreparedText) -> Tensor: ...


class VideoVAE(Protocol):
    """encode: frames (B, 3, T, H, W) in [-1, 1] -> normalized latents (B, C, F, h, w) and back.

    start, num_latents: as of `needed_frames`, for an extension or a clip cut in the middle; the
    VAEs are causal, so that encode(frames, num_latents=k) is encode(frames)[:, :, :k], without
    paying for the rest. decode_stream: decode's frames piece by piece along time, in memory that
    does not grow with the length; it may be left before its end.
    """

    spec: LatentSpec

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def to(self, device: torch.device) -> "VideoVAE": ...

    def encode(self, frames: Tensor, start: int = 0, num_latents: int | None = None) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]: ...


class TextEncoder(Protocol):
    """encode: captions -> Text with embedding (B, L <= text_len, text_dim), zero past a caption."""

    text_len: int

    def encode(self, captions: Sequence[str]) -> Text: ...


def needed_frames(
    frames: Tensor, spec: LatentSpec, start: int = 0, num_latents: int | None = None
) -> Tensor:
    """The part of a clip (B, 3, T, H, W) that its latents are made of, in the order of the clip.

    start: pixel frame that becomes latent 0, an image latent that knows nothing of the frames
    before it; num_latents: how many latents are wanted, by default all of a clip whose T - start
    is 4k+1 (6k+1 for Mochi). ValueError for another number of frames, for sides that are not
    multiples of the spatial stride and for a start or num_latents beyond the clip.
    """
    if frames.ndim != 5 or frames.shape[1] != 3:
        raise ValueError(
            f"frames have the shape {tuple(frames.shape)}; expected (B, 3, T, H, W) in [-1, 1]."
        )
    spec.latent_size(frames.shape[3], frames.shape[4], patch=1)
    total = frames.shape[2]
    if not 0 <= start < total:
        raise ValueError(f"start={start} is not a frame of the clip; use 0 to {total - 1}.")
    if num_latents is None:
        spec.num_latent_frames(total - start)
        return frames[:, :, start:]
    available = (total - start - 1) // spec.temporal_stride + 1
    if not 1 <= num_latents <= available:
        raise ValueError(
            f"num_latents={num_latents}: the {total - start} frames from {start} on make "
            f"{available}; use 1 to {available}."
        )
    return frames[:, :, start : start + spec.num_pixel_frames(num_latents)]


def latents_of(spec: LatentSpec, latents: Tensor) -> int:
    """F of latents (B, C, F, h, w); ValueError for another shape than this VAE decodes."""
    if latents.ndim != 5 or latents.shape[1] != spec.channels or not latents.shape[2]:
        raise ValueError(
            f"latents have the shape {tuple(latents.shape)}; this VAE decodes "
            f"(B, {spec.channels}, F, h, w)."
        )
    return latents.shape[2]
