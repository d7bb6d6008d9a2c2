"""`pusa data check`, as it is typed."""

import json
import os
import subprocess

import pytest

from pusa.data import clips, toy
from pusa.data.check import CheckSettings, check
from pusa.data.examine import examine
from tests.conftest import REPLICA, run_pusa

ENCODER = REPLICA / "text_encoder"


def run(*arguments) -> int:
    """Exit code of `pusa data ...`."""
    return run_pusa("data", *arguments)


def serially(media, workers, timeout):
    """Without worker processes, which take seconds to start."""
    return ((item, examine(item)) for item in media)


@pytest.fixture
def manifest(tmp_path, caplog):
    """Two good clips, already checked: only a file that is added starts workers."""
    caplog.set_level("INFO")
    made = toy.write_dataset(tmp_path, [toy.make_scene(0, "train", i, 5) for i in range(2)])
    check(made, CheckSettings(1, 60), examine_all=serially)
    return made


def test_an_endless_and_a_faulty_file_are_dropped_and_the_rest_is_kept(manifest, caplog, capsys):
    os.mkfifo(manifest.parent / "fifo.mp4")
    (manifest.parent / "text.mp4").write_text("no video")
    with manifest.open("a") as file:
        file.write("fifo.mp4,a clip\ntext.mp4,a clip\n")
    assert run("check", manifest, "--workers", 1, "--timeout", 6) == 1
    assert "4 clips, 2 usable, 2 dropped; 2 files decoded now" in caplog.text
    assert "did not end in time" in caplog.text
    assert "text.mp4: " in caplog.text
    listed = clips.read_manifest(manifest)
    assert clips.usable(listed, clips.read_quarantine(manifest)) == listed[:2]
    caplog.clear()
    assert run("check", manifest, "--timeout", 6, "--json", "-") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["decoded"], found["usable"], found["ok"]) == (0, 2, False)
    assert {reason: len(messages) for reason, messages in found["dropped"].items()} == {
        "did not end in time": 1, "unreadable": 1,
    }  # fmt: skip


def test_the_exit_code_is_0_if_all_clips_are_usable(manifest, tmp_path):
    assert run("check", manifest, "--json", tmp_path / "found.json") == 0
    assert json.loads((tmp_path / "found.json").read_text())["ok"]
    assert not clips.quarantine_path(manifest).exists()
    assert run("check", manifest, "--min-frames", 9, "--no-quarantine") == 1
    assert not clips.quarantine_path(manifest).exists()


def test_captions_are_counted_in_the_encoders_tokens(manifest, capsys, caplog):
    assert run("check", manifest, "--text-encoder", ENCODER, "--text-len", 3, "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["caption_length"]["unit"] == "tokens"
    from pusa.models.text import load_text_encoder

    captions = [clip.caption for clip in clips.read_manifest(manifest)]
    mask = load_text_encoder(ENCODER).tokenize(captions)[1]
    assert found["caption_length"]["longest"] == int(mask.sum(1).max())
    assert len(found["warnings"]["caption over 3 tokens, will be cut"]) == 2
    assert run("check", manifest, "--text-encoder", ENCODER) == 0
    assert "will be cut" not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--workers", 0], "--workers must be at least 1"),
        (["--timeout", -1], "--timeout must be positive"),
        (["--text-len", 9], "give --text-encoder as well"),
        (["--text-encoder", "absent"], "absent: no config.json"),
        (["--text-encoder", ENCODER, "--text-len", 0], "--text-len must be at least 1"),
    ],
)
def test_bad_usage_is_one_message(arguments, part, manifest, capsys):
    assert run("check", manifest, *arguments) == 1
    assert part in capsys.readouterr().err


def test_a_manifest_that_is_not_there_is_one_message(tmp_path, capsys):
    assert run("check", tmp_path / "absent.csv") == 1
    assert "absent.csv: no such manifest" in capsys.readouterr().err


def test_a_read_only_folder_names_the_way_out(small_disk, tmp_path, capsys):
    made = toy.write_dataset(small_disk / "set", [toy.make_scene(0, "train", 0, 5)])
    report = tmp_path / "reports" / "set.jsonl"
    check(made, CheckSettings(1, 60), report, quarantine=False, examine_all=serially)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert run("check", made) == 1
    message = capsys.readouterr().err
    for part in (str(small_disk / "set"), "Read-only", "--report FILE", "--no-quarantine"):
        assert part in message
    assert run("check", made, "--report", report) == 1
    assert "--no-quarantine" in capsys.readouterr().err
    assert run("check", made, "--report", report, "--no-quarantine") == 0
