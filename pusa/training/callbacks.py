"""What happens around the training step: exports, throughput, memory, sample grids and videos."""

import contextlib
import logging
import platform
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from pusa.atomic import write_json
from pusa.data import video
from pusa.data.latents import LatentDataModule, collate
from pusa.diffusion.conditioning import Conditioning
from pusa.models.base import VideoVAE
from pusa.pipelines.generate import Request, Sampler, decode_latents, sample_latents
from pusa.pipelines.placements import multipliers_of, place_unseen
from pusa.pipelines.positions import Timing
from pusa.pipelines.tasks import Task
from pusa.training.averaging import Averaged
from pusa.training.health import publish
from pusa.training.module import VTAModule
from pusa.training.strategy import ends_step, gather, held_bytes, is_divided
from pusa.types import Text

log = logging.getLogger(__name__)
# A frame that comes back as it was would score infinity and spoil the mean; 60 dB is an error of a
# quarter of a grey level. Evaluation caps alike.
PSNR_CAP = 60.0


class Exportable(Protocol):
    """A module that can write what it trained."""

    def export(self, folder: Path, recipe: Mapping) -> Path: ...


class Export(L.Callback):
    """Writes the trained weights when the run reaches its last step, through `module.export`, and
    their running average, if one is kept, to `ema/`. Every process takes part.

    recipe: the run's configuration, kept in the file's metadata. `environment.json` says with which
    code and machine the run was made, `memory.json` what each process held of it at the end.
    """

    def __init__(self, folder: str | Path, recipe: Mapping):
        self.folder, self.recipe = Path(folder), dict(recipe)

    def on_fit_start(self, trainer: L.Trainer, pl_module) -> None:
        if trainer.is_global_zero:
            found = describe_environment(trainer.world_size)
            write_json(self.folder / "environment.json", found)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.experiment.config.update({"environment": found}, allow_val_change=True)

    def on_train_end(self, trainer: Any, pl_module) -> None:
        if trainer.global_step < trainer.max_steps:
            return
        held = gather(held_bytes(trainer, pl_module))
        if trainer.is_global_zero:
            write_json(self.folder / "memory.json", held)
        module, recipe = cast(Exportable, pl_module), {"steps": trainer.global_step}
        recipe["config"] = self.recipe
        # The average first: the result marks the run as finished.
        for averaged in (c for c in trainer.callbacks if isinstance(c, Averaged) and c.decay):
            with averaged.in_place(pl_module):
                log.info("wrote %s", module.export(self.folder / "ema", recipe))
        log.info("wrote %s", module.export(self.folder, recipe))


class Snapshots(L.Callback):
    """Exports the trained weights of some steps to `snapshots/step_00000300/`, as the run's end
    does it: what a table of iterations needs. steps: after which."""

    def __init__(self, folder: str | Path, steps: Sequence[int]):
        self.folder, self.steps = Path(folder) / "snapshots", frozenset(steps)
        if not all(step >= 1 for step in self.steps):
            raise ValueError(f"callbacks.snapshots.steps={list(steps)}: steps count from 1.")

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step in self.steps and ends_step(trainer, batch_idx):
            folder = self.folder / f"step_{step:08d}"
            cast(Exportable, pl_module).export(folder, {"steps": step})
            log.info("wrote %s", folder)


