"""What the page of studies shows of each: words without numbers, and panels of its table."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pusa.evaluation.claims import FIDELITY
from pusa.evaluation.study_table import Point, Table

TITLES = {
    "independent": "independent (VTA)", "ptss_08": "PTSS 0.8", "ptss_05": "PTSS 0.5",
    "ptss_02": "PTSS 0.2", "first_frame_clean": "frame 0 clean", "synchronized": "one level",
    "rank_4": "rank 4", "rank_16": "rank 16", "full": "VTA, all weights",
    "concat": "image in channels", "bell": "bell weights", "bf16_levels": "bfloat16 levels",
    "clean_01": "0.1 clean", "clean_03": "0.3 clean", "planned": "half as sampled",
    "full_range": "full range", "own_range": "own range",
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """A table, and a plot of it: a row for each variant, or for each choice of a setting; a column
    for each choice of a setting, or for each metric.

    where: what else the rows have in common. columns None: one column for each of `metrics`.
    split: a setting of which a variant may have several, and so rows.
    """

    title: str
    metrics: tuple[str, ...]
    columns: str | None = None
    rows: str = "variant"
    where: dict[str, Any] = field(default_factory=dict)
    plot: bool = False
    log: bool = False
    split: str | None = None

    @property
    def corner(self) -> str:
        if self.columns is None:
            return ""
        return self.columns if self.rows == "variant" else f"{self.rows}, {self.columns}"

    def row_points(self, table: Table) -> Iterator[tuple[str, dict[str, Any]]]:
        """(title, what its measurements have in common) of each row."""
        if self.rows == "variant":
            for variant in table.variants:
                yield from self._of_variant(table, variant)
            return
        for choice in table.choices(self.rows, **self.where):
            yield f"{choice:g}" if isinstance(choice, int | float) else choice, {self.rows: choice}

    def _of_variant(self, table: Table, variant: str) -> Iterator[tuple[str, dict[str, Any]]]:
        title, where = TITLES.get(variant, variant), {"variant": variant}
        choices = table.choices(self.split, **self.where, **where) if self.split else []
        if not choices:
            yield title, where
        for choice in choices:
            told = f"{title}, {self.split} {choice:g}" if len(choices) > 1 else title
            yield told, where | {str(self.split): choice}

    def column_points(self, table: Table, where: dict[str, Any]) -> Iterator[tuple[str, Point]]:
        """(title, what to look up) of each column; "" for a row that lacks the setting. What a
        variant never has, as the base has no strength, is not asked of it."""
        setting = self.where | where
        variant = setting.pop("variant")
        setting = {name: value if table.choices(name, variant=variant) else None
                   for name, value in setting.items()}  # fmt: skip
        if self.columns is None:
            for metric in self.metrics:
                yield metric, Point.of(variant, metric, **setting)
            return
        point = Point.of(variant, self.metrics[0], **setting)
        choices = table.choices(self.columns, variant=variant, **setting)
        if not choices:
            yield "", point.at(**{self.columns: None})
        for choice in choices:
            title = f"{choice:g}" if isinstance(choice, int | float) else str(choice)
            yield title, point.at(**{self.columns: choice})


@dataclass(frozen=True)
class Section:
    """One study. picture: what images/replica_<study>.png shows, if it is there."""

    study: str
    words: str
    panels: tuple[Panel, ...]
    picture: str = ""


_I2V = {"task": "i2v"}
_CLEAN = _I2V | {"multiplier": 0.0}
_HELD = {"encode": "repeated"}
_T2V = {"task": "t2v"}
_END = _I2V | {"variant": "demo", "at_step": 1200}
_FIDELITY = "Fidelity of the continuation, dB"
_MOTION = "Dynamic degree"

SECTIONS = (
    Section(
        "strategies",
        "How levels are drawn in training (Tables 2 and 5b), by the strength of the LoRA in use. "
        "The image is given clean. Read fidelity beside motion: most pixels of these clips do not "
        "move, and a static copy of the image is as faithful as the best of models.",
        (
            Panel(_FIDELITY, (FIDELITY,), "strength", where=_I2V, plot=True),
            Panel(_MOTION, ("dynamic_degree",), "strength", where=_I2V),
            Panel("Direction of motion as the caption asks (by chance a quarter)",
                  ("direction_accuracy",), "strength", where=_I2V),
            Panel("Similarity of the background", ("background_similarity",), "strength",
                  where=_I2V),
            Panel("Text to video, strength 1: the loss at one level for all frames (its mean, and "
                  "at low and high levels), motion, direction as the caption asks",
                  ("loss", "loss@0.1", "loss@0.5", "loss@0.9", "dynamic_degree",
                   "direction_accuracy"), where=_T2V),
        ),
        "Image to video, three held-out clips: the truth, the base model, as much training with "
        "one level for all frames, and VTA.",
    ),
    Section(
        "rank",
        "The rank of the LoRA by its strength (Table 4a). The network is 160 wide.",
        (Panel(_FIDELITY, (FIDELITY,), "strength", where=_I2V, plot=True),),
    ),
    Section(
        "iterations",
        "One training at a constant rate, exported on the way, by strength (Table 4c).",
        (
            Panel(_FIDELITY, (FIDELITY,), "strength", "at_step",
                  _I2V | {"variant": "iterations"}, plot=True),
            Panel(_MOTION, ("dynamic_degree",), "strength", "at_step",
                  _I2V | {"variant": "iterations"}),
        ),
    ),
    Section(
        "steps",
        "Steps of the Euler sampler (Table 4b).",
        (
            Panel(_FIDELITY, (FIDELITY,), "num_steps", where=_I2V, plot=True, log=True),
            Panel(_MOTION, ("dynamic_degree",), "num_steps", where=_I2V),
        ),
    ),
    Section(
        "methods",
        "A VTA LoRA, VTA with all weights, and the classical way, the clean image and a mask in "
        "further input channels with all weights trained (Table 5a), at as many steps of as many "
        "clips. A step of the LoRA costs the most, by a few hundredths: `python "
        "benchmarks/method_flops.py`.",
        (
            Panel("Image to video", (FIDELITY, "background_similarity", "direction_accuracy",
                                     "dynamic_degree"), where=_I2V, split="strength"),
            Panel("Text to video", ("loss", "direction_accuracy", "dynamic_degree"), where=_T2V),
        ),
    ),
    Section(
        "tasks",
        "Tasks that VTA was not trained for. PSNR of the frames that are not given, against the "
        "truth; a transition goes from one clip into another one, and has no truth: its largest "
        "step at an edge of what is given over a usual step is shown.",
        (
            Panel("Start and end frame, keyframes: frames that are not given, dB", ("psnr_free",),
                  "task", where=_HELD),
            Panel("Completion, extension: frames that are not given, dB", ("psnr_free",), "task",
                  where={"encode": None}),
            Panel("Start and end, keyframes: how a later picture is encoded, dB",
                  ("psnr_free",), "task", "encode", {"variant": "independent"}),
            Panel("Extension: the step into the first new frame, over a usual step", ("seam",),
                  where={"task": "extension"}),
            Panel("Transition", ("largest_edge", "roughness"), where={"task": "transition"}),
        ),
        "Start and end frame, keyframes, completion, extension: truth, base, VTA.",
    ),
    Section(
        "multipliers",
        "The noise multiplier of the given image, by strategy; strength 1.",
        (
            Panel(_FIDELITY, (FIDELITY,), "multiplier", where=_I2V, plot=True),
            Panel("Fidelity of the given frame, dB", ("psnr_first_frame",), "multiplier",
                  where=_I2V, plot=True),
            Panel(_MOTION, ("dynamic_degree",), "multiplier", where=_I2V),
        ),
    ),
    Section(
        "recipe",
        "What users ask of the recipe: weights of the loss by level, levels rounded to bfloat16 "
        "(the public code's grid), frames given clean in training, and our own idea: half of the "
        "samples drawn as sampling will show them, a shared level and a random part of the frames"
        " given at a share of it (`timesteps=planned`).",
        (
            Panel("Image to video, the image clean: fidelity of the continuation, dB",
                  (FIDELITY,), "strength", where=_CLEAN, plot=True),
            Panel("Image to video by noise multiplier, strength 1, dB", (FIDELITY,), "multiplier",
                  where=_I2V | {"strength": 1.0}),
            Panel("Start and end frame, keyframes: frames that are not given, strength 1, dB",
                  ("psnr_free",), "task", where=_HELD),
            Panel("Completion, extension: frames that are not given, strength 1, dB",
                  ("psnr_free",), "task", where={"encode": None, "strength": 1.0}),
            Panel("Text to video, strength 1", ("loss", "dynamic_degree"), where=_T2V),
        ),
    ),
    Section(
        "experts",
        "Two experts, split at sigma 0.875 as Wan2.2's, each adapted on the full noise range or "
        "on its own. They are trained from the base by `python train.py "
        "experiment=replica/expert_base`.",
        (
            Panel("Image to video, the image clean: fidelity of the continuation, dB",
                  (FIDELITY,), "strength", where=_CLEAN, plot=True),
            Panel("Start and end frame: frames that are not given, strength 1, dB",
                  ("psnr_free",), "task", where=_HELD),
            Panel("Completion, extension: frames that are not given, strength 1, dB",
                  ("psnr_free",), "task", where={"encode": None, "strength": 1.0}),
            Panel("Text to video, strength 1", ("loss", "dynamic_degree"), where=_T2V),
        ),
    ),
    Section(
        "demo",
        "The recipe of `make demo` over its steps: with its held-out losses, the known good run of "
        "[on_track.md](on_track.md).",
        (
            Panel(f"{_FIDELITY}; the image clean, strength 1", (FIDELITY,), "at_step",
                  where=_CLEAN | {"strength": 1.0}, plot=True),
            Panel(f"{_FIDELITY}; at the end, by strength and noise multiplier of the image",
                  (FIDELITY,), "multiplier", "strength", _END),
            Panel(_MOTION, ("dynamic_degree",), "multiplier", "strength", _END),
        ),
    ),
)  # fmt: skip
