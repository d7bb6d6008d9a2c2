"""A small file of the form of VBench's vbench2_i2v_full_info.json, with texts of its own."""

import json
from pathlib import Path

SUBJECT = [
    "i2v_subject", "subject_consistency", "motion_smoothness", "dynamic_degree",
    "aesthetic_quality", "imaging_quality", "temporal_flickering",
]  # fmt: skip
BACKGROUND = [
    "i2v_background", "background_consistency", "aesthetic_quality", "imaging_quality",
    "temporal_flickering",
]  # fmt: skip


def entry(text: str, dimensions: list[str], image: object) -> dict:
    return {
        "prompt_en": text, "dimension": dimensions, "image_type": "other", "image_name": image
    }  # fmt: skip


def entries() -> list[dict]:
    return [
        entry("a red kite over dunes", BACKGROUND, "dunes.jpg"),
        entry("a red kite over dunes, camera pans left", ["camera_motion"], "dunes.jpg"),
        entry("a red kite over dunes, camera static", ["camera_motion"], "dunes.jpg"),
        entry("a goat chews, slowly", SUBJECT, "goat.jpg"),
    ]


def write_info(folder: Path, content: object) -> Path:
    path = folder / "info.json"
    path.write_text(json.dumps(content))
    return path
