"""`pusa schedule` in this process: what it shows is what the sampler does; plans from files."""

import json
import re

import pytest
from PIL import Image

from pusa.cli import main
from pusa.entry import build
from pusa.pipelines.placements import multipliers_of, place_unseen
from pusa.pipelines.positions import Timing
from pusa.pipelines.schedule import read_matrix, schedule_of
from pusa.pipelines.schedule_report import as_text, colour
from pusa.pipelines.tasks import parse_given
from tests.conftest import compose_config
from tests.test_cli import refused


@pytest.fixture
def shown(root, caplog):
    """The table that the command shows, as rows of words; bars are left out."""
    caplog.set_level("INFO")

    def run(*arguments: str) -> list[list[str]]:
        caplog.clear()
        main(["schedule", *arguments])
        lines = caplog.text.splitlines()
        words = [re.sub("[·▁-█]", " ", line).split() for line in lines]
        return [row for row in words if row and row[0].isdigit()]

    return run


def test_lightx2v_is_two_steps_of_each_expert(shown):
    rows = shown("--model", "wan22_t2v_a14b", "--set", "sampler=lightx2v")
    assert [row[1:] for row in rows] == [
        ["1000", "high", "1000"], ["937.5", "high", "937.5"],
        ["833.3", "low", "833.3"], ["625", "low", "625"],
    ]  # fmt: skip


@pytest.mark.parametrize(("steps", "high"), [(4, 2), (10, 5), (30, 13), (50, 21)])
def test_the_experts_change_at_the_published_step(shown, steps, high):
    rows = shown("--model", "wan22_t2v_a14b", "--set", "sampler.shift=5", "--steps", str(steps))
    assert [row[2] for row in rows] == ["high"] * high + ["low"] * (steps - high)


def test_the_public_codes_timesteps_are_shown_as_its_network_sees_them(shown):
    rows = shown("--model", "wan21_t2v_14b", "--set", "sampler=upstream",
                 "--at", "0:0.2", "--at", "latent:20=end.png:0.5")  # fmt: skip
    assert [row[2:] for row in rows[:3]] == [
        ["200", "1000", "500"], ["198", "992", "496"], ["197", "984", "492"],
    ]  # fmt: skip
    assert [row[2:] for row in rows[-3:]] == [
        ["71", "358", "179"], ["52", "264", "132"], ["29", "147", "73"],
    ]  # fmt: skip


def test_heuns_second_calls_are_rows_of_their_own(shown):
    rows = shown("--set", "sampler=heun", "--set", "sampler.shift=1", "--steps", "4", "--at", "0")
    assert [row[2:] for row in rows] == [
        ["200", "1000"], ["150", "750"], ["150", "750"], ["100", "500"], ["100", "500"],
        ["50", "250"], ["50", "250"],
    ]  # fmt: skip


def test_latent_and_pixel_frames_stand_above_the_columns(root, caplog):
    caplog.set_level("INFO")
    main(["schedule", "--at", "7:0.5", "--num-frames", "17"])
    assert re.search(r"latent +0\.\.1 +2 +3\.\.4\n", caplog.text)
    assert re.search(r"pixel +0\.\.4 +5\.\.8 +9\.\.16\n", caplog.text)
    assert "given: latent frame 2 (pixel frames 5..8), noise multiplier 0.5" in caplog.text


def make_schedule(*overrides: str, at: tuple[str, ...] = ()):
    cfg = compose_config("generate", "prompt=a", "output=b", *overrides)
    model = build(cfg.model)
    timing = Timing(model.spec, model.num_frames, model.fps)
    rows = [parse_given(text) for text in at]
    given = multipliers_of(place_unseen(build(cfg.task), timing, rows))
    return schedule_of(model, build(cfg.sampler), given, model.num_frames)


def test_a_narrow_terminal_gets_bars_of_all_frames(root):
    schedule = make_schedule("model=wan21_t2v_14b", "sampler=pyramid", at=("0=a.png:0",))
    text = as_text(schedule, width=60)
    bars = [line.split()[-1] for line in text.splitlines() if re.match(r" +\d", line)]
    assert len(bars) == len(schedule.calls) == 30
    assert bars[0] == "·" + "█" * 20
    assert max(map(len, text.splitlines())) <= 60
    coloured = as_text(schedule, width=60, coloured=True)
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == text


