"""`pusa data check` as a function: what it finds, that no file stops it, and that it goes on where
it was."""

import csv
import json
import os
import signal
from itertools import combinations
from pathlib import Path

import av
import pytest
import torch

from pusa.data import clips, examine, toy, video
from pusa.data.check import CheckSettings, check
from pusa.data.examine import DEAD_WORKER, NO_END, Facts, Fault, examine_all
from pusa.data.media import Media
from pusa.data.verdicts import CaptionLength
from tests.data.test_clips import write_tar

SETTINGS = CheckSettings(workers=1, timeout=60)


class Serial:
    """Examines in this process, and counts; stops like a killed process after `limit` files."""

    def __init__(self, limit: int = 1000):
        self.names: list[str] = []
        self.limit = limit

    def __call__(self, media, workers, timeout):
        for item in media:
            if len(self.names) == self.limit:
                raise KeyboardInterrupt
            self.names.append(item.name)
            yield item, examine.examine(item)


def frames(index: int, num_frames: int = 9) -> torch.Tensor:
    return toy.render(toy.make_scene(0, "train", index, num_frames)).frames


def write_manifest(folder: Path, captions: dict[str, str]) -> Path:
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *captions.items()])
    return folder / "metadata.csv"


def write_faulty(folder: Path) -> Path:
    """Good and faulty clips as people have them."""
    for number, name in enumerate(("good.mp4", "with space ünï.mp4", "truncated.mp4")):
        video.write_video(folder / name, frames(number), 8)
    whole = (folder / "truncated.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    video.write_image(folder / "picture.png", frames(3)[0])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video at all\n" * 100)
    (folder / "picture.jpg").write_bytes(b"\xff\xd8\xff no picture")
    names = ["good.mp4", "with space ünï.mp4", "picture.png", "empty.mp4", "text.mp4",
             "truncated.mp4", "picture.jpg"]  # fmt: skip
    return write_manifest(folder, dict.fromkeys(names, "a caption") | {"good.mp4": "w " * 5000})


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_good_clips_are_kept_and_faulty_ones_named_and_quarantined(tmp_path):
    manifest = write_faulty(tmp_path)
    found = check(manifest, SETTINGS, examine_all=Serial())
    assert not found.ok
    usable = ["good.mp4", "with space ünï.mp4", "picture.png"]
    assert [verdict.clip.name for verdict, _ in found.kept()] == usable
    assert {reason: len(messages) for reason, messages in found.dropped().items()} == {
        "unreadable": 3, "empty": 1,
    }  # fmt: skip
    for messages in found.dropped().values():
        assert all(str(tmp_path) in message for message in messages)
    text = found.text()
    for part in ("7 clips, 3 usable, 4 dropped; 7 files decoded", "h264", "32x32", "0 bytes"):
        assert part in text
    listed = clips.read_manifest(manifest)
    kept = clips.usable(listed, clips.read_quarantine(manifest))
    assert [clip.name for clip in kept] == usable
    first, *_ = lines(tmp_path / "metadata.csv.check.jsonl")
    assert first["usable"]
    assert first["caption_length"] == 5000
    facts = first["facts"]
    assert (facts["num_frames"], facts["height"], facts["width"]) == (9, 32, 32)
    assert (facts["fps"], facts["duration"], facts["variable_rate"]) == (8, 9 / 8, False)
    assert facts["digest"] == listed[0].media.digest()
    assert not list(tmp_path.glob("*.partial"))


