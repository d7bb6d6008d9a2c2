"""Bad input, as people produce it: one clear message, exit code 1, nothing half-written."""

import subprocess

import pytest

from pusa.data import toy
from tests import processes
from tests.conftest import REPOSITORY


@pytest.fixture
def command(root):
    """A program of the checkout, in the root of the test."""
    return processes.run


def refused(result: subprocess.CompletedProcess, *parts: str) -> None:
    """One message with these parts, exit code 1, no traceback."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr


def files(root) -> list[str]:
    return [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]


def test_unknown_experiment_lists_the_known_ones(command, root):
    refused(command("train.py", "experiment=tiny_vtaa"), "tiny_vtaa", "tiny_vta", "tiny_base")
    assert not files(root)


def test_no_experiment_lists_the_known_ones(command):
    refused(command("train.py"), "name an experiment", "tiny_vta")


def test_unknown_config_keys_are_refused_with_and_without_plus(command, root):
    refused(command("train.py", "experiment=tiny_vta", "lora.rnak=4"), "rnak")
    refused(command("train.py", "experiment=tiny_vta", "+lr=4"), "lr: no such config key")
    refused(command("train.py", "experiment=tiny_vta", "+lora.rnak=4"), "rnak")
    assert not files(root)


def test_rank_zero_is_refused_before_any_work(command, root):
    refused(command("train.py", "experiment=tiny_vta", "lora.rank=0"), "lora.rank", "at least 1")
    assert not files(root)


def write_clips(folder, num_clips: int = 2) -> None:
    toy.write_dataset(folder, [toy.make_scene(0, "train", i) for i in range(num_clips)])


def own_clips(folder) -> list[str]:
    """The command that trains on a user's folder."""
    return [
        "train.py", "experiment=tiny_vta", "data=clips",
        f"data.train.manifest={folder}/metadata.csv",
        f"data.heldout.manifest={folder}/metadata.csv", "logger.wandb=off",
    ]  # fmt: skip


def test_truncated_and_missing_videos_are_named_and_the_good_ones_kept(command, root):
    clips = root / "clips"
    write_clips(clips, 3)
    broken = clips / "train" / "train_0_000001_17x32x32.mp4"
    broken.write_bytes(broken.read_bytes()[:500])
    refused(
        command(*own_clips(clips)), "train_0_000001_17x32x32.mp4", "truncated", "on_bad_clip=skip"
    )
    cached = list((root / "data" / "cache" / "latents").rglob("*.safetensors"))
    assert len(cached) == 2
    assert not list((root / "data" / "cache").glob("*.index.json"))
    broken.unlink()
    refused(command(*own_clips(clips)), "line 3", "train_0_000001_17x32x32.mp4")


def test_manifests_without_clips_or_captions_are_named(command, root):
    clips = root / "clips"
    clips.mkdir()
    manifest = clips / "metadata.csv"
    refused(command(*own_clips(clips)), "no such manifest")
    manifest.write_text("file_name,text\n")
    refused(command(*own_clips(clips)), "lists no clips")
    manifest.write_text("file_name,text\nabsent.mp4,a caption\n")
    refused(command(*own_clips(clips)), "line 2", "absent.mp4")
    manifest.write_text("file_name,caption\nabsent.mp4,a caption\n")
    refused(command(*own_clips(clips)), "misses column 'text'")


def test_generate_refuses_a_condition_outside_the_video_before_reading_weights(command, root):
    generate = ["-m", "pusa.cli", "generate", "--prompt", "a red one moves left over cat"]
    output = ["--output", str(root / "a.mp4"), "--set", f"paths.root={root}"]
    picture = REPOSITORY / "docs" / "images" / "demo.png"
    refused(
        command(*generate, "--at", f"17={picture}", *output, "--set", "model.weights=absent"),
        "17 is outside a video of 17 frames", "0..16",
    )  # fmt: skip
    refused(command(*generate, "--at", f"latent:5={picture}", *output), "5 latent frames", "0..4")
    refused(command(*generate, "--at", f"0={picture}:1.5", *output), "must be in [0, 1]")
    refused(command(*generate, "--at", "0=absent.png", *output), "absent.png: no such file")
    refused(command(*generate, "--num-frames", "16", *output), "num_frames=16", "use 13 or 17")
    refused(command(*generate, "--lora", "absent.safetensors", *output), "absent.safetensors")
    assert not files(root)


def test_a_full_disk_while_caching_leaves_no_half_file(command, root, small_disk):
    clips = root / "clips"
    write_clips(clips, 24)
    result = command(*own_clips(clips), f"paths.cache={small_disk}/cache")
    refused(result, "free space, or choose another folder")
    assert not [p for p in small_disk.rglob("*") if "partial" in p.name]


def test_a_full_disk_while_saving_keeps_the_checkpoint_before(command, root, small_disk):
    clips = root / "clips"
    write_clips(clips, 2)
    result = command(
        *own_clips(clips), f"paths.outputs={small_disk}/out", "trainer.max_steps=1", "batch_size=1",
        "callbacks.grid=null", "lora.rank=64",
    )  # fmt: skip
    refused(result, "free space, or choose another folder")
    assert not [p for p in small_disk.rglob("*") if "partial" in p.name]
    assert not list(small_disk.rglob("*.ckpt"))


def test_a_read_only_output_folder_is_named(command, root, read_only_disk):
    outputs = f"paths.outputs={read_only_disk}"
    refused(
        command("train.py", "experiment=tiny_vta", outputs, "logger.wandb=off"),
        str(read_only_disk), "Read-only file system", "choose another folder",
    )  # fmt: skip
    output = str(read_only_disk / "a.mp4")
    generate = ["-m", "pusa.cli", "generate", "--prompt", "a red one moves left over cat"]
    refused(command(*generate, "--output", output), str(read_only_disk), "Read-only file system")
    assert not files(root)
