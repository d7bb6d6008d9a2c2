"""What a result was made with, kept as JSON beside it, and whether two results may be compared."""

import json
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from pusa.atomic import write_json
from pusa.evaluation.naming import BackboneRecord, Basis
from pusa.evaluation.vbench_suite import NUM_SAMPLES, PUBLIC_KEY

Resize = Literal["board", "modern"]
RESIZES = ("board", "modern")
# What must be alike for a difference of scores to be one of models. The frame rate is among them:
# it decides which frames VBench looks at for motion.
ALIKE = (
    "prompts", "images", "prompt_rewriting", "seeds", "height", "width", "num_frames", "fps",
    "codec", "crf", "resize", "backbones", "missing",
)  # fmt: skip
# What a comparison is usually about.
SUBJECT = (
    "model", "weights", "loras", "task", "sampler", "num_steps", "guidance_scale", "shift", "dtype",
)  # fmt: skip
# Rounding alone may differ by these.
SURROUNDINGS = ("suite", "versions", "hardware")
PACKAGES = ("pusa", "torch", "diffusers", "transformers", "numpy", "scipy", "av", "decord")


@dataclass(frozen=True)
class LoraRecord:
    """A LoRA as it was applied. file: its name alone; sha256: of the file or, of a folder, as
    `registry.digest` has it; expert: "" for a model of one network."""

    file: str
    sha256: str
    strength: float
    expert: str

    def __str__(self) -> str:
        where = f" on the {self.expert}-noise expert" if self.expert else ""
        return f"{self.file} ({self.sha256[:12]}) at {self.strength:g}{where}"


@dataclass(frozen=True)
class Manifest:
    """All that a reader must know of a run.

    prompts, images: `vbench_suite.prompts_key` and `images_key`; prompt_rewriting: "none", or the
    name of what rewrote them; seeds: one per sample of a prompt; model: a name; weights:
    `data.hashing.fingerprint`; task: what is given, in words; height, width: pixels; crf: of the
    encoder; resize: of frames for the backbones, "board" (not antialiased, as when VBench's board
    was made) or "modern"; backbones: by dimension; missing: videos of the suite that were not
    scored; versions: by package.
    """

    suite: str
    prompts: str
    images: str
    prompt_rewriting: str
    seeds: tuple[int, ...]
    model: str
    weights: str
    loras: tuple[LoraRecord, ...]
    task: str
    sampler: str
    num_steps: int
    guidance_scale: float
    shift: float
    dtype: str
    height: int
    width: int
    num_frames: int
    fps: float
    codec: str
    crf: int
    resize: Resize
    backbones: Mapping[str, BackboneRecord]
    missing: int
    versions: Mapping[str, str]
    hardware: str

    def __post_init__(self):
        if self.resize not in RESIZES:
            raise ValueError(f"resize={self.resize!r} is none of {', '.join(RESIZES)}.")

    def basis(self) -> Basis:
        """What `naming.title` and `naming.file_stem` go by."""
        public = self.prompts == PUBLIC_KEY
        too_few = public and len(self.seeds) < NUM_SAMPLES
        return Basis(self.backbones, public, not (self.missing or too_few))


@dataclass(frozen=True)
class Change:
    """A field in which two manifests differ, and its two values."""

    field: str
    first: Any
    second: Any

    @property
    def unlike(self) -> bool:
        """It stands in the way of a comparison."""
        return self.field in ALIKE

    def __str__(self) -> str:
        return f"{self.field}: {_shown(self.first)} and {_shown(self.second)}"


def compare_manifests(
    first: Manifest, second: Manifest, allow: Collection[str] = ()
) -> tuple[Change, ...]:
    """All differences: those that a comparison is about and those allowed. A report prints them.

    allow: fields of ALIKE that may differ. ValueError lists every other that does, and names in
    `allow` that are no such fields.
    """
    strange = [name for name in allow if name not in ALIKE]
    if strange:
        raise ValueError(f"allow={strange}: expected some of {', '.join(ALIKE)}.")
    changes = tuple(
        Change(name, getattr(first, name), getattr(second, name))
        for name in (*ALIKE, *SUBJECT, *SURROUNDINGS)
        if getattr(first, name) != getattr(second, name)
    )
    refused = [change for change in changes if change.unlike and change.field not in allow]
    if refused:
        listed = "; ".join(map(str, refused))
        raise ValueError(
            f"these results cannot be compared, they differ in {listed}. Make one as the other, or "
            f"allow: {', '.join(change.field for change in refused)}."
        )
    return changes


def write_manifest(path: str | Path, manifest: Manifest) -> None:
    """As JSON, whole or not at all."""
    write_json(path, asdict(manifest))


def read_manifest(path: str | Path) -> Manifest:
    """ValueError for a file that is none, with what is missing or unknown in it."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such manifest; a run writes it beside its scores.")
    try:
        content = json.loads(path.read_text("utf-8"))
        names = {field.name for field in fields(Manifest)}
        if not isinstance(content, dict) or content.keys() != names:
            wrong = sorted(names ^ set(content)) if isinstance(content, dict) else "no object"
            raise ValueError(f"missing or unknown: {wrong}")
        lists = {
            "seeds": tuple(content["seeds"]),
            "loras": tuple(LoraRecord(**lora) for lora in content["loras"]),
            "backbones": {name: BackboneRecord(**b) for name, b in content["backbones"].items()},
        }
        return Manifest(**(content | lists))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a manifest of a run ({error}).") from error


def installed(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of these packages, without those that are not there."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """The devices that torch would use: "NVIDIA H100 80GB HBM3 x 8", else the processor's kind."""
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if not names:
        return f"CPU, {platform.machine()}"
    return ", ".join(f"{name} x {names.count(name)}" for name in sorted(set(names)))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {getattr(v, 'id', v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return repr(value)
