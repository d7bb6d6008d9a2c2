"""Real VAEs drop in: vendors' and diffusers' own files, the frame rule, statistics, tiles."""

import json
import os
import shutil

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from pusa.models.tiling import Tiling
from pusa.models.vae import DiffusersVAE, load_vae, wrap_mochi, wrap_wan
from pusa.models.vae_streams import Streams
from pusa.pipelines.tiny_parts import make_vae, write_tiny_vae
from pusa.types import LatentSpec
from pusa.weights.lazy import WeightsError
from pusa.weights.vae_keys import STATISTICS
from tests.conftest import REPLICA

CLOSE = {"atol": 2e-5, "rtol": 1e-5}  # sums in another order
KINDS = ("wan21", "wan22", "mochi")
SPECS = {
    "wan21": LatentSpec(16, 4, 8), "wan22": LatentSpec(48, 4, 16), "mochi": LatentSpec(12, 6, 8),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(kind, layout) -> where a tiny VAE of that kind lies."""
    root, paths = tmp_path_factory.mktemp("vaes"), {}

    def path(kind: str, layout: str = "official"):
        if (kind, layout) not in paths:
            paths[kind, layout] = write_tiny_vae(root / kind / layout, kind, layout)
        return paths[kind, layout]

    return path


@pytest.fixture(scope="module", params=KINDS)
def loaded(request, made):
    """(kind, VAE, 2 clips of 3 latents each)."""
    vae = load_vae(made(request.param))
    return request.param, vae, clip(vae.spec, 3)


def clip(spec: LatentSpec, num_latents: int, height: int = 32, width: int = 48, batch: int = 2):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, spec.num_pixel_frames(num_latents), height, width)
    return torch.rand(shape, generator=generator) * 2 - 1


def per_channel(values) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1, 1, 1)


def statistics(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = STATISTICS[kind, SPECS[kind].channels]
    return per_channel(mean), per_channel(std)


@pytest.mark.parametrize("layout", ["official", "diffusers"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_encode_and_decode_are_diffusers_with_the_statistics(made, kind, layout):
    vae, reference = load_vae(made(kind, layout)), make_vae(kind)
    assert vae.spec == SPECS[kind]
    frames = clip(vae.spec, 3)
    raw = reference.encode(frames).latent_dist.mode()
    mean, std = statistics(kind)
    latents = vae.encode(frames)
    torch.testing.assert_close(latents, (raw - mean) / std, atol=1e-6, rtol=1e-6)
    expected = reference.decode(latents * std + mean).sample.clamp(-1, 1)
    torch.testing.assert_close(vae.decode(latents), expected, atol=1e-6, rtol=1e-6)
    assert vae.decode(latents).shape == frames.shape
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert torch.equal(vae.encode(frames), latents), "nothing is drawn"


@torch.no_grad()
def test_statistics_of_a_diffusers_config_count(tmp_path):
    AutoencoderKLWan(
        base_dim=4, z_dim=2, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.5, 0.0], latents_std=[2.0, 4.0],
    ).save_pretrained(tmp_path)  # fmt: skip
    vae = load_vae(tmp_path)
    frames = clip(vae.spec, 1)
    raw = AutoencoderKLWan.from_pretrained(tmp_path).encode(frames).latent_dist.mode()
    expected = (raw - per_channel([0.5, 0.0])) / per_channel([2.0, 4.0])
    torch.testing.assert_close(vae.encode(frames), expected)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"latents_std": [1.0]}))
    with pytest.raises(ValueError, match="2 and 1 values"):
        load_vae(tmp_path)


@torch.no_grad()
def test_a_batch_is_its_clips_one_at_a_time(loaded):
    _, vae, frames = loaded
    latents = vae.encode(frames)
    for i in range(2):
        torch.testing.assert_close(latents[i : i + 1], vae.encode(frames[i : i + 1]), **CLOSE)
        one = vae.decode(latents[i : i + 1])
        torch.testing.assert_close(vae.decode(latents)[i : i + 1], one, **CLOSE)


@torch.no_grad()
def test_a_latent_sees_its_own_frames_and_those_before_it(loaded):
    """Latent 0 is an image; latent k covers pixels 4k-3..4k (6k-5..6k) and knows no later one."""
    _, vae, frames = loaded
    latents = vae.encode(frames)
    for frame in range(frames.shape[2]):
        changed = frames.clone()
        changed[:, :, frame:] = -changed[:, :, frame:]
        first = vae.spec.latent_index(frame)
        encoded = vae.encode(changed)
        torch.testing.assert_close(encoded[:, :, :first], latents[:, :, :first], **CLOSE)
        assert (encoded[:, :, first] - latents[:, :, first]).abs().max() > 1e-3
    torch.testing.assert_close(vae.encode(frames[:, :, :1]), latents[:, :, :1], **CLOSE)


@torch.no_grad()
def test_decoding_is_causal_and_chunked(loaded):
    """A later latent changes its own frames only; the first decodes alone as in a clip."""
    kind, vae, frames = loaded
    latents = vae.encode(frames)
    decoded, changed = vae.decode(latents), latents.clone()
    changed[:, :, 2] = 0
    start = vae.spec.pixel_frames(2).start
    redone = vae.decode(changed)
    torch.testing.assert_close(redone[:, :, :start], decoded[:, :, :start], **CLOSE)
    assert (redone[:, :, start:] - decoded[:, :, start:]).abs().max() > 1e-3
    if kind != "mochi":
        torch.testing.assert_close(vae.decode(latents[:, :, :1]), decoded[:, :, :1], **CLOSE)


@torch.no_grad()
def test_only_the_frames_of_the_wanted_latents_are_encoded(loaded, monkeypatch):
    kind, vae, frames = loaded
    latents, seen = vae.encode(frames), []
    encode = vae._encode_tile
    monkeypatch.setattr(vae, "_encode_tile", lambda x: (seen.append(x.shape[2]), encode(x))[1])
    for k in (1, 2, 3):
        exact = {"atol": 0, "rtol": 0} if kind != "mochi" else CLOSE  # its attention reorders sums
        torch.testing.assert_close(vae.encode(frames, num_latents=k), latents[:, :, :k], **exact)
    assert seen == [vae.spec.num_pixel_frames(k) for k in (1, 2, 3)]


@torch.no_grad()
def test_encoding_from_a_frame_on_begins_with_an_image_latent(loaded):
    _, vae, frames = loaded
    stride = vae.spec.temporal_stride
    for start in (stride, 2 * stride):
        assert torch.equal(vae.encode(frames, start), vae.encode(frames[:, :, start:]))
    latents = vae.encode(frames, start=3, num_latents=1)
    assert torch.equal(latents, vae.encode(frames[:, :, 3:4]))


@torch.no_grad()
def test_the_replicas_vae_takes_start_and_num_latents_as_well():
    vae = load_vae(REPLICA / "vae")
    frames = clip(vae.spec, 5, 32, 32)
    torch.testing.assert_close(
        vae.encode(frames, 4, num_latents=2), vae.encode(frames[:, :, 4:])[:, :, :2], **CLOSE
    )


@pytest.mark.parametrize(
    ("kind", "shape", "options", "message"),
    [
        ("wan21", (1, 3, 8, 32, 32), {}, "num_frames=8 is not 4k.1; use 5 or 9"),
        ("wan21", (1, 3, 9, 32, 32), {"start": 2}, "num_frames=7 is not 4k.1; use 5 or 9"),
        ("wan21", (1, 3, 9, 36, 32), {}, "height=36 is not a multiple of 8; use 32"),
        ("wan21", (3, 9, 32, 32), {}, r"expected \(B, 3, T, H, W\)"),
        ("wan21", (1, 3, 9, 32, 32), {"start": 9}, "start=9 is not a frame .* use 0 to 8"),
        ("wan21", (1, 3, 9, 32, 32), {"num_latents": 4}, "num_latents=4: .* use 1 to 3"),
        ("wan22", (1, 3, 5, 32, 40), {}, "width=40 is not a multiple of 16; use 32"),
        ("mochi", (1, 3, 9, 32, 32), {}, "num_frames=9 is not 6k.1; use 7 or 13"),
    ],
)
def test_what_cannot_be_encoded_is_named(made, kind, shape, options, message):
    vae = load_vae(made(kind))
    with pytest.raises(ValueError, match=message):
        vae.encode(torch.zeros(shape), **options)
    with pytest.raises(ValueError, match=rf"decodes \(B, {vae.spec.channels}, F, h, w\)"):
        vae.decode(torch.zeros(1, 5, 2, 4, 4))


@torch.no_grad()
def test_statistics_stay_in_float32_with_bfloat16_weights(made):
    vae = load_vae(made("wan21"), dtype=torch.bfloat16)
    assert {p.dtype for p in vae.parameters()} == {torch.bfloat16}
    frames = clip(vae.spec, 2)
    (mean, std), raw = statistics("wan21"), torch.cat([*vae._encode_tile(frames)], 2)
    assert torch.equal(vae.to(torch.bfloat16).encode(frames), (raw - mean) / std)
    assert vae.decode(vae.encode(frames)).dtype == torch.float32


@torch.no_grad()
def test_mochis_fourier_features_see_unrounded_pixels(made):
    """In bfloat16 a pixel is off by up to 1/512, a quarter of a turn of the fastest sine."""
    exact, rounded = (load_vae(made("mochi"), dtype=d) for d in (torch.float32, torch.bfloat16))
    frames = (clip(exact.spec, 2) * 127.5).round() / 127.5
    latents = exact.encode(frames)
    assert (rounded.encode(frames) - latents).square().mean().sqrt() < 0.02 * latents.std()
    rounded.pixel_dtype = torch.bfloat16
    assert (rounded.encode(frames) - latents).square().mean().sqrt() > 0.2 * latents.std()


@torch.no_grad()
def test_raw_mochi_latents_are_decoded_as_if_normalized(made):
    """Upstream conditions on raw latents, which decode too bright or dark by mean and std."""
    vae, raw = (load_vae(made("mochi"), latent_space=space) for space in ("normalized", "raw"))
    frames = clip(vae.spec, 2)
    mean, std = statistics("mochi")
    torch.testing.assert_close(raw.encode(frames), vae.encode(frames) * std + mean)
    assert torch.equal(raw.decode(vae.encode(frames)), vae.decode(vae.encode(frames)))
    for path in (made("wan21"), REPLICA / "vae"):
        with pytest.raises(ValueError, match="'raw' is a quirk of Mochi's"):
            load_vae(path, latent_space="raw")
    with pytest.raises(ValueError, match="latent_space='pixel' is unknown"):
        load_vae(made("mochi"), latent_space="pixel")


class Pooling(nn.Module):
    """Stands in for an autoencoder that does not look beyond a latent: tiles cannot change it."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))


POOLING = Streams(
    lambda vae, frames, dtype: iter([functional.avg_pool3d(frames, (1, 2, 2))]),
    lambda vae, latents, turn: iter([latents.repeat_interleave(2, 3).repeat_interleave(2, 4)]),
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_tiles_cover_every_pixel_once_in_sum(height, width, data):
    sizes = [data.draw(st.integers(1, 7)) for _ in "hw"]
    tiling = Tiling(*sizes, *(data.draw(st.integers(1, size)) for size in sizes))
    spec = LatentSpec(3, 4, 2)
    plain, tiled = (
        DiffusersVAE(Pooling(), POOLING, spec, [0] * 3, [1] * 3, t) for t in (None, tiling)
    )
    frames = clip(spec, 1, 2 * height, 2 * width)
    torch.testing.assert_close(tiled.encode(frames), plain.encode(frames))
    torch.testing.assert_close(tiled.decode(frames), plain.decode(frames))


def test_tiles_are_laid_as_upstream_lays_them():
    """No tile of border rows only; Wan's 480x832 in tiles of 30x52 is 3 x 3."""
    tiling = Tiling(30, 52, 15, 26)
    assert tiling.starts(60, 104) == [(i, j) for i in (0, 15, 30) for j in (0, 26, 52)]
    assert tiling.starts(30, 53) == [(0, 0), (0, 26)]
    assert tiling.starts(7, 7) == [(0, 0)]
    for sizes in ((4, 4, 5, 4), (4, 4, 4, 0), (0, 4, 0, 4)):
        with pytest.raises(ValueError, match="use 1 <= stride <= size"):
            Tiling(*sizes)


def smooth_clip(spec: LatentSpec):
    """Drifting waves and their negative, 9 x 11 latents."""
    time = torch.arange(spec.num_pixel_frames(2)).view(-1, 1, 1) * 0.1
    rows = torch.linspace(0, 3, 9 * spec.spatial_stride)[:, None]
    phase = time + rows + torch.linspace(0, 4, 11 * spec.spatial_stride)
    frames = torch.stack([phase.sin(), phase.cos(), (0.7 * phase).sin()])
    return torch.stack([frames, -frames])


@pytest.mark.parametrize(("kind", "limit"), [("wan21", 0.02), ("wan22", 0.08), ("mochi", 0.15)])
@torch.no_grad()
def test_tiled_is_close_to_whole_on_a_smooth_clip(kind, limit):
    """With kernels that look little aside, as a trained VAE does by and large.

    Of Mochi only the decoding: its encoder's group norms depend on all that a tile shows.
    """
    autoencoder = make_vae(kind)
    aside = torch.full((3, 3), 0.05)
    aside[1, 1] = 1
    for parameter in autoencoder.parameters():
        if parameter.shape[-2:] == (3, 3):
            parameter.mul_(aside)
    vae = (wrap_mochi if kind == "mochi" else wrap_wan)(autoencoder)
    frames = smooth_clip(vae.spec)
    latents = vae.encode(frames)
    decoded = vae.decode(latents)
    vae.tiling = Tiling(5, 4, 3, 3)
    tiled = vae.decode(latents)
    assert (tiled - decoded).square().mean().sqrt() < limit * decoded.std()
    torch.testing.assert_close(vae.decode(latents[1:]), tiled[1:], **CLOSE)
    if kind != "mochi":
        error = vae.encode(frames) - latents
        assert error.square().mean().sqrt() < limit * latents.std()
    vae.tiling = Tiling(9, 11, 9, 11)
    assert torch.equal(vae.encode(frames), latents)
    assert torch.equal(vae.decode(latents), decoded)


def same_vae(path, made, kind="wan21"):
    ours, theirs = (load_vae(p).parameters() for p in (path, made(kind)))
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_wrapped_prefixed_and_bfloat16_files_load(made, tmp_path):
    official = torch.load(made("wan21"), weights_only=True)
    torch.save({"model_state": official}, tmp_path / "wrapped.pth")
    torch.save({f"model.{k}": v for k, v in official.items()}, tmp_path / "prefixed.pth")
    save_file({k: v.contiguous() for k, v in official.items()}, tmp_path / "any.safetensors")
    for name in ("wrapped.pth", "prefixed.pth", "any.safetensors"):
        assert same_vae(tmp_path / name, made)
    torch.save({k: v.bfloat16() for k, v in official.items()}, tmp_path / "half.pth")
    half = load_vae(tmp_path / "half.pth")
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    rounded = official["encoder.conv1.weight"].bfloat16().float()
    assert torch.equal(half.autoencoder.encoder.conv_in.weight, rounded)


def test_the_vae_of_a_vendors_folder_or_a_pipeline_is_found(made, tmp_path):
    root = made("wan21").parent
    (tmp_path / "official").mkdir()
    shutil.copy(root / "Wan2.1_VAE.pth", tmp_path / "official")
    (tmp_path / "official" / "config.json").write_text('{"_class_name": "WanModel"}')
    assert same_vae(tmp_path / "official", made)
    shutil.copytree(made("wan21", "diffusers"), tmp_path / "pipeline" / "vae")
    assert same_vae(tmp_path / "pipeline", made)
    shutil.copy(made("wan22"), tmp_path / "official")
    with pytest.raises(ValueError, match=r"holds Wan2\.1_VAE\.pth, Wan2\.2_VAE\.pth; name the one"):
        load_vae(tmp_path / "official")
    assert same_vae(tmp_path / "official" / "Wan2.2_VAE.pth", made, "wan22")


def test_a_loaded_vae_does_not_depend_on_its_file(made, tmp_path):
    file = shutil.copy(made("wan21"), tmp_path)
    vae = load_vae(file)
    weight = vae.autoencoder.quant_conv.weight.clone()
    os.truncate(file, 1000)
    assert torch.equal(vae.autoencoder.quant_conv.weight, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_do_not_fit_are_refused_by_the_names_in_them(made, tmp_path, kind):
    path, place = made(kind), tmp_path / "bad"
    if kind == "mochi":
        shutil.copytree(path, place)
        file, key, save = place / "encoder.safetensors", "layers.2.layers.0.bias", save_file
        state = load_file(file)
        named = rf"encoder\.{key}"
    else:
        file = place = tmp_path / "bad.pth"
        state, save = torch.load(path, weights_only=True), torch.save
        key = named = "decoder.middle.0.residual.3.gamma"
    save({k: v for k, v in state.items() if k != key}, file)
    with pytest.raises(WeightsError, match=rf"misses {named} \(1 in all\)"):
        load_vae(place)
    save(state | {key.replace("0", "9"): state[key].clone()}, file)
    with pytest.raises(WeightsError, match=r"has no place for .*9"):
        load_vae(place)
    save(state | {key: torch.zeros(3, 1, 1, 1)}, file)
    with pytest.raises(WeightsError, match=named):
        load_vae(place)


def test_a_folder_that_is_not_whole_is_refused(made, tmp_path):
    folder = shutil.copytree(made("wan22", "diffusers"), tmp_path / "vae")
    file = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state.pop("quant_conv.bias")
    save_file(state, file)
    with pytest.raises(WeightsError, match=r"misses quant_conv\.bias"):
        load_vae(folder)
    file.unlink()
    with pytest.raises(WeightsError, match=r"no diffusion_pytorch_model\.safetensors in it"):
        load_vae(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_vae(folder)


def test_wrong_folders_and_files_are_named(made, tmp_path):
    with pytest.raises(WeightsError, match="one half of Mochi's VAE; give the folder"):
        load_vae(made("mochi") / "decoder.safetensors")
    torch.save({"blocks.0.weight": torch.zeros(1)}, tmp_path / "dit.pth")
    with pytest.raises(WeightsError, match="not the names of a VAE"):
        load_vae(tmp_path / "dit.pth")
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_vae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match="'AutoencoderKL' is not known"):
        load_vae(tmp_path)
