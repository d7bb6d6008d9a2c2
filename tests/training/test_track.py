"""A run beside a known good curve: the band of several runs, where a run stands in it, what it is
told if it is of another recipe, and the picture."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from pusa.atomic import write_json
from pusa.training.callbacks import PSNR_CAP, fidelity
from pusa.training.loggers import read_metrics
from pusa.training.track import (
    REACH,
    Point,
    read_curve,
    read_run,
    series_of,
    verdict,
    write_curve,
)
from pusa.training.track_plot import draw

FIRST, SHARED = "heldout/first_clean", "heldout/shared"
RECIPE = {
    "model": {"name": "wan_tiny"},
    "module": {"optimizer": {"lr": 1e-3}},
    "lora": {"rank": 64},
    "timesteps": {"p_async": 1.0, "sigma_range": [0.0, 1.0]},
    "batch_size": 8,
    "trainer": {"max_steps": 400},
    "data": {"num_clips": 2048},
}


def make_run(folder: Path, values: dict[int, float], **other) -> Path:
    """A run with first_clean after some steps, shared always 0.7, as loggers write them."""
    (folder / "metrics").mkdir(parents=True)
    rows = [f"{step - 1},{value},0.7,{value + 1},," for step, value in values.items()]
    rows += ["49,,,,0.9,"]
    head = f"step,{FIRST},{SHARED},{FIRST}@0.5,train/loss_by_sigma/0.0-0.2,epoch"
    (folder / "metrics" / "metrics.csv").write_text("\n".join([head, *rows]) + "\n")
    write_json(folder / "config.json", {"name": folder.name, **RECIPE, **other})
    return folder


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def curve_file(tmp_path) -> Path:
    """Of three runs, with first_clean 0.69, 0.70, 0.71 after 100 steps and 0.10 less after 300."""
    runs = [
        make_run(tmp_path / f"seed{i}", {100: v, 300: v - 0.1, **extra})
        for i, (v, extra) in enumerate([(0.69, {}), (0.71, {200: 0.5}), (0.70, {})])
    ]
    write_curve(tmp_path / "curve.csv", runs)
    return tmp_path / "curve.csv"


def test_a_band_is_of_the_steps_that_all_runs_have(curve_file):
    curve = read_curve(curve_file)
    first = curve.points[FIRST]
    assert [p.step for p in first] == [100, 300]  # steps done; rows count from 0
    assert (first[0].low, first[0].high, first[0].runs) == (0.69, 0.71, 3)
    assert first[0].mean == pytest.approx(0.70)
    assert curve.points["train/loss_by_sigma/0.0-0.2"] == [Point(50, 0.9, 0.9, 0.9, 3)]
    assert curve.settings["lora.rank"] == 64
    assert curve.settings["timesteps.sigma_range"] == [0.0, 1.0]


def test_between_steps_the_band_is_a_straight_line_and_ends_where_it_ends(curve_file):
    curve = read_curve(curve_file)
    for step, band in ((150, (0.665, 0.675, 0.685)), (300, (0.59, 0.6, 0.61))):
        point = curve.at(FIRST, step)
        assert point is not None
        assert (point.low, point.mean, point.high) == pytest.approx(band)
    assert curve.at(FIRST, 99) is curve.at(FIRST, 301) is curve.at("heldout/none", 100) is None


@pytest.mark.parametrize("runs", [2, 3, 5, 8])
def test_a_further_good_run_is_where_it_is_expected_in_95_of_100_cases(runs):
    values = np.random.default_rng(runs).normal(size=(100_000, runs + 1))
    known, further = values[:, :runs], values[:, runs]
    reach = REACH[runs] * np.ptp(known, axis=1)
    inside = np.abs(further - known.mean(1)) <= reach
    assert inside.mean() == pytest.approx(0.95, abs=0.004)
    low, high = Point(1, float(known[0].min()), float(known[0].mean()), float(known[0].max()),
                      runs).expected()  # fmt: skip
    assert (high - low) / 2 == pytest.approx(reach[0])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.66, f"on track: {FIRST} 0.66, known good 0.5978 to 0.7022; {SHARED} 0.7, known good "
               "0.7 to 0.7 at step 200"),
        (0.71, f"behind: {FIRST} 0.71, "),
        (0.59, f"ahead: {FIRST} 0.59, "),
    ],
)  # fmt: skip
def test_the_latest_value_decides(curve_file, tmp_path, value, words):
    run = make_run(tmp_path / "mine", {100: 0.9, 200: value})
    assert verdict(read_curve(curve_file), read_run(run)).startswith(words)


def test_without_values_or_beyond_the_curve_nothing_is_judged(curve_file, tmp_path):
    curve = read_curve(curve_file)
    late = make_run(tmp_path / "late", {1000: 0.9})
    assert verdict(curve, read_run(late)).endswith("says nothing about step 1000")
    early = make_run(tmp_path / "early", {})
    assert "no held-out loss" in verdict(curve, read_run(early))


def test_a_run_of_another_recipe_is_told_what_differs(curve_file, tmp_path):
    other = make_run(tmp_path / "other", {100: 5.0}, lora=None, timesteps={"p_async": 0.5})
    assert verdict(read_curve(curve_file), read_run(other)) == (
        "the known good curve is of lora.rank 64, this run has none; of timesteps.p_async 1.0, "
        "this run has 0.5; of timesteps.sigma_range [0.0, 1.0], this run has none: compare shapes, "
        "not values"
    )
    with pytest.raises(ValueError, match=r"other has lora\.rank none, .*seed0 has 64"):
        write_curve(tmp_path / "mixed.csv", [tmp_path / "seed0", tmp_path / "other"])
    assert not (tmp_path / "mixed.csv").exists()


def test_values_that_are_not_finite_are_left_out_and_the_last_of_a_step_counts():
    rows = [{"step": "9", "a": "1"}, {"step": "9", "a": "2"}, {"step": 19, "a": math.nan}]
    assert series_of(rows) == {"a": [(10, 2.0)]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,loss\n1,2\n", "columns are not step,name,low,mean,high,runs"),
        ("# lora.rank: oops\nstep,name,low,mean,high,runs\n", "not a known good curve"),
        ("step,name,low,mean,high,runs\n1,a,3,2,1,3\n", "is no band"),
        ("step,name,low,mean,high,runs\n1,a,3\n", "not a known good curve"),
    ],
)
def test_a_file_that_is_no_curve_is_named(tmp_path, text, message):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"c\.csv.*{message}"):
        read_curve(tmp_path / "c.csv")


def test_what_is_missing_is_named(curve_file, tmp_path):
    with pytest.raises(ValueError, match=r"no such curve; `pusa track --make"):
        read_curve(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"holds no metrics/metrics\.csv"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="two runs at least"):
        write_curve(tmp_path / "c.csv", [tmp_path / "seed0"])
    with pytest.raises(ValueError, match="no step of samples/ in common"):
        write_curve(tmp_path / "c.csv", [tmp_path / "seed0", tmp_path / "seed1"], ["samples/"])


def test_the_picture_shows_the_run(curve_file, tmp_path):
    curve = read_curve(curve_file)
    one = read_run(make_run(tmp_path / "one", {100: 0.9, 300: 0.6}))
    other = read_run(make_run(tmp_path / "two", {100: 0.9, 300: 0.9}))
    for name, runs in (("a", [one]), ("again", [one]), ("b", [other])):
        draw(tmp_path / f"{name}.png", curve, runs)
    a, again, b = (picture(tmp_path / f"{name}.png") for name in ("a", "again", "b"))
    assert a.shape[0] > 500
    assert a.shape[1] > 1000
    assert a.std() > 10  # not one colour
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)


def test_fidelity_is_of_the_first_frame_and_of_the_rest():
    truth = torch.full((3, 3, 4, 4), 100, dtype=torch.uint8)
    sample = truth.clone()
    sample[1:] += 10
    found = fidelity([(truth, sample), (truth, truth)])
    off = 10 * math.log10(255**2 / 10**2)
    assert found == pytest.approx(
        {"samples/psnr_first": PSNR_CAP, "samples/psnr_rest": (off + PSNR_CAP) / 2}
    )
    assert fidelity([(truth[:1], truth[:1])]).keys() == {"samples/psnr_first"}


def scaled(run: Path, copy: Path, factor: float) -> Path:
    """A run like another, all its values times a factor."""
    (copy / "metrics").mkdir(parents=True)
    shutil.copy(run / "config.json", copy)
    rows = read_metrics(run / "metrics" / "metrics.csv")
    keys = sorted({key for row in rows for key in row})
    with (copy / "metrics" / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if k == "step" else factor * float(v) for k, v in row.items()})
    return copy


def test_training_compares_itself_with_the_curve(small_run, tmp_path, caplog):
    caplog.set_level("INFO")
    words = ("lora.rank=4", "callbacks.grid.every=2", "callbacks.grid.num_clips=2")
    curve = tmp_path / "curve.csv"
    cfg = small_run("tiny_vta", *words, f"callbacks.track.curve={curve}")
    train.train(cfg)
    assert f"no known good curve at {curve}; python train.py -m" in caplog.text
    first = Path(cfg.paths.run)
    assert not (first / "on_track.png").exists()
    samples = [r for r in read_metrics(first / "metrics" / "metrics.csv")
               if "samples/psnr_rest" in r]  # fmt: skip
    assert [row["step"] for row in samples] == ["1", "3"]
    assert all(5 < float(row["samples/psnr_first"]) <= PSNR_CAP for row in samples)

    write_curve(
        curve, [scaled(first, tmp_path / "low", 0.99), scaled(first, tmp_path / "up", 1.01)]
    )
    caplog.clear()
    again = small_run("tiny_vta", *words, "name=again", f"callbacks.track.curve={curve}")
    train.train(again)
    run = Path(again.paths.run)
    assert caplog.text.count("on track: heldout/first_clean") == 2  # once for each validation
    assert "at step 4" in caplog.text
    assert picture(run / "on_track.png").shape[1] > 1000
    rows = read_metrics(run / "metrics" / "metrics.csv")
    for name in (FIRST, SHARED, f"{SHARED}@0.1", "samples/psnr_rest"):
        own, known = (
            [(row["step"], float(row[key])) for row in rows if key in row]
            for key in (name, f"known_good/{name}")
        )
        assert len(own) == 2
        assert known == [(step, pytest.approx(value, rel=1e-5)) for step, value in own]
    assert "known_good" not in json.dumps(list(read_curve(curve).points))

    caplog.clear()
    other = small_run("tiny_vta", *words, "name=other", "lora.rank=2", "trainer.max_steps=2",
                      f"callbacks.track.curve={curve}")  # fmt: skip
    train.train(other)
    assert caplog.text.count("of lora.rank 4, this run has 2; of module.schedule.total 4") == 1
    assert "on track:" not in caplog.text
    assert (Path(other.paths.run) / "on_track.png").exists()


def test_a_run_too_short_to_log_anything_ends_well(small_run, curve_file):
    cfg = small_run("tiny_vta", "trainer.max_steps=2", "trainer.val_check_interval=4",
                    "callbacks.grid=null", f"callbacks.track.curve={curve_file}")  # fmt: skip
    train.train(cfg)
    assert (Path(cfg.paths.run) / "lora.safetensors").is_file()
    assert not (Path(cfg.paths.run) / "on_track.png").exists()
