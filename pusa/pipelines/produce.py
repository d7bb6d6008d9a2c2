"""One video from one description, with a sidecar that makes it again bit for bit."""

import logging
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from pusa.atomic import write_json
from pusa.data import video
from pusa.data.hashing import file_digest, fingerprint
from pusa.diffusion.conditioning import Anchor, Task
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Request, Sampler, generate
from pusa.pipelines.loras import PlacedLoRA, Strength, place_loras
from pusa.pipelines.positions import Condition, parse_condition

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """What to make: prompt, conditions (`POSITION=FILE[:MULTIPLIER]`), size, seed, output.

    lora: `[EXPERT=]FILE[:STRENGTH]` each, see `place_loras` (older sidecars: one file, or None);
    strength: a factor for all of them, or one per expert.
    """

    prompt: str
    at: tuple[str, ...]
    seed: int
    num_frames: int
    height: int
    width: int
    fps: float
    fit: str
    lora: tuple[str, ...]
    strength: Strength
    output: str

    def __post_init__(self):
        one = isinstance(self.lora, str)
        object.__setattr__(self, "lora", (self.lora,) if one else tuple(self.lora or ()))


def task_of(conditions: Iterable[Condition]) -> Task:
    """Each condition is an anchor with a medium of its own."""
    anchors = [
        Anchor(condition.latent_index, (condition.multiplier,), medium)
        for medium, condition in enumerate(conditions)
    ]
    return Task("at" if anchors else "t2v", tuple(anchors))


def produce(
    model: Model,
    sampler: Sampler,
    what: Description,
    recipe: Mapping,
    expected: Mapping[str, str] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Path:
    """Write the video and `<output>.json`; returns the video's path.

    All input is checked before any weight of the model is read. recipe: the configuration to keep
    in the sidecar. expected: digests of a sidecar's inputs; ValueError if a file has changed since.
    """
    shape = model.latent_shape(what.num_frames, what.height, what.width)
    conditions = [parse_condition(text, model.spec, what.num_frames) for text in what.at]
    task = task_of(conditions)
    media = tuple(_read(condition, what) for condition in conditions)
    loras = place_loras(what.lora, model.experts(), what.strength)
    output = _writable(what.output)
    model.ensure_files()
    digests = _digests(model, loras, conditions)
    _compare(digests, expected or digests)
    for condition in conditions:
        log.info(condition.describe(model.spec))
    device = model.run_device()
    experts = model.build_experts(loras).to(device)
    text_encoder = model.build_text_encoder().to(device)
    negative = (
        None if model.negative_prompt is None else text_encoder.encode([model.negative_prompt])
    )
    request = Request(text_encoder.encode([what.prompt]), media, what.seed)
    output.with_suffix(".json").unlink(missing_ok=True)  # never beside another video
    frames = generate(
        experts,
        model.build_vae().to(device),
        model.flow,
        sampler,
        task,
        [request],
        shape,
        negative,
        progress,
    )[0]
    video.write_video(output, frames, what.fps)
    sidecar = {
        "recipe": dict(recipe),
        "inputs": digests,
        "output": {"sha": file_digest(output), "frames": list(frames.shape)},
        "made_by": versions(),
    }
    write_json(output.with_suffix(".json"), sidecar)
    return output


def _read(condition: Condition, what: Description) -> Tensor:
    """A condition's image (or a clip's first frame) at the video's size, (1, 3, H, W) uint8."""
    frames, _ = video.read_frames(condition.file, 1)
    return video.fit(frames, what.height, what.width, what.fit)


def _writable(output: str) -> Path:
    path = Path(output)
    if path.suffix != ".mp4":
        raise ValueError(f"{output}: the output must end in .mp4.")
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = path.parent / f".{path.stem}.probe"
    try:
        probe.touch()
    finally:
        probe.unlink(missing_ok=True)
    return path


def _digests(
    model: Model, loras: Iterable[PlacedLoRA], conditions: Iterable[Condition]
) -> dict[str, str]:
    files = {*(lora.adapter.source for lora in loras), *(str(c.file) for c in conditions)}
    digests = {name: _digest(name) for name in sorted(files)}
    paths = [*(model.weights_path(e) for e in model.experts()), model.vae, model.text_encoder]
    return digests | {path: fingerprint(path) for path in paths if path is not None}


def _digest(path: str) -> str:
    return fingerprint(path) if Path(path).is_dir() else file_digest(path)  # a PEFT LoRA's folder


def _compare(found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{name} is not the file that the sidecar was made from (its hash differs)."
            )


def versions() -> dict[str, str]:
    """What bit-for-bit repetition depends on besides the inputs."""
    return {
        "pusa": version("pusa"), "torch": torch.__version__, "av": version("av"),
        "python": platform.python_version(), "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }  # fmt: skip
