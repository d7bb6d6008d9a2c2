"""The caching job is killed at random points and goes on; parts of it make the same cache."""

import hashlib
import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from pusa.data import toy
from pusa.data.cache import LatentCache
from pusa.data.care import leftovers, verify
from pusa.data.clips import read_manifest
from pusa.pipelines.encode import encode_clips, write_index
from pusa.pipelines.parts import Part
from pusa.pipelines.samples import EncodeSettings, Keys
from pusa.types import LatentSpec, Text
from tests.processes import FORKS

NUM_CLIPS, KILLS = 24, 20
SETTINGS = EncodeSettings(num_frames=5, height=32, width=32, batch_size=2)
KEYS = Keys("vae", "text", 24)


class SlowVAE(torch.nn.Module):
    """Averages blocks of pixels; notes every clip that it encodes, before it is done."""

    spec = LatentSpec(3, 4, 8)

    def __init__(self, notes: Path):
        super().__init__()
        self.notes = notes

    def encode(self, frames):
        with self.notes.open("a") as file:
            for clip in frames:
                file.write(hashlib.md5(clip.numpy().tobytes()).hexdigest() + "\n")
        time.sleep(0.01)
        return torch.nn.functional.avg_pool3d(frames[:, :, ::4], (1, 8, 8))


class SlowText:
    text_len = 24

    def encode(self, captions):
        time.sleep(0.002)
        rows = [torch.full((1, 4), float(len(caption))) for caption in captions]
        return Text(torch.stack(rows), torch.ones(len(captions), 1, dtype=torch.bool))


def job(manifest: Path, folder: Path, notes: Path, part: tuple[int, int]) -> None:
    torch.set_num_threads(1)
    cache = LatentCache(folder)
    entries = encode_clips(
        read_manifest(manifest), cache, SETTINGS, SlowVAE(notes), SlowText(), KEYS, Part(*part)
    )
    if entries is not None:
        write_index(cache, "set", "0" * 32, entries)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    scenes = [toy.make_scene(0, "train", i, 5, 32, 32) for i in range(NUM_CLIPS)]
    return toy.write_dataset(folder, scenes)


def stored(folder: Path) -> dict[str, bytes]:
    """Every file of a cache but the notes on media, which say who found out what."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.parent.name != "media"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def start(*arguments):
    """A process that starts in milliseconds, with everything imported and nothing decoded yet."""
    process = FORKS.Process(target=job, args=arguments)
    process.start()
    return process


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory) -> dict[str, bytes]:
    """The cache that is made in one go."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(manifest, folder / "cache", folder / "notes", (0, 1))
    process.join()
    assert process.exitcode == 0
    return stored(folder / "cache")


def test_twenty_kills_leave_the_cache_of_one_go(manifest, whole, tmp_path):
    folder, notes = tmp_path / "cache", tmp_path / "notes"
    notes.touch()
    chance = random.Random(0)
    kills = 0
    while kills < KILLS:
        process = start(manifest, folder, notes, (0, 1))
        process.join(chance.uniform(0.02, 0.45))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        elif len(list(folder.glob("index/*"))):  # done early: take something away and go on
            for file in list(folder.glob("latents/*/*.safetensors"))[:6]:
                file.unlink()
    process = start(manifest, folder, notes, (0, 1))
    process.join()
    assert process.exitcode == 0
    for file in leftovers(LatentCache(folder), older_than=-1):
        file.unlink()
    assert stored(folder) == whole
    assert not verify(LatentCache(folder)).damaged


def test_no_clip_is_encoded_twice_but_those_in_flight(manifest, tmp_path):
    """A killed job loses at most the batch that it was encoding."""
    folder, notes = tmp_path / "cache", tmp_path / "notes"
    kills = 0
    for delay in (0.3, 0.35, 0.4, 0.45, 0.5):
        process = start(manifest, folder, notes, (0, 1))
        process.join(delay)
        kills += process.exitcode is None
        process.kill()
        process.join()
    process = start(manifest, folder, notes, (0, 1))
    process.join()
    counts = Counter(notes.read_text().split())
    assert len(counts) == NUM_CLIPS
    assert sum(counts.values()) - NUM_CLIPS <= kills * SETTINGS.batch_size


def test_parts_at_once_make_the_same_cache(manifest, whole, tmp_path):
    folder = tmp_path / "cache"
    parts = [start(manifest, folder, tmp_path / f"notes{i}", (i, 3)) for i in range(3)]
    for process in parts:
        process.join()
        assert process.exitcode == 0
    assert stored(folder) == whole
    encoded = [set((tmp_path / f"notes{i}").read_text().split()) for i in range(3)]
    assert sum(map(len, encoded)) == len(set.union(*encoded)) == NUM_CLIPS


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="part 4/4 is none"):
        Part(4, 4)


def test_facts_of_media_survive_a_torn_line(manifest, tmp_path):
    from pusa.data.facts import FactBook

    clips = read_manifest(manifest)[:2]
    book = FactBook(tmp_path)
    first = [book.of(clip.media) for clip in clips]
    (file,) = (tmp_path / "media").glob("*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[0])["digest"] == first[0].digest
    file.write_bytes(lines[0] + lines[1][: len(lines[1]) // 2])
    again = FactBook(tmp_path)
    assert [again.of(clip.media) for clip in clips] == first
    assert len(list((tmp_path / "media").glob("*.jsonl"))) == 2  # only the torn one anew
