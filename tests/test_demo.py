"""`pusa demo`: what its table means, and the page itself in a headless Chromium."""

import argparse
import shlex
import socket
import sys
from pathlib import Path

import pytest

from pusa import cli_demo
from pusa.cli import main
from pusa.data import toy, video
from pusa.demo.conditions import Row, condition_words, fill, given_of, moved, read_table, uploaded
from pusa.demo.form import Form, command, words
from pusa.demo.gallery import videos_in
from pusa.demo.workshop import Stopped, Workshop
from pusa.pipelines.positions import Timing
from pusa.pipelines.produce import plan
from pusa.types import LatentSpec
from tests.conftest import run_pusa

pytest.importorskip("gradio", reason="the page is an extra: pip install 'pusa[demo]'")
TIMING = Timing(LatentSpec(16, 4, 4), 17, 16.0)
PROMPT = "a red three moves left over coffee"


@pytest.fixture(scope="module")
def tasks():
    return {name: preset.task for name, preset in cli_demo.presets("wan_tiny", []).items()}


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> dict[str, str]:
    """Uploads: the first and last frame of a toy clip, and the clip."""
    folder = tmp_path_factory.mktemp("media")
    frames = toy.render(toy.make_scene(0, "heldout", 3)).frames
    video.write_image(folder / "start.png", frames[0])
    video.write_image(folder / "end.png", frames[-1])
    video.write_video(folder / "clip.mp4", frames, 16)
    return {name: str(folder / name) for name in ("start.png", "end.png", "clip.mp4")}


@pytest.fixture
def workshop(root) -> Workshop:
    fixed = ["--model=wan_tiny", f"--set=paths.root={root}"]
    presets = cli_demo.presets("wan_tiny", [])
    return Workshop(cli_demo.reader(fixed), presets, root / "out", fixed)


def form(rows: tuple[Row, ...] = (), task: str = "t2v", **changes) -> Form:
    usual = {
        "prompt": PROMPT, "num_frames": 17, "height": 32, "width": 32, "fps": 16.0, "seed": 0,
        "sampler": "euler", "steps": 2, "guidance": 1.0, "memory": "resident",
    }  # fmt: skip
    return Form(task=task, rows=rows, **{**usual, **changes})


def test_a_task_fills_the_table_and_leaves_open_what_is_missing(tasks):
    assert fill(tasks["start_end"], ["a.png"], TIMING) == (
        Row("0", "a.png", "", "0.2"), Row("last", "", "", "0.5"),
    )  # fmt: skip
    spread = fill(tasks["keyframes"], ["a.png", "b.png", "c.png"], TIMING)
    assert [row.at for row in spread] == ["0", "8", "16"]


def test_new_uploads_fill_what_is_open_then_the_widest_gap(tasks):
    task = tasks["start_end"]
    rows = (Row("3", "a.png"), Row("last", ""))
    assert [row.file for row in uploaded(rows, ["a.png"], ["a.png", "b.png"], task, TIMING)] == [
        "a.png", "b.png",
    ]  # fmt: skip
    three = uploaded(rows, ["a.png"], ["a.png", "b.png", "c.png"], task, TIMING)
    assert three[2] == Row("9", "c.png")
    assert uploaded(three, ["a.png", "b.png", "c.png"], [], task, TIMING)[0] == Row("3", "")


@pytest.mark.parametrize(
    ("row", "frame", "at"),
    [
        (Row("last", "a.png"), 12, "12"),
        (Row("0", "a.png"), 99, "16"),
        (Row("latent:-1", "a.mp4", "-4..last"), 6, "latent:2"),
        (Row("latent:0..3", "a.mp4", "end"), 5, "latent:1..4"),
        (Row("latent:0..3", "a.mp4", "end"), 16, "latent:1..4"),
        (Row("-12..last", "a.mp4"), 0, "latent:0..2"),
    ],
)
def test_a_block_goes_to_the_frame_it_is_dropped_on_and_keeps_its_length(row, frame, at):
    assert moved(row, frame, TIMING).at == at


@pytest.mark.parametrize("name", ["i2v", "start_end", "keyframes", "extension", "transition"])
def test_what_a_task_fills_in_is_that_task_on_the_command_line(tasks, name):
    task = tasks[name]
    files = {f"{i}.png": f"media/{i}.png" for i in range(task.num_media or 3)}
    rows = fill(task, list(files), TIMING)
    assert condition_words(task, rows, files, TIMING) == ["--task", name, *files.values()]


