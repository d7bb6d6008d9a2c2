"""What a study measures of one run: videos of held-out toy clips for a task, and text-to-video
losses. In memory: no video is written, so no file format is measured."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from einops import repeat
from torch import Tensor, nn

from pusa.data import toy
from pusa.data.hashing import content_key, file_digest, fingerprint
from pusa.diffusion.conditioning import Conditioning
from pusa.evaluation.suite import SuiteItem
from pusa.evaluation.systems import (
    RETENTION_SIGMAS,
    codec_roundtrip,
    reveal,
    shared_timestep_losses,
)
from pusa.evaluation.tasks_cases import given_frames
from pusa.evaluation.tasks_measure import psnr_of
from pusa.metrics import registry
from pusa.metrics.continuity import largest_step_ratio, mean_step_ratio, roughness
from pusa.metrics.registry import Sample
from pusa.models.base import TextEncoder, VideoVAE
from pusa.models.experts import Experts
from pusa.pipelines.build import Model
from pusa.pipelines.concat import generate_concat, is_concat, load_concat, under
from pusa.pipelines.generate import Request, Sampler, generate
from pusa.pipelines.loras import EXPERTS, RESULT, place_loras
from pusa.pipelines.placements import place_unseen
from pusa.pipelines.positions import Timing
from pusa.pipelines.tasks import Task

WHOLE = "model.safetensors"  # the result of a run that trained all weights
BATCH = 16
VERSION = 1  # raise it when a measurement changes its meaning
KEYFRAMES = 3
OVERLAP = 5  # pixel frames that extension and transition share with their clips
BASE, COPY, CODEC = "base", "static copy", "codec"
UNTRAINED = (BASE, COPY, CODEC)
TEXT_METRICS = ("direction_accuracy", "dynamic_degree", "temporal_flickering")
IMAGE_METRICS = ("psnr_first_frame", "psnr_continuation", "background_similarity", *TEXT_METRICS)
Values = dict[str, float | None]


@dataclass(frozen=True)
class Setting:
    """How a run is used. None where it does not matter: strength without a LoRA, the noise
    multiplier of other tasks than i2v (their own), encode where no later frame is a picture, steps
    and all else for what no model makes; at_step None: the run's end."""

    task: str
    strength: float | None
    multiplier: float | None
    num_steps: int | None
    encode: str | None
    at_step: int | None

    def of(self, variant: str, has_lora: bool) -> "Setting":
        """Without what does not matter to a run; without anything but the task if it is none."""
        if variant in (COPY, CODEC):
            return Setting(self.task, None, None, None, None, None)
        return replace(
            self,
            strength=self.strength if has_lora else None,
            multiplier=self.multiplier if self.task == "i2v" else None,
            encode=self.encode if self.task in ("start_end", "keyframes") else None,
            at_step=None if variant == BASE else self.at_step,
        )


def result_of(run: Path, at_step: int | None) -> Path:
    """Where a run, or its export of a step, has its result; ValueError if it is not there."""
    folder = run if at_step is None else run / "snapshots" / f"step_{at_step:08d}"
    found = [folder / name for name in (RESULT, WHOLE) if (folder / name).is_file()]
    if found:
        return found[0]
    if all((folder / half / RESULT).is_file() for half in EXPERTS):
        return folder
    raise ValueError(f"{folder}: holds no {RESULT} and no {WHOLE}; is the run finished?")


def is_finished(run: Path) -> bool:
    try:
        return bool(result_of(run, None))
    except ValueError:
        return False


def is_lora(result: Path) -> bool:
    return result.name != WHOLE


@dataclass(frozen=True)
class Tools:
    """What all measurements share: the model, its VAE and text encoder, the clips, the tasks."""

    model: Model
    vae: VideoVAE
    text_encoder: TextEncoder
    items: Sequence[SuiteItem]
    tasks: dict[str, Task]
    sampler: Sampler

    @cached_property
    def truths(self) -> list[Tensor]:
        return [item.frames() for item in self.items]

    @cached_property
    def renderings(self) -> list[toy.Rendering]:
        return [toy.render(item.scene) for item in self.items]

    @property
    def timing(self) -> Timing:
        return Timing(self.model.spec, self.model.num_frames, self.model.fps)

    @cached_property
    def conditions(self) -> str:
        """What all measurements of a table share: base, codec, text encoder, clips, tasks, sampler
        but for its steps, and what is measured (VERSION)."""
        model = self.model
        weights = [model.weights_path(expert) for expert in model.experts()]
        parts = [*weights, model.vae, model.text_encoder]
        tasks = sorted(repr(task) for task in self.tasks.values())
        # An option that is off and younger than the tables leaves their marks as they are, and so
        # does guidance=auto, which on a CPU, where they were made, is sequential.
        sampler = repr(replace(self.sampler, num_steps=1)).replace(", cache=None", "")
        sampler = sampler.replace("guidance='auto'", "guidance='sequential'")
        rest = (OVERLAP, KEYFRAMES, VERSION, [item.scene for item in self.items])
        marks = [fingerprint(part) for part in parts if part is not None]
        known = (repr(model.flow), repr(model.latent_shape()), sampler, *map(repr, rest))
        return content_key(*marks, *tasks, *known)[:8]

    def mark(self, result: Path | None) -> str:
        """What a measurement is of: the conditions, and the run's weights."""
        if result is None:
            return f"{self.conditions}-"
        files = sorted(result.rglob(RESULT)) if result.is_dir() else [result]
        return f"{self.conditions}-{content_key(*map(file_digest, files))[:8]}"

    def task(self, setting: Setting) -> Task:
        """The task of a setting, with its multiplier, and its pictures encoded as it says."""
        task = self.tasks[setting.task]
        if task.join is not None:
            task = task.with_overlap(OVERLAP, self.model.spec.temporal_stride)
        if setting.multiplier is not None:
            task = task.with_multipliers([setting.multiplier])
        if setting.encode is not None:
            rows = (row if row.part else replace(row, encode_as=setting.encode)
                    for row in task.given)  # fmt: skip
            task = replace(task, given=tuple(rows))
        return task


