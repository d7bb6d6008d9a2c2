"""Tables of studies as arrays, contrasts, verdicts and the page, on made-up measurements whose
truth is known."""

import re
from dataclasses import asdict, replace
from itertools import product
from zlib import crc32

import pytest
import torch

from pusa.cli_reproduce import _study
from pusa.evaluation.claims import CLAIMS, QUESTIONS, Claim, Kind, judge, more_than
from pusa.evaluation.crossed import Estimate
from pusa.evaluation.study import Study, write_rows
from pusa.evaluation.study_measure import Setting
from pusa.evaluation.study_pages import SECTIONS, TITLES
from pusa.evaluation.study_report import curves, write_report
from pusa.evaluation.study_table import BEST, NotMeasured, Point, Table

SEEDS, CLIPS = 3, 24
SETTING = dict.fromkeys(Setting.__dataclass_fields__) | {"task": "i2v", "num_steps": 10}


def rows(
    variant: str, effect: float, metric: str = "psnr_continuation", seeds: int = SEEDS, **more
):
    """Values 18 + effect, with noise of seeds, clips (shared by all variants) and both."""
    generator = torch.Generator().manual_seed(crc32(repr((variant, more)).encode()))
    clips = torch.randn(CLIPS, generator=torch.Generator().manual_seed(1))
    own = 0.1 * torch.randn(seeds, generator=generator)
    noise = 0.2 * torch.randn(seeds, CLIPS, generator=generator)
    return [
        {"variant": variant, "seed": s, **SETTING, **more, "clip": c, "mark": "m",
         metric: float(18 + effect + clips[c] + own[s] + noise[s, c])}
        for s, c in product(range(seeds), range(CLIPS))
    ]  # fmt: skip


def claim(kind: Kind = "more", margin: float = 0.25) -> Claim:
    return Claim("x", "nowhere", "s", "a beats b", more_than("a", "b"), "dB", margin, kind)


@pytest.mark.parametrize(
    ("effect", "kind", "expected"),
    [
        (2.0, "more", "reproduced"), (-2.0, "more", "not reproduced"), (0.0, "more", "undecided"),
        (2.0, "equal", "not reproduced"), (-2.0, "equal", "not reproduced"),
        (2.0, "at most", "not reproduced"), (-2.0, "at most", "reproduced"),
    ],
)  # fmt: skip
def test_a_verdict_follows_the_interval(effect, kind, expected):
    table = Table([*rows("a", effect), *rows("b", 0.0)])
    found = judge([claim(kind)], {"s": table})[0]
    assert found.verdict == expected
    assert found.estimate is not None
    assert abs(found.estimate.mean - effect) < 0.4


@pytest.mark.parametrize(
    ("mean", "kind", "expected"),
    [
        (0.1, "equal", "reproduced"), (0.2, "equal", "undecided"), (0.4, "equal", "not reproduced"),
        (0.2, "at most", "undecided"), (-0.4, "at most", "reproduced"),
    ],
)  # fmt: skip
def test_no_difference_of_note_is_read_off_the_interval(mean, kind, expected):
    one = replace(fixed(mean, 0.1, 0.5), kind=kind)
    found = judge([one], {"s": Table(rows("a", 0.0))})[0]
    assert (found.verdict, found.p_value) == (expected, None)


def fixed(mean: float, half: float, p: float, seeds: int = 3) -> Claim:
    estimate = Estimate(mean, half, 2.0, p, seeds, CLIPS)
    return Claim("x", "nowhere", "s", "text", lambda table: estimate, "dB", 0.25)


def test_a_difference_too_small_to_be_of_note_is_not_a_reproduction():
    table = Table(rows("a", 0.0))
    verdicts = [
        judge([one], {"s": table})[0].verdict
        for one in (fixed(0.1, 0.05, 0.001), fixed(0.1, 0.2, 0.3), fixed(0.5, 0.1, 0.001))
    ]
    assert verdicts == ["not reproduced", "undecided", "reproduced"]


