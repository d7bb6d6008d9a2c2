"""The .json beside a video: what it was made of, so that it can be made again bit for bit, and so
that one can tell whether it would be made the same way now."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pusa.atomic import write_json
from pusa.data.hashing import file_digest, fingerprint
from pusa.pipelines.build import Model


def write_sidecar(
    video: Path, recipe: Mapping[str, Any], inputs: Mapping[str, str], given: Sequence[str],
    num_frames: int, lora_path: str = "low_rank",
) -> Path:  # fmt: skip
    """Describe a finished video beside it. inputs: digests by path; given: what stands where;
    lora_path: how LoRAs were applied, whatever the recipe left open."""
    path = video.with_suffix(".json")
    told = {
        "recipe": dict(recipe),
        "inputs": dict(inputs),
        "given": list(given),
        "lora_path": lora_path,
        "output": {"sha": file_digest(video), "frames": num_frames},
        "made_by": versions(),
    }
    write_json(path, told)
    return path


def is_sidecar(path: Path) -> bool:
    try:
        return {"recipe", "made_by"} <= set(json.loads(path.read_text()))
    except (ValueError, TypeError):
        return False


@dataclass(frozen=True)
class Made:
    """What a sidecar says of its video. inputs: digests by path; whole: the video is still the
    very file that was written."""

    recipe: Mapping[str, Any]
    inputs: Mapping[str, str]
    whole: bool


def read_made(video: Path) -> Made | None:
    """None if the video, or its sidecar, is not there or is none."""
    path = video.with_suffix(".json")
    if not path.is_file() or not video.is_file():
        return None
    try:
        told = json.loads(path.read_text())
        recipe, inputs, sha = told["recipe"], told["inputs"], told["output"]["sha"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
    return Made(recipe, inputs, sha == file_digest(video))


def weights_digests(model: Model, loras: Sequence[str]) -> dict[str, str]:
    """Content hashes of a model's and of LoRAs' files, by path; many videos have them in common."""
    paths = [*(model.weights_path(e) for e in model.experts()), model.vae, model.text_encoder]
    digests = {name: digest(name) for name in sorted(set(loras))}
    return digests | {path: fingerprint(path) for path in paths if path is not None}


def digest(path: str) -> str:
    return fingerprint(path) if Path(path).is_dir() else file_digest(path)  # a PEFT LoRA's folder


def versions() -> dict[str, str]:
    """What bit-for-bit repetition depends on besides the inputs."""
    return {
        "pusa": version("pusa"), "torch": torch.__version__, "av": version("av"),
        "python": platform.python_version(), "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }  # fmt: skip