def test_other_rows_are_conditions_of_their_own(tasks):
    files = {"a.png": "media/a.png", "b.mp4": "media/b.mp4"}
    rows = read_table([["0", "a.png", "", 0.2, "auto"], [" 5 ", "b.mp4", "0..3", "0.3", "context"],
                       ["", None, "", "", ""]])  # fmt: skip
    assert condition_words(tasks["start_end"], rows, files, TIMING) == [
        "--at=0=media/a.png:0.2:auto", "--at=5=media/b.mp4@0..3:0.3:context",
    ]  # fmt: skip


def test_a_moved_condition_of_joined_clips_stays_with_its_clip(workshop, media):
    task = workshop.presets["transition"].task
    files = {"a.mp4": media["clip.mp4"], "b.mp4": media["clip.mp4"]}
    first, second = fill(task, list(files), TIMING)
    changed = form((first, Row("latent:-2..-1", second.file, "", "0.6,0.5")), "transition",
                   num_frames=33)  # fmt: skip
    order = workshop.read(words(changed, task, files, Timing(TIMING.spec, 33, 16.0)))
    assert order.what.task.join == task.join
    assert [row.medium for row in order.what.task.given] == [0, 1]
    assert order.what.task.given[1].multipliers == (0.6, 0.5)
    assert plan(order.model, order.what).placements[1].latents == range(7, 9)


def test_a_row_without_a_file_or_with_somebody_elses_is_refused():
    with pytest.raises(ValueError, match="condition 1, at 0, has no file"):
        given_of([Row("0")], {})
    with pytest.raises(ValueError, match=r"no upload; there are: a\.png"):
        given_of([Row("0", "../../secret.png")], {"a.png": "media/a.png"})


def test_two_experts_have_a_strength_each(tasks):
    read = cli_demo.reader(["--model=wan22_tiny"])
    wish = form(loras=("high=a.safetensors",), strength=(1.5, 1.4))
    what = read(words(wish, tasks["t2v"], {}, TIMING)).what
    assert what.strength == {"high": 1.5, "low": 1.4}
    assert what.lora == ("high=a.safetensors",)


def test_the_shown_command_is_what_is_read():
    arguments = ['--prompt=it\'s a "red" three', "--at=0=media/a.png:0.2:auto", "--steps=10"] * 3
    assert shlex.split(command(arguments).replace("\\\n", " ")) == ["pusa", "generate", *arguments]


def test_a_look_tells_what_is_missing_and_draws_the_plan_all_the_same(workshop):
    look = workshop.look(
        form(fill(workshop.presets["start_end"].task, [], TIMING), "start_end"), []
    )
    assert "has no file; upload" in look.error
    assert not look.text
    assert [(block["first"], block["last"]) for block in look.timeline["blocks"]] == [
        (0, 0), (16, 16),
    ]  # fmt: skip
    assert look.timeline["groups"] == [[0, 0], [1, 4], [5, 8], [9, 12], [13, 16]]
    assert look.picture is not None
    free = workshop.look(form(), []).picture
    assert free is not None
    assert free.tobytes() != look.picture.tobytes()


def test_a_bad_wish_is_told_as_text(workshop):
    assert "4k+1" in workshop.look(form(num_frames=16), []).error
    assert "multipliers" in workshop.look(form((Row("0", "", "", "2"),)), []).error


def test_uploads_of_one_name_are_kept_apart_and_the_same_bytes_once(workshop, tmp_path):
    names = []
    for content in ("one", "two", "one"):
        (tmp_path / "my photo=1@2.PNG").write_text(content)
        names.append(workshop.keep(str(tmp_path / "my photo=1@2.PNG")))
    assert names[0] == names[2] == "my_photo_1_2.png"
    assert names[1] != names[0]
    assert {Path(path).read_text() for path in workshop.paths(names).values()} == {"one", "two"}


def test_stop_ends_sampling_and_the_next_video_is_made_with_what_is_loaded(workshop):
    def stop(step: int, steps: int) -> None:
        workshop.stop("me")

    with pytest.raises(Stopped):
        workshop.make(form(), [], "me", stop)
    assert not videos_in(workshop.folder)
    steps = []
    made = workshop.make(form(), [], "me", lambda step, steps_: steps.append((step, steps_)))
    assert steps == [(0, 2), (1, 2), (2, 2)]
    (workshop.folder / "other.json").write_text("{}")  # somebody else's
    assert [found.video for found in videos_in(workshop.folder)] == [made]
    assert videos_in(workshop.folder)[0].caption.startswith(f"{PROMPT} · t2v · 17 frames 32x32")