def test_many_claims_are_corrected_for_one_another():
    table = Table(rows("a", 0.0))
    one, many = [fixed(1.0, 0.9, 0.03)], [fixed(1.0, 0.9, 0.03) for _ in range(3)]
    assert judge(one, {"s": table})[0].verdict == "reproduced"
    found = judge(many, {"s": table})
    assert {f.verdict for f in found} == {"undecided"}
    assert found[0].p_value == pytest.approx(0.09)


def test_one_training_decides_nothing():
    table = Table([*rows("a", 2.0, seeds=1), *rows("b", 0.0, seeds=1)])
    assert judge([claim()], {"s": table})[0].verdict == "undecided"


def test_what_is_not_measured_says_what_is_missing():
    assert judge([claim()], {})[0].why == "study s is not measured"
    found = judge([claim()], {"s": Table(rows("a", 0.0))})[0]
    assert found.verdict == "not measured"
    assert found.why == "psnr_continuation of b is not measured"


def test_a_table_refuses_to_choose_among_several_measurements():
    table = Table([*rows("a", 0.0, strength=1.0), *rows("a", 1.0, strength=2.0)])
    with pytest.raises(ValueError, match="several such measurements"):
        table.values(Point.of("a", "psnr_continuation"))
    assert table.values(Point.of("a", "psnr_continuation", strength=2.0)).shape == (SEEDS, CLIPS)
    with pytest.raises(NotMeasured, match=r"dynamic_degree of a \(strength 1.0\)"):
        table.values(Point.of("a", "dynamic_degree", strength=1.0))
    with pytest.raises(NotMeasured):
        Table([*rows("a", 0.0)][:-1]).values(Point.of("a", "psnr_continuation"))


def test_the_own_best_strength_is_chosen_on_other_clips():
    """Of strengths that are all alike, choosing on the clips themselves would seem to gain."""
    gains = []
    for trial in range(30):
        made = [
            row
            for strength in (0.5, 1.0, 1.5, 2.0)
            for row in rows(f"a{trial}", 0.0, strength=strength)
        ] + rows(f"a{trial}", -9.0, strength=3.0)  # the best is not at the end
        table = Table(made)
        point = Point.of(f"a{trial}", "psnr_continuation", strength=BEST)
        plain = torch.stack(list(table.by(point, "strength").values())[:-1]).mean()
        gains.append(float(table.values(point).mean() - plain))
    assert abs(sum(gains) / len(gains)) < 0.03
    better = Table([r for s, e in ((1.0, 0.0), (1.5, 1.0), (2.0, 0.2))
                    for r in rows("a", e, strength=s)])  # fmt: skip
    point = Point.of("a", "psnr_continuation", strength=BEST)
    assert torch.equal(better.values(point), better.values(point.at(strength=1.5)))
    without = Table(rows("full", 0.5))
    assert without.values(Point.of("full", "psnr_continuation", strength=BEST)).shape[0] == SEEDS


def falling() -> Table:
    """The best strength is 2 at 75 steps and falls by 0.25 with each doubling."""
    made = []
    for doublings, step in enumerate((75, 150, 300, 600)):
        top = 1.75 - 0.25 * doublings
        for strength in (0.5, 1.0, 1.5, 2.0):
            effect = -4 * (strength - top) ** 2
            made += rows("iterations", effect, at_step=step, strength=strength)
    return Table(made)


def test_a_falling_optimum_is_seen():
    (one,) = [c for c in CLAIMS if c.name == "optimum_falls"]
    found = judge([one], {"iterations": falling()})[0]
    assert found.verdict == "reproduced"
    assert found.estimate is not None
    assert found.estimate.mean == pytest.approx(0.25, abs=0.08)


