"""What the paper claims, and what users ask, as contrasts of a study's measurements that were fixed
before the measurements were made, and the verdict on each.

A difference that is claimed is "reproduced" if it has the claimed sign with p < ALPHA, where the
p values of a list of claims are corrected for one another (Holm); "not reproduced" if it has the
other sign, likewise, or if its whole 95% interval is within the margin of note; else "undecided".
That there is no difference of note is judged by the 95% interval itself: within the margin, or on
its far side.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pusa.evaluation.crossed import Estimate, best, difference, holm, trend
from pusa.evaluation.study_table import BEST, NotMeasured, Point, Table, Undecidable

Tables = Mapping[str, Table]
Told = Literal["reproduced", "not reproduced", "undecided", "not measured"]
Kind = Literal["more", "at most", "equal"]
FIDELITY = "psnr_continuation"
NOTE = 0.25  # dB: a smaller difference in fidelity is of no note
ALPHA = 0.05
SEEDS = 3  # of fewer trainings nothing is said


@dataclass(frozen=True)
class Claim:
    """source: where the paper has it, or "question" for what users ask and the paper leaves open.
    contrast: of the study's table. margin: a difference below it is of no note. kind: the contrast
    is claimed to be "more" than 0, "at most" the margin, or "equal" to 0 within it."""

    name: str
    source: str
    study: str
    text: str
    contrast: Callable[[Table], Estimate]
    unit: str
    margin: float = 0.0
    kind: Kind = "more"


@dataclass(frozen=True)
class Finding:
    claim: Claim
    estimate: Estimate | None
    p_value: float | None
    verdict: Told
    why: str = ""


def less(ours: Point, theirs: Point, relative: bool = False) -> Callable[[Table], Estimate]:
    """ours - theirs, paired by clip, and by seed where both have the same ones.

    relative: as a share of theirs' mean.
    """

    def contrast(table: Table) -> Estimate:
        one, two = table.values(ours), table.values(theirs)
        unit = float(two.mean()) if relative else 1.0
        paired = table.seeds(ours) == table.seeds(theirs)
        return difference(one / unit, two / unit, paired_seeds=paired)

    return contrast


def more_than(ours: str, theirs: str, metric: str = FIDELITY, **setting) -> Callable:
    """Of two variants at the same setting."""
    return less(Point.of(ours, metric, **setting), Point.of(theirs, metric, **setting))


def between(name: str, ours: Any, theirs: Any, metric: str = FIDELITY, **setting) -> Callable:
    """Of two choices of a setting, for the LoRA of independent levels."""
    point = Point.of("independent", metric, **setting)
    return less(point.at(**{name: ours}), point.at(**{name: theirs}))


def slope(
    point: Point, name: str, sign: int = 1, up_to: float = math.inf
) -> Callable[[Table], Estimate]:
    """Of a metric over log2 of a setting, as far as a value of it."""

    def contrast(table: Table) -> Estimate:
        found = {key: sign * values for key, values in table.by(point, name).items()}
        return trend({key: values for key, values in found.items() if key <= up_to})

    return contrast


def falling_optimum(variant: str) -> Callable[[Table], Estimate]:
    """How far the best strength falls with each doubling of the iterations. Lengths whose best
    strength is at the end of the grid for some seed are left out; Undecidable if one is left."""

    def contrast(table: Table) -> Estimate:
        point = Point.of(variant, FIDELITY, task="i2v")
        found = {
            length: best(table.by(point.at(at_step=length), "strength"), "linear")
            for length in table.choices("at_step")
        }
        inside = {length: -one.per_clip for length, one in found.items() if not one.at_edge}
        if len(inside) < 2:
            raise Undecidable("the best strength is at the end of the grid for most lengths")
        return trend(inside)

    return contrast


def over_strategies(table: Table) -> Estimate:
    """Fidelity over p_async of 0.2, 0.5, 0.8 and 1, by log2, each at its own best strength."""
    shares = {0.2: "ptss_02", 0.5: "ptss_05", 0.8: "ptss_08", 1.0: "independent"}
    points = {p: Point.of(v, FIDELITY, task="i2v", strength=BEST) for p, v in shares.items()}
    return trend({p: table.values(point) for p, point in points.items()})


def relative_loss(ours: str, theirs: str) -> Callable[[Table], Estimate]:
    """How far the text-to-video loss is above another's, as a share of that one's mean."""
    point = Point.of(ours, "loss", task="t2v")
    return less(point, replace(point, variant=theirs), relative=True)


def judge(claims: list[Claim], tables: Tables) -> list[Finding]:
    """Every claim with its interval and verdict; the p values of all differences that are claimed
    are Holm's."""
    found = [_measured(claim, tables) for claim in claims]
    plain = [
        one.estimate.p_value
        for one in found
        if one.estimate is not None and one.claim.kind == "more"
    ]
    adjusted = iter(holm(plain))
    for i, one in enumerate(found):
        if one.estimate is not None:
            p = next(adjusted) if one.claim.kind == "more" else None
            found[i] = replace(one, p_value=p, verdict=_verdict(one.claim, one.estimate, p))
    return found


