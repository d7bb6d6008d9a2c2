"""VBench's list of prompts, its names and counts, suites of one's own, and what is not there."""

import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from pusa.evaluation.presence import presence, require_complete
from pusa.evaluation.scoring import FLICKERING, KNOWN, SCALES
from pusa.evaluation.vbench_suite import (
    folder_suite,
    is_public,
    kind_of,
    prompts_key,
    public_suite,
    ratio_of,
    read_info,
    videos_of,
)
from tests.evaluation.info_for_tests import SUBJECT, entries, entry, write_info


@pytest.fixture
def info(tmp_path: Path) -> Path:
    return write_info(tmp_path, entries())


@pytest.fixture
def crop(tmp_path: Path) -> Path:
    for ratio, size in {"16-9": (32, 18), "26-15": (52, 30), "3-1": (3, 1)}.items():
        (tmp_path / "crop" / ratio).mkdir(parents=True)
        for name in ("dunes.jpg", "goat.jpg"):
            Image.new("RGB", size).save(tmp_path / "crop" / ratio / name)
    return tmp_path / "crop"


def fill(folder: Path, names: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_names_are_the_prompt_and_a_number_and_nothing_is_replaced(info: Path, crop: Path):
    suite = public_suite(info, crop, "16-9")
    names = [video.name for video in suite.videos()]
    assert len(names) == len(set(names)) == 20
    assert names[:2] == ["a red kite over dunes-0.mp4", "a red kite over dunes-1.mp4"]
    assert names[-1] == "a goat chews, slowly-4.mp4"
    assert suite.image(suite.prompts[3]) == crop / "16-9" / "goat.jpg"
    assert suite.name == "another list (info) 16-9"
    assert {video.index for video in suite.videos()} == {0, 1, 2, 3}


def test_each_dimension_needs_its_own_videos(info: Path):
    prompts = read_info(info)
    counts = {name: len(videos_of(prompts, dimensions=[name])) for name in KNOWN}
    assert counts["camera_motion"] == counts["aesthetic_quality"] == counts[FLICKERING] == 10
    assert counts["i2v_subject"] == counts["background_consistency"] == 5
    assert len(videos_of(prompts, 2, ["i2v_subject", "imaging_quality"])) == 4
    with pytest.raises(ValueError, match="color: no dimension; there are i2v_subject"):
        videos_of(prompts, dimensions=["color"])
    with pytest.raises(ValueError, match="num_samples=0"):
        videos_of(prompts, 0)


def test_folders_of_other_ratios_are_taken_as_they_are_called(info: Path, crop: Path):
    assert public_suite(info, crop, "26-15").images == crop / "26-15"
    assert ratio_of(832, 480) == "26-15"
    assert [ratio_of(*size) for size in ((1280, 720), (512, 512))] == ["16-9", "1-1"]
    with pytest.raises(
        ValueError,
        match=r"8-5: no such folder of images; .* has 16-9, 26-15, 3-1, and none replaces another"
        r".*crop_to_diff_ratio\.py --target_ratio 8-5 --result_path /.*/crop$",
    ):
        public_suite(info, crop, "8-5")
    with pytest.raises(ValueError, match=r"none has no ratio at all\. .* after its download_data"):
        public_suite(info, crop.parent / "none", "16-9")
    with pytest.raises(ValueError, match="ratio '16:9' is not W-H, as 1-1, 8-5, 7-4, 16-9"):
        public_suite(info, crop, "16:9")
    for ratio, nearest in (("3-1", "16-9"), ("20-11", "16-9"), ("3-4", "1-1")):
        with pytest.raises(ValueError, match=f"ratio {ratio}: .* 1-1 to 16-9 .*ratio={nearest},"):
            public_suite(info, crop, ratio)


def test_crops_that_are_no_images_or_of_another_ratio_are_refused(info: Path, crop: Path):
    (crop / "16-9" / "goat.jpg").unlink()
    with pytest.raises(ValueError, match=r"16-9: 1 images \('goat.jpg'\) missing"):
        public_suite(info, crop, "16-9")
    (crop / "16-9" / "goat.jpg").write_text("<html>quota exceeded</html>")
    with pytest.raises(ValueError, match=r"goat\.jpg: no JPEG or PNG .*download may have failed"):
        public_suite(info, crop, "16-9")
    Image.new("RGB", (32, 18)).save(crop / "16-9" / "goat.jpg", format="GIF")
    with pytest.raises(ValueError, match=r"goat\.jpg: no JPEG or PNG"):
        public_suite(info, crop, "16-9")
    (crop / "26-15").rename(crop / "7-4")
    with pytest.raises(ValueError, match=r"2 of 2 images are not 7-4, such as 'dunes.jpg' \(52x30"):
        public_suite(info, crop, "7-4")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list of prompts"),
        ([], "expected a list of prompts"),
        ([{"prompt_en": "a"}], "entry 0: expected an object with dimension, image_name"),
        ([entry("a", [], "a.jpg")], "entry 0: dimension must be a list"),
        ([entry("a", ["color"], "a.jpg")], "entry 0: color: no dimension of VBench-I2V"),
        ([entry("a", ["camera_motion"], "a.jpg")], "entry 0: 'a' names none of camera pans left"),
        ([entry("a", SUBJECT, "a.webp")], "entry 0: 'a.webp' is no .jpg, .jpeg, .png"),
        ([entry("a", SUBJECT, 3)], "entry 0: 3 is no .jpg"),
        ([entry("a", SUBJECT, "a.jpg") | {"image_type": None}], "image_type must be texts"),
        ([entry("a/b", SUBJECT, "a.jpg")], "'a/b' cannot name a file"),
        ([entry(".a", SUBJECT, "a.jpg")], "'.a' cannot name a file"),
        ([entry("ä" * 101, SUBJECT, "a.jpg")], "has 202 bytes, too long .* at most 200"),
        ([entry(" ", SUBJECT, "a.jpg")], "' ' cannot name a file"),
        (
            [entry("a dog", SUBJECT, "a.jpg"), entry("A dog", SUBJECT, "a.jpg")],
            r"2 prompts \('A dog', 'a dog'\) are there twice, letter case aside",
        ),
    ],
)
def test_a_list_that_is_not_vbenchs_is_refused(tmp_path: Path, content, message: str):
    with pytest.raises(ValueError, match=message):
        read_info(write_info(tmp_path, content))