def test_without_gradio_the_remedy_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("page", "server"):
        monkeypatch.delitem(sys.modules, f"pusa.demo.{name}", raising=False)
    assert run_pusa("demo") == 1
    assert "pip install 'pusa[demo]'" in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(root, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run_pusa("demo", "--port", port, "--output", root / "out") == 1
    assert f"port {port} of 127.0.0.1 is taken" in capsys.readouterr().err


@pytest.fixture
def connections(monkeypatch) -> list[str]:
    """Hosts that this process opens connections to."""
    hosts, connect = [], socket.socket.connect

    def noted(self, address):
        hosts.append(address[0] if isinstance(address, tuple) else "file")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    return hosts


@pytest.fixture
def address(root, connections):
    """The page of the replica, served from this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    parser = argparse.ArgumentParser()
    cli_demo.add_commands(parser.add_subparsers())
    page, address = cli_demo.open_page(parser.parse_args([
        "demo", "--port", str(port), "--output", str(root / "out"),
        "--set", "sampler.num_steps=2",
    ]))  # fmt: skip
    yield address
    page.blocks.close(verbose=False)


SHOWN = "() => { const v = document.querySelector('#video video'); return v && v.readyState >= 2 }"


def drag(tab, block: int, frames: float) -> None:
    """With the mouse, by some frames of a timeline of 17."""
    box = tab.locator("#timeline .block").nth(block).bounding_box()
    width = tab.locator("#timeline .track").bounding_box()["width"] / 17
    x, y = box["x"] + box["width"] / 2, box["y"] + 30
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + frames * width, y, steps=6)
    tab.mouse.up()


def test_a_start_end_video_is_made_on_the_page(address, browser, media, root, connections):
    requests = []
    browser.on("request", lambda request: requests.append(request.url))
    browser.goto(address)
    browser.wait_for_selector("#timeline .track")
    browser.get_by_label("start_end", exact=True).check()
    browser.wait_for_selector("#timeline .block.missing")
    browser.wait_for_selector("#message :text('has no file')")
    browser.set_input_files("#files input[type=file]", [media["start.png"], media["end.png"]])
    browser.wait_for_function("() => !document.querySelector('#timeline .block.missing')")
    browser.locator("#prompt textarea").fill(PROMPT)

    place = browser.locator("#timeline .block").nth(1).locator(".place")
    picture = browser.locator("#picture img").get_attribute("src")
    assert place.inner_text() == "16"
    drag(browser, 1, -4)
    browser.wait_for_function(
        "old => document.querySelector('#picture img').src !== old", arg=picture
    )
    assert place.inner_text() == "12"
    browser.locator("#timeline .block").nth(1).focus()
    browser.keyboard.press("ArrowLeft")
    browser.wait_for_function(
        "() => /--at=11=/.test(document.querySelector('#command textarea').value)"
    )

    browser.locator("#go").click()
    browser.wait_for_function(SHOWN)
    assert browser.evaluate("document.querySelector('#video video').videoWidth") == 32
    [made] = videos_in(root / "out")
    assert [line.split()[1:4] for line in made.sidecar["given"][1:3]] == [
        ["0", "0", "0.2"], ["9..12", "3", "0.5"],
    ]  # fmt: skip
    assert made.sidecar["recipe"]["prompt"] in (PROMPT, [PROMPT])
    assert len(video.read_frames(made.video)[0]) == 17

    # An error is text; what was made stays, also when the page is opened anew.
    drag(browser, 1, -11)
    browser.wait_for_selector("#message :text('given twice')")
    browser.locator("#go").click()
    browser.wait_for_selector("#message :text('out/media/end.png')")  # sampling's own answer
    assert browser.evaluate(SHOWN)
    browser.reload()
    browser.locator("#gallery .thumbnail-item").click()
    browser.wait_for_function(SHOWN)

    local = (address, address.replace("http", "ws"), "data:", "blob:")
    assert not [url for url in requests if not url.startswith(local)]
    assert set(connections) <= {"127.0.0.1", "::1", "localhost", "file"}
    again = root / "again.mp4"
    main(["generate", "--from", str(made.video.with_suffix(".json")), "-o", str(again)])
    assert again.read_bytes() == made.video.read_bytes()