def _measured(claim: Claim, tables: Tables) -> Finding:
    """Without its verdict, if there is a number to judge."""
    try:
        if claim.study not in tables:
            raise NotMeasured(f"study {claim.study} is not measured")
        return Finding(claim, claim.contrast(tables[claim.study]), None, "undecided")
    except Undecidable as error:
        return Finding(claim, None, None, "undecided", str(error))
    except ValueError as error:  # not measured, or not alike: the other claims stand all the same
        return Finding(claim, None, None, "not measured", str(error))


def _verdict(claim: Claim, found: Estimate, p: float | None) -> Told:
    if found.seeds < SEEDS:
        return "undecided"
    inside = -claim.margin < found.low and found.high < claim.margin
    if claim.kind == "more":
        apart = p is not None and p < ALPHA and not inside
        if apart and found.mean > 0:
            return "reproduced"
        return "not reproduced" if inside or apart else "undecided"
    below, above = found.high < claim.margin, found.low > claim.margin
    if claim.kind == "at most":
        return "reproduced" if below else "not reproduced" if above else "undecided"
    beyond = above or found.high < -claim.margin
    return "reproduced" if inside else "not reproduced" if beyond else "undecided"


TASKS = {  # title, and how later pictures are encoded where the task has any
    "start_end": ("start and end frame", "repeated"), "keyframes": ("keyframes", "repeated"),
    "completion": ("completion", None), "extension": ("extension", None),
}  # fmt: skip
_BEST = {"task": "i2v", "strength": BEST, "multiplier": 0.0}
_TRAINED = Point.of("independent", FIDELITY, task="i2v", strength=1.0)

