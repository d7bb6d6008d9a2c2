"""Clips to latents: once, whole, and again only where something has changed."""

import csv
import os
import re
import shutil
from dataclasses import replace

import pytest
import torch

from pusa.data import facts, toy, video
from pusa.data.cache import KINDS, LatentCache
from pusa.data.clips import read_manifest
from pusa.data.latents import LatentDataset, collate
from pusa.models.text import UMT5TextEncoder, load_text_encoder
from pusa.models.vae import load_vae
from pusa.pipelines.encode import encode_clips
from pusa.pipelines.parts import Part
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


def encode(clips, cache, encoders, settings=SETTINGS, part=Part()):  # noqa: B008 - frozen
    manifest = read_manifest(clips / "metadata.csv")
    return encode_clips(manifest, cache, settings, *encoders, KEYS, part)


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


def write_manifest(clips, rows):
    with (clips / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:  # with a BOM
        csv.writer(file).writerows([("file_name", "text"), *rows])


def test_faulty_files_are_named_at_once_and_the_good_ones_cached(tmp_path, clips, encoders):
    train = clips / "train"
    good = (train / "train_0_000000_17x32x32.mp4").read_bytes()
    contents = {
        "good.mp4": good, "copy é 空 #%.mp4": good, "empty.mp4": b"", "text.mp4": b"no video" * 99,
        "truncated.mp4": good[: len(good) // 2], "noise.webm": bytes(range(256)) * 20,
    }  # fmt: skip
    for name, content in contents.items():
        (train / name).write_bytes(content)
    os.mkfifo(train / "fifo.mp4")
    names = [*contents, "fifo.mp4", "good.mp4"]
    write_manifest(clips, [(name, f"{i} " + "a red one " * 500) for i, name in enumerate(names)])
    cache = LatentCache(tmp_path / "cache")
    with pytest.raises(ValueError, match="5 of 8 clips cannot be used") as error:
        encode(clips, cache, encoders)
    lines = str(error.value).split("\n")[1:-1]
    expected = {
        "empty.mp4": "the file is empty (0 bytes)", "text.mp4": "not a video",
        "truncated.mp4": "truncated", "noise.webm": "not a video", "fifo.mp4": "is a FIFO",
    }  # fmt: skip
    assert len(lines) == len(expected)
    for line, (name, reason) in zip(lines, expected.items(), strict=True):
        assert name in line
        assert reason in line
    skip = EncodeSettings(17, 32, 32, on_bad_clip="skip")
    entries = encode(clips, cache, encoders, skip)
    assert [e.name for e in entries] == [
        "train/good.mp4",
        "train/copy é 空 #%.mp4",
        "train/good.mp4",
    ]
    assert len({e.latents for e in entries}) == 1  # equal files are encoded once
    assert len({e.text for e in entries}) == 3
    assert cache.read("text", entries[0].text).shape == (24, 64)  # 5,000 characters are cut


def test_another_resolution_encodes_no_caption(tmp_path, clips, encoders):
    cache = LatentCache(tmp_path / "cache")
    encode(clips, cache, encoders)
    before = stamps(cache)
    encode(clips, cache, encoders, EncodeSettings(17, 48, 32))
    after = stamps(cache)
    assert all(after[name] == stamp for name, stamp in before.items())
    assert len(cache.files("latents")) == 6
    assert len(cache.files("text")) == 3


def test_workers_and_parts_do_not_matter(tmp_path, clips, encoders):
    """Every tensor has the same bytes, whoever encoded it; batch_size=1, as configs have it."""
    stored = []
    runs = [(1, [Part()]), (3, [Part()]), (2, [Part(1, 2), Part(0, 2)])]
    for number, (workers, parts) in enumerate(runs):
        cache = LatentCache(tmp_path / f"cache{number}")
        settings = EncodeSettings(17, 32, 32, num_workers=workers)
        found = [encode(clips, cache, encoders, settings, part) for part in parts]
        assert [entries is None for entries in found] == [True] * (len(parts) - 1) + [False]
        stored.append({p.name: p.read_bytes() for k in KINDS for p in cache.files(k)})
        assert len(found[-1]) == 3
    assert stored[0] == stored[1] == stored[2]


def test_a_part_opens_no_clip_of_the_others(tmp_path, clips, encoders, monkeypatch):
    opened = []
    probe = facts.probe
    monkeypatch.setattr(facts, "probe", lambda media: opened.append(media.name) or probe(media))
    assert encode(clips, LatentCache(tmp_path / "c"), encoders, part=Part(1, 2)) is None
    assert opened == ["train_0_000001_17x32x32.mp4"]
    assert encode(clips, LatentCache(tmp_path / "c"), encoders, part=Part(0, 2)) is not None
    assert len(opened) == 3


def test_a_bad_clip_of_another_part_does_not_keep_the_set_waiting(tmp_path, clips, encoders):
    (clips / "train" / "train_0_000001_17x32x32.mp4").write_bytes(b"")
    skip = EncodeSettings(17, 32, 32, on_bad_clip="skip")
    cache = LatentCache(tmp_path / "c")
    assert encode(clips, cache, encoders, skip, Part(1, 2)) is None
    assert len(encode(clips, cache, encoders, skip, Part(0, 2))) == 2
    with pytest.raises(ValueError, match=r"train_0_000001_17x32x32\.mp4: the file is empty"):
        encode(clips, cache, encoders, SETTINGS, Part(0, 2))


def test_a_fault_of_the_decoder_is_told_to_the_other_parts(tmp_path, clips, encoders, monkeypatch):
    """Found after the probe; neither the file nor its copy is waited for."""
    name = "train_0_000001_17x32x32.mp4"
    shutil.copy(clips / "train" / name, clips / "train" / "copy.mp4")
    with (clips / "metadata.csv").open("a") as file:
        file.write("copy.mp4,a copy\n")
    read = video.read_fitted

    def fail(media, *arguments):
        if media.name in (name, "copy.mp4"):
            raise video.VideoError(f"{media}: decord cannot decode it")
        return read(media, *arguments)

    monkeypatch.setattr(video, "read_fitted", fail)
    skip = EncodeSettings(17, 32, 32, on_bad_clip="skip")
    cache = LatentCache(tmp_path / "c")
    assert encode(clips, cache, encoders, skip, Part(1, 2)) is None
    assert len(encode(clips, cache, encoders, skip, Part(0, 2))) == 2
    monkeypatch.undo()  # and it is tried again, should it have been the machine's fault
    assert len(encode(clips, cache, encoders, skip)) == 4


def test_latents_and_texts_that_are_not_finite_are_refused(tmp_path, clips, encoders, monkeypatch):
    vae, text_encoder = encoders
    cache = LatentCache(tmp_path / "c")
    whole = vae.encode
    monkeypatch.setattr(vae, "encode", lambda frames: whole(frames) / 0)
    with pytest.raises(ValueError, match=r"latents that are not finite; encode in float32"):
        encode(clips, cache, encoders)
    assert not cache.files("latents")
    monkeypatch.undo()
    texts = text_encoder.encode
    nan = lambda captions: replace(t := texts(captions), embedding=t.embedding * torch.nan)  # noqa: E731
    monkeypatch.setattr(text_encoder, "encode", nan)
    with pytest.raises(ValueError, match=r"embeddings that are not finite; check its weights"):
        encode(clips, LatentCache(tmp_path / "d"), encoders)


def test_the_disk_need_is_told_before_the_start(small_disk, tmp_path, clips, encoders, caplog):
    caplog.set_level("INFO")
    with pytest.raises(OSError, match=r"needs .* for latents and text, .* are free"):
        encode(clips, LatentCache(small_disk / "c"), encoders, EncodeSettings(17, 320, 320))
    assert not list(small_disk.rglob("*.safetensors"))
    entries = encode(clips, LatentCache(tmp_path / "c"), encoders)
    written = sum(p.stat().st_size for p in (tmp_path / "c").rglob("*.safetensors"))
    assert "3 clips and 3 captions to encode, 31.9 kB of latents" in caplog.text
    told = 31.9e3 + float(re.findall(r"about ([\d.]+) kB of text", caplog.text)[-1]) * 1e3
    assert told == pytest.approx(written, rel=0.1)
    assert len(entries) == 3


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
