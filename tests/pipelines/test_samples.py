"""Which frames of which clips become samples, and what names they get in the cache."""

import shutil

import pytest
import torch

from pusa.data import video
from pusa.data.clips import read_manifest
from pusa.data.facts import FactBook
from pusa.data.geometry import Bucket
from pusa.pipelines.encode import dataset_fingerprint
from pusa.pipelines.prepare import Source
from pusa.pipelines.samples import EncodeSettings, Keys, plan_samples, table
from pusa.types import LatentSpec

SPEC, KEYS = LatentSpec(16, 4, 4), Keys("vae", "text", 24)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Clips of several lengths, rates and aspects; frame t is as bright as t."""
    tmp_path = tmp_path_factory.mktemp("made")
    shapes = {"long": (49, 16, 32, 32), "short": (9, 16, 32, 32), "fast": (60, 30, 32, 32),
              "near": (30, 16.5, 32, 32), "slow": (30, 8, 32, 32), "wide": (20, 16, 32, 64),
              "tall": (20, 16, 64, 32)}  # fmt: skip
    for name, (count, fps, height, width) in shapes.items():
        levels = (torch.arange(count) * 4).view(-1, 1, 1, 1).expand(-1, 3, height, width)
        video.write_video(tmp_path / f"{name}.mp4", levels.to(torch.uint8), fps, crf=1)
        (tmp_path / f"{name}.txt").write_text(f"a {name} clip")
    video.write_image(tmp_path / "still.png", torch.full((3, 40, 40), 9, dtype=torch.uint8))
    (tmp_path / "still.txt").write_text("a still")
    return tmp_path


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "clips")


def plan(folder, tmp_path, **settings):
    given = EncodeSettings(**{"num_frames": 17, "height": 32, "width": 32, "fps": 16.0} | settings)
    samples, bad = plan_samples(
        read_manifest(folder), FactBook(tmp_path / "c").of, given, SPEC, KEYS
    )
    return {s.entry.name.removesuffix(".mp4"): s for s in samples}, bad


def test_frames_are_chosen_by_time_at_the_models_rate(folder, tmp_path):
    samples, bad = plan(folder, tmp_path)
    assert samples["long"].chosen.indices == tuple(range(17))
    fast = samples["fast"].chosen.indices  # 30 fps at 16: frames at k * 30/16
    assert all(abs(i - k * 30 / 16) <= 0.5 + 1e-6 for k, i in enumerate(fast))
    assert samples["fast"].chosen.factor == 1
    near = samples["near"].chosen  # 3 % off: frame by frame, and said so
    assert near.indices == tuple(range(17))
    assert near.factor == pytest.approx(16 / 16.5, rel=1e-3)
    assert set(bad) == {"short.mp4", "slow.mp4", "still.png"}
    assert "8 frames per second, the model 16" in bad["slow.mp4"]
    text = table(list(samples.values()), bad)
    assert "17 x 32 x 32" in text
    assert "play 0.970 to" in text
    assert "dropped clips                   3" in text


def test_without_a_rate_frames_are_taken_as_they_come(folder, tmp_path):
    samples, bad = plan(folder, tmp_path, fps=None)
    assert samples["fast"].chosen.indices == samples["slow"].chosen.indices == tuple(range(17))
    assert set(bad) == {"short.mp4", "still.png"}


def test_buckets_take_what_a_clip_can_fill_then_the_nearest_aspect(folder, tmp_path):
    buckets = [[49, 32, 32], [17, 32, 32], [17, 32, 64], [17, 64, 32], [9, 32, 32], [1, 32, 32]]
    samples, bad = plan(folder, tmp_path, buckets=buckets)
    sizes = {name: sample.size for name, sample in samples.items()}
    assert sizes["long"] == Bucket(49, 32, 32)
    assert sizes["short"] == Bucket(9, 32, 32)
    assert sizes["wide"] == Bucket(17, 32, 64)
    assert sizes["tall"] == Bucket(17, 64, 32)
    assert sizes["still.png"] == Bucket(1, 32, 32)
    assert set(bad) == {"slow.mp4"}
    assert samples["wide"].entry.shape == (16, 5, 8, 16)


def test_windows_make_several_samples_of_a_clip(folder, tmp_path):
    samples, _ = plan(folder, tmp_path, where="windows", stride=16)
    starts = [samples[f"long.mp4#{i}"].chosen.indices[0] for i in range(3)]
    assert starts == [0, 16, 32]
    assert "long.mp4#3" not in samples


def test_random_and_middle_windows_are_functions_of_clip_and_seed(folder, tmp_path):
    runs = [plan(folder, tmp_path, where="random", seed=seed)[0] for seed in (0, 0, 1)]
    starts = [{name: s.chosen.indices[0] for name, s in run.items()} for run in runs]
    assert starts[0] == starts[1]
    assert starts[0] != starts[2]
    middle, _ = plan(folder, tmp_path, where="middle")
    assert middle["long"].chosen.indices[0] == 16


def test_keys_change_with_what_matters_alone(folder, tmp_path):
    base, _ = plan(folder, tmp_path)
    key = base["long"].entry.latents
    same, _ = plan(folder, tmp_path, batch_size=4, num_workers=1, on_bad_clip="skip")
    assert same["long"].entry.latents == key
    for change in ({"width": 64}, {"fit": "pad"}, {"where": "middle"}, {"num_frames": 13}):
        other, _ = plan(folder, tmp_path, **change)
        assert other["long"].entry.latents != key
        assert other["long"].entry.text == base["long"].entry.text


def test_the_fingerprint_sees_files_captions_and_settings(folder):
    settings = EncodeSettings(17, 32, 32)

    def mark(settings=settings, keys=KEYS):
        return dataset_fingerprint(read_manifest(folder), settings, keys)

    marks = [mark(), mark(EncodeSettings(13, 32, 32)), mark(keys=Keys("vae2", "text", 24))]
    (folder / "long.txt").write_text("another caption")
    marks.append(mark())
    (folder / "tall.mp4").write_bytes((folder / "wide.mp4").read_bytes())
    marks.append(mark())
    assert len(set(marks)) == 5
    assert mark(EncodeSettings(17, 32, 32, num_workers=1)) == marks[-1]


def test_a_source_splits_by_hash_and_honours_quarantine(folder):
    names = {part: {c.name for c in Source("x", str(folder), split=part, heldout_share=0.4).clips()}
             for part in ("all", "train", "heldout")}  # fmt: skip
    assert names["train"] | names["heldout"] == names["all"]
    assert not names["train"] & names["heldout"]
    with pytest.raises(ValueError, match="split='test' is unknown"):
        Source("x", str(folder), split="test")
    assert Source("x", str(folder), split="heldout", heldout_share=0.0).clips() == []
    with pytest.raises(ValueError, match="no clips are left"):
        Source("x", str(folder), split="train", heldout_share=1.0).clips()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"where": "last"}, "where='last' is unknown"),
        ({"buckets": [[17, 32]]}, r"\[17, 32\] is not \[num_frames, height, width\]"),
        ({"num_workers": 0}, "num_workers must be at least 1"),
        ({"stride": 0}, "stride must be at least 1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        EncodeSettings(17, 32, 32, **settings)


def test_illegal_buckets_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="num_frames=16"):
        plan(folder, tmp_path, buckets=[[16, 32, 32]])
