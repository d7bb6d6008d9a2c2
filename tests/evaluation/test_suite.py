"""The toy suite reads what toy.write_dataset wrote, and refuses what does not fit together."""

import shutil

import pytest
import torch

from pusa.data import toy
from pusa.evaluation.suite import toy_suite


def test_items_are_the_first_clips_with_their_truth(toy_folder):
    items = toy_suite(toy_folder, 3)
    assert [item.index for item in items] == [0, 1, 2]
    for item in items:
        assert item.scene == toy.make_scene(9, "heldout", item.index, num_frames=9)
        assert item.caption == item.scene.caption
        frames = item.frames()
        assert frames.shape == (9, 3, 32, 32)
        assert torch.equal(frames[0], item.condition_image())
        drawn = toy.render(item.scene).frames
        assert (frames.float() - drawn.float()).abs().mean() < 12


@pytest.mark.parametrize("num_clips", [0, 5])
def test_a_wrong_number_of_clips_is_refused(toy_folder, num_clips):
    with pytest.raises(ValueError, match=f"num_clips={num_clips}, but .* holds 4 clips; use 1 to"):
        toy_suite(toy_folder, num_clips)


def test_a_manifest_of_other_clips_is_refused(toy_folder, tmp_path):
    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    manifest = folder / "metadata.csv"
    manifest.write_text(manifest.read_text().replace("moves", "jumps", 1))
    with pytest.raises(ValueError, match=r"metadata\.csv and truth\.jsonl tell of different clips"):
        toy_suite(folder, 2)