def test_page_and_picture_show_every_frame_of_every_call(root, caplog):
    arguments = ["schedule", "--model", "wan22_tiny", "--at", "last:0.5", "--steps", "3"]
    for suffix in ("html", "png"):
        main([*arguments, "-o", str(root / f"plan.{suffix}")])
    page = (root / "plan.html").read_text("utf-8")
    assert len(re.findall("<td ", page)) == 3 * 5
    assert page.count(">500</td>") == 1  # the last frame at its start
    picture = Image.open(root / "plan.png").convert("RGB")
    colours = {c for _, c in picture.getcolors(100_000) or []}
    assert {colour(1.0), colour(0.5)} <= colours


def test_a_plan_from_a_file_sets_the_steps_and_goes_to_the_sidecar(shown, root, caplog):
    (root / "plan.csv").write_text("1,1,1,1,1\n0.5,1,1,1,1\n0,0.6,0.6,0.6,0.6\n\n0,0,0,0,0\n")
    rows = shown("--plan", str(root / "plan.csv"))
    assert [row[2:] for row in rows] == [["1000", "1000"], ["500", "1000"], ["0", "600"]]
    video, again = root / "a.mp4", root / "b.mp4"
    main(
        ["generate", "--prompt", "a red three", "--plan", str(root / "plan.csv"), "-o", str(video)]
    )
    (root / "plan.csv").unlink()
    main(["generate", "--from", str(root / "a.json"), "-o", str(again)])
    assert again.read_bytes() == video.read_bytes()


def test_json_plans_may_say_that_they_rise(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps([[1], [0.5], [0]]))
    assert read_matrix(path) == {"rows": [[1.0], [0.5], [0.0]]}
    path.write_text(json.dumps({"rows": [[1], [0.5], [0.7], [0]], "may_rise": True}))
    assert read_matrix(path)["may_rise"] is True


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "1,x\n0,0\n", "not rows of numbers"),
        ("a.json", "{", "not rows of numbers"),
        ("a.json", '{"row": [[1], [0]]}', "'row' is no key of a plan"),
        ("a.json", "[1, 0]", "not rows of numbers"),
        ("a.txt", "1\n0\n", "is a .csv or .json file"),
        ("a.csv", "1,1\n0\n", "all of one length"),
        ("a.csv", "1,1\n0,0\n", "2 columns, the clip 5 latent frames"),
        ("a.csv", "1,1,1,1,0.5\n0,0,0,0,0\n", "nothing is given there"),
        ("a.csv", "1,1,1,1,1\n.5,1,1,1,1\n.6,.5,.5,.5,.5\n0,0,0,0,0\n", "rises after step 1"),
    ],
)
def test_a_file_that_is_no_plan_of_the_clip_is_named(name, text, message, root, capsys):
    (root / name).write_text(text)
    assert message in refused(capsys, "schedule", "--plan", str(root / name))


def test_misuse_is_named(root, capsys):
    assert "no such plan" in refused(capsys, "schedule", "--plan", str(root / "absent.csv"))
    assert "as .png or .html" in refused(capsys, "schedule", "-o", str(root / "a.pdf"))
    assert "must be in [0, 1]" in refused(capsys, "schedule", "--at", "0:1.5")
    assert "outside a video" in refused(capsys, "schedule", "--at", "99")
    assert "17 or 21" in refused(capsys, "schedule", "--num-frames", "18")


def test_a_tasks_rows_can_be_changed_as_for_generate(root, caplog):
    caplog.set_level("INFO")
    main(["schedule", "--task", "transition", "--overlap", "5", "--multipliers", "0.1,0.4"])
    assert "given: latent frame 1 (pixel frames 1..4), noise multiplier 0.1" in caplog.text
    assert "given: latent frame 4 (pixel frames 13..16), noise multiplier 0.4" in caplog.text


def test_a_task_that_does_not_fit_says_what_would(root, capsys):
    said = refused(capsys, "schedule", "--task", "transition")
    assert "latent frame 2 of 5 is given twice" in said
    assert "--overlap" in said