def test_a_list_that_is_not_there_or_not_json_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="no such file; VBench's repository has it"):
        read_info(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(ValueError, match=r"broken\.json: not JSON"):
        read_info(tmp_path / "broken.json")


def test_the_key_follows_what_is_asked_for_and_not_its_order(tmp_path: Path, info: Path):
    prompts = read_info(info)
    assert prompts_key(prompts[::-1]) == prompts_key(prompts)
    changed = entries()
    changed[3]["image_name"] = "other.jpg"
    assert prompts_key(read_info(write_info(tmp_path, changed))) != prompts_key(prompts)
    assert not is_public(prompts)


@pytest.mark.skipif("VBENCH_I2V_INFO" not in os.environ, reason="VBENCH_I2V_INFO names no file")
def test_the_public_list_has_its_published_counts():
    prompts = read_info(os.environ["VBENCH_I2V_INFO"])
    assert is_public(prompts)
    assert len(prompts) == 1118
    assert len({prompt.image_name for prompt in prompts}) == 355
    assert len(videos_of(prompts)) == 5590
    counts = {name: len(videos_of(prompts, dimensions=[name])) for name in SCALES}
    assert Counter(counts.values()) == {1230: 4, 545: 2, 1775: 2, 3815: 1}
    assert counts["camera_motion"] == 3815
    assert not is_public(prompts[1:])


def test_a_whole_folder_is_complete_whatever_lies_beside_the_videos(info: Path, tmp_path: Path):
    videos = videos_of(read_info(info))
    folder = fill(tmp_path / "videos", [video.name for video in videos])
    fill(folder, ["a goat chews, slowly-0.json", ".partial.mp4"])
    found = require_complete(folder, videos)
    assert found.complete
    assert found.describe().endswith("of 20 videos, none is missing and there is no other")


def test_missing_unexpected_and_misspelt_videos_fail_with_counts(info: Path, tmp_path: Path):
    videos = videos_of(read_info(info))
    names = [video.name for video in videos]
    folder = fill(tmp_path / "videos", [*names[:12], "other-0.mp4", "A red kite over dunes-0.mp4"])
    (folder / names[11]).write_bytes(b"")
    found = presence(folder, videos)
    assert found.missing == tuple(sorted(names[11:]))
    assert found.unexpected == ("A red kite over dunes-0.mp4", "other-0.mp4")
    assert found.clashing == ("A red kite over dunes-0.mp4", "a red kite over dunes-0.mp4")
    with pytest.raises(
        ValueError, match=r"of 20 videos, 9 missing \(.* and 4 more\); 2 unexpected"
    ):
        require_complete(folder, videos)
    assert not require_complete(folder, videos, allow_incomplete=True).complete


def test_what_a_dimension_does_not_need_is_not_missed(info: Path, tmp_path: Path):
    needed = videos_of(read_info(info), dimensions=["i2v_subject"])
    folder = fill(tmp_path / "videos", [video.name for video in needed])
    assert require_complete(folder, needed).complete


def test_a_folder_without_any_video_of_the_suite_is_always_refused(info: Path, tmp_path: Path):
    folder = fill(tmp_path / "videos", ["0001.mp4"])
    with pytest.raises(ValueError, match=r"20 missing .*; 1 unexpected \('0001.mp4'\)\. There is"):
        require_complete(folder, videos_of(read_info(info)), allow_incomplete=True)
    with pytest.raises(ValueError, match="no such folder of videos"):
        presence(tmp_path / "none", [])


def own(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


def test_a_suite_of_ones_own_out_of_images_and_texts(tmp_path: Path):
    folder = own(
        tmp_path / "zoo",
        {"x.png": "", "x.txt": " a seal waves\n", "y, camera static.jpg": "",
         "y, camera static.txt": "a moose"},
    )  # fmt: skip
    suite = folder_suite(folder, num_samples=2)
    assert suite.name == "zoo"
    assert [prompt.text for prompt in suite.prompts] == ["a seal waves", "a moose"]
    assert [video.name for video in suite.videos(["camera_motion"])] == [
        "y, camera static-0.mp4",
        "y, camera static-1.mp4",
    ]
    assert len(suite.videos(["i2v_background"])) == 4
    assert suite.image(suite.prompts[0]) == folder / "x.png"


def test_a_suite_of_ones_own_out_of_a_table(tmp_path: Path):
    table = 'image_name,text\nb.png,"a fox, asleep"\na.jpg,a tower\n'
    suite = folder_suite(own(tmp_path / "s", {"a.jpg": "", "b.png": "", "prompts.csv": table}))
    assert [(p.stem, p.text) for p in suite.prompts] == [("b", "a fox, asleep"), ("a", "a tower")]
    assert len(suite.videos()) == 10


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "a suite needs images"),
        ({"a.png": ""}, r"a\.png: no prompt; write it into a\.txt"),
        ({"a.png": "", "a.txt": "a", "b.txt": "b"}, r"1 prompts \('b.txt'\) without an image"),
        ({"a.png": "", "a.jpg": "", "a.txt": "a"}, r"1 prompts \('a'\) are there twice"),
        ({"prompts.csv": "name,text\n"}, "must name the columns image_name and text"),
        ({"prompts.csv": "image_name,text\na.png,x\n"}, r"1 images \('a.png'\) missing"),
        ({"prompts.csv": "image_name,text\na.mp4,x\n"}, r"csv:2: 'a\.mp4' is no \.jpg"),
        ({"prompts.csv": "image_name,text\na.png,\n"}, r"csv:2: a\.png has no text"),
        ({"prompts.csv": "image_name,text\na.png,x\na.png,y\n"}, r"csv:3: a\.png is there twice"),
    ],
)
def test_a_folder_that_is_no_suite_is_refused(tmp_path: Path, files: dict, message: str):
    with pytest.raises(ValueError, match=message):
        folder_suite(own(tmp_path / "s", files))