def peak_memory() -> float:
    """The most memory this process has held, GB: of its GPU if it has one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Progress(TQDMProgressBar):
    """One bar over all steps, with the loss and clips per second; logs the peak memory, too."""

    def __init__(self, refresh_rate: int = 10):
        super().__init__(refresh_rate=refresh_rate)
        self._mark: tuple[float, int] | None = None

    def on_train_batch_end(self, trainer: Any, pl_module, outputs, batch, batch_idx) -> None:
        if ends_step(trainer, batch_idx) and trainer.global_step % self.refresh_rate == 0:
            now = time.perf_counter()
            if self._mark is not None:
                steps = trainer.global_step - self._mark[1]
                rate = steps * trainer.datamodule.batch_size / (now - self._mark[0])
                pl_module.log("train/clips_per_s", rate, prog_bar=True, logger=False, batch_size=1)
                publish(trainer, {"train/clips_per_s": rate, "train/memory_gb": peak_memory()})
            self._mark = (now, trainer.global_step)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer, pl_module) -> None:
        super().on_validation_end(trainer, pl_module)
        self._mark = None  # validation time is not training time

    def get_metrics(self, trainer, pl_module) -> dict:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        short = {"train/loss": "loss", "train/clips_per_s": "clips/s"}
        return {short.get(name, name): value for name, value in metrics.items() if "@" not in name}


class SampleGrid(L.Callback):
    """Every `every` steps, samples a task for a few held-out clips: one picture and one video. What
    the task gives are the clip's own latents there.

    Rows alternate truth and sample, columns are frames over time; `samples/step_000500.png`. The
    video shows truths above samples. Logs samples/psnr_first and samples/psnr_rest (`fidelity`).
    Where weights are divided over processes, all of them sample.
    """

    def __init__(
        self, folder: str | Path, vae: VideoVAE, task: Task, sampler: Sampler,
        every: int = 500, num_clips: int = 4,
    ):  # fmt: skip
        self.folder, self.vae, self.task, self.sampler = Path(folder), vae, task, sampler
        self.every, self.num_clips = every, num_clips
        self._truths: Tensor | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """ValueError, before the first step, for a task that does not fit the model's videos."""
        model = pl_module.model
        place_unseen(self.task, Timing(model.spec, model.num_frames, model.fps))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if (
            not ends_step(trainer, batch_idx)
            or step % self.every
            or trainer.datamodule.heldout is None
        ):
            return
        if trainer.is_global_zero or is_divided(pl_module):
            pairs = self.pairs(pl_module, trainer.datamodule)
            if trainer.is_global_zero:
                self._write(trainer, pl_module, pairs, step)

    def _write(self, trainer: Any, pl_module: Any, pairs: list[tuple[Tensor, Tensor]], step: int):
        publish(trainer, fidelity(pairs))
        path = self.folder / f"step_{step:06d}.png"
        video.write_image(path, grid(pairs))
        columns = [torch.cat(pair, dim=-2) for pair in pairs]
        fps = pl_module.model.fps
        video.write_video(path.with_suffix(".mp4"), torch.cat(columns, dim=-1), fps)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("samples", [str(path)], step=step)
                logger.log_video("sample_videos", [str(path.with_suffix(".mp4"))], step=step)

    @torch.no_grad()
    def pairs(self, module: VTAModule, data: LatentDataModule) -> list[tuple[Tensor, Tensor]]:
        """(truth, sample) as uint8 frames (T, 3, H, W), for clips of one shape."""
        dataset = data.dataset(data.heldout or "")
        first = [i for i, bucket in enumerate(dataset.buckets()) if bucket == 0][: self.num_clips]
        batch = collate([dataset[i] for i in first])
        clean = batch.latents.to(module.device)
        requests = [
            Request(Text(e[None], m[None]), seed=int(i), purpose="grid")
            for e, m, i in zip(batch.text.embedding, batch.text.mask, batch.index, strict=True)
        ]
        spec = module.model.spec
        timing = Timing(spec, spec.num_pixel_frames(clean.shape[2]), module.model.fps)
        given = multipliers_of(place_unseen(self.task, timing))
        conditioning = Conditioning.free(clean.shape, clean.device).given(
            {frame: (clean[:, :, frame], m) for frame, m in given.items()}
        )
        network, kept = module.sampling(conditioning)
        module.backbone.eval()
        with module.autocast():
            sampled = sample_latents(network, module.flow, self.sampler, kept, requests)
        module.backbone.train()
        vae = cast(Any, self.vae).to(module.device)  # and back: it has no place beside a step
        if self._truths is None:
            self._truths = decode_latents(vae, clean)
        samples = decode_latents(vae, sampled)
        vae.to("cpu")
        return list(zip(self._truths, samples, strict=True))


def fidelity(pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Mean PSNR of samples against truths, dB, at most PSNR_CAP a clip: of frame 0, and of all
    later frames together if there are any. pairs: (truth, sample) as uint8 (T, 3, H, W)."""
    values = {}
    for name, part in (("first", slice(0, 1)), ("rest", slice(1, None))):
        each = [
            peak_signal_noise_ratio(sample[part].double(), truth[part].double(), data_range=255.0)
            for truth, sample in pairs
            if len(truth[part])
        ]
        if each:
            values[f"samples/psnr_{name}"] = float(torch.stack(each).clamp(max=PSNR_CAP).mean())
    return values


def grid(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """uint8 picture (3, H', W'): truth and sample row by row, some frames of each."""
    rows = []
    for frames in (frames for pair in pairs for frames in pair):
        shown = frames[:: max(1, (len(frames) - 1) // 4)]
        rows.append(torch.cat(list(shown), dim=-1))
    return torch.cat(rows, dim=-2)


def describe_environment(processes: int) -> dict:
    """What a run's numbers depend on besides its configuration."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    names = (
        "pusa",
        "torch",
        "lightning",
        "deepspeed",
        "peft",
        "diffusers",
        "transformers",
        "numpy",
    )
    return {
        "code": code_version(),
        "packages": {name: version(name) for name in names},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "gpus": gpus,
        "processes": processes,
        "threads": torch.get_num_threads(),
    }


def code_version() -> str:
    """The commit of the checkout that runs, with "+" if files differ from it; "" without git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    with contextlib.suppress(OSError):
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        if head.returncode == 0:
            changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
            return head.stdout.strip() + ("+" if changed.returncode else "")
    return ""
