"""Every task through `pusa generate`, as people type it, on the replica."""

import json
import re

import pytest
import torch

from pusa.data import toy, video
from pusa.pipelines.studio import Studio
from pusa.weights.lora import write_lora
from tests.conftest import run_pusa
from tests.weights.conftest import make_adapter, make_twin


@pytest.fixture
def media(tmp_path):
    """Two clips and their first and last frames."""
    for i in range(2):
        frames = toy.render(toy.make_scene(0, "heldout", i)).frames
        video.write_video(tmp_path / f"clip{i}.mp4", frames, 16.0, crf=4)
        video.write_image(tmp_path / f"first{i}.png", frames[0])
        video.write_image(tmp_path / f"last{i}.png", frames[-1])
    return tmp_path


def generate(root, *arguments, steps: int = 2) -> tuple[int, torch.Tensor, dict]:
    """Exit code, frames and sidecar of a run into out.mp4."""
    output = root / "out.mp4"
    code = run_pusa(
        "generate", "--prompt", "a red one", "-o", output, "--steps", steps, *arguments
    )  # fmt: skip
    if code:
        return code, torch.empty(0), {}
    sidecar = json.loads(output.with_suffix(".json").read_text())
    return code, video.read_frames(output)[0], sidecar


@pytest.mark.parametrize(
    ("task", "files", "num_frames", "given"),
    [
        ("i2v", ["first0.png"], 17, ["0 0 0.2"]),
        ("start_end", ["first0.png", "last0.png"], 17, ["0 0 0.2", "13..16 4 0.5"]),
        ("keyframes", ["first0.png", "first1.png", "last0.png"], 17,
         ["0 0 0.3", "5..8 2 0.3", "13..16 4 0.3"]),
        ("completion", ["clip0.mp4"], 17, ["0 0 0.3", "13..16 4 0.3"]),
        ("extension", ["clip0.mp4", "--overlap", "5"], 29, ["0..4 0..1 0, 0.3"]),
        ("transition", ["clip0.mp4", "clip1.mp4", "--overlap", "5"], 42,
         ["0..4 0..1 0, 0.3", "13..16 4 0.3"]),
    ],
)  # fmt: skip
def test_every_task_makes_its_video_and_tells_its_mapping(
    root, media, task, files, num_frames, given
):
    files = [media / file if "." in file else file for file in files]
    code, frames, sidecar = generate(root, "--task", task, *files)
    assert code == 0
    assert frames.shape == (num_frames, 3, 32, 32)
    told = "\n".join(" ".join(line.split()) for line in sidecar["given"])
    assert all(f"{row} " in told for row in given), told
    assert f"{num_frames} frames, {num_frames / 16:.4g} s" in told


def test_an_extension_is_the_clip_and_what_is_new(root, media):
    """Up to the shared frames it is the clip; `cut` keeps those, too."""
    clip = video.read_frames(media / "clip0.mp4")[0].float()
    for seam, kept in (("cut", 17), ("blend", 12)):
        arguments = ("--task", "extension", media / "clip0.mp4", "--overlap", 5, "--seam", seam)
        _, frames, _ = generate(root, *arguments, "--crf", "0")
        assert (frames[:kept].float() - clip[:kept]).abs().mean() < 2  # of 255: chroma at half size
        assert (frames[17:].float() - clip[-1]).abs().mean() > 5


def test_a_transition_begins_and_ends_as_the_clips(root, media):
    clips = [video.read_frames(media / f"clip{i}.mp4")[0].float() for i in range(2)]
    files = media / "clip0.mp4", media / "clip1.mp4"
    _, frames, _ = generate(root, "--task", "transition", *files, "--overlap", 5, "--crf", "0")
    assert (frames[:12].float() - clips[0][:12]).abs().mean() < 2
    assert (frames[-13:].float() - clips[1][-13:]).abs().mean() < 2


def test_a_chain_goes_on_and_takes_prompts_in_turn(root, media):
    more = ("--chain", 2, "--overlap", 5, "--prompt", "a blue two", "--save", "latents")
    _, frames, sidecar = generate(root, "--task", "i2v", media / "first0.png", *more)
    assert len(frames) == 17 + 2 * 12
    assert sidecar["recipe"]["prompt"] == ["a red one", "a blue two"]
    from safetensors.torch import load_file

    latents = load_file(root / "out.safetensors")
    assert sorted(latents) == ["latents.0", "latents.1", "latents.2"]
    assert latents["latents.0"].shape == (16, 5, 8, 8)


