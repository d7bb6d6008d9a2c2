"""A small Result with all that a report may meet, and videos that can be watched.

Its values are drawn, not measured: a system has a level in every column, an item its difficulty.
Names and prompts hold what HTML, LaTeX and CSV must escape.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from scipy import stats as distributions
from torch import Tensor

from pusa.data import video
from pusa.evaluation.manifest import LoraRecord, Manifest
from pusa.evaluation.naming import BackboneRecord, file_stem, title
from pusa.evaluation.published import find
from pusa.evaluation.results import Column, Comparison, Item, Result, Shot, System
from pusa.evaluation.scoring import FLICKERING, QUANTITIES, SCALES, totals
from pusa.evaluation.stats import Contrast, Interval, Scores, contrast, mean_interval
from pusa.evaluation.vbench_suite import PUBLIC_KEY
from pusa.rng import generator_for

CONTENDER, BASELINE = "VTA <b>α</b> & 100% co_op", 'base "Wan2.1"'
STILL, TRUTH, NOISE, OTHER = "still", "truth", "noise", "other_model\\v2, $x^2$"
NUM_FRAMES, SIZE, FPS, SAMPLES = 9, 32, 8.0, 2
PROMPTS = (
    'a dog <script>alert("x")</script> & a cat, "running" – schnell',
    "ein Bär trägt 50% mehr Honig_topf über die Brücke, $5 #1 ~home^2 {x}",
    "熊猫在竹林里吃竹子",
    "a boat</script><!-- drifts past a lighthouse",
    "the camera pans left over a field of flowers, camera pans left",
    "a very long prompt " + "about the same small thing again " * 9,
)
KINDS = ("animal", "indoor", "", "scenery", "scenery", "indoor")
STAND_IN = "dynamic_degree"  # a dimension whose network is not the benchmark's
ERROR = "mean_abs_error"  # a column of another suite's kind: against the truth, lower is better
# System -> its level in a dimension that runs from 0 to 1, and its error.
LEVELS = {CONTENDER: (0.84, 0.05), BASELINE: (0.76, 0.09), OTHER: (0.70, 0.11),
          STILL: (0.90, 0.14), TRUTH: (0.93, 0.0), NOISE: (0.20, 0.30)}  # fmt: skip


def make_result(folder: Path, num_items: int = len(PROMPTS)) -> Result:
    """Six systems on `num_items` prompts, a folder of videos for each in `folder`.

    Contender and baseline have two samples of every prompt, the others one. The controls have no
    plan and are not scored in camera_motion, so that they have no totals but Quality.
    """
    items = tuple(_item(folder, index) for index in range(num_items))
    shots = tuple(
        _shot(folder, system, item, sample)
        for system in LEVELS
        for item in items
        for sample in range(SAMPLES if system in (CONTENDER, BASELINE) else 1)
    )
    columns = _columns()
    cells = _cells(shots, columns)
    basis = manifest(CONTENDER).basis()
    return Result(
        title=title(basis),
        stem=file_stem(basis),
        facts={"model": "wan_tiny", "LoRA": "a&b.safetensors, strength 1.4", "size": "32x32x9"},
        columns=columns,
        systems=_systems(),
        items=items,
        shots=shots,
        cells=cells,
        comparisons=tuple(
            _comparison(CONTENDER, second, column, shots)
            for second in (BASELINE, STILL)
            for column in columns
            if column.name not in QUANTITIES and (second, column.name) in cells
        ),
        missing={FLICKERING: "its videos are of static scenes <none here>"},
        retention=_retention(num_items),
        published=(find("1", "Pusa"), find("1", "Wan-I2V")),
        warnings=(
            f"{STAND_IN} is a stand-in & no figure of the benchmark.",
            "Drawn, not measured.",
        ),
    )


def manifest(system: str) -> Manifest:
    """Of VBench's own networks but for one, so that the result is a stand-in."""
    own = {name: BackboneRecord(f"vbench {name}", "0" * 64, True) for name in SCALES}
    standin = {STAND_IN: BackboneRecord("flow <small>", "1" * 64, False)}
    loras = (LoraRecord("a&b.safetensors", "2" * 64, 1.4, ""),) if system == CONTENDER else ()
    known = {
        "suite": "VBench-I2V 16-9", "prompts": PUBLIC_KEY, "seeds": (0, 1), "model": "wan_tiny",
        "loras": loras, "num_steps": 10, "guidance_scale": 5.0, "shift": 5.0, "height": SIZE,
        "width": SIZE, "num_frames": NUM_FRAMES, "fps": FPS, "crf": 12, "resize": "board",
        "backbones": own | standin, "missing": 0, "versions": {"torch": "2"},
    }  # fmt: skip
    words = {field.name: f"the {field.name} & <its name>" for field in fields(Manifest)}
    return Manifest(**(words | known))


