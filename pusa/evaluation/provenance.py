"""Manifests of what is evaluated here: of a model that samples, of a folder of finished videos."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pusa.data import video
from pusa.data.hashing import content_key, fingerprint
from pusa.evaluation.backbones.registry import digest
from pusa.evaluation.manifest import LoraRecord, Manifest, Resize, hardware, installed
from pusa.evaluation.naming import BackboneRecord
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Sampler
from pusa.pipelines.loras import PlacedLoRA
from pusa.pipelines.tasks import Task

UNKNOWN = "unknown"
NO_NETWORK = "none needed"  # the id of a dimension that asks none
CODEC = "h264, yuv420p"  # of video.write_video
SAME_RATE = 1e-3  # containers keep rates as fractions of whole numbers


@dataclass(frozen=True)
class Setting:
    """What all systems of an evaluation have in common; fields as of `Manifest`."""

    suite: str
    prompts: str
    images: str
    seeds: tuple[int, ...]
    height: int
    width: int
    num_frames: int
    fps: float
    crf: int
    resize: Resize
    backbones: Mapping[str, BackboneRecord]


def record_loras(loras: Sequence[PlacedLoRA]) -> tuple[LoraRecord, ...]:
    """What manifests say of LoRAs; reads their files."""
    return tuple(
        LoraRecord(
            Path(lora.adapter.source).name, digest(Path(lora.adapter.source)), lora.strength,
            lora.expert or "",
        )
        for lora in loras
    )  # fmt: skip


def manifest_of_model(
    setting: Setting, model: Model, sampler: Sampler, task: Task, loras: Sequence[LoraRecord]
) -> Manifest:
    """Of videos that are made here, all of them."""
    weights = [model.weights_path(expert) for expert in model.experts()]
    named = [*weights, model.vae, model.text_encoder]
    marks = [fingerprint(path) for path in named if path and Path(path).exists()]
    rule = "" if sampler.plan is None else f", {sampler.plan}"
    clean = "" if sampler.clean_above is None else f", clean above {sampler.clean_above:g}"
    clean += "" if sampler.cache is None else f", {sampler.cache}"
    negative = ""
    if sampler.guidance_scale != 1 and model.negative_prompt is not None:
        negative = f", negative prompt {content_key(model.negative_prompt)[:8]}"
    return Manifest(
        **vars(setting),
        prompt_rewriting="none",
        model=model.name,
        weights=content_key(*marks),
        loras=tuple(loras),
        task=described(task),
        sampler=f"{sampler.method}{rule}{clean}{negative}",
        num_steps=sampler.num_steps,
        guidance_scale=sampler.guidance_scale,
        shift=sampler.flow(model.flow).shift,
        dtype=model.dtype,
        codec=CODEC,
        missing=0,
        versions=installed(),
        hardware=hardware(),
    )  # fmt: skip


def manifest_of_videos(setting: Setting, name: str, first: Path, missing: int) -> Manifest:
    """Of finished videos: what can be seen of them, and that nothing else is known.

    first: one of them, whose size and rate are taken for all. missing: how many are not there.
    """
    info = video.read_frames(first, 1)[1]
    setting = replace(
        setting, height=info.height, width=info.width, num_frames=info.num_frames, fps=info.fps
    )
    return _foreign(setting, name, missing)


def require_alike(manifest: Manifest, videos: Iterable[Path], allow: Collection[str]) -> None:
    """ValueError for a finished video of another size, length or rate than its manifest says,
    unless `allow` names the field; VideoError for one that cannot be read."""
    for path in videos:
        info = video.read_frames(path, 1)[1]
        for name in ("height", "width", "num_frames", "fps"):
            own, told = getattr(info, name), getattr(manifest, name)
            if name not in allow and not math.isclose(own, told, rel_tol=SAME_RATE):
                raise ValueError(
                    f"{path}: has {name}={own:g}, the others of its row {told:g}; make it as they "
                    f"are, or allow: {name}."
                )


def manifest_of_results(setting: Setting, name: str, source: str, missing: int) -> Manifest:
    """Of results that VBench itself measured: of their videos nothing is known. source: names its
    files."""
    setting = replace(
        setting, height=0, width=0, num_frames=0, fps=0.0, backbones=official(setting.backbones)
    )
    return replace(_foreign(setting, name, missing), versions={"results": source})


def official(dimensions: Iterable[str]) -> dict[str, BackboneRecord]:
    """The networks of VBench's own program."""
    return {name: BackboneRecord("VBench's own program", "", True) for name in dimensions}


def described(task: Task) -> str:
    """A task in words: its name, and where how much noise is given."""
    rows = ", ".join(
        f"{row.at}: {' '.join(f'{m:g}' for m in row.multipliers)}" for row in task.given
    )
    return f"{task.name} ({rows or 'nothing given'})"


def _foreign(setting: Setting, name: str, missing: int) -> Manifest:
    return Manifest(
        **vars(replace(setting, crf=-1)), prompt_rewriting=UNKNOWN, model=name, weights=UNKNOWN,
        loras=(), task=UNKNOWN, sampler=UNKNOWN, num_steps=0, guidance_scale=0.0, shift=0.0,
        dtype=UNKNOWN, codec=UNKNOWN, missing=missing, versions={}, hardware=UNKNOWN,
    )  # fmt: skip
