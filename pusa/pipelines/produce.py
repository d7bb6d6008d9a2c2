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
from pusa.pipelines.positions import Condition, parse_condition
from pusa.weights.lora import load_lora

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """What to make: prompt, conditions (`POSITION=FILE[:MULTIPLIER]`), size, seed, LoRA, output."""

    prompt: str
    at: tuple[str, ...]
    seed: int
    num_frames: int
    height: int
    width: int
    fps: float
    fit: str
    lora: str | None
    strength: float
    output: str


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

    All input is checked before any weight is read. recipe: the configuration to keep in the
    sidecar. expected: digests of a sidecar's inputs; ValueError if a file has changed since.
    """
    shape = model.latent_shape(what.num_frames, what.height, what.width)
    conditions = [parse_condition(text, model.spec, what.num_frames) for text in what.at]
    task = task_of(conditions)
    media = tuple(_read(condition, what) for condition in conditions)
    output = _writable(what.output)
    digests = _digests(model, what, conditions)
    _compare(digests, expected or digests)
    for condition in conditions:
        log.info(condition.describe(model.spec))
    device = model.run_device()
    backbone = model.build_backbone().to(device)
    if what.lora is not None:
        load_lora(backbone, what.lora, what.strength, expert=model.expert)
    text_encoder = model.build_text_encoder().to(device)
    negative = (
        None if model.negative_prompt is None else text_encoder.encode([model.negative_prompt])
    )
    request = Request(text_encoder.encode([what.prompt]), media, what.seed)
    output.with_suffix(".json").unlink(missing_ok=True)  # never beside another video
    frames = generate(
        backbone,
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


def _digests(model: Model, what: Description, conditions: Iterable[Condition]) -> dict[str, str]:
    files = [what.lora, *(str(condition.file) for condition in conditions)]
    digests = {str(name): file_digest(name) for name in files if name is not None and _exists(name)}
    weights = (model.weights, model.vae, model.text_encoder)
    return digests | {str(path): fingerprint(path) for path in weights if path is not None}


def _exists(path: str) -> bool:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file.")
    return True


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