def test_one_language_says_it_all(root, media):
    """A task, conditions, and upstream's flags come to the same video."""
    files = media / "first0.png", media / "last0.png"
    runs = [
        ("--task", "start_end", *files, "--encode-as", "alone"),
        ("--at", f"0={files[0]}:0.2:alone", "--at", f"last={files[1]}:0.5:alone"),
        ("--at", f"0s={files[0]}:0.2", "--at", f"1s={files[1]}:0.5:alone"),
        ("--image_paths", *files, "--cond_position", "0,4", "--noise_multipliers", "0.2,0.5"),
    ]
    found = [generate(root, *arguments)[1] for arguments in runs]
    assert all(torch.equal(frames, found[0]) for frames in found[1:])


def test_upstreams_clip_flags_keep_positions(root, media):
    flags = ("--video_path", media / "clip0.mp4", "--cond_position", "0,4")
    _, upstream, _ = generate(root, *flags, "--noise_multipliers", "0.3,0.3")
    _, ours, _ = generate(root, "--task", "completion", media / "clip0.mp4")
    assert torch.equal(upstream, ours)


def test_positions_from_the_end_are_no_flags(root, media):
    (_, counted, sidecar), (_, named, _) = (
        generate(root, "--at", f"{place}={media}/last0.png:0.3", steps=1)
        for place in ("-1", "last")
    )
    assert sidecar["recipe"]["at"] == [f"-1={media}/last0.png:0.3"]
    assert torch.equal(counted, named)
    flags = ("--image_paths", media / "last0.png", "--cond_position", "-1")
    assert generate(root, *flags, steps=1)[0] == 0


def test_a_clip_of_any_length_has_latent_frames(root, media):
    frames = video.read_frames(media / "clip0.mp4")[0][:15]
    video.write_video(media / "short.mp4", frames, 16.0)
    flags = ("--video_path", media / "short.mp4", "--cond_position", "0,3")
    code, _, sidecar = generate(root, *flags, steps=1)
    assert code == 0
    assert any("short.mp4 frames 9..12" in line for line in sidecar["given"])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("first0.png", ["--task", "i2v", "first0.png", "--save", "grid"]),
        ("clip0.mp4", ["--task", "i2v", "clip0.mp4"]),
        ("plan.json", []),
    ],
)
def test_a_users_files_are_not_written_over(root, media, capsys, name, arguments):
    (media / "plan.json").write_text("[[1], [0]]")
    before = (media / name).read_bytes()
    output = (media / name).with_suffix(".mp4")
    arguments = [media / word if "." in word else word for word in arguments]
    assert run_pusa("generate", "--prompt", "a", "-o", output, "--steps", 1, *arguments) == 1
    assert f"{media / name}: the video" in capsys.readouterr().err
    assert (media / name).read_bytes() == before


def test_what_cannot_be_made_again_leaves_the_video_with_its_sidecar(root, monkeypatch):
    generate(root, steps=1)
    before = [(root / f"out.{suffix}").read_bytes() for suffix in ("mp4", "json")]

    def fails(*arguments):
        raise ValueError("not finite")

    monkeypatch.setattr(Studio, "sample", fails)
    assert run_pusa("generate", "--from", root / "out.json", "-o", root / "out.mp4") == 1
    assert [(root / f"out.{suffix}").read_bytes() for suffix in ("mp4", "json")] == before