def single(result: Result) -> Result:
    """The same of its first item and its first sample, so that intervals are infinite."""
    shots = tuple(s for s in result.shots if s.index == 0 and s.sample == 0)
    cells = {key: Interval(cell.mean, -math.inf, math.inf, 1) for key, cell in result.cells.items()}
    comparisons = tuple(
        _comparison(item.first, item.second, column, shots)
        for item in result.comparisons
        for column in result.columns
        if column.name == item.contrast.metric
    )
    return replace(
        result, items=result.items[:1], shots=shots, cells=cells, comparisons=comparisons
    )


def without(result: Result, *systems: str) -> Result:
    """The same without these systems."""
    return replace(
        result,
        systems=tuple(s for s in result.systems if s.name not in systems),
        shots=tuple(s for s in result.shots if s.system not in systems),
        cells={key: cell for key, cell in result.cells.items() if key[0] not in systems},
        comparisons=tuple(c for c in result.comparisons if not {c.first, c.second} & {*systems}),
        retention=() if {CONTENDER, BASELINE} & {*systems} else result.retention,
    )


def _columns() -> tuple[Column, ...]:
    higher = [Column(name, "totals", "higher", 100.0) for name in ("Total", "I2V", "Quality")]
    for name, scale in SCALES.items():
        note = "by a small flow <network>, a stand-in" if name == STAND_IN else ""
        higher.append(Column(name, scale.group, "higher", 100.0, note))
    return (*higher, Column(ERROR, "truth", "lower", 1.0, "of pixels that the prompt fixes"))


def _systems() -> tuple[System, ...]:
    steps = torch.linspace(1, 0, 11)[:, None].expand(-1, 3)
    given = steps * torch.tensor([0.2, 1.0, 1.0])
    return (
        System(CONTENDER, "contender", "LoRA & <per-frame> sigmas", manifest(CONTENDER), given),
        System(BASELINE, "baseline", "without LoRA", manifest(BASELINE), steps),
        System(OTHER, "other", "another recipe", manifest(OTHER), given**2),
        System(STILL, "control", "the image, repeated", None, None),
        System(TRUTH, "control", "the clip itself", None, None),
        System(NOISE, "control", "noise after the image", None, None),
    )


def _item(folder: Path, index: int) -> Item:
    path = folder / "images" / f"item {index} ü.png"
    video.write_image(path, _clip(TRUTH, index, 0)[0])
    text = PROMPTS[index % len(PROMPTS)] + (f" ({index})" if index >= len(PROMPTS) else "")
    return Item(index, f"prompt_{index}", text, KINDS[index % len(KINDS)], path)


def _shot(folder: Path, system: str, item: Item, sample: int) -> Shot:
    place = folder / "videos" / f"{list(LEVELS).index(system)} & co" / f"{item.index}-{sample}.mp4"
    video.write_video(place, _clip(system, item.index, sample), FPS)
    return Shot(system, item.index, sample, place, _values(system, item.index, sample))


