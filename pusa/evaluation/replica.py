"""The evaluation of a trained LoRA on the toy suite: the whole way from weights to the page."""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pusa.atomic import write_json
from pusa.data import video
from pusa.data.hashing import content_key, file_digest, fingerprint
from pusa.evaluation.baselines import (
    Codec,
    FrameShuffle,
    GroundTruth,
    SlowZoom,
    StaticCopy,
    System,
)
from pusa.evaluation.compare import compare, video_path
from pusa.evaluation.conclusion import plan_of
from pusa.evaluation.entries import Entry
from pusa.evaluation.outputs import write_outputs
from pusa.evaluation.pictures import contact_sheet
from pusa.evaluation.provenance import manifest_of_model, record_loras
from pusa.evaluation.score import Row
from pusa.evaluation.stats import Contrast, Scores, contrast
from pusa.evaluation.suite import SuiteItem, toy_suite
from pusa.evaluation.systems import (
    RETENTION_SIGMAS,
    ModelSystem,
    codec_roundtrip,
    scalar_agreement,
    shared_timestep_losses,
)
from pusa.evaluation.toy_result import result_of, setting_of, system
from pusa.models.base import VideoVAE
from pusa.models.experts import Experts
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Sampler
from pusa.pipelines.loras import PlacedLoRA, Strength, place_loras
from pusa.pipelines.parts import Part
from pusa.pipelines.placements import multipliers_of, place_unseen
from pusa.pipelines.positions import Timing
from pusa.pipelines.prepare import Source
from pusa.pipelines.tasks import Task

log = logging.getLogger(__name__)
Bars = Callable[[str], Callable[[Iterable], Iterable]]
TEXT_TO_VIDEO = Task("t2v")


@dataclass(frozen=True)
class Suite:
    """What configs/suite/*.yaml says: clips, seeds, the LoRA and its strength, where to write."""

    source: Source
    seeds: tuple[int, ...]
    lora: str
    strength: Strength
    output: str

    def __post_init__(self):
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if not self.seeds:
            raise ValueError("suite.seeds is empty; name at least one seed.")


def evaluate_replica(
    model: Model, task: Task, sampler: Sampler, suite: Suite, name: str, progress: Bars,
    part: Part = Part(),  # noqa: B008 - frozen
) -> Path | None:  # fmt: skip
    """Generate, score, compare, report; returns the page. ValueError if the LoRA is not there.

    part: of the work. One of several generates and scores its share and writes no page.

    Two comparisons: the task (base and VTA beside truth, codec and a static copy), and what text to
    video has kept (the same two models with nothing given, and their loss at shared timesteps).
    """
    check_trained(suite.lora, name)
    model.ensure_files()
    suite.source.render(progress)
    items = toy_suite(suite.source.path.parent, suite.source.num_clips)
    vae = model.build_vae().to(model.run_device())
    text_encoder = model.build_text_encoder().to(model.run_device())
    loras = place_loras([suite.lora], model.experts(), suite.strength)
    backbones = {
        "base": model.build_experts().to(model.run_device()),
        "VTA": model.build_experts(loras).to(model.run_device()),
    }
    codec = fingerprint(model.vae)
    keys = {"base": model_key(model, sampler), "VTA": model_key(model, sampler, loras)}

    def systems(of: Task) -> dict[str, System]:
        return {
            name: ModelSystem(backbone, model, vae, text_encoder, of, sampler)
            for name, backbone in backbones.items()
        }

    folder = Path(suite.output)
    controls = _controls(folder, vae)
    run = partial(_compare, items=items, suite=suite, progress=progress, part=part)
    own = {n: content_key(k, repr(task)) for n, k in keys.items()}
    own |= {"codec": codec, "frame shuffle": own["VTA"]}
    rows = run(folder, systems(task) | controls, own)
    retention_rows = run(folder / "t2v", systems(TEXT_TO_VIDEO), keys)
    if part.count > 1:
        return None
    retention = _retention(retention_rows, backbones, model, vae, text_encoder, items)
    facts = _facts(model, task, sampler, suite, items)
    facts["equal sigmas"] = scalar_agreement(backbones["VTA"], model, text_encoder, items[0])
    manifest = partial(manifest_of_model, setting_of(items, suite.seeds), model, sampler, task)
    plan = plan_of(model, sampler, task, items[0].scene.num_frames)
    described = [
        system("base", facts["base"], manifest(()), plan),
        system("VTA", facts["VTA"], manifest(record_loras(loras)), plan),
        *(system(name, "", None, None) for name in controls),
    ]
    page = write_outputs(folder, result_of(folder, rows, items, described, facts, retention))
    _sheet(folder, items, suite.seeds[0], [*backbones, *controls])
    return page


def _controls(folder: Path, vae: VideoVAE) -> dict[str, System]:
    return {
        "static copy": StaticCopy(),
        "slow zoom": SlowZoom(),
        "frame shuffle": FrameShuffle(lambda i, seed: video_path(folder, "VTA", seed, i.index)),
        "codec": Codec(partial(codec_roundtrip, vae)),
        "ground truth": GroundTruth(),
    }


