"""Spatial tiles of a VAE, blended where they overlap, and the turns in which tiles are computed.

Time is never tiled: what a tile remembers of the frames before goes with it from turn to turn.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

from pusa.types import LatentSpec

# Latents of a tile that are decoded before the next tile's turn: 32 frames in memory at a time. A
# waiting tile's features leave the accelerator, so that longer turns mean fewer ways.
TURN = 8

# x (B, C, T, H, W) -> its result piece by piece along time.
Stream = Callable[[Tensor], Iterator[Tensor]]


@dataclass(frozen=True)
class Tiling:
    """Spatial tiles in latent units; neighbours overlap by size - stride and are blended there.

    The Wan pipelines' own default is Tiling(30, 52, 15, 26).
    """

    height: int
    width: int
    stride_height: int
    stride_width: int

    def __post_init__(self):
        for side in ("height", "width"):
            size, stride = getattr(self, side), getattr(self, f"stride_{side}")
            if not 1 <= stride <= size:
                raise ValueError(
                    f"Tiling: {side}={size} with stride_{side}={stride} would leave gaps or never "
                    "end; use 1 <= stride <= size (latent units)."
                )

    def starts(self, height: int, width: int) -> list[tuple[int, int]]:
        """(top, left) of every tile of latents of this size; the last ones may be cut short."""
        rows = _starts(height, self.height, self.stride_height)
        return list(product(rows, _starts(width, self.width, self.stride_width)))


def _starts(length: int, size: int, stride: int) -> list[int]:
    """No tile begins where the one before has already reached the border."""
    return [i for i in range(0, length, stride) if i == 0 or i - stride + size < length]


@dataclass(frozen=True)
class Scales:
    """Pixels (or latents) of a stream's input and of its result that one latent stands for."""

    given: int
    made: int


def in_tiles(
    stream: Stream, x: Tensor, tiling: Tiling | None, scales: Scales, turns: list[int]
) -> Iterator[Tensor]:
    """stream(x), tile by tile if there is a tiling, with linear ramps where tiles overlap.

    turns: frames of the result that are made of every tile before they are blended and yielded;
    without tiles the stream's own pieces come as they are. diffusers' own tiling is not used: it
    adds tiles of a few rows at the border, and counts Wan2.2's tiles in different units for
    encoding and decoding.
    """
    size = (x.shape[3] // scales.given, x.shape[4] // scales.given)
    starts = [(0, 0)] if tiling is None else tiling.starts(*size)
    if tiling is None or len(starts) == 1:
        yield from stream(x)
        return
    tiles = [
        (slice(top, top + tiling.height), slice(left, left + tiling.width)) for top, left in starts
    ]
    streams = [stream(_cut(x, tile, scales.given)) for tile in tiles]
    weights = [_weight(tile, size, tiling, scales.made) for tile in tiles]
    for num_frames in turns:
        yield _blended(tiles, streams, weights, num_frames, size, scales.made)


def _blended(
    tiles: list[tuple[slice, slice]],
    streams: list[Iterator[Tensor]],
    weights: list[Tensor],
    num_frames: int,
    size: tuple[int, int],
    scale: int,
) -> Tensor:
    """The next num_frames of all streams as one tensor; a piece goes where it belongs at once."""
    total, divisor = torch.empty(0), torch.empty(0)
    for tile, stream, weight in zip(tiles, streams, weights, strict=True):
        done = 0
        while done < num_frames:
            piece = next(stream)
            if not total.numel():
                shape = (num_frames, size[0] * scale, size[1] * scale)
                total = piece.new_zeros(*piece.shape[:2], *shape)
                divisor = piece.new_zeros(shape[1:])
            weight = weight.to(piece)
            _cut(total[:, :, done : done + piece.shape[2]], tile, scale).add_(piece * weight)
            done += piece.shape[2]
        _cut(divisor, tile, scale).add_(weight)
    return total.div_(divisor)


def _cut(x: Tensor, tile: tuple[slice, slice], scale: int) -> Tensor:
    """The part of x (..., H, W) that a tile covers, a view."""
    rows, columns = (slice(part.start * scale, part.stop * scale) for part in tile)
    return x[..., rows, columns]


def _weight(tile: tuple[slice, slice], size: tuple[int, int], tiling: Tiling, scale: int) -> Tensor:
    """(H, W) of a tile."""
    overlaps = (tiling.height - tiling.stride_height, tiling.width - tiling.stride_width)
    rows, columns = (
        _ramp(part, length, overlap * scale, scale)
        for part, length, overlap in zip(tile, size, overlaps, strict=True)
    )
    return torch.minimum(rows[:, None], columns)


def _ramp(part: slice, length: int, border: int, scale: int) -> Tensor:
    """Weight along one side of a tile: it falls to 1/border where a neighbour overlaps."""
    count = (min(part.stop, length) - part.start) * scale
    position = torch.arange(1, count + 1, dtype=torch.float32)
    weight = torch.ones(count)
    if border and part.start > 0:
        weight = torch.minimum(weight, position / border)
    if border and part.stop < length:
        weight = torch.minimum(weight, position.flip(0) / border)
    return weight


def turns_of(spec: LatentSpec, num_latents: int, turn: int) -> list[int]:
    """Pixel frames of every turn of `turn` latents, the last of what is left."""
    ends = [*range(turn, num_latents, turn), num_latents]
    return [b - a for a, b in pairwise([0, *(spec.num_pixel_frames(end) for end in ends)])]


def joined(pieces: Iterator[Tensor], num_frames: int) -> Tensor:
    """Pieces (B, C, t, H, W) as one tensor of num_frames, never held twice."""
    piece, done = next(pieces), 0
    if piece.shape[2] == num_frames:
        return piece
    whole = piece.new_empty(*piece.shape[:2], num_frames, *piece.shape[3:])
    while True:
        whole[:, :, done : done + piece.shape[2]] = piece
        done += piece.shape[2]
        if done == num_frames:
            return whole
        piece = next(pieces)