def measure(tools: Tools, variant: str, result: Path | None, setting: Setting) -> list[Values]:
    """The numbers of each clip. result: of the run; None for what is not trained."""
    if variant in (COPY, CODEC):
        videos = [_untrained(variant, tools.vae, truth) for truth in tools.truths]
        return _judged(tools, setting, videos)
    network = _load(tools.model, result, setting.strength)
    values = _judged(tools, setting, _videos(tools, network, setting))
    if setting.task == "t2v":
        shape = tools.model.latent_shape()
        backbone = (
            network
            if isinstance(network, Experts)
            else Experts([(0.0, under(network, Conditioning.free((1, *shape))))])
        )
        losses = shared_timestep_losses(
            backbone, tools.model, tools.vae, tools.text_encoder, tools.items, 0
        )
        for row, loss in zip(values, losses, strict=True):
            row["loss"] = float(loss.mean())
            levels = zip(RETENTION_SIGMAS, loss.tolist(), strict=True)
            row.update({f"loss@{level}": value for level, value in levels})
    return values


def sampled(tools: Tools, variant: str, result: Path | None, setting: Setting) -> list[Tensor]:
    """uint8 videos (T, 3, H, W) of a run, or of the base, for every clip of the tools."""
    setting = setting.of(variant, result is not None and is_lora(result))
    return _videos(tools, _load(tools.model, result, setting.strength), setting)


def _untrained(variant: str, vae: VideoVAE, truth: Tensor) -> Tensor:
    if variant == CODEC:
        return codec_roundtrip(vae, truth)
    return repeat(truth[0], "c h w -> t c h w", t=len(truth))


def _load(model: Model, result: Path | None, strength: float | None) -> Experts | nn.Module:
    """The network or networks of a run; a widened one (channel-concat) by itself."""
    device = model.run_device()
    if result is None:
        return model.build_experts().to(device)
    if is_lora(result):
        folder = result if result.is_dir() else result.parent
        loras = place_loras([str(folder)], model.experts(), 1.0 if strength is None else strength)
        return model.build_experts(loras).to(device)
    if is_concat(result):
        return load_concat(model, result).to(device)
    return replace(model, weights=str(result)).build_experts().to(device)


def _videos(tools: Tools, network: Experts | nn.Module, setting: Setting) -> list[Tensor]:
    """uint8 videos (T, 3, H, W) of all clips; the noise of a clip is the same for every run."""
    model, timing = tools.model, tools.timing
    placements = place_unseen(tools.task(setting), timing, num_media=KEYFRAMES)
    sampler = replace(tools.sampler, num_steps=setting.num_steps or tools.sampler.num_steps)
    negative = model.negative_prompt
    encoded = None if negative is None else tools.text_encoder.encode([negative])
    make: Callable = generate if isinstance(network, Experts) else generate_concat
    videos: list[Tensor] = []
    for start in range(0, len(tools.items), BATCH):
        numbers = range(start, min(start + BATCH, len(tools.items)))
        requests = [
            Request(
                tools.text_encoder.encode([tools.items[i].caption]),
                reveal(_shown(tools, setting, i), placements, timing) if placements else (),
                purpose=f"study/{tools.items[i].index}",
            )
            for i in numbers
        ]
        shape = model.latent_shape()
        videos += make(network, tools.vae, model.flow, sampler, requests, shape, encoded)
    return videos


def _shown(tools: Tools, setting: Setting, number: int) -> Tensor:
    """The clip whose frames are given; a transition goes from one clip into the next one."""
    truth = tools.truths[number]
    if setting.task != "transition":
        return truth
    other = tools.truths[(number + 1) % len(tools.truths)]
    return torch.cat([truth[: len(truth) // 2], other[len(truth) // 2 :]])


def _judged(tools: Tools, setting: Setting, videos: Sequence[Tensor]) -> list[Values]:
    if setting.task in ("i2v", "t2v"):
        names = IMAGE_METRICS if setting.task == "i2v" else TEXT_METRICS
        metrics = [registry.lookup(name) for name in names]
        return [
            {metric.name: metric.function(_sample(tools, i, video)) for metric in metrics}
            for i, video in enumerate(videos)
        ]
    task = tools.task(setting)
    given = given_frames(task, tools.timing, KEYFRAMES)
    free = [t for t in range(tools.model.num_frames) if t not in given]
    if setting.task == "transition":
        edges = [t for t in range(1, tools.model.num_frames) if (t in given) != (t - 1 in given)]
        return [
            {"roughness": roughness(video), "largest_edge": largest_step_ratio(video, edges)}
            for video in videos
        ]
    pairs = zip(videos, tools.truths, strict=True)
    seam = free[0] if setting.task == "extension" else None
    return [
        {"psnr_given": psnr_of(video, truth, given), "psnr_free": psnr_of(video, truth, free)}
        | ({} if seam is None else {"seam": mean_step_ratio(video, [seam])})
        for video, truth in pairs
    ]


def _sample(tools: Tools, number: int, video: Tensor) -> Sample:
    rendering, scene = tools.renderings[number], tools.items[number].scene
    truth = tools.truths[number]
    return Sample(video, truth, rendering.sprite, rendering.determined, scene.direction, scene.pan)


def finite(value: float | None) -> float | None:
    """None for what does not apply; ValueError for what is no number."""
    if value is not None and not math.isfinite(value):
        raise ValueError(f"a measurement is {value}; the run's samples are no good.")
    return value
