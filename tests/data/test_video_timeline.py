"""Choice of frames by time: real speed, refusals, windows."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pusa.data.timeline import Chosen, VideoError, choose_frames, is_variable, num_windows, rate
from pusa.rng import generator_for


def constant(num_frames: int, fps: float) -> list[float]:
    return [i / fps for i in range(num_frames)]


def test_a_clip_of_the_models_rate_is_taken_frame_by_frame():
    chosen = choose_frames(constant(40, 16), 17, 16)
    assert chosen == Chosen(tuple(range(17)), 1.0)
    milliseconds = [round(t, 3) for t in constant(40, 16)]  # Matroska's rounding
    chosen = choose_frames(milliseconds, 17, 16)
    assert chosen.indices == tuple(range(17))
    assert chosen.factor == pytest.approx(1, abs=1e-3)


def test_thirty_frames_a_second_become_sixteen_at_real_speed():
    chosen = choose_frames(constant(300, 30), 81, 16)
    assert chosen.factor == 1
    assert list(chosen.indices) == [math.floor(30 * k / 16 + 0.5) for k in range(81)]
    assert chosen.indices[80] / 30 == pytest.approx(80 / 16, abs=0.5 / 30 + 1e-9)


def test_a_small_difference_is_stretched_and_reported():
    chosen = choose_frames(constant(60, 15.5), 17, 16)
    assert chosen.indices == tuple(range(17))
    assert chosen.factor == pytest.approx(16 / 15.5)
    by_time = choose_frames(constant(60, 16.5), 50, 16, max_stretch=0)
    assert by_time.factor == 1
    assert by_time.indices != tuple(range(50))


def test_a_low_rate_is_refused_unless_told_so():
    clip = constant(60, 8)
    with pytest.raises(VideoError, match=r"a\.mp4: has 8 frames .* 2\.000 times too fast"):
        choose_frames(clip, 17, 16, name="a.mp4")
    assert choose_frames(clip, 5, 16, max_stretch=1.0) == Chosen((0, 1, 2, 3, 4), 2.0)
    assert choose_frames(clip, 5, 16, allow_repeat=True) == Chosen((0, 1, 1, 2, 2), 1.0)
    with pytest.raises(VideoError, match="too fast"):
        num_windows(clip, 17, 16)


def test_a_variable_rate_keeps_its_real_speed():
    """Half a second at 32 frames per second, then frames at 8 per second."""
    times = [*constant(16, 32), *(0.5 + t for t in constant(24, 8))]
    assert is_variable(times)
    assert not is_variable(constant(40, 16))
    chosen = choose_frames(times, 24, 16, allow_repeat=True)
    assert chosen.indices[:8] == (0, 2, 4, 6, 8, 10, 12, 14)
    assert chosen.indices[8:12] == (16, 16, 17, 17)  # by half a frame of the average at most
    assert chosen.factor == 1


def test_a_picture_that_stays_is_not_left_early():
    times = [0.0, 1 / 16, 2 / 16, 3 / 16, 2.0, *(2.0 + t / 16 for t in range(1, 60))]
    chosen = choose_frames(times, 40, 16, allow_repeat=True)
    assert chosen.indices[:31] == (0, 1, 2, *[3] * 28)
    assert [times[i] for i in chosen.indices[32:]] == pytest.approx([k / 16 for k in range(32, 40)])


def test_too_short_clips_say_what_they_have_and_need():
    with pytest.raises(VideoError, match=r"lasts 1\.25 s, 20 frames .* 81 frames \(5\.06 s\)"):
        choose_frames(constant(20, 16), 81, 16)
    with pytest.raises(VideoError, match=r"lasts 2\.00 s, 32 frames .* 81 frames"):
        choose_frames(constant(60, 30), 81, 16)
    assert choose_frames(constant(150, 30), 80, 16).indices[-1] == 148  # five seconds are 80 frames


def test_an_image_is_one_frame():
    assert choose_frames([0.0], 1, 16) == Chosen((0,), 1.0)
    with pytest.raises(VideoError, match="single picture"):
        choose_frames([0.0], 17, 16)
    assert choose_frames(constant(10, 8), 1, 16, where="middle").indices == (4,)


def test_first_middle_random_and_windows():
    clip = constant(41, 16)
    assert choose_frames(clip, 17, 16, "middle").indices == tuple(range(12, 29))
    starts = {
        choose_frames(clip, 17, 16, "random", generator_for(0, "clip", i)).indices[0]
        for i in range(400)
    }
    assert starts == set(range(25))
    again = [choose_frames(clip, 17, 16, "random", generator_for(3, "clip")) for _ in range(2)]
    assert again[0] == again[1]
    assert num_windows(clip, 17, 16, stride=8) == 4
    assert choose_frames(clip, 17, 16, ("window", 3), stride=8).indices == tuple(range(24, 41))
    assert num_windows(clip, 17, 16) == 2
    with pytest.raises(ValueError, match="the clip has 4"):
        choose_frames(clip, 17, 16, ("window", 4), stride=8)
    with pytest.raises(ValueError, match="needs a generator"):
        choose_frames(clip, 17, 16, "random")
    with pytest.raises(ValueError, match="first, middle, random"):
        choose_frames(clip, 17, 16, "last")  # pyright: ignore[reportArgumentType]
    for times in ([], [0.0, 0.0], [1.0, 0.5]):
        with pytest.raises(ValueError, match="ascend"):
            choose_frames(times, 1, 16)


@given(
    st.lists(st.floats(0.01, 0.4), min_size=2, max_size=60),
    st.integers(1, 20),
    st.sampled_from([8.0, 16.0, 24.0]),
    st.sampled_from(["first", "middle", "random", "window"]),
    st.integers(0, 1000),
    st.booleans(),
)
def test_whatever_the_times_the_frames_are_those_shown(gaps, num_frames, fps, where, seed, even):
    """Indices exist, never go back, and no frame is off by more than its time on the screen."""
    gaps = [gaps[0]] * len(gaps) if even else gaps
    times = [sum(gaps[:i]) for i in range(len(gaps) + 1)]
    windows = num_windows(times, num_frames, fps, stride=3, allow_repeat=True)
    place = ("window", seed % windows) if where == "window" and windows else where
    place = "first" if place == "window" else place
    try:
        chosen = choose_frames(
            times, num_frames, fps, place, generator_for(seed, "t"), allow_repeat=True, stride=3
        )
    except VideoError:
        assert windows == 0
        return
    assert windows >= 1
    assert len(chosen.indices) == num_frames
    assert chosen.indices[0] >= 0
    assert chosen.indices[-1] < len(times)
    assert all(a <= b for a, b in pairwise(chosen.indices))
    assert abs(chosen.factor - 1) <= 0.05 + 1e-9
    if chosen.factor == 1 and num_frames > 1:
        lasting = max(gaps) + 1 / rate(times)
        for k, index in enumerate(chosen.indices):
            assert abs(times[index] - times[chosen.indices[0]] - k / fps) <= 2 * lasting
