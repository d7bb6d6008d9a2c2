"""Decoding piece by piece: the same bits as whole, memory that does not grow, tiles in turns."""

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from benchmarks.memory import LiveMemory
from pusa.models import tiny_vae, vae_streams
from pusa.models import vae as vae_module
from pusa.models.tiling import Tiling, turns_of
from pusa.models.vae import load_vae, wrap_mochi, wrap_wan
from pusa.pipelines.tiny_parts import make_vae
from pusa.types import LatentSpec
from tests.conftest import REPLICA

KINDS = ("wan21", "wan22", "mochi", "tiny")
TILING, TURN = Tiling(3, 3, 2, 2), 2


@pytest.fixture(scope="module", params=KINDS)
def vae(request):
    return make(request.param)


def make(kind: str) -> Any:
    if kind == "tiny":
        vae = load_vae(REPLICA / "vae")
    else:
        vae = (wrap_mochi if kind == "mochi" else wrap_wan)(make_vae(kind))
    return vae.requires_grad_(False)


@pytest.fixture(params=[None, TILING], ids=["whole", "tiles"])
def tiled(request, vae, monkeypatch, short_turns):
    monkeypatch.setattr(vae, "tiling", request.param)
    return vae


@pytest.fixture
def short_turns(monkeypatch):
    """Several turns in few latents."""
    for module in (vae_module, tiny_vae):
        monkeypatch.setattr(module, "TURN", TURN)


def latents_for(vae, num_latents: int, height: int = 4, width: int = 5, batch: int = 2):
    generator = torch.Generator().manual_seed(1)
    shape = (batch, vae.spec.channels, num_latents, height, width)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("kind", ["wan21", "wan22", "mochi"])
@torch.no_grad()
def test_a_stream_is_diffusers_decoding_bit_by_bit(kind):
    vae, reference = make(kind), make_vae(kind)
    latents = latents_for(vae, 4)
    raw = latents * vae._channels(vae.std) + vae._channels(vae.mean)
    pieces = list(vae.decode_stream(latents))
    assert [piece.shape[2] for piece in pieces] == [1] + [vae.spec.temporal_stride] * 3
    assert torch.equal(torch.cat(pieces, 2), reference.decode(raw).sample.clamp(-1, 1))


