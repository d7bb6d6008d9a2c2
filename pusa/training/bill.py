"""What trainings and the sampling after them cost together: the same arithmetic as a plan's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pusa.pipelines.build import Model
from pusa.training.footprint import Work, outline, run_forward
from pusa.training.gpus import ASSUMPTIONS, GIB, Cluster
from pusa.training.plan import Estimate
from pusa.training.plan_report import table_of
from pusa.weights.lora import LoRA

LEFT_OUT = (
    "text encoder and VAE, encoding clips, sample grids and held-out curves",
    "scoring the videos, and the controls, which have no network",
    "loading weights, whether a video fits one GPU, what is done already",
)


@dataclass(frozen=True)
class TrainingItem:
    """A training, as it is typed; networks: how many it trains, one after the other."""

    overrides: str
    estimate: Estimate
    networks: int = 1

    @property
    def hours(self) -> float:
        return self.networks * self.estimate.hours

    @property
    def dollars(self) -> float:
        return self.networks * self.estimate.dollars


@dataclass(frozen=True)
class SamplingItem:
    """Videos of a row, each on one GPU. passes: network evaluations of a video; flops: of one."""

    row: str
    num_videos: int
    passes: int
    flops: float
    cluster: Cluster

    @property
    def gpu_seconds(self) -> float:
        """Of one video."""
        speed = self.cluster.gpu.teraflops * 1e12 * self.cluster.utilisation
        return self.passes * self.flops / speed

    @property
    def hours(self) -> float:
        return self.num_videos * self.gpu_seconds / 3600 / self.cluster.count

    @property
    def dollars(self) -> float:
        return self.hours * self.cluster.hourly


@dataclass(frozen=True)
class Bill:
    """What `pusa cost` says. notes: what a reader must know of this one."""

    name: str
    cluster: Cluster
    trainings: Sequence[TrainingItem]
    samplings: Sequence[SamplingItem]
    notes: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        return all(item.estimate.fits for item in self.trainings)

    @property
    def hours(self) -> float:
        return sum(item.hours for item in (*self.trainings, *self.samplings))

    @property
    def dollars(self) -> float:
        return sum(item.dollars for item in (*self.trainings, *self.samplings))

    def text(self) -> str:
        cluster = self.cluster
        price = cluster.hourly / cluster.count
        sections = [
            f"{self.name} on {cluster.count} x {cluster.gpu.name} at ${price:g} per GPU and hour, "
            f"{cluster.utilisation:.0%} of peak: an estimate, nothing of it was measured",
            self._trainings(),
            self._samplings(),
            f"In all {self.hours:,.1f} hours, ${self.dollars:,.0f}.",
            _listed("Not in these figures", LEFT_OUT),
            _listed("Assumed", (*self.notes, *ASSUMPTIONS)),
        ]
        return "\n\n".join(section for section in sections if section)

    def _trainings(self) -> str:
        if not self.trainings:
            return "Nothing is trained for it."
        rows = [["training", "steps", "s/step", "hours", "$", "GiB", "fits"]]
        for item in self.trainings:
            one = item.estimate
            name = item.overrides + (f" ({item.networks} networks)" if item.networks > 1 else "")
            rows.append([
                name, f"{one.job.max_steps}", f"{one.step_seconds:.3g}",
                *_sums(item.hours, item.dollars), f"{one.largest.total / GIB:.1f}",
                "yes" if one.fits else "no: pusa plan",
            ])  # fmt: skip
        rows.append(["trainings", "", "", *_sums_of(self.trainings), "", ""])
        return table_of(rows, left=(0, 6))

    def _samplings(self) -> str:
        if not self.samplings:
            return "Nothing is sampled for it."
        rows = [["row", "videos", "passes", "PFLOP/video", "GPU s/video", "hours", "$"]]
        for item in self.samplings:
            rows.append([
                item.row, f"{item.num_videos:,}", f"{item.passes}",
                f"{item.passes * item.flops / 1e15:.3g}", f"{item.gpu_seconds:.3g}",
                *_sums(item.hours, item.dollars),
            ])  # fmt: skip
        total = sum(item.num_videos for item in self.samplings)
        rows.append(["videos", f"{total:,}", "", "", "", *_sums_of(self.samplings)])
        return table_of(rows)

    def to_json(self) -> dict[str, Any]:
        cluster = self.cluster
        return {
            "name": self.name,
            "gpu": cluster.gpu.name,
            "gpus": cluster.count,
            "hourly": cluster.hourly,
            "utilisation": cluster.utilisation,
            "trainings": [
                {
                    "train": item.overrides, "networks": item.networks,
                    "steps": item.estimate.job.max_steps, "fits": item.estimate.fits,
                    "seconds_per_step": item.estimate.step_seconds,
                    "hours": item.hours, "dollars": item.dollars,
                }
                for item in self.trainings
            ],
            "videos": [
                {
                    "row": item.row, "videos": item.num_videos, "passes": item.passes,
                    "flops_per_pass": item.flops, "gpu_seconds_per_video": item.gpu_seconds,
                    "hours": item.hours, "dollars": item.dollars,
                }
                for item in self.samplings
            ],
            "hours": self.hours,
            "dollars": self.dollars,
            "left_out": list(LEFT_OUT),
            "assumptions": [*self.notes, *ASSUMPTIONS],
        }  # fmt: skip


def pass_flops(model: Model, lora: LoRA | None, size: tuple[int, int, int]) -> float:
    """Of one evaluation of one network of the model, on a clip of frames, height and width.

    lora: what is on it, unmerged, as it is sampled with. Two shallow networks are traced; every
    further block adds the same.
    """

    def traced(depth: int) -> float:
        network: Any = outline(model, lora, num_layers=depth)
        work = Work(1, model.latent_shape(*size), model.text_len, network.text_dim)
        return run_forward(network, work).forward_flops

    depth = len(list(outline(model, None).get_submodule("blocks").children()))
    one, two = traced(1), traced(2)
    return one + (depth - 1) * (two - one)


def _sums(hours: float, dollars: float) -> list[str]:
    return [f"{hours:,.1f}", f"{dollars:,.0f}"]


def _sums_of(items: Sequence[TrainingItem] | Sequence[SamplingItem]) -> list[str]:
    return _sums(sum(i.hours for i in items), sum(i.dollars for i in items))


def _listed(title: str, lines: Sequence[str]) -> str:
    return f"{title}\n" + "\n".join(f"  - {line}" for line in lines)
