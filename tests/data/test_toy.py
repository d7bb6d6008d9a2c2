"""Toy clips: determinism, the truth they claim, and that the splits share nothing."""

import numpy as np
import pytest
import torch

from pusa.data import toy


def scene(**changes) -> toy.Scene:
    base = toy.make_scene(0, "train", 0)
    return toy.Scene(**(vars(base) | {"pan": "none"} | changes))


def centroid(coverage: torch.Tensor) -> np.ndarray:
    axes = torch.meshgrid(*(torch.arange(n).float() for n in coverage.shape), indexing="ij")
    return np.array([float((axis * coverage).sum() / coverage.sum()) for axis in axes])


def test_a_clip_is_a_function_of_seed_split_and_index():
    torch.manual_seed(1)
    first = toy.render(toy.make_scene(3, "heldout", 7)).frames
    torch.manual_seed(2)
    assert torch.equal(first, toy.render(toy.make_scene(3, "heldout", 7)).frames)
    assert not torch.equal(first, toy.render(toy.make_scene(4, "heldout", 7)).frames)


@pytest.mark.parametrize("direction", toy.DIRECTIONS)
def test_the_sprite_moves_as_the_caption_says(direction):
    it = scene(direction=direction)
    assert f"moves {direction}" in it.caption
    coverage = toy.render(it).sprite
    moved = centroid(coverage[-1]) - centroid(coverage[0])
    expected = np.array(toy.DIRECTIONS[direction]) * toy.SPRITE_SPEED * 16
    assert moved == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("pan", toy.DIRECTIONS)
def test_the_background_moves_against_the_pan(pan):
    rendering = toy.render(scene(pan=pan))
    dy, dx = toy.DIRECTIONS[pan]
    later = rendering.frames[4].roll((2 * dy, 2 * dx), (1, 2)).float()
    # 4 frames of 0.5 pixels; the background moves against the camera.
    both = (rendering.sprite[0] < 0.01) & (rendering.sprite[4] < 0.01).roll(
        (2 * dy, 2 * dx), (0, 1)
    )
    inner = torch.zeros_like(both)
    inner[3:-3, 3:-3] = True
    assert (later - rendering.frames[0].float()).abs()[:, both & inner].max() <= 1


def test_determined_pixels_of_a_still_camera_are_those_of_the_first_frame():
    rendering = toy.render(scene())
    background = rendering.determined & (rendering.sprite < 0.02)
    for t in range(17):
        change = rendering.frames[t].float() - rendering.frames[0].float()
        assert change[:, background[t]].abs().max() <= 6  # the sprite's edge covers 2% at most
    assert rendering.determined[0].float().mean() > 0.75
    under = (rendering.sprite[0] > 0.5) & (rendering.sprite[16] < 0.01)
    assert under.any()
    assert not (rendering.determined[16] & under).any()  # what the sprite hid is not determined


def test_splits_share_no_photo_pixels_and_no_digits():
    train, heldout = (toy._split_photo("coffee", split) for split in toy.SPLITS)
    assert train.shape[2] + heldout.shape[2] == 600
    assert toy._digits()[3].shape[0] > len(toy._digits()[3][::5]) > 20


def test_every_caption_word_is_in_the_vocabulary():
    known = set(toy.vocabulary())
    for index in range(200):
        words = toy.make_scene(0, "train", index).caption.split()
        assert set(words) <= known


def test_dataset_has_the_public_layout_and_goes_on_where_it_stopped(tmp_path):
    scenes = [toy.make_scene(0, "heldout", index) for index in range(3)]
    toy.write_dataset(tmp_path, scenes[:2])
    first = tmp_path / "train" / "heldout_0_000000_17x32x32.mp4"
    stamp = first.stat().st_mtime_ns
    manifest = toy.write_dataset(tmp_path, scenes)
    assert first.stat().st_mtime_ns == stamp
    lines = manifest.read_text().splitlines()
    assert lines[0] == "file_name,text"
    assert len(lines) == 4
    assert toy.read_truth(tmp_path) == scenes
    assert sorted(p.suffix for p in tmp_path.iterdir()) == ["", ".csv", ".jsonl"]


def test_a_clip_that_another_process_rendered_meanwhile_stays(tmp_path, monkeypatch):
    """A cache knows clips by their time: had it changed, parts that encode at once would each wait
    for clips of the other."""
    target, write = tmp_path / "train" / "heldout_0_000000_17x32x32.mp4", toy.video.write_video
    stamps = []

    def at_once(path, *rest):
        write(target, *rest)
        stamps.append(target.stat().st_mtime_ns)
        write(path, *rest)

    monkeypatch.setattr(toy.video, "write_video", at_once)
    toy.write_dataset(tmp_path, [toy.make_scene(0, "heldout", 0)])
    assert stamps == [target.stat().st_mtime_ns]


def test_impossible_scenes_are_named():
    with pytest.raises(ValueError, match="use fewer frames or larger pictures"):
        toy.render(scene(num_frames=65))
    with pytest.raises(ValueError, match="train, heldout"):
        toy.make_scene(0, "test", 0)
