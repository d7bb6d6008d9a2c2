"""What a sampler will do, call by call of the network, without the network; and plans from files.

How it is drawn is in schedule_report.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pusa.diffusion.conditioning import Conditioning
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Sampler, integrate
from pusa.types import LatentSpec


@dataclass(frozen=True)
class Call:
    """The network is asked once. step: sigma of the step as a whole; levels: the sigma that it is
    told of each latent frame; expert: which network it is, "" if there is but one."""

    step: float
    levels: tuple[float, ...]
    expert: str = ""


@dataclass(frozen=True)
class Schedule:
    """The calls of a run. title: model and sampler in words; given: latent frame -> multiplier."""

    title: str
    spec: LatentSpec
    calls: tuple[Call, ...]
    given: dict[int, float]

    def groups(self) -> list[range]:
        """Latent frames, neighbours together that have the same level in every call."""
        columns = list(zip(*(call.levels for call in self.calls), strict=True))
        starts = [f for f, column in enumerate(columns) if f == 0 or column != columns[f - 1]]
        stops = [*starts[1:], len(columns)]
        return [range(*ends) for ends in zip(starts, stops, strict=True)]

    def pixel_frames(self, latents: range) -> range:
        first, last = (self.spec.pixel_frames(latents[i]) for i in (0, -1))
        return range(first[0], last[-1] + 1)


def schedule_of(
    model: Model, sampler: Sampler, given: Mapping[int, float], num_frames: int
) -> Schedule:
    """The schedule of a video of `num_frames` pixel frames; nothing is loaded.

    given: latent frame -> noise multiplier.
    The sampler itself runs, on latents of one pixel and a network that says 0 and takes notes.
    ValueError for what sampling would refuse, too.
    """
    shape = (1, 1, model.spec.num_latent_frames(num_frames), 1, 1)
    nothing = torch.zeros(1, 1, 1)
    conditioning = Conditioning.free(shape).given({f: (nothing, m) for f, m in given.items()})
    calls: list[Call] = []

    def velocity(x: Tensor, sigma: Tensor, step: Tensor) -> Tensor:
        expert = ""
        if model.expert == "both" and model.boundary is not None:
            boundary = torch.tensor(model.boundary)  # float32, as Experts compares
            expert = "high" if step >= boundary else "low"
        calls.append(Call(float(step), tuple(sigma[0].tolist()), expert))
        return torch.zeros_like(x)

    integrate(sampler, model.flow, velocity, torch.zeros(shape), conditioning)
    multipliers = enumerate(conditioning.multiplier[0].tolist())
    guidance = f"guidance {sampler.guidance_scale:g}"
    if sampler.guidance_scale != 1 and sampler.guidance_interval != (0.0, 1.0):
        low, high = (1000 * sigma for sigma in sampler.guidance_interval)
        guidance += f" from t = {high:g} to {low:g}"
    return Schedule(
        f"{model.name}: {sampler.num_steps} steps of {sampler.method}, "
        f"shift {sampler.flow(model.flow).shift:g}, {guidance}",
        model.spec,
        tuple(calls),
        {frame: m for frame, m in multipliers if m < 1},
    )


def read_matrix(path: str | Path) -> dict[str, Any]:
    """Arguments of `plans.Matrix` from a file. ValueError for anything else in it.

    .csv: a line for each step and one for the end; .json: a list of such rows, or
    {"rows": ..., "may_rise": true}.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"{path}: a plan is a .csv or .json file.")
    if not path.is_file():
        raise ValueError(f"{path}: no such plan.")
    try:
        if path.suffix == ".csv":
            lines = csv.reader(path.read_text("utf-8").splitlines())
            return {"rows": [[float(x) for x in line] for line in lines if line]}
        found = json.loads(path.read_text("utf-8"))
        arguments = found if isinstance(found, dict) else {"rows": found}
        if unknown := arguments.keys() - {"rows", "may_rise"}:
            raise ValueError(f"{min(unknown)!r} is no key of a plan")
        rows = [[float(x) for x in row] for row in arguments["rows"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: not rows of numbers, one for each step and one for the end ({error})."
        ) from error
    return {**arguments, "rows": rows}