def test_a_second_run_decodes_only_what_changed(tmp_path):
    manifest = write_faulty(tmp_path)
    check(manifest, SETTINGS, examine_all=Serial())
    report = (tmp_path / "metadata.csv.check.jsonl").read_bytes()
    again = check(manifest, SETTINGS, examine_all=(run := Serial()))
    assert run.names == []
    assert again.num_decoded == 0
    assert (tmp_path / "metadata.csv.check.jsonl").read_bytes() == report
    video.write_video(tmp_path / "empty.mp4", frames(4), 8)
    stricter = CheckSettings(1, 60, min_frames=9)
    mended = check(manifest, stricter, examine_all=(run := Serial()))
    assert run.names == ["empty.mp4"]
    assert mended.dropped()["too few frames"] == [f"{tmp_path}/picture.png: 1, 9 are needed."]
    kept = clips.usable(clips.read_manifest(manifest), clips.read_quarantine(manifest))
    assert [clip.name for clip in kept] == ["good.mp4", "with space ünï.mp4", "empty.mp4"]


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path):
    manifest = write_faulty(tmp_path)
    for killed in range(3):
        with pytest.raises(KeyboardInterrupt):
            check(manifest, SETTINGS, examine_all=Serial(limit=2))
        partial = tmp_path / "metadata.csv.check.jsonl.partial"
        with partial.open("a") as file:
            file.write('\n{"format": 1, "media": "pict')  # what was being written
        assert not clips.quarantine_path(manifest).exists(), killed
    found = check(manifest, SETTINGS, examine_all=(run := Serial()))
    assert run.names == ["picture.jpg"]
    once = check(manifest, SETTINGS, tmp_path / "once.jsonl", examine_all=Serial())
    assert found.verdicts == once.verdicts
    assert (tmp_path / "once.jsonl").read_bytes() == found.files[0].read_bytes()


def test_a_fault_that_may_be_the_machines_is_tried_again(tmp_path):
    manifest = write_faulty(tmp_path)

    def failing(media, workers, timeout):
        reasons = [NO_END, DEAD_WORKER]
        for number, item in enumerate(media):
            yield item, Fault(reasons[number % 2], f"{item}: faulty", "")

    check(manifest, SETTINGS, examine_all=failing)
    check(manifest, SETTINGS, examine_all=(run := Serial()))
    assert len(run.names) == 3  # those that crashed; the others would end no earlier
    check(manifest, CheckSettings(1, 61), examine_all=(run := Serial()))
    assert len(run.names) == 4


