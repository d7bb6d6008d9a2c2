"""Clips to latents: once, whole, and again only where something has changed."""

import csv

import pytest
import torch

from pusa.data import toy, video
from pusa.data.cache import LatentCache
from pusa.data.clips import read_manifest
from pusa.data.latents import LatentDataset, collate
from pusa.models.text import UMT5TextEncoder, load_text_encoder
from pusa.models.vae import load_vae
from pusa.pipelines.encode import encode_clips
from pusa.pipelines.samples import EncodeSettings, Keys
from tests.conftest import REPLICA

SETTINGS = EncodeSettings(num_frames=17, height=32, width=32, batch_size=2)


@pytest.fixture(scope="module")
def encoders():
    return load_vae(REPLICA / "vae"), load_text_encoder(REPLICA / "text_encoder", text_len=24)


@pytest.fixture
def clips(tmp_path):
    toy.write_dataset(tmp_path / "clips", [toy.make_scene(0, "train", i) for i in range(3)])
    return tmp_path / "clips"


KEYS = Keys("vae", "text", 24)


def encode(clips, cache, encoders, settings=SETTINGS):
    manifest = read_manifest(clips / "metadata.csv")
    return encode_clips(manifest, cache, settings, *encoders, KEYS)


def stamps(cache: LatentCache) -> dict[str, int]:
    tensors = [
        p for kind in ("latents", "text") for p in (cache.folder / kind).rglob("*.safetensors")
    ]
    return {p.name: p.stat().st_mtime_ns for p in tensors}


def test_cached_latents_are_those_of_the_clip(tmp_path, clips, encoders):
    cache = LatentCache(tmp_path / "cache")
    entries = encode(clips, cache, encoders)
    latents, text, index = LatentDataset(cache, entries)[1]
    frames, _ = video.read_frames(clips / entries[1].name, 17)
    with torch.no_grad():
        expected = encoders[0].encode(video.to_signed(frames)[None])[0]
    torch.testing.assert_close(latents, expected, atol=0.02, rtol=0.01)  # kept as bfloat16
    assert index == 1
    encoded = encoders[1].encode([entries[1].caption])
    torch.testing.assert_close(text, encoded.embedding[0], atol=0.02, rtol=0.01)


def test_a_second_run_encodes_nothing(tmp_path, clips, encoders):
    cache = LatentCache(tmp_path / "cache")
    encode(clips, cache, encoders)
    before = stamps(cache)
    encode(clips, cache, encoders)
    assert stamps(cache) == before


def test_an_edited_caption_reencodes_one_caption_and_no_clip(tmp_path, clips, encoders):
    cache = LatentCache(tmp_path / "cache")
    encode(clips, cache, encoders)
    before = stamps(cache)
    with (clips / "metadata.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    rows[2][1] = "a red one moves up over cat"
    with (clips / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    encode(clips, cache, encoders)
    after = stamps(cache)
    assert len(after) == len(before) + 1
    assert all(after[name] == stamp for name, stamp in before.items())


def test_other_settings_are_other_latents(tmp_path, clips, encoders):
    cache = LatentCache(tmp_path / "cache")
    first = encode(clips, cache, encoders)
    second = encode(clips, cache, encoders, EncodeSettings(13, 32, 32))
    assert {e.latents for e in first}.isdisjoint({e.latents for e in second})
    assert cache.read("latents", second[0].latents).shape == second[0].shape == (16, 4, 8, 8)


def test_skip_goes_on_without_the_bad_clip(tmp_path, clips, encoders, caplog):
    bad = clips / "train" / "train_0_000001_17x32x32.mp4"
    bad.write_bytes(b"")
    entries = encode(
        clips, LatentCache(tmp_path / "c"), encoders, EncodeSettings(17, 32, 32, on_bad_clip="skip")
    )
    assert [entry.name for entry in entries] == [
        "train/train_0_000000_17x32x32.mp4",
        "train/train_0_000002_17x32x32.mp4",
    ]
    assert "train_0_000001_17x32x32.mp4: the file is empty" in caplog.text


def test_illegal_sizes_are_refused_before_decoding(tmp_path, clips, encoders):
    with pytest.raises(ValueError, match="num_frames=16"):
        encode(clips, LatentCache(tmp_path / "c"), encoders, EncodeSettings(16, 32, 32))
    with pytest.raises(ValueError, match="width=30"):
        encode(clips, LatentCache(tmp_path / "c"), encoders, EncodeSettings(17, 32, 30))


def test_collate_pads_texts_and_masks_the_padding():
    samples = [(torch.zeros(1, 1, 2, 2), torch.ones(n, 4), n) for n in (2, 5)]
    batch = collate(samples)
    assert batch.text.embedding.shape == (2, 5, 4)
    assert batch.text.mask.sum(1).tolist() == [2, 5]
    assert batch.index.tolist() == [2, 5]


def test_codec_reconstructs_heldout_clips(encoders):
    vae = encoders[0]
    frames = toy.render(toy.make_scene(5, "heldout", 0)).frames
    with torch.no_grad():
        latents = vae.encode(video.to_signed(frames)[None])
        decoded = vae.decode(latents)[0]
    assert latents.shape == (1, 16, 5, 8, 8)
    error = (decoded - video.to_signed(frames)).square().mean()
    assert 10 * torch.log10(4 / error) > 24


def test_codec_is_causal(encoders):
    vae = encoders[0]
    clip = video.to_signed(toy.render(toy.make_scene(5, "heldout", 1)).frames)[None]
    changed = clip.clone()
    changed[:, :, 9:] = 0
    with torch.no_grad():
        first, second = vae.encode(clip), vae.encode(changed)
        alone = vae.encode(clip[:, :, :1])
    assert torch.equal(first[:, :, :3], second[:, :, :3])
    torch.testing.assert_close(first[:, :, :1], alone)


def test_text_encoder_zeroes_padding_for_every_row_of_a_batch(encoders):
    text = encoders[1].encode(["a red one moves up over cat", "a red one", "a"])
    assert text.mask.sum(1).tolist() == [8, 4, 2]
    assert not text.embedding[~text.mask].any()
    alone = encoders[1].encode(["a red one"])
    torch.testing.assert_close(text.embedding[1, :4], alone.embedding[0], atol=1e-5, rtol=1e-5)


def test_unknown_words_are_reported(encoders, caplog):
    assert isinstance(encoders[1], UMT5TextEncoder)
    encoders[1].encode(["a green dragon"])
    assert "dragon" in caplog.text