def _clip(system: str, index: int, sample: int) -> Tensor:
    """A square that moves over a shaded ground: at the system's own pace, or not at all."""
    names = list(LEVELS)
    paces = {STILL: 0, TRUTH: 2, CONTENDER: 2, BASELINE: 1, OTHER: 3, NOISE: 2}
    colour = torch.tensor([(80 * index) % 200 + 55, 220 - 30 * (index % 6), 90])
    ground = torch.linspace(30, 90, SIZE).expand(3, SIZE, SIZE)
    frames = ground.repeat(NUM_FRAMES, 1, 1, 1)
    for i in range(NUM_FRAMES):
        left = 2 + i * paces[system]
        frames[i, :, 10 + sample : 18 + sample, left : left + 8] = colour[:, None, None]
    if system == NOISE:
        generator = generator_for(names.index(system), "tests/clip", index)
        frames[1:] += 60 * torch.randn(frames[1:].shape, generator=generator)
    return frames.clamp(0, 255).to(torch.uint8)


def _values(system: str, index: int, sample: int) -> dict[str, float]:
    """The item is as hard for all; half of the items ask nothing of the camera."""
    place = list(LEVELS).index(system)
    level, error = LEVELS[system]
    hard = torch.randn(len(SCALES) + 1, generator=generator_for(0, "tests/item", index))
    own = torch.randn(
        len(SCALES) + 1, generator=generator_for(place + 10 * sample, "tests/shot", index)
    )
    spread = (0.05 * hard + 0.03 * own).tolist()
    values = {
        name: min(max(level + spread[i], 0.0), 1.0)
        for i, name in enumerate(SCALES)
        if name != "camera_motion" or (place < 3 and index % 2 == 0)
    }
    moves = level + spread[list(SCALES).index(STAND_IN)] > 0.8
    values[STAND_IN] = 0.0 if system == STILL else float(moves)
    if system != TRUTH:
        values[ERROR] = abs(error + 0.3 * spread[-1])
    return values


def _scores(shots: Sequence[Shot], system: str, column: str) -> Scores:
    scores: dict[int, list[float]] = {}
    for shot in shots:
        if shot.system == system and column in shot.values:
            scores.setdefault(shot.index, []).append(shot.values[column])
    return scores


def _cells(shots: Sequence[Shot], columns: Sequence[Column]) -> Mapping[tuple[str, str], Interval]:
    found = {(system, column.name): _scores(shots, system, column.name)
             for system in LEVELS for column in columns}  # fmt: skip
    cells = {key: mean_interval(scores) for key, scores in found.items() if scores}
    for system in LEVELS:
        means = {name: cells[system, name].mean for name in SCALES if (system, name) in cells}
        sums = totals(means, camera="camera_motion" in means)
        half = statistics.fmean(cells[system, name].half_width for name in means)
        for name, value in sums.items():
            prompts = len({shot.index for shot in shots})
            cells[system, name] = Interval(value, value - half, value + half, prompts)
    return cells


def _comparison(first: str, second: str, column: Column, shots: Sequence[Shot]) -> Comparison:
    ours, theirs = (_scores(shots, system, column.name) for system in (first, second))
    found = contrast(column.name, ours, theirs, column.better)
    gaps = [
        statistics.fmean(ours[index]) - statistics.fmean(theirs[index])
        for index in ours.keys() & theirs.keys()
    ]
    if len(gaps) < 2 or statistics.stdev(gaps) == 0:
        return Comparison(first, second, found, None, None)
    error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    p = float(distributions.ttest_1samp(gaps, 0).pvalue)  # type: ignore[attr-defined]
    return Comparison(first, second, found, p, 2.8 * error)


def _retention(num_items: int) -> tuple[Contrast, ...]:
    def scores(level: float, step: float) -> Scores:
        return {i: [level + step * math.sin(3.0 * i)] for i in range(num_items)}

    return (
        contrast("text_psnr", scores(21.0, 0.1), scores(22.5, 0.2)),
        contrast("text_match <x>", scores(0.81, 0.02), scores(0.80, 0.05)),
    )