def test_what_may_surprise_is_a_warning(tmp_path):
    a, b = frames(0), frames(1)
    video.write_video(tmp_path / "a.mp4", a, 8)
    (tmp_path / "copy.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    video.write_video(tmp_path / "squeezed.mp4", a, 8, crf=20)
    video.write_video(tmp_path / "cut.mp4", torch.cat([b[:6], frames(5)[:6]]), 8)
    write_variable_rate(tmp_path / "variable.mp4", frames(6))
    names = ("a.mp4", "copy.mp4", "squeezed.mp4", "cut.mp4", "variable.mp4")
    manifest = write_manifest(tmp_path, dict.fromkeys(names, "one two three"))
    with manifest.open("a") as file:
        file.write("a.mp4,two words\nabsent.mp4,gone\n")
    captions = CaptionLength(len, "letters", 10)
    found = check(manifest, SETTINGS, captions=captions, examine_all=(run := Serial()))
    assert len(run.names) == 5  # the clip that is listed twice is decoded once
    assert list(found.dropped()) == ["mend the manifest"]
    assert "line 8" in found.dropped()["mend the manifest"][0]
    warnings = found.warnings()
    assert warnings["cuts or flashes"] == ["cut.mp4 (at frame 6)"]
    assert warnings["listed more than once"] == [
        f"a.mp4 ({manifest}, line 2 and {manifest}, line 7)"
    ]
    assert warnings["same file under another name"] == ["copy.mp4 (is a.mp4)"]
    assert warnings["looks like another clip"] == ["squeezed.mp4 (like a.mp4)"]
    assert len(warnings["caption over 10 letters, will be cut"]) == 5
    (variable,) = warnings["variable frame rate"]
    assert variable.startswith("variable.mp4 (")
    assert found.to_json()["warnings"] == warnings
    assert found.to_json()["caption_length"] == {"unit": "letters", "median": 13, "longest": 13}


def write_variable_rate(path: Path, pixels: torch.Tensor) -> None:
    """The later half of the frames at half the rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[-2:], "yuv420p"
        for number, picture in enumerate(pixels.permute(0, 2, 3, 1).contiguous().numpy()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number + max(0, number - len(pixels) // 2)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_cuts_are_found_relative_to_the_motion_of_the_clip():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (12, 3, 32, 32), generator=generator).float()
    assert examine.find_cuts(noise) == ()  # everything changes all the time: no cut
    still = noise[:1].repeat(12, 1, 1, 1)
    assert examine.find_cuts(still) == ()
    still[5:] = noise[1]
    assert examine.find_cuts(still) == (5,)
    assert examine.find_cuts(still[:1]) == ()


def test_the_difference_hash_survives_scale_and_noise_and_tells_scenes_apart():
    scenes = [frames(index)[0].float() for index in range(12)]
    hashes = [int(examine.difference_hash(scene), 16) for scene in scenes]
    larger = [torch.nn.functional.interpolate(s[None], scale_factor=3, mode="bilinear")[0]
              for s in scenes]  # fmt: skip
    same = [int(examine.difference_hash(s), 16) ^ h for s, h in zip(larger, hashes, strict=True)]
    other = [a ^ b for a, b in combinations(hashes, 2)]
    assert max(map(int.bit_count, same)) < min(map(int.bit_count, other))
    ramp = torch.arange(36.0).expand(3, 32, 36)
    assert examine.difference_hash(ramp) == "f" * 16
    assert examine.difference_hash(ramp.flip(-1)) == "0" * 16


def misbehave(media: Media):
    """What decoders do with some files."""
    if media.name == "kills.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    if media.name == "raises.mp4":
        raise RuntimeError("a library's own words")
    return examine.examine(media)


def test_no_file_takes_a_worker_down_with_it(tmp_path):
    names = ("kills.mp4", "fifo.mp4", "raises.mp4", "good.mp4")
    os.mkfifo(tmp_path / "fifo.mp4")
    video.write_video(tmp_path / "good.mp4", frames(0), 8)
    media = [Media(tmp_path / name) for name in names]
    found = {item.name: result for item, result in examine_all(media, 1, 4, misbehave)}
    assert found.keys() == set(names)
    assert isinstance(found.pop("good.mp4"), Facts)
    faults = {name: (f.reason, f.message) for name, f in found.items() if isinstance(f, Fault)}
    assert {name: reason for name, (reason, _) in faults.items()} == {
        "kills.mp4": DEAD_WORKER, "fifo.mp4": NO_END, "raises.mp4": "unreadable",
    }  # fmt: skip
    assert str(-signal.SIGSEGV) in faults["kills.mp4"][1]
    assert "4 s" in faults["fifo.mp4"][1]
    assert "a library's own words" in faults["raises.mp4"][1]


def test_clips_in_shards_are_examined_where_they_are(tmp_path):
    video.write_video(tmp_path / "a.mp4", frames(0), 8)
    write_tar(
        tmp_path / "s-0.tar",
        {"b.mp4": b"no video", "b.txt": b"x", "a.txt": b"y",
         "a.mp4": (tmp_path / "a.mp4").read_bytes()},
    )  # fmt: skip
    pattern = f"{tmp_path}/s-{{0..0}}.tar"
    found = check(pattern, SETTINGS, examine_all=Serial())
    ((verdict, facts),) = found.kept()
    assert (verdict.clip.name, facts.num_frames) == ("s-0.tar/a.mp4", 9)
    listed = clips.read_manifest(pattern)
    assert clips.usable(listed, clips.read_quarantine(pattern)) == [verdict.clip]
    assert (tmp_path / "s-_0..0_.tar.check.jsonl").is_file()


def test_a_manifest_of_which_every_line_is_faulty_is_reported(tmp_path):
    manifest = write_manifest(tmp_path, {"absent.mp4": "a", "gone.mp4": "b"})
    found = check(manifest, SETTINGS, examine_all=Serial())
    assert (found.ok, found.kept(), len(found.faults)) == (False, [], 2)
    assert "2 clips, 0 usable, 2 dropped" in found.text()


def test_a_fifo_stays_in_quarantine(tmp_path):
    os.mkfifo(tmp_path / "fifo.mp4")
    manifest = write_manifest(tmp_path, {"fifo.mp4": "never ends"})

    def ends(media, workers, timeout):
        yield from ((item, Fault(NO_END, f"{item}: no end", "")) for item in media)

    found = check(manifest, SETTINGS, examine_all=ends)
    assert found.kept() == []
    assert clips.usable(clips.read_manifest(manifest), clips.read_quarantine(manifest)) == []
    check(manifest, SETTINGS, quarantine=False, examine_all=Serial())
    assert clips.read_quarantine(manifest)  # left as it is


@pytest.mark.parametrize(
    ("values", "part"),
    [((0, 1.0), "--workers"), ((1, 0.0), "--timeout"), ((1, 1.0, 0), "--min-frames")],
)
def test_settings_that_make_no_sense_are_refused(values, part):
    with pytest.raises(ValueError, match=part):
        CheckSettings(*values)