def check_trained(lora: str, name: str) -> None:
    """ValueError if the LoRA of a run is not there."""
    if not Path(lora).exists():
        raise ValueError(
            f"{lora}: no such LoRA; train it first, with train.py and the same name={name}."
        )


def model_key(model: Model, sampler: Sampler, loras: Sequence[PlacedLoRA] = ()) -> str:
    """A name for what a model makes of a request; changes with weights, LoRAs and sampler."""
    key = content_key(
        *map(fingerprint, _weights(model)), fingerprint(model.vae),
        fingerprint(model.text_encoder), repr(sampler), repr(model.flow), model.dtype,
        model.text_len, repr(model.negative_prompt),
    )  # fmt: skip
    adapted = [part for lora in loras for part in (file_digest(lora.adapter.source), lora.strength)]
    return content_key(key, *adapted) if loras else key


def _weights(model: Model) -> list[str]:
    paths = [model.weights_path(expert) for expert in model.experts()]
    if None in paths:
        raise ValueError("model.weights is null: there is no base to evaluate; name its file.")
    return [path for path in paths if path is not None]


def _compare(
    folder: Path, systems: Mapping[str, System], keys: Mapping[str, str],
    items: Sequence[SuiteItem], suite: Suite, progress: Bars, part: Part,
) -> list[Row]:  # fmt: skip
    """compare(), after removing videos of models or settings that have changed since.

    Parts that start together may all find the old ones and remove them, before any has made its
    first video; if one comes so late that it takes new ones along, the last run makes them again.
    """
    record = folder / "systems.json"
    old = _read(record)
    for name, key in keys.items():
        if old.get(name) != key:
            shutil.rmtree(folder / "videos" / name, ignore_errors=True)
    write_json(record, dict(keys))

    def shown(work: Sequence, what: str, /) -> Iterable:
        return progress(what)(work)

    return compare(systems, items, suite.seeds, folder, shown, part)


def _retention(
    rows: Sequence[Row], backbones: Mapping[str, Experts], model: Model, vae, text_encoder,
    items: Sequence[SuiteItem],
) -> list[Contrast]:  # fmt: skip
    """What text to video has kept: direction accuracy, and the loss at one sigma for all frames."""
    contrasts = [
        contrast(metric, _scores_of(rows, "VTA", metric), _scores_of(rows, "base", metric))
        for metric in ("direction_accuracy", "dynamic_degree", "temporal_flickering")
    ]
    losses = {
        name: shared_timestep_losses(backbone, model, vae, text_encoder, items, seed=0)
        for name, backbone in backbones.items()
    }

    def by_clip(values: torch.Tensor) -> dict[int, list[float]]:
        return {item.index: [float(v)] for item, v in zip(items, values, strict=True)}

    columns = [("loss, shared sigma", slice(None))]
    columns += [
        (f"loss, sigma {level}", slice(i, i + 1)) for i, level in enumerate(RETENTION_SIGMAS)
    ]
    for title, column in columns:
        ours, theirs = (by_clip(losses[n][:, column].mean(dim=1)) for n in ("VTA", "base"))
        contrasts.append(contrast(title, ours, theirs, better="lower"))
    return contrasts


def _scores_of(rows: Sequence[Row], system: str, metric: str) -> Scores:
    """A system's values of a metric by clip; clips it does not apply to are left out."""
    scores: dict[int, list[float]] = {}
    for row in rows:
        if (row.system, row.metric) == (system, metric) and row.value is not None:
            scores.setdefault(row.index, []).append(row.value)
    return scores


def _facts(model: Model, task: Task, sampler: Sampler, suite: Suite, items) -> dict[str, str]:
    timing = Timing(model.spec, model.num_frames, model.fps)
    multipliers = multipliers_of(place_unseen(task, timing)).items()
    given = ", ".join(f"latent frame {f} with noise multiplier {m:g}" for f, m in multipliers)
    return {
        "task": f"{task.name} ({given or 'nothing given'})",
        "base": f"{model.name}, {model.weights}",
        "VTA": Entry(lora=(suite.lora,), strength=suite.strength).describe(),
        "sampling": f"{sampler.num_steps} {sampler.method.capitalize()} steps, "
        f"guidance {sampler.guidance_scale:g}, shift {sampler.flow(model.flow).shift:g}"
        + ("" if sampler.plan is None else f", {sampler.plan}")
        + ("" if sampler.cache is None else f", {sampler.cache}"),
        "clips": f"{len(items)} held-out toy clips, seeds {', '.join(map(str, suite.seeds))}",
    }


def _sheet(folder: Path, items: Sequence[SuiteItem], seed: int, systems: Sequence[str]) -> None:
    """frames.png: a row per system; first, middle and last frame of the first three clips."""
    pictures = {}
    for name in systems:
        clips = [video.read_frames(video_path(folder, name, seed, i.index))[0] for i in items[:3]]
        pictures[name] = torch.cat([clip[[0, len(clip) // 2, -1]] for clip in clips])
    columns = range(3 * len(items[:3]))
    contact_sheet(pictures, folder / "frames.png", columns)


def _read(path: Path) -> dict[str, str]:
    return json.loads(path.read_text()) if path.is_file() else {}
