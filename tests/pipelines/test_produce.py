"""`pusa generate`: a video, its sidecar, and the same video again."""

import json

import pytest
import torch

from pusa.cli import main
from pusa.data import toy, video

PROMPT = "a red one moves left over cat"


@pytest.fixture
def picture(tmp_path):
    video.write_image(tmp_path / "first.png", toy.render(toy.make_scene(0, "heldout", 0)).frames[0])
    return tmp_path / "first.png"


def generate(root, name: str, *arguments: str):
    output = root / name
    main(
        [
            "generate",
            "--output",
            str(output),
            "--steps",
            "2",
            "--set",
            f"paths.root={root}",
            *arguments,
        ]
    )
    return output


def test_text_to_video_writes_a_video_of_the_models_size(root):
    path = generate(root, "a.mp4", "--prompt", PROMPT)
    frames, info = video.read_frames(path)
    assert frames.shape == (17, 3, 32, 32)
    assert info.fps == 16
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar["recipe"]["prompt"] == PROMPT
    assert sidecar["made_by"]["torch"] == torch.__version__


def test_a_sidecar_makes_the_same_bytes_again(root, picture):
    first = generate(root, "a.mp4", "--prompt", PROMPT, "--at", f"0={picture}:0.2", "--seed", "7")
    again = root / "b.mp4"
    main(["generate", "--from", str(first.with_suffix(".json")), "--output", str(again)])
    assert again.read_bytes() == first.read_bytes()
    other = generate(root, "c.mp4", "--prompt", PROMPT, "--at", f"0={picture}:0.2", "--seed", "8")
    assert other.read_bytes() != first.read_bytes()


def test_a_changed_input_is_refused_by_its_sidecar(root, picture, capsys):
    first = generate(root, "a.mp4", "--prompt", PROMPT, "--at", f"0={picture}")
    video.write_image(picture, torch.zeros(3, 32, 32, dtype=torch.uint8))
    with pytest.raises(SystemExit) as error:
        main(
            ["generate", "--from", str(first.with_suffix(".json")), "--output", str(root / "b.mp4")]
        )
    assert error.value.code == 1
    assert "first.png is not the file" in capsys.readouterr().err
    assert not (root / "b.mp4").exists()


def test_a_kept_frame_is_the_given_image_up_to_the_codec(root, picture):
    path = generate(root, "a.mp4", "--prompt", PROMPT, "--at", f"0={picture}:0")
    frames, _ = video.read_frames(path)
    given, _ = video.read_frames(picture)
    error = (frames[0].float() - given[0].float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 20


def test_other_sizes_and_lengths_work(root):
    path = generate(
        root, "a.mp4", "--prompt", PROMPT, "--num-frames", "9", "--height", "48", "--width", "40"
    )
    assert video.read_frames(path)[0].shape == (9, 3, 48, 40)


def test_guidance_changes_the_video(root):
    paths = [
        generate(root, f"{scale}.mp4", "--prompt", PROMPT, "--guidance", scale)
        for scale in ("1", "5")
    ]
    assert paths[0].read_bytes() != paths[1].read_bytes()
