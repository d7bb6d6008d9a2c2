"""Who makes the videos of a suite: a model with what is given, or a control that needs none.

Every video has a sidecar. It tells whether the video would be made the same way now, and
`pusa generate --from` makes that of a model again.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional

from pusa.data import video
from pusa.data.hashing import file_digest
from pusa.evaluation.entries import Entry
from pusa.evaluation.provenance import record_loras
from pusa.evaluation.vbench_suite import SuiteVideo
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Sampler
from pusa.pipelines.loras import PlacedLoRA, place_loras
from pusa.pipelines.produce import Description, plan, produce
from pusa.pipelines.sequence import Chain
from pusa.pipelines.sidecar import read_made, weights_digests, write_sidecar
from pusa.pipelines.studio import Memory, Studio
from pusa.pipelines.tasks import Task, as_config
from pusa.rng import generator_for

ZOOM = 1.15  # of the slow zoom, from the first frame to the last
CONTROLS = ("static copy", "frame shuffle", "slow zoom")
Bars = Callable[[str], Callable[[Iterable], Iterable]]


@dataclass(frozen=True)
class Size:
    """Of every video of an evaluation."""

    num_frames: int
    height: int
    width: int
    fps: float
    crf: int


@dataclass(frozen=True)
class Work:
    """A video to be made. image: what is given; seed: of its sample; path: where it goes."""

    video: SuiteVideo
    image: Path
    seed: int
    path: Path

    def own_seed(self) -> int:
        """Of this video alone: equal for all systems, so that they are paired, and different for
        every prompt, so that prompts are independent of one another."""
        purpose = f"suite/{self.video.prompt.stem}"
        return generator_for(self.seed, purpose).initial_seed() % 2**31


class Maker(Protocol):
    """Makes videos of works, one file and sidecar each."""

    def recipe(self, work: Work) -> dict[str, Any]:
        """What decides how it looks, as plain values."""
        ...

    def inputs(self, work: Work) -> dict[str, str]:
        """Digests of the files that it is made from, by path."""
        ...

    def make(self, work: Work) -> None: ...


def is_made(maker: Maker, work: Work) -> bool:
    """Whether the video is there, as it would be made now. ValueError if it is there otherwise."""
    made = read_made(work.path)
    if made is None or not made.whole:
        return False
    recipe = json.loads(json.dumps(maker.recipe(work)))
    if made.recipe != recipe:
        keys = sorted(
            k for k in recipe.keys() | made.recipe.keys() if recipe.get(k) != made.recipe.get(k)
        )
        raise Outdated(f"{work.path}: was made with other settings ({', '.join(keys)})")
    inputs = maker.inputs(work)
    if made.inputs != inputs:
        files = sorted(
            f for f in inputs.keys() | made.inputs.keys() if inputs.get(f) != made.inputs.get(f)
        )
        raise Outdated(f"{work.path}: was made from other files ({', '.join(files)})")
    return True


class Outdated(ValueError):
    """A video is there, and would be made otherwise now."""


@dataclass
class ModelMaker:
    """Videos of a model. configs: its model, sampler and memory as plain values, for sidecars.

    ValueError for files that are not there or do not fit. No network is read before the first video
    is made.
    """

    entry: Entry
    model: Model
    sampler: Sampler
    task: Task
    memory: Memory
    size: Size
    configs: Mapping[str, Any]

    def __post_init__(self):
        self.model.ensure_files()
        # Read to be checked, and let go: the rows of a table wait for one another.
        loras = self._placed()
        self.model.check_loras(loras)
        self.loras = record_loras(loras)
        self._digests = weights_digests(self.model, [lora.adapter.source for lora in loras])
        self._studio: Studio | None = None

    def check(self, work: Work) -> None:
        """ValueError if such a video cannot be made."""
        if self.task.num_media not in (0, 1):
            raise ValueError(
                f"task {self.task.name!r} takes more than one image; the suite has one for each "
                "prompt: choose task=i2v, or another of a single image or none."
            )
        plan(self.model, self.describe(work))

    def describe(self, work: Work) -> Description:
        return Description(
            prompt=(work.video.prompt.text,), seed=work.own_seed(), output=str(work.path),
            task=self.task, media=(str(work.image),) if self.task.num_media else (),
            lora=self.entry.lora, strength=self.entry.strength, **asdict(self.size),
        )  # fmt: skip

    def recipe(self, work: Work) -> dict[str, Any]:
        what = self.describe(work)
        plain = {
            name: getattr(what, name)
            for name in ("prompt", "media", "at", "encode_as", "seed", "num_frames", "height",
                         "width", "fps", "fit", "pace", "lora", "strength", "crf")
        }  # fmt: skip
        task = {"_target_": f"{Task.__module__}.Task", **as_config(self.task)}
        chain = {"_target_": f"{Chain.__module__}.Chain", **asdict(what.chain)}
        return {**self.configs, **plain, "task": task, "chain": chain}

    def inputs(self, work: Work) -> dict[str, str]:
        media = {file: file_digest(file) for file in self.describe(work).media}
        return media | self._digests

    def make(self, work: Work) -> None:
        if self._studio is None:
            self._studio = Studio(self.model, self._placed(), self.memory)
        produce(
            self.model, self.sampler, self.describe(work), self.recipe(work), studio=self._studio
        )

    def release(self) -> None:
        """Let go of the networks; they come back if another video is to be made."""
        self._studio = None

    def _placed(self) -> tuple[PlacedLoRA, ...]:
        return place_loras(self.entry.lora, self.model.experts(), self.entry.strength)


@dataclass(frozen=True)
class ControlMaker:
    """Videos without a model, of the image or, shuffled, of another system's video.

    shuffled: where that video of a work is.
    """

    name: str
    size: Size
    shuffled: Callable[[Work], Path]

    def recipe(self, work: Work) -> dict[str, Any]:
        seed = work.own_seed() if self.name == "frame shuffle" else 0
        return {"control": self.name, "seed": seed, **asdict(self.size)}

    def inputs(self, work: Work) -> dict[str, str]:
        source = self._source(work)
        return {str(source): file_digest(source)}

    def make(self, work: Work) -> None:
        frames = self._frames(work)
        work.path.parent.mkdir(parents=True, exist_ok=True)
        work.path.with_suffix(".json").unlink(missing_ok=True)
        video.write_video(work.path, frames, self.size.fps, self.size.crf)
        write_sidecar(work.path, self.recipe(work), self.inputs(work), (), len(frames))

    def _source(self, work: Work) -> Path:
        return self.shuffled(work) if self.name == "frame shuffle" else work.image

    def _frames(self, work: Work) -> Tensor:
        frames, _ = video.read_frames(self._source(work))
        size = self.size
        if self.name == "frame shuffle":
            return shuffled(frames, work.own_seed())
        image = video.fit(frames, size.height, size.width, "crop")[0]
        still = repeat(image, "c h w -> t c h w", t=size.num_frames)
        return still if self.name == "static copy" else slow_zoom(still)


def shuffled(frames: Tensor, seed: int) -> Tensor:
    """Frames (T, 3, H, W) in random order."""
    order = torch.randperm(len(frames), generator=generator_for(seed, "frame shuffle"))
    return frames[order]


def slow_zoom(frames: Tensor) -> Tensor:
    """Frames uint8 (T, 3, H, W), each about its centre larger than the one before, to ZOOM."""
    zoomed = []
    for factor, frame in zip(torch.linspace(1, ZOOM, len(frames)).tolist(), frames, strict=True):
        matrix = torch.tensor([[[1 / factor, 0, 0], [0, 1 / factor, 0]]])
        grid = functional.affine_grid(matrix, [1, *frame.shape], align_corners=False)
        sampled = functional.grid_sample(
            frame[None].float(), grid, "bicubic", padding_mode="border", align_corners=False
        )
        zoomed.append(sampled[0].clamp(0, 255).round().to(torch.uint8))
    return torch.stack(zoomed)
