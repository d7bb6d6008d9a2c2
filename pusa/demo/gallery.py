"""The videos that are there: a folder and its sidecars, whoever made them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Made:
    """A finished video. caption: its prompt and settings in a line; sidecar: what is in it."""

    video: Path
    caption: str
    sidecar: Mapping[str, Any]


def videos_in(folder: Path) -> list[Made]:
    """All videos of a folder that have a sidecar, the newest first; others are passed over."""
    found = []
    for path in folder.glob("*.json"):
        video = path.with_suffix(".mp4")
        try:
            sidecar = json.loads(path.read_text("utf-8"))
            made = Made(video, caption(sidecar), sidecar)
            found.append((video.stat().st_mtime, video.name, made))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # somebody else's file, or one that is being written
    return [made for _, _, made in sorted(found, key=lambda item: item[:2], reverse=True)]


def caption(sidecar: Mapping[str, Any]) -> str:
    """Prompt and settings of a sidecar in a line. KeyError if it is none."""
    recipe, output = sidecar["recipe"], sidecar["output"]
    prompt, sampler = recipe["prompt"], recipe["sampler"]
    text = prompt if isinstance(prompt, str) else " / ".join(prompt)
    task = recipe["task"]["name"]
    given = len(recipe.get("at") or ())
    parts = [
        text or "(no prompt)",
        task if not given else f"{given} condition{'s' if given > 1 else ''}",
        f"{output['frames']} frames {recipe['width']}x{recipe['height']}",
        f"{sampler['num_steps']} steps of {sampler['method']}",
        f"seed {recipe['seed']}",
        *([f"LoRA strength {_strength(recipe['strength'])}"] if recipe["lora"] else []),
        recipe["model"]["name"],
    ]
    return " · ".join(parts)


def _strength(strength: float | Mapping[str, float]) -> str:
    if isinstance(strength, Mapping):
        return ", ".join(f"{expert} {value:g}" for expert, value in strength.items())
    return f"{strength:g}"