@pytest.mark.parametrize("flags", [("--seed", 0), ("--model", "mochi_tiny")])
def test_a_sidecar_is_made_again_as_it_was(root, capsys, flags):
    generate(root, steps=1)
    assert run_pusa("generate", "--from", root / "out.json", "-o", root / "b.mp4", *flags) == 1
    assert f"leave out {flags[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "start_end", "first0.png"], "takes 2 image(s) or clip(s), got 1"),
        (["--task", "keyframes", "first0.png"], "takes two or more images"),
        (["--task", "i2v", "absent.png"], "absent.png: no such file"),
        (["--task", "extension", "clip0.mp4", "--overlap", "17", "--chain", "1"], "nothing new"),
        (["--task", "extension", "first0.png"], "is a single picture"),
        (["--at", "0..3s=clip0.mp4"], "3s is outside a video of 17 frames at 16 per second"),
        (["--at", "0..=clip0.mp4@4.."], "has 13 frames (0.8125 s at 16 per second)"),
        (["--image_paths", "first0.png", "--cond_position", "0,4"], "has 2 entries"),
        (["--cond_position", "0"], "belong together"),
        (["--num-frames", "16"], "num_frames=16 is not 4k+1; use 13 or 17"),
        (["--width", "33"], "width=33 is not a multiple of 8; use 32"),
        (["--fps", "0"], "fps must be above 0"),
        (["--fps", "inf"], "fps must be above 0 and finite"),
        (["--crf", "99"], "crf"),
        (["--prompt", "b"], "add --chain"),
        (["--chain", "1", "--overlap", "6"], "--overlap 6 is not 4k+1"),
        (["--task", "extension", "clip0.mp4", "--overlap", "17"], "all 17 frames are given"),
        (["--task", "extension", "clip0.mp4", "--overlap", "6"], "use 5 or 9"),
        (
            ["--task", "transition", "clip0.mp4", "first0.png", "--overlap", "5", "--chain", "1"],
            "nothing can go on from its end",
        ),
        (["--multipliers", "0.3"], "task 't2v' gives nothing"),
        (["--part", "0/2"], "--part and --overwrite are for --jobs"),
    ],
)
def test_bad_input_is_named_before_anything_is_loaded(
    root, media, capsys, monkeypatch, arguments, message
):
    monkeypatch.setattr(Studio, "sample", None)
    arguments = [re.sub(r"\b(clip0|first0|absent)", rf"{media}/\1", a) for a in arguments]
    assert generate(root, *arguments)[0] == 1
    assert message in capsys.readouterr().err
    assert not (root / "out.mp4").exists()


@pytest.mark.parametrize("memory", ["offload", "low", "stream"])
def test_memory_presets_make_the_same_video(root, media, memory):
    """The replica is smaller than a tile, so that tiles change nothing."""
    task = ("--task", "i2v", media / "first0.png", "--model", "wan22_tiny", "--chain", "1",
            "--overlap", "5")  # fmt: skip
    _, whole, _ = generate(root, *task)
    _, turns, sidecar = generate(root, *task, "--memory", memory)
    assert torch.equal(turns, whole)
    assert sidecar["recipe"]["memory"]["offload"] is True


def test_clean_conditions_above_the_boundary(root, media):
    """The high-noise network is told that given frames are clean, the low-noise one their noise."""
    told: dict[str, set[float]] = {"high": set(), "low": set()}
    from pusa.models.experts import Experts

    def watch(self, sigma):
        network = chosen(self, sigma)
        name = "high" if network is self.networks[0][1] else "low"

        def note(module, inputs):
            told[name].add(round(float(inputs[1][0, 0]), 4))

        if not getattr(network, "watched", False):
            network.watched = True
            network.register_forward_pre_hook(note)
        return network

    chosen = Experts.at
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experts, "at", watch)
        arguments = ("--task", "i2v", media / "first0.png", "--model", "wan22_tiny")
        generate(root, *arguments, "--sampler", "clean_high", steps=4)
        assert told == {"high": {0.0}, "low": {0.16}}


def test_a_grid_shows_frames_evenly(root, media):
    from PIL import Image

    generate(root, "--task", "i2v", media / "first0.png", "--save", "grid")
    with Image.open(root / "out.png") as grid:
        assert grid.size == (8 * 32, 32)