@pytest.mark.parametrize("kind", ["wan21", "wan22"])
@torch.no_grad()
def test_encoding_in_groups_is_diffusers_encoding(kind):
    vae, reference = make(kind), make_vae(kind)
    frames = torch.rand(2, 3, 13, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = torch.cat([*vae._encode_tile(frames)], 2)
    expected = reference.encode(frames).latent_dist.mode()
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_latents", [1, TURN + 1, 3 * TURN])
@torch.no_grad()
def test_a_stream_is_the_whole_bit_by_bit(tiled, num_latents):
    latents = latents_for(tiled, num_latents, 4, 4, batch=1)
    pieces = list(tiled.decode_stream(latents))
    joined, whole = torch.cat(pieces, 2), tiled.decode(latents)
    assert torch.equal(joined, whole)
    assert whole.dtype == torch.float32
    assert whole.shape[2] == tiled.spec.num_pixel_frames(num_latents)
    assert whole.abs().max() <= 1
    assert max(piece.shape[2] for piece in pieces) <= TURN * tiled.spec.temporal_stride


@torch.no_grad()
def test_tiles_of_a_stream_are_decoded_each_by_itself_and_blended(vae, monkeypatch, short_turns):
    """Where one tile alone covers a pixel, it is that tile's, decoded without any other."""
    monkeypatch.setattr(vae, "tiling", None)
    latents = latents_for(vae, TURN + 2, 4, 5, batch=1)
    corner = vae.decode(latents[..., :3, :3])
    monkeypatch.setattr(vae, "tiling", TILING)
    tiled = torch.cat([*vae.decode_stream(latents)], 2)
    alone = 2 * vae.spec.spatial_stride  # the stride: beyond it the neighbour begins
    torch.testing.assert_close(
        tiled[..., :alone, :alone], corner[..., :alone, :alone], atol=1e-6, rtol=1e-6
    )


@torch.no_grad()
def test_streams_left_early_or_at_once_do_not_disturb_each_other(tiled):
    latents = latents_for(tiled, TURN + 1, 3, 4, batch=1)
    whole = tiled.decode(latents)
    left = tiled.decode_stream(-latents)
    next(left)
    both = zip(tiled.decode_stream(latents), tiled.decode_stream(-latents), strict=True)
    ours = torch.cat([one for one, _ in both], 2)
    left.close()
    assert torch.equal(ours, whole)
    assert torch.equal(tiled.decode(latents), whole)


def test_latents_that_cannot_be_decoded_are_named_before_any_frame(tiled):
    wanted = rf"decodes \(B, {tiled.spec.channels}, F, h, w\)"
    for shape in (
        (1, 5, 2, 4, 4),
        (tiled.spec.channels, 2, 4, 4),
        (1, tiled.spec.channels, 0, 4, 4),
    ):
        for decode in (tiled.decode, tiled.decode_stream):
            with pytest.raises(ValueError, match=wanted):
                decode(torch.zeros(shape))


def test_frames_of_every_turn():
    assert turns_of(LatentSpec(16), 1, 8) == [1]
    assert turns_of(LatentSpec(16), 21, 8) == [29, 32, 20]
    assert turns_of(LatentSpec(12, 6), 16, 8) == [43, 48]


@pytest.mark.parametrize("kind", ["wan21", "wan22", "mochi"])
@torch.no_grad()
def test_a_waiting_tiles_features_lie_in_main_memory(kind, monkeypatch, short_turns):
    """Once per tile and turn; after its last turn a tile remembers nothing."""
    moved = []
    move = vae_streams.in_main_memory
    monkeypatch.setattr(vae_streams, "in_main_memory", lambda x: (moved.append(x), move(x))[1])
    vae = make(kind)
    latents = latents_for(vae, 2 * TURN + 1, 3, 4, batch=1)
    list(vae.decode_stream(latents))
    assert not moved, "without tiles nothing has to wait"
    vae.tiling = TILING
    vae.decode(latents)
    assert not moved, "a tile is decoded to its end"
    list(vae.decode_stream(latents))
    assert len(moved) == 2 * len(TILING.starts(3, 4)) == 4
    assert all(any(isinstance(x, torch.Tensor) for x in tree_leaves(kept)) for kept in moved)


def peak(run, x: torch.Tensor) -> int:
    """Bytes that run(x) needs beside x."""
    with LiveMemory() as memory:
        memory.ignore(x)
        run(x)
    return memory.peak


def drain(pieces) -> None:
    for _ in pieces:
        pass


@torch.no_grad()
def test_memory_of_a_stream_does_not_grow_with_length(tiled):
    """But for copies of the latents, of which there are fewer than four."""
    short, long = (latents_for(tiled, n, 3, 4, batch=1) for n in (3 * TURN, 5 * TURN))
    growth, whole = (
        peak(decode, long) - peak(decode, short)
        for decode in (lambda x: drain(tiled.decode_stream(x)), tiled.decode)
    )
    assert 0 < growth <= 4 * (long.nbytes - short.nbytes)
    num_frames = 2 * TURN * tiled.spec.temporal_stride
    pixels = 4 * 3 * num_frames * 12 * tiled.spec.spatial_stride**2
    assert whole >= pixels > growth, "the whole holds all frames"


@pytest.mark.parametrize("kind", ["wan21", "wan22"])
@torch.no_grad()
def test_memory_of_encoding_grows_with_the_latents_only(kind):
    vae = make(kind)
    short, long = (torch.zeros(1, 3, 4 * n + 1, 32, 32) for n in (4, 12))
    growth = peak(vae.encode, long) - peak(vae.encode, short)
    latents = 4 * vae.spec.channels * 8 * (32 // vae.spec.spatial_stride) ** 2
    assert 0 < growth <= 4 * latents < long.nbytes - short.nbytes
