"""Every task measured: on videos of known fidelity and drift, and the whole way on two clips."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

import evaluate
import train
from pusa.data import toy, video
from pusa.entry import build
from pusa.evaluation.suite import toy_suite
from pusa.evaluation.tasks_cases import media_of, seam_of
from pusa.evaluation.tasks_measure import measure
from pusa.evaluation.tasks_systems import Work, controls_of
from pusa.pipelines.positions import Timing
from tests.conftest import compose_config


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    scenes = [toy.make_scene(9, "heldout", index) for index in range(6)]
    toy.write_dataset(folder, scenes)
    return toy_suite(folder, 6)


@pytest.fixture
def cases(root):
    cfg = compose_config("evaluate", "experiment=tiny_vta", "suite=tasks", "name=x")
    model = build(cfg.model)
    found = build(cfg.suite).cases(Timing(model.spec, model.num_frames, model.fps))
    return {case.name: case for case in found}


def measured(case, item, other, frames, folder) -> dict[str, float | None]:
    path = folder / "made.mp4"
    video.write_video(path, frames, 16, crf=0)
    rows = measure(Work("x", case, item, other, 0, path), segments=4, fps=16.0)
    return {row.metric.removeprefix(f"{case.name}/"): row.value for row in rows}


def noisy(frames: torch.Tensor, chosen, level: int) -> torch.Tensor:
    """Every second pixel of some frames brighter by `level`, the others darker."""
    result = frames.int()
    sign = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2 - 1
    result[list(chosen)] += level * sign
    return result.clamp(0, 255).to(torch.uint8)


def test_the_cases_give_the_frames_that_their_tasks_place(cases):
    assert cases["i2v 0.2"].frames == (0,)
    assert cases["start_end alone"].frames == (0, 16)
    assert cases["keyframes context"].frames == (0, 8, 16)
    assert cases["completion"].frames == (0, 13, 14, 15, 16)
    assert cases["drift 0, 0.3"].chain.segments == 3
    assert cases["drift 0, 0.3, 0.4, 0.5"].chain.segments == 11  # of 4 new frames each


def test_errors_are_found_where_they_were_made(cases, clips, tmp_path):
    case, (item, other) = cases["start_end alone"], clips[:2]
    truth = item.frames()
    clean = measured(case, item, other, truth, tmp_path)
    given = measured(case, item, other, noisy(truth, (0, 16), 20), tmp_path)
    between = measured(case, item, other, noisy(truth, [7], 40), tmp_path)
    assert given["between, dB"] == pytest.approx(clean["between, dB"], abs=1)
    assert given["given, dB"] < 25 < between["given, dB"]
    assert between["between, dB"] == pytest.approx(between["worst frame, dB"] + 11.8, abs=1)
    assert given["flicker"] > 3 * clean["flicker"]
    assert between["flicker"] == pytest.approx(clean["flicker"], rel=0.5)


def test_a_seam_is_found_at_the_first_new_frame(cases, clips, tmp_path):
    case, (item, other) = cases["extension blend"], clips[:2]
    truth, seam = item.frames(), seam_of(cases["extension blend"])
    whole = measured(case, item, other, truth, tmp_path)
    shifted = truth.int()
    shifted[seam:] += 40
    broken = measured(case, item, other, shifted.clamp(0, 255).to(torch.uint8), tmp_path)
    assert broken["seam"] > 4 * whole["seam"]
    assert broken["largest step"] == broken["seam"]
    assert broken["shared, dB"] == pytest.approx(whole["shared, dB"], abs=1)
    assert broken["new, dB"] < 20 < whole["new, dB"]


def test_a_crossfade_is_smoother_than_a_cut_and_has_less_contrast_than_its_clips(
    cases, clips, tmp_path
):
    case, (item, other) = cases["transition blend"], clips[:2]
    controls = controls_of(case, lambda frames: frames)
    made = {name: control(case, item, other) for name, control in controls.items()}
    found = {name: measured(case, item, other, f, tmp_path) for name, f in made.items()}
    assert len(made["crossfade"]) == 42  # 17 generated, 5 and 4 of them shared
    assert found["crossfade"]["roughness"] < found["hard cut"]["roughness"] / 3
    assert found["hard cut"]["contrast"] is None


def test_drift_that_is_put_in_is_measured_segment_by_segment(cases, clips, tmp_path):
    case = cases["drift 0, 0.3"]
    item = next(clip for clip in clips if clip.scene.pan == "none")
    truth = item.frames().clamp(0, 180)
    item = dataclasses.replace(item, path=tmp_path / "clip.mp4")
    video.write_video(item.path, truth, 16, crf=0)
    pieces = [(truth[-12:].int() + 8 * k).to(torch.uint8) for k in range(1, 5)]
    found = measured(case, item, item, torch.cat([truth, *pieces]), tmp_path)
    still = measured(case, item, item, torch.cat([truth, *[truth[-12:]] * 4]), tmp_path)
    for k in range(1, 5):
        shift = found[f"color shift/{k}"] - still[f"color shift/{k}"]
        assert shift == pytest.approx(8 * k, abs=2.5)
        assert found[f"background, dB/{k}"] == pytest.approx(20 * math.log10(255 / (8 * k)), abs=1)
        assert found[f"contrast/{k}"] == pytest.approx(still[f"contrast/{k}"], abs=0.05)
        assert still[f"background, dB/{k}"] > 35
    assert found["color shift/per second"] == pytest.approx(8 / 0.75, rel=0.25)


def test_the_background_of_a_panning_clip_is_not_known(cases, clips, tmp_path):
    item = next(clip for clip in clips if clip.scene.pan != "none")
    frames = torch.cat([item.frames(), *[item.frames()[-12:]] * 4])
    assert measured(cases["drift 0, 0.3"], item, item, frames, tmp_path)["background, dB/1"] is None


def test_an_extension_goes_on_from_the_clips_first_frames(cases, clips, tmp_path):
    task, files = media_of(cases["extension cut"], clips[0], clips[1], tmp_path)
    assert files == (str(clips[0].path),)
    assert task.given[0].part == "4..8"
    _, files = media_of(cases["keyframes alone"], clips[0], clips[1], tmp_path)
    frames = [video.read_frames(file)[0][0] for file in files]
    assert torch.equal(torch.stack(frames), clips[0].frames()[[0, 8, 16]])


def stamps(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*.json")}


def test_all_tasks_are_made_measured_and_kept(small_run, shared_data):
    train.train(small_run("tiny_vta", "lora.rank=4", "callbacks.grid=null"))

    def config(*overrides: str):
        return compose_config(
            "evaluate", "experiment=tiny_vta", "suite=tasks", "name=tiny_vta",
            "suite.source.toy.num_clips=2", "sampler.num_steps=1", "suite.multipliers=[0.2]",
            "suite.chains=[[0,0.3]]", "suite.segments=2", f"paths.toy={shared_data}/data/toy",
            *overrides,
        )  # fmt: skip

    cfg = config()
    evaluate.evaluate(config("part=1/2"))
    folder = Path(cfg.suite.output)
    assert not (folder / "tasks.md").exists()
    early = stamps(folder / "videos")
    evaluate.evaluate(cfg)
    whole = stamps(folder / "videos")
    assert early.items() <= whole.items()
    page = (folder / "tasks.md").read_text()
    assert all(f"## {name}\n" in page for name in ("i2v", "completion", "transition", "drift"))
    assert {p.name for p in folder.glob("tasks_*.png")} >= {"tasks_i2v.png", "tasks_drift.png"}
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    scores = {(r["system"], r["index"], r["metric"]): r["value"] for r in rows}
    assert scores["truth", 0, "start_end alone/given, dB"] > 40
    kept = (
        scores["VTA", 1, "extension cut/shared, dB"],
        scores["VTA", 1, "extension blend/shared, dB"],
    )
    assert kept[0] > 40 > kept[1]
    evaluate.evaluate(config("suite.strength=0.5", "part=0/8"))
    after = stamps(folder / "videos")
    changed = {path for path in whole if whole[path] != after[path]}
    assert changed
    assert all("/VTA/" in path for path in changed)
