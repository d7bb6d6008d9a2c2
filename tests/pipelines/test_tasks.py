"""Rows of tasks, and what they come to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pusa import entry
from pusa.pipelines.placements import mapping, multipliers_of, place, place_unseen
from pusa.pipelines.positions import Timing
from pusa.pipelines.tasks import Given, Task, as_config, parse_given
from pusa.types import LatentSpec
from tests.conftest import compose_config

WAN = Timing(LatentSpec(16, 4, 8), 81, 16.0)
GROUPS = [WAN.spec.pixel_frames(k) for k in range(21)]
PRESETS = ("t2v", "i2v", "start_end", "keyframes", "completion", "extension", "transition")


def preset(name: str, model: str = "wan21_t2v_14b") -> Task:
    return entry.build(compose_config("generate", f"model={model}", f"task={name}").task)


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("0=a.png", Given("0", "a.png")),
        ("0=a.png:0.5", Given("0", "a.png", multipliers=(0.5,))),
        ("0=a.png:.5", Given("0", "a.png", multipliers=(0.5,))),
        ("last=end.jpg:0.5:alone", Given("last", "end.jpg", multipliers=(0.5,), encode_as="alone")),
        ("80=b.png:context", Given("80", "b.png", encode_as="context")),
        ("0..3s=c.mp4:0.0,0.3,0.5", Given("0..3s", "c.mp4", multipliers=(0.0, 0.3, 0.5))),
        ("0=c.mp4@-13..last:0,1", Given("0", "c.mp4", part="-13..last", multipliers=(0, 1))),
        ("latent:7=c.mp4@latent:7", Given("latent:7", "c.mp4", part="latent:7")),
        ("latent:7=dir/a=b:c.png:0.4", Given("latent:7", "dir/a=b:c.png", multipliers=(0.4,))),
        ("0=me@home.png", Given("0", "me@home.png")),
        ("0=C:\\me.png:0.3", Given("0", "C:\\me.png", multipliers=(0.3,))),
    ],
)
def test_conditions_are_parsed(text, row):
    assert parse_given(text) == row


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png", "expected POSITION=FILE"),
        ("=a.png", "expected POSITION=FILE"),
        ("0=a.png:1.5", r"must be in \[0, 1\]"),
        ("0=a.png:0.2,7", r"must be in \[0, 1\]"),
    ],
)
def test_bad_conditions_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_given(text)


def placed(*texts: str, timing: Timing = WAN, **lengths: int):
    rows = [parse_given(text) for text in texts]
    return place(rows, timing, {row.file: lengths.get(row.file, 1) for row in rows})


def test_a_clip_goes_on_as_far_as_it_lasts():
    (clip,) = placed("0=c:0.0,0.3,0.5", c=20)
    assert clip.latents == range(5)
    assert clip.frames == tuple(range(17))
    assert clip.multipliers == (0.0, 0.3, 0.5, 0.5, 0.5)
    assert "rounded to whole groups of 4" in clip.note
    (clip,) = placed("0=c:0", c=200)
    assert clip.latents == range(21)
    assert "other 119 frames are left out" in clip.note


def test_a_range_takes_as_much_of_a_clip():
    (clip,) = placed("0..3s=c:0.0,0.3,0.5,0.7", c=100)
    assert clip.latents == range(13)
    assert clip.multipliers == (0.0, 0.3, 0.5, *[0.7] * 10)
    with pytest.raises(ValueError, match=r"has 20 frames \(1.25 s at 16 per second\).*takes 49"):
        placed("0..3s=c", c=20)


def test_a_part_of_a_clip_brings_its_own_past():
    (end,) = placed("latent:20=c@-4..last:0.3", c=81)
    assert (end.latents, end.frames, end.encode_as) == (range(20, 21), (77, 78, 79, 80), "context")
    assert end.before == tuple(range(60, 77))
    (start,) = placed("0=c@-13..last:0", c=50)
    assert (start.latents, start.frames, start.before) == (range(4), tuple(range(37, 50)), ())


def test_upstreams_clip_condition_keeps_its_position():
    (third,) = placed("latent:3=c@latent:3:0.4", c=81)
    assert (third.latents, third.frames) == (range(3, 4), (9, 10, 11, 12))


def test_images_stand_for_the_latent_that_covers_them():
    first, late = placed("0=a", "2.5s=b:0.4")
    assert (first.latents, late.latents) == (range(1), range(10, 11))
    assert late.frames == (0, 0, 0, 0)
    assert late.encode_as == "repeated"
    (held,) = placed("0..1s=a")
    assert held.latents == range(5)
    assert len(held.frames) == 17


@pytest.mark.parametrize(
    ("texts", "lengths", "message"),
    [
        (("77=a", "80=b"), {}, "latent frame 20 of 21 is given twice, 77=a:0.2 has it"),
        (("81=a",), {}, r"--at 81=a:0.2: 81 is outside"),
        (("0=a:0.1,0.2",), {}, "2 noise multipliers for 1 latent frames"),
        (("2..4=c",), {"c": 9}, "hold no whole latent frame"),
        (("0=c@30..",), {"c": 9}, "30 is outside a video of 9 frames"),
        (("0=c:alone",), {"c": 9}, "alone is for single images"),
    ],
)
def test_what_cannot_be_placed_is_named(texts, lengths, message):
    with pytest.raises(ValueError, match=message):
        placed(*texts, **lengths)


def test_the_mapping_is_told_in_both_units():
    said = mapping(placed("0=a.png", "last=b.png:0.5", "latent:2..4=c:0,0.3", c=30), WAN)
    lines = [line.split() for line in said.splitlines()]
    assert lines[1] == ["a.png", "0", "0", "0.2", "from", "0", "on"]
    assert lines[2] == ["b.png", "77..80", "20", "0.5", "repeated"]
    assert lines[3] == ["c", "frames", "0..11", "5..16", "2..4", "0,", "0.3", "context"]


@given(at=st.integers(0, 80), length=st.integers(2, 90))
def test_a_clip_is_never_moved_in_time(at, length):
    """Frame i of a clip that is given from frame `at` on is frame at + i of the video."""
    last = min(at + length, 81) - 1
    if not any(at <= group[0] and group[-1] <= last for group in GROUPS):
        with pytest.raises(ValueError, match="no whole latent frame"):
            placed(f"{at}=c", c=length)
        return
    (clip,) = placed(f"{at}=c", c=length)
    assert [frame + at for frame in clip.frames] == list(WAN.frames_of(clip.latents))


@pytest.mark.parametrize(
    ("name", "files", "lengths", "latents"),
    [
        ("t2v", (), {}, {}),
        ("i2v", ("a",), {}, {0: 0.2}),
        ("start_end", ("a", "b"), {}, {0: 0.2, 20: 0.5}),
        ("keyframes", ("a", "b", "c"), {}, {0: 0.3, 10: 0.3, 20: 0.3}),
        ("completion", ("c",), {"c": 200}, {0: 0.3, 20: 0.3}),
        ("extension", ("c",), {"c": 40}, {0: 0.0, 1: 0.3, 2: 0.4, 3: 0.5}),
        ("transition", ("c", "d"), {"c": 40, "d": 13},
         {0: 0.0, 1: 0.3, 2: 0.4, 3: 0.5, 18: 0.5, 19: 0.4, 20: 0.3}),
    ],
)  # fmt: skip
def test_presets_come_to(name, files, lengths, latents):
    rows = preset(name).with_media(files)
    found = place(rows, WAN, {row.file: lengths.get(row.file, 1) for row in rows})
    assert multipliers_of(found) == latents


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("model", ["wan21_t2v_14b", "mochi_1", "wan22_ti2v_5b"])
def test_presets_suit_every_model_and_survive_the_sidecar(name, model):
    cfg = compose_config("generate", f"model={model}", f"task={name}")
    built = entry.build(cfg.model)
    timing = Timing(built.spec, built.num_frames, built.fps)
    assert place_unseen(preset(name, model), timing) or name == "t2v"
    assert Task(**as_config(preset(name, model))) == preset(name, model)


def test_the_number_of_media_is_checked():
    with pytest.raises(ValueError, match=r"'start_end' takes 2 image\(s\) or clip\(s\), got 1"):
        preset("start_end").with_media(["a"])
    with pytest.raises(ValueError, match="takes two or more images, got 1"):
        preset("keyframes").with_media(["a"])


def test_multipliers_are_one_for_each_row_or_the_list_of_a_single_one():
    assert [r.multipliers for r in preset("start_end").with_multipliers([0.1, 0.7]).given] == [
        (0.1,), (0.7,)
    ]  # fmt: skip
    assert preset("extension").with_multipliers([0, 0.5]).given[0].multipliers == (0, 0.5)
    with pytest.raises(ValueError, match="has 2 conditions, got 3"):
        preset("start_end").with_multipliers([0, 0, 0])


def test_an_overlap_changes_both_ends():
    task = preset("transition").with_overlap(5, 4)
    assert [(r.at, r.part, r.multipliers) for r in task.given] == [
        ("0..4", "end", (0.0, 0.3)), ("-4..last", "", (0.3,))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "overlap", "stride", "message"),
    [
        ("extension", 6, 4, "use 5 or 9"),
        ("extension", 5, 6, "use 1 or 7"),
        ("extension", 0, 4, "use 1 or 5"),
        ("transition", 7, 4, "use 5 or 9"),
        ("transition", 1, 4, "use 5 or 9"),
    ],
)
def test_an_overlap_that_would_lose_frames_is_refused(name, overlap, stride, message):
    with pytest.raises(ValueError, match=message):
        preset(name).with_overlap(overlap, stride)


def test_multipliers_for_nothing_are_refused():
    with pytest.raises(ValueError, match="gives nothing"):
        preset("t2v").with_multipliers([0.3])


def test_how_images_are_encoded_is_not_asked_of_clips():
    rows = [parse_given("latent:0..1=clip.mp4"), parse_given("last=image.png")]
    placed = place(rows, WAN, {"clip.mp4": 81, "image.png": 1}, "alone")
    assert [placement.encode_as for placement in placed] == ["context", "alone"]
