"""What all dimensions share: one video in, one score out, and a mean that gathers over ranks."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from pusa.evaluation.backbones.registry import Kind, Loaded
from pusa.evaluation.metrics.frames import Frames
from pusa.evaluation.metrics.resize import Resize


@dataclass(frozen=True)
class Reading:
    """One dimension's reading of one video.

    score: a fraction, 1 is best. num_frames: of the video. extras: what the score came from, in
    values that JSON knows.
    """

    score: float
    num_frames: int
    extras: Mapping[str, Any] = field(default_factory=dict)


class Dimension(Metric):
    """`score_video` measures, `update` takes its result, `compute` is the mean over all of them.

    The sums gather over the ranks of torch.distributed, so each rank may score a share of the
    videos. Subclasses set `name`, the `kind` of backbone they ask (None: no network), and
    `by_frames` where the mean is over the pairs of frames of all videos instead of the videos.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind | None]
    by_frames: ClassVar[bool] = False
    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(
        self, backbone: Loaded | None = None, resize: Resize = "board", batch_size: int = 16
    ):
        """batch_size: frames that the network sees at once. ValueError for a wrong backbone."""
        super().__init__()
        kind = None if backbone is None else backbone.kind
        if kind != self.kind:
            raise ValueError(
                f"{self.name} asks a backbone of the kind {self.kind!r}, not {kind!r}; choose one "
                "by pusa.evaluation.backbones.registry.choices."
            )
        self.backbone = backbone
        self.resize: Resize = resize
        self.batch_size = batch_size
        # float64: a sum over 5590 videos must not depend on how ranks share them.
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @abstractmethod
    def score_video(
        self, video: Frames, reference: str | Path | None = None, prompt: str = ""
    ) -> Reading:
        """The score of one video. reference: the input image; prompt: the text it was made from.

        Dimensions ignore what they do not need. ValueError for a video that is too short or a
        missing reference; VideoError for a damaged file.
        """

    def update(self, reading: Reading) -> None:
        weight = reading.num_frames - 1 if self.by_frames else 1
        self.total += reading.score * weight
        self.weight += weight

    def compute(self) -> Tensor:
        """The dimension's figure, a float64 scalar. ValueError without any video."""
        if self.weight == 0:
            raise ValueError(f"{self.name}: no video was scored; call update for each one first.")
        return self.total / self.weight

    def ask(self, *inputs: Any) -> Any:
        """The network's answer, a tensor or several. ValueError if a number of it is not finite:
        compared with a threshold or cut off to whole levels, it would pass for a score."""
        assert self.backbone is not None
        answer = self.backbone.network(*inputs)
        for part in [answer] if isinstance(answer, Tensor) else answer:
            if not part.isfinite().all():
                raise ValueError(
                    f"{self.name}: the backbone {self.backbone.id} answers with NaN or infinity; "
                    "check its file, its precision and its device."
                )
        return answer

    def ready(self, pixels: Tensor) -> Tensor:
        """Pixels where the network is."""
        assert self.backbone is not None
        return pixels.to(self.backbone.device)

    def require_frames(self, found: int, needed: int) -> None:
        if found < needed:
            raise ValueError(
                f"{self.name} needs {needed} frames or more, the video has {found}; drop it."
            )