def write_jobs(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_jobs(root, file, *more) -> int:
    return run_pusa("generate", "--jobs", file, "-o", root / "made", "--steps", 1, *more)


def test_jobs_are_made_once_and_resumed(root, media, caplog):
    rows = [
        {"name": "a", "prompt": "a red one", "seed": 3},
        {"name": "b", "prompt": "a red one", "task": "i2v", "media": [str(media / "first0.png")]},
        {"prompt": "a red one", "at": [f"last={media}/last0.png:0.5"], "num_frames": 9},
    ]
    write_jobs(root / "jobs.jsonl", rows)
    caplog.set_level("INFO")
    assert run_jobs(root, root / "jobs.jsonl") == 0
    made = sorted((root / "made").glob("*.mp4"))
    assert [path.stem for path in made] == ["00002", "a", "b"]
    assert len(video.read_frames(made[0])[0]) == 9
    assert json.loads((root / "made" / "a.json").read_text())["recipe"]["seed"] == 3
    times = [path.stat().st_mtime_ns for path in made]
    made[1].unlink()
    assert run_jobs(root, root / "jobs.jsonl") == 0
    assert "3 videos, 2 of them are there already" in caplog.text
    assert [path.stat().st_mtime_ns for path in (made[0], made[2])] == [times[0], times[2]]
    run_pusa("generate", "--from", root / "made" / "b.json", "-o", root / "again.mp4")
    assert (root / "again.mp4").read_bytes() == made[2].read_bytes()


def test_jobs_in_parts_are_all_of_them(root):
    (root / "jobs.csv").write_text(
        "name,prompt,seed\n" + "".join(f"v{i},a red one,{i}\n" for i in range(3))
    )
    assert run_jobs(root, root / "jobs.csv", "--part", "1/2") == 0
    assert [path.stem for path in (root / "made").glob("*.mp4")] == ["v1"]
    assert run_jobs(root, root / "jobs.csv", "--part", "0/2") == 0
    assert len(list((root / "made").glob("*.mp4"))) == 3


def test_jobs_that_were_made_otherwise_are_not_lost(root, capsys):
    write_jobs(root / "jobs.jsonl", [{"name": "a", "prompt": "a red one"}])
    assert run_jobs(root, root / "jobs.jsonl") == 0
    before = (root / "made" / "a.mp4").read_bytes()
    assert run_jobs(root, root / "jobs.jsonl", "--seed", 5) == 1
    said = capsys.readouterr().err
    assert "was made with other settings" in said
    assert "seed: 0 -> 5" in said
    assert (root / "made" / "a.mp4").read_bytes() == before
    assert run_jobs(root, root / "jobs.jsonl", "--seed", 5, "--overwrite") == 0
    assert (root / "made" / "a.mp4").read_bytes() != before


def test_jobs_see_other_weights_and_make_what_else_is_to_be_saved(root, capsys):
    lora = root / "lora.safetensors"
    network = make_twin("wan_tiny")
    for seed in range(2):
        write_lora(make_adapter(network, 2, 2.0, seed=seed), lora)
        write_jobs(root / "jobs.jsonl", [{"name": "a", "prompt": "a", "lora": [str(lora)]}])
        assert run_jobs(root, root / "jobs.jsonl") == seed
        made = (root / "made" / "a.mp4").read_bytes()
        if seed == 0:
            assert run_jobs(root, root / "jobs.jsonl", "--save", "latents") == 0
            assert (root / "made" / "a.safetensors").is_file()
    assert f"{lora}: other contents" in capsys.readouterr().err
    assert (root / "made" / "a.mp4").read_bytes() == made


def test_cells_of_a_csv_are_what_yaml_would_make_of_them(root):
    (root / "jobs.csv").write_text(
        "name,prompt,strength,sampler.autocast,chain.multipliers\n"
        'a,2024,"high=1.5,low=1.4",false,"[0.0, 0.5]"\n'
    )
    assert run_jobs(root, root / "jobs.csv") == 0
    recipe = json.loads((root / "made" / "a.json").read_text())["recipe"]
    assert recipe["prompt"] == "2024"
    assert recipe["strength"] == {"high": 1.5, "low": 1.4}
    assert recipe["sampler"]["autocast"] is False
    assert recipe["chain"]["multipliers"] == [0.0, 0.5]


def test_one_job_that_needs_too_much_memory_does_not_stop_the_others(root, monkeypatch, capsys):
    sample, calls = Studio.sample, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no room")
        return sample(*arguments)

    monkeypatch.setattr(Studio, "sample", full)
    write_jobs(root / "jobs.jsonl", [{"name": name, "prompt": "a"} for name in "ab"])
    assert run_jobs(root, root / "jobs.jsonl") == 1
    assert "no room" in capsys.readouterr().err
    assert [path.name for path in (root / "made").glob("*.mp4")] == ["b.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": "b", "at": ["99=x.png"]}\n', "jobs.jsonl:2: x.png: no such"),
        ('{"prompt": "a", "colour": "red"}\n', "column 'colour' is no key"),
        ('{"prompt": "a", "sampler.num_steps": 0}\n', "num_steps must be at least 1"),
        ('{"prompt": "a", "lora": ["absent.pt"]}\n', "jobs.jsonl:1: absent.pt: no such LoRA"),
        ('{"prompt": "a", "crf": 99}\n', "crf=99"),
        ('{"seed": 1}\n', "jobs.jsonl:1: there is no prompt"),
        ('{"name": "a", "prompt": "a"}\n{"name": "a", "prompt": "b"}\n', "is the name of line 1"),
        ('{"name": "../a", "prompt": "a"}\n', "is no name for a file"),
        ("not json\n", "jobs.jsonl:1: not JSON"),
        ("", "holds no jobs"),
    ],
)
def test_bad_jobs_are_listed_before_the_first_is_made(root, capsys, text, message):
    (root / "jobs.jsonl").write_text(text)
    assert run_jobs(root, root / "jobs.jsonl") == 1
    assert message in capsys.readouterr().err
    assert not (root / "made").exists()
