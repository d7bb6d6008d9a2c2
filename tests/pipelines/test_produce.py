"""`pusa generate`: a video, its sidecar, and the same video again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pusa.cli import main
from pusa.data import toy, video
from pusa.weights.adapters import Adapter
from pusa.weights.lora import write_lora
from tests.weights.conftest import make_adapter, make_twin

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
    assert sidecar["recipe"]["prompt"] == [PROMPT]
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


def adapter(seed: int = 1) -> Adapter:
    """Strong enough to show in the pixels."""
    return make_adapter(make_twin("wan22_t2v_a14b_tiny"), 4, 40.0, seed)


@pytest.fixture
def two_loras(root) -> Path:
    """The folder of a training run of two experts."""
    for seed, expert in enumerate(("high", "low")):
        write_lora(
            replace(adapter(seed), expert=expert), root / "run" / expert / "lora.safetensors"
        )
    return root / "run"


def test_a_twin_of_two_experts_makes_a_video_in_an_empty_checkout(root, two_loras):
    shift = "sampler.shift=5"  # of two steps each expert has one
    command = ("--model", "wan22_tiny", "--prompt", PROMPT, "--num-frames", "5", "--set", shift)
    plain = generate(root, "plain.mp4", *command)
    assert video.read_frames(plain)[0].shape == (5, 3, 64, 64)
    run, high, low = two_loras, two_loras / "high", two_loras / "low" / "lora.safetensors"
    used = {
        "run": ("--lora", f"{run}"),
        "one by one": ("--lora", f"low={low}", "--lora", f"high={high}"),
        "high": ("--lora", f"{high}"),
        "low": ("--lora", f"{low}"),
        "off": ("--lora", f"{run}:3", "--strength", "0"),
        "uneven": ("--lora", f"{run}", "--strength", "high=0,low=1"),
    }
    videos = {
        name: generate(root, f"{name}.mp4", *command, *loras).read_bytes()
        for name, loras in used.items()
    }
    assert videos["run"] == videos["one by one"]
    assert videos["off"] == plain.read_bytes()
    assert videos["uneven"] == videos["low"]
    assert len({plain.read_bytes(), videos["run"], videos["high"], videos["low"]}) == 4
    sidecar = json.loads((root / "run.json").read_text())
    weights = root / "models" / "tiny" / "wan22_t2v_a14b"
    assert {str(run / e / "lora.safetensors") for e in ("high", "low")} <= set(sidecar["inputs"])
    assert {str(weights / f"{e}_noise_model") for e in ("high", "low")} <= set(sidecar["inputs"])


def test_a_sidecar_of_two_experts_makes_the_same_bytes_again(root, two_loras, capsys):
    first = generate(
        root, "a.mp4", "--model", "wan22_tiny", "--prompt", PROMPT, "--lora", f"{two_loras}:1.2",
        "--strength", "high=1.5,low=1.4", "--num-frames", "5",
    )  # fmt: skip
    again = root / "b.mp4"
    command = ["generate", "--from", str(first.with_suffix(".json")), "--output", str(again)]
    main(command)
    assert again.read_bytes() == first.read_bytes()
    write_lora(replace(adapter(7), expert="low"), two_loras / "low" / "lora.safetensors")
    with pytest.raises(SystemExit):
        main(command)
    assert "low/lora.safetensors is not the file" in capsys.readouterr().err


def test_a_sidecar_from_before_there_were_several_loras(root):
    """It has one file and one strength, and nothing said which expert."""
    lora = root / "a.safetensors"
    write_lora(make_adapter(make_twin("wan_tiny"), 4, 40.0), lora)
    first = generate(root, "a.mp4", "--prompt", PROMPT, "--lora", str(lora), "--strength", "1.4")
    sidecar = json.loads(first.with_suffix(".json").read_text())
    sidecar["recipe"]["lora"] = str(lora)
    (root / "old.json").write_text(json.dumps(sidecar))
    main(["generate", "--from", str(root / "old.json"), "--output", str(root / "b.mp4")])
    assert (root / "b.mp4").read_bytes() == first.read_bytes()
    assert generate(root, "c.mp4", "--prompt", PROMPT).read_bytes() != first.read_bytes()


@pytest.mark.parametrize(("asked", "done"), [("auto", "merged"), ("low_rank", "low_rank")])
def test_a_sidecar_says_how_loras_were_applied_and_it_is_done_so_again(root, caplog, asked, done):
    lora = root / "a.safetensors"
    write_lora(make_adapter(make_twin("wan_tiny"), 4, 40.0), lora)
    caplog.set_level("INFO")
    command = ("--prompt", PROMPT, "--lora", str(lora), "--lora-path", asked)
    first = generate(root, "a.mp4", *command)
    sidecar = json.loads(first.with_suffix(".json").read_text())
    assert (sidecar["recipe"]["lora_path"], sidecar["lora_path"]) == (asked, done)
    assert (f"LoRA: {done}" in caplog.text) == (asked == "auto")
    again = root / "b.mp4"
    main(["generate", "--from", str(first.with_suffix(".json")), "--output", str(again)])
    assert again.read_bytes() == first.read_bytes()
    sidecar["recipe"].pop("lora_path")
    sidecar.pop("lora_path")  # as written before there was a choice
    (root / "old.json").write_text(json.dumps(sidecar))
    main(["generate", "--from", str(root / "old.json"), "--output", str(root / "c.mp4")])
    assert json.loads((root / "c.json").read_text())["lora_path"] == "low_rank"
