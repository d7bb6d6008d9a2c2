"""What is known of media files is not found out twice, and never believed for too long."""

import json
import os
from pathlib import Path

import pytest

from pusa.data import facts, toy, video
from pusa.data.facts import FactBook
from pusa.data.media import Media


@pytest.fixture
def clip(tmp_path):
    frames = toy.render(toy.make_scene(0, "train", 0, 5)).frames
    video.write_video(tmp_path / "a.mp4", frames, 16)
    return Media(tmp_path / "a.mp4")


@pytest.fixture
def probed(monkeypatch):
    """Which files were probed."""
    names, probe = [], video.probe
    monkeypatch.setattr(facts, "probe", lambda media: names.append(media.name) or probe(media))
    return names


def test_a_file_is_probed_once_by_all_processes_until_it_changes(clip, tmp_path, probed):
    first = FactBook(tmp_path / "c").of(clip)
    assert FactBook(tmp_path / "c").of(clip) == first
    assert first.probe.num_frames == 5
    assert probed == ["a.mp4"]
    os.utime(clip.path, ns=(1, 1))
    FactBook(tmp_path / "c").of(clip)
    assert len(probed) == 2


def test_facts_of_another_reader_or_code_are_not_believed(clip, tmp_path, probed):
    FactBook(tmp_path / "c").of(clip)
    (file,) = (tmp_path / "c" / "media").glob("*.jsonl")
    row = json.loads(file.read_text())
    for change in ({"version": "0.0"}, {"unknown": 1}):
        file.write_text(json.dumps(row | {"probe": row["probe"] | change}) + "\n")
        assert FactBook(tmp_path / "c").known(clip) is None
    assert FactBook(tmp_path / "c").of(clip).probe.version != "0.0"
    assert len(probed) == 2


def test_faults_are_told_to_running_processes_and_tried_again_by_later_ones(clip, tmp_path, probed):
    mine, other = FactBook(tmp_path / "c"), FactBook(tmp_path / "c")
    mine.of(clip)
    mine.blame(clip, "the disk was tired")
    assert other.known(clip) is None
    other.reload()
    assert other.known(clip).fault == "the disk was tired"
    later = FactBook(tmp_path / "c")
    assert later.of(clip).probe is not None
    later.reload()
    assert later.known(clip).probe is not None
    assert len(probed) == 2


def test_what_is_no_file_is_a_fault_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "folder.mp4").mkdir()
    book = FactBook(tmp_path / "c")
    for name, reason in (
        ("fifo.mp4", "is a FIFO"), ("link.mp4", "no such file"), ("absent.mp4", "no such file"),
        ("folder.mp4", "is a FIFO, device or folder"),
    ):  # fmt: skip
        found = book.of(Media(tmp_path / name))
        assert found.probe is None
        assert f"{name}: {reason}" in found.fault
    assert (
        book.of(Media(Path("/dev/zero"))).fault
        == "/dev/zero: is a FIFO, device or folder; drop it."
    )
    assert not (tmp_path / "c").exists()