def test_names_that_look_alike_are_alike(tmp_path: Path):
    """macOS takes é apart into e and an accent; a table typed elsewhere does not."""
    apart, whole = "cafe\u0301", "caf\u00e9"
    folder = own(tmp_path / "s", {f"{apart}.png": "", f"{whole}.txt": "a cup", "._x.png": "junk"})
    for suite in (folder_suite(folder), folder_suite(_with_table(folder, f"{whole}.png,a cup"))):
        assert [(p.stem, p.text) for p in suite.prompts] == [(whole, "a cup")]
        assert suite.image(suite.prompts[0]).is_file()
    (folder / f"{whole}.png").touch()
    with pytest.raises(ValueError, match=r"1 names .* are there twice, in two of Unicode's forms"):
        folder_suite(folder)


def _with_table(folder: Path, row: str) -> Path:
    (folder / "prompts.csv").write_text(f"image_name,text\n{row}\n", "utf-8")
    return folder


def test_kinds_go_by_what_the_videos_are_scored_in(info: Path, tmp_path: Path):
    kinds = [kind_of(prompt) for prompt in read_info(info)]
    assert kinds == ["background", "camera", "camera", "subject"]
    folder = own(tmp_path / "s", {"a.png": "", "a.txt": "a"})
    assert kind_of(folder_suite(folder).prompts[0]) is None


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="no such folder of images and prompts"):
        folder_suite(tmp_path / "none")