def test_a_best_strength_at_the_end_of_the_grid_decides_nothing():
    made = [r for s in (1.0, 1.5, 2.0) for r in rows("b", s, strength=s)]
    made += [r for s in (1.0, 1.5, 2.0) for r in rows("a", 5 - (s - 1.5) ** 2, strength=s)]
    setting = {"strength": BEST, "task": "i2v"}
    one = Claim("x", "nowhere", "s", "t", more_than("a", "b", **setting), "dB", 0.25)
    found = judge([one], {"s": Table(made)})[0]
    assert found.verdict == "undecided"
    assert "2, the end of the grid, is the best measured" in found.why


def complete(study: Study) -> Table:
    """A table with every row that a study asks for, the same numbers for all, falling with the
    distance of the strength from 1.5."""
    made, seen = [], set()
    units = [(name, 0) for name in study.controls]
    units += [(variant, seed) for variant in study.variants for seed in range(SEEDS)]
    names = {metric for section in SECTIONS for panel in section.panels for metric in panel.metrics}
    for (variant, seed), asked in product(units, study.all_settings()):
        setting = asked.of(variant, variant not in ("full", "concat", *study.controls))
        if (variant, seed, setting) in seen:
            continue
        seen.add((variant, seed, setting))
        value = 18 - (1.5 - (setting.strength or 1.5)) ** 2
        made += [
            {"variant": variant, "seed": seed, **asdict(setting), "clip": clip, "mark": "m"}
            | dict.fromkeys(names, value + 0.01 * clip + 0.001 * (seed + 1) * (clip % 3))
            for clip in range(6)
        ]
    return Table(made)


def test_every_claim_can_be_judged_and_every_panel_drawn_once_all_is_measured(root, tmp_path):
    """Of the studies as they are configured: nothing asked for is not measured, or ambiguous."""
    tables = {section.study: complete(_study(section.study)) for section in SECTIONS}
    for found in judge([*CLAIMS, *QUESTIONS], tables):
        assert found.verdict != "not measured", (found.claim.name, found.why)
    for section in SECTIONS:
        for panel in section.panels:
            drawn = curves(panel, tables[section.study])
            trained = {TITLES.get(v, v) for v in tables[section.study].variants}
            trained -= {"base", "static copy", "codec"}
            if panel.rows == "variant" and panel.metrics[0] in ("psnr_continuation", "psnr_free"):
                assert trained <= {row.split(", strength")[0] for row in drawn}, panel.title


def test_every_claim_names_a_study_that_is_run_and_has_its_own_name():
    everything = [*CLAIMS, *QUESTIONS]
    assert len({c.name for c in everything}) == len(everything)
    assert {c.study for c in everything} <= {section.study for section in SECTIONS}


def test_every_study_has_an_experiment_and_every_experiment_a_section():
    from tests.test_configs import names

    found = {n.split("/")[1] for n in names("experiment") if n.startswith("replica/")}
    assert found - {"expert_base"} == {section.study for section in SECTIONS}


def test_the_page_is_made_of_the_tables_alone(tmp_path):
    with pytest.raises(ValueError, match="holds no table of a study; run one"):
        write_report(tmp_path, tmp_path / "page.md")
    made = [
        row
        for variant, effect in (("independent", 1.0), ("first_frame_clean", -1.0))
        for strength in (1.0, 1.5)
        for row in rows(variant, effect - strength, strength=strength, multiplier=0.0)
    ]
    write_rows(tmp_path / "strategies.csv", [*rows("base", -3.0, seeds=1), *made])
    page = write_report(tmp_path, tmp_path / "docs" / "page.md").read_text()
    assert re.search(r"\| base \| 1[45]\.", page)
    assert "| 〃 |" in page  # the base has no strength
    line = next(x for x in page.splitlines() if x.startswith('| Independent levels beat the "I2V"'))
    assert "**reproduced** | +" in line
    assert "not measured" in page
    image = tmp_path / "docs" / "images" / "replica_strategies_1.png"
    assert image.read_bytes()[:4] == b"\x89PNG"
    again = write_report(tmp_path, tmp_path / "docs" / "page.md").read_text()
    assert again == page
