"""Where something stands, as people write it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pusa.pipelines.positions import Timing, read_span
from pusa.types import LatentSpec

WAN = Timing(LatentSpec(16, 4, 8), 81, 16.0)
MOCHI = Timing(LatentSpec(12, 6, 8), 85, 30.0)


@pytest.mark.parametrize(
    ("text", "first", "last", "point"),
    [
        ("0", 0, 0, True),
        ("80", 80, 80, True),
        ("frame:80", 80, 80, True),
        ("-1", 80, 80, True),
        ("last", 80, 80, True),
        ("2.5s", 40, 40, True),
        ("5s", 80, 80, True),
        ("-1s", 65, 65, True),
        ("latent:0", 0, 0, True),
        ("latent:20", 77, 80, True),
        ("latent:-1", 77, 80, True),
        ("0..3s", 0, 48, False),
        ("1..3s", 16, 48, False),
        ("latent:1..3", 1, 12, False),
        ("-13..last", 68, 80, False),
        ("-2s..", 49, 80, False),
        ("..12", 0, 12, False),
        ("frame:8..1s", 8, 16, False),
    ],
)
def test_positions_are_frames_seconds_or_latents(text, first, last, point):
    span = read_span(text, WAN)
    assert (span.first, span.last, span.point) == (first, last, point)


def test_mochi_folds_six_frames():
    assert (read_span("latent:2", MOCHI).first, read_span("latent:2", MOCHI).last) == (7, 12)
    assert read_span("0.1s", MOCHI).first == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("81", r"81 is outside a video of 81 frames; use 0\.\.80 or -81\.\.-1"),
        ("latent:21", "21 latent frames"),
        ("6s", r"the last one is at 5s"),
        ("first", "'first' is no position; write a frame"),
        ("2.5", "no whole frame; write 2.5s"),
        ("latent:2s", "no position"),
        ("last..0", "ends before it begins"),
        ("", "no position"),
    ],
)
def test_bad_positions_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        read_span(text, WAN)


@given(frame=st.integers(0, 80))
def test_the_same_frame_from_either_end_in_either_unit(frame):
    spans = [read_span(text, WAN) for text in (f"{frame}", f"{frame - 81}", f"{frame / 16}s")]
    assert {(span.first, span.last) for span in spans} == {(frame, frame)}


def test_a_clip_that_ends_within_a_group_has_the_whole_ones():
    clip = Timing(WAN.spec, 34, 16.0)
    spans = [read_span(text, clip) for text in ("latent:0", "latent:8", "latent:-1")]
    assert [(span.first, span.last) for span in spans] == [(0, 0), (29, 32), (29, 32)]
