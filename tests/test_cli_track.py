"""`pusa track` in this process: verdicts and pictures of runs, and the curve that it makes."""

import pytest

from tests.conftest import run_pusa
from tests.training.test_track import make_run, picture


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / f"seed{i}", {100: 0.69 + i / 100, 300: 0.6}) for i in range(3)]


def test_a_curve_is_made_printed_and_runs_are_compared_with_it(runs, tmp_path, caplog):
    caplog.set_level("INFO")
    curve = tmp_path / "new" / "curve.csv"
    assert run_pusa("track", "--make", curve, *runs) == 0
    assert run_pusa("track", "--curve", curve) == 0
    assert "0.69 to 0.71" in caplog.text
    caplog.clear()
    behind = make_run(tmp_path / "behind", {1: 0.95, 100: 0.9})
    assert run_pusa("track", behind, runs[0], "--curve", curve) == 0
    assert "behind: behind: heldout/first_clean 0.9, known good 0.6478 to 0.7522" in caplog.text
    assert "seed0: on track" in caplog.text
    assert "0.9 (0.69 to 0.71)" in caplog.text
    assert "0.95 (not known)" in caplog.text
    assert "0.69 (0.69 to 0.71)" in caplog.text
    for run in (behind, runs[0]):
        assert picture(run / "on_track.png").shape[1] > 1000
    assert run_pusa("track", behind, runs[0], "--curve", curve, "--out", tmp_path / "o.png") == 0
    assert picture(tmp_path / "o.png").shape[1] > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("RUN", "--curve", "none.csv"), "no such curve"),
        (("RUN", "--out", "picture.pdf"), "name a .png"),
        (("--out", "picture.png"), "the runs to draw"),
        (("RUN", "--make", "c.csv"), "two runs at least"),
        (("RUN", "--make", "c.csv", "--out", "a.png"), "leave --curve and --out away"),
    ],
)
def test_bad_input_is_named(runs, words, message, capsys):
    given = [runs[0] if word == "RUN" else word for word in words]
    assert run_pusa("track", *given) == 1
    assert message in capsys.readouterr().err


def test_without_a_curve_that_of_the_tiny_experiment_is_meant(root, runs, monkeypatch, capsys):
    monkeypatch.setenv("PUSA_ROOT", str(root / "elsewhere"))
    assert run_pusa("track", runs[0]) == 1
    assert "elsewhere/data/replica/curves/demo.csv: no such curve" in capsys.readouterr().err