CLAIMS = [
    Claim("strategy_i2v", "Table 2", "strategies",
          'Independent levels beat the "I2V" strategy (frame 0 clean, one level for the rest), '
          "each at its best strength.",
          more_than("independent", "first_frame_clean", **_BEST), "dB", NOTE),
    Claim("strategy_ptss", "Table 2", "strategies",
          "Independent levels beat PTSS at p = 0.2, each at its best strength.",
          more_than("independent", "ptss_02", **_BEST), "dB", NOTE),
    Claim("strategy_trend", "Tables 2, 5b", "strategies",
          "The more samples are drawn asynchronously (p = 0.2, 0.5, 0.8, 1), the better.",
          over_strategies, "dB per doubling of p", 0.1),
    Claim("strategy_control", "§2", "strategies",
          "It is the vector of levels, not more training: independent beats one level for all "
          "frames.",
          more_than("independent", "synchronized", **_BEST), "dB", NOTE),
    Claim("strength", "Tables 4, 5", "strategies",
          "A strength above 1 is better than the trained one: 1.5 beats 1.0.",
          between("strength", 1.5, 1.0, task="i2v"), "dB", NOTE),
    Claim("motion", "Tables 4c, 5b", "strategies",
          "Strength trades motion away: the dynamic degree falls with it, up to 2.",
          slope(Point.of("independent", "dynamic_degree", task="i2v"), "strength", -1, 2.0),
          "per doubling of strength"),
    Claim("consistency", "Tables 4c, 5b", "strategies",
          "Strength buys consistency: the background's similarity rises with it, up to 2.",
          slope(Point.of("independent", "background_similarity", task="i2v"), "strength", 1, 2.0),
          "per doubling of strength"),
    Claim("rank", "Table 4a", "rank",
          "A higher rank is better at equal iterations: 64 beats 16, each at its best strength.",
          more_than("independent", "rank_16", **_BEST), "dB", NOTE),
    Claim("optimum_falls", "Table 4c", "iterations",
          "The best strength falls as training lengthens.",
          falling_optimum("iterations"), "of strength per doubling", 0.02),
    Claim("iterations", "Table 4c", "iterations",
          "Quality at the best strength rises with iterations.",
          slope(Point.of("iterations", FIDELITY, **_BEST), "at_step"), "dB per doubling", 0.1),
    Claim("few_steps", "Table 4b", "steps",
          "10 steps are better than 2.",
          between("num_steps", 10, 2), "dB", NOTE),
    Claim("five_steps", "Table 4b", "steps",
          "10 steps are better than 5.",
          between("num_steps", 10, 5), "dB", NOTE),
    Claim("many_steps", "Table 4b", "steps",
          "20 steps gain nothing of note over 10.",
          between("num_steps", 20, 10), "dB", NOTE,
          kind="at most"),
    Claim("concat", "Table 5a", "methods",
          "A VTA LoRA at its best strength beats the classical way (the image in further channels, "
          "all weights) at as many steps.",
          more_than("independent", "concat", **_BEST), "dB", NOTE),
    Claim("full", "Table 5a", "methods",
          "A VTA LoRA at its best strength is better than VTA with all weights at as many steps.",
          more_than("independent", "full", **_BEST), "dB", NOTE),
    Claim("retention", "§2, abstract", "strategies",
          "Text to video is kept: its loss rises by less than 2% of the base model's.",
          relative_loss("independent", "base"), "of the base's loss", 0.02, kind="at most"),
    *(Claim(f"task_{task}", "§3, Fig. 1", "tasks",
            f"{words.capitalize()}: without training for it, the frames that are not given are "
            "nearer to the truth than the base model's.",
            more_than("independent", "base", "psnr_free", task=task, encode=encode), "dB", NOTE)
      for task, (words, encode) in TASKS.items()),
    Claim("end_repeated", "App. D", "tasks",
          "An end frame encoded as the four frames of its latent beats one encoded alone.",
          between("encode", "repeated", "alone", "psnr_free", task="start_end"), "dB", NOTE),
    Claim("noisy_image", "Alg. 1", "multipliers",
          "Some noise on the given image (multiplier 0.2) makes the continuation better than none.",
          between("multiplier", 0.2, 0.0), "dB", NOTE),
    Claim("experts_range", "issue 53", "experts",
          "Of two experts, each is better adapted on the full noise range than on its own, each "
          "at its best strength.",
          more_than("full_range", "own_range", **_BEST), "dB", NOTE),
]  # fmt: skip

QUESTIONS = [
    Claim("concat_at_1", "question", "methods",
          "The same LoRA at the strength that was trained, 1, beats the classical way.",
          less(_TRAINED, Point.of("concat", FIDELITY, task="i2v")), "dB", NOTE),
    Claim("full_at_1", "question", "methods",
          "The same LoRA at strength 1 is better than VTA with all weights.",
          less(_TRAINED, Point.of("full", FIDELITY, task="i2v")), "dB", NOTE),
    Claim("bell", "question", "recipe", "Loss weights by level (DiffSynth's bell) help.",
          more_than("bell", "independent", **_BEST), "dB", NOTE),
    Claim("bf16", "question", "recipe", "Levels rounded to bfloat16 change nothing of note.",
          more_than("bf16_levels", "independent", **_BEST), "dB", NOTE, kind="equal"),
    Claim("clean_01", "question", "recipe", "Giving one frame in ten clean in training helps.",
          more_than("clean_01", "independent", **_BEST), "dB", NOTE),
    Claim("clean_03", "question", "recipe", "Giving three frames in ten clean in training helps.",
          more_than("clean_03", "independent", **_BEST), "dB", NOTE),
    Claim("end_context", "question", "tasks",
          "An end frame encoded behind the frames before it beats one that is repeated.",
          between("encode", "context", "repeated", "psnr_free", task="start_end"), "dB", NOTE),
    Claim("planned_i2v", "our idea", "recipe",
          "Half of the samples drawn as sampling shows them beat independent levels, each at its "
          "best strength: image to video.",
          more_than("planned", "independent", **_BEST), "dB", NOTE),
    *(Claim(f"planned_{task}", "our idea", "recipe", f"The same, at strength 1: {words}.",
            more_than("planned", "independent", "psnr_free", task=task), "dB", NOTE)
      for task, (words, _) in TASKS.items()),
    Claim("planned_loss", "our idea", "recipe",
          "The same keeps text to video as well: its loss is at most 1% above that of "
          "independent levels.",
          relative_loss("planned", "independent"), "of its loss", 0.01, kind="at most"),
]  # fmt: skip
