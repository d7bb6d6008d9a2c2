"""A run's checkpoint taken up again outside of training: to export it, or to see where a step that
was not finite went wrong."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pusa.training.checkpoints import Saved, list_saved
from pusa.training.health import BAD_STEPS
from pusa.types import LatentBatch, Text
from pusa.weights.files import read_metadata, read_tensors


def choose(run: Path, which: str = "last", before: int | None = None) -> Saved:
    """A sound checkpoint of a run: "last", "best" (by the monitored value) or a step's number.

    before: only checkpoints of at most so many steps. ValueError if there is none.
    """
    saved = [one for one in list_saved(run) if before is None or one.step <= before]
    if which == "best":
        saved = sorted((s for s in saved if s.value is not None), key=lambda s: s.value or 0.0)
    elif which != "last":
        saved = [one for one in saved if str(one.step) == which]
    for one in saved:
        if one.fault() is None:
            return one
    known = ", ".join(str(one.step) for one in list_saved(run)) or "none"
    raise ValueError(f"{run}: no sound checkpoint {which!r}; there are steps {known}.")


def restore(module: Any, saved: Saved) -> None:
    """Load a checkpoint's trained tensors into a module that was built from the run's own config.

    ValueError if it trains other tensors.
    """
    if saved.state.is_dir():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        found: Any = get_fp32_state_dict_from_zero_checkpoint(str(saved.state), tag="checkpoint")
    else:
        found = torch.load(saved.state, map_location="cpu", weights_only=True)["state_dict"]
    trained: dict[str, nn.Parameter] = module.trainable()
    if trained.keys() - found.keys():
        name = min(trained.keys() - found.keys())
        raise ValueError(f"{saved.folder}: holds no {name}; is it of another run?")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(found[name])


@dataclass(frozen=True)
class BadStep:
    """A recorded batch: the file, its step."""

    path: Path
    step: int


def bad_steps(run: Path) -> list[BadStep]:
    """Recorded batches of a run, by step and process."""
    found = []
    for path in sorted((run / BAD_STEPS).glob("step_*.safetensors")):
        if match := re.match(r"step_(\d+)_", path.name):
            found.append(BadStep(path, int(match[1])))
    return found


def replay(module: Any, bad: BadStep) -> list[str]:
    """Run a recorded step once more, forward and backward; what was seen, line by line."""
    tensors = read_tensors(bad.path)
    step = int(read_metadata(bad.path)["step"])
    text = Text(tensors["text"], tensors["mask"])
    batch = LatentBatch(tensors["latents"], text, tensors["index"])
    lines = [f"{bad.path.name}: step {step}, clips {batch.index.tolist()}"]
    lines += [
        f"  {name} is not finite" for name in ("latents", "text") if not _finite(tensors[name])
    ]
    first = _first_not_finite(module.backbone)
    sigma, noise = tensors["sigma"], tensors["noise"]
    velocity = module.velocity(batch.latents, noise, sigma, text)
    errors = module.flow.frame_errors(velocity, batch.latents, noise)
    loss = module.flow.mean_loss(errors, module.levels(sigma))
    for clip, (levels, values) in enumerate(zip(sigma.tolist(), errors.tolist(), strict=True)):
        pairs = ", ".join(f"{s:.3f}: {e:.3g}" for s, e in zip(levels, values, strict=True))
        lines.append(f"  clip {batch.index[clip]}: loss by sigma of frames {pairs}")
    lines.append(f"  loss {float(loss.detach()):.6g}")
    lines += [f"  the first module that is not finite: {name}" for name in first[:1]]
    module.zero_grad()
    loss.backward()
    broken = [
        n for n, p in module.trainable().items() if p.grad is not None and not _finite(p.grad)
    ]
    total = torch.nn.utils.get_total_norm(
        [p.grad for p in module.trainable().values() if p.grad is not None]
    )
    lines.append(f"  gradient norm {float(total):.6g}")
    if broken:
        lines.append(f"  {len(broken)} gradients are not finite, such as that of {broken[0]}")
    elif _finite(loss):
        lines.append("  with this checkpoint the step is finite: the weights had moved since")
    return lines


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _first_not_finite(model: nn.Module) -> list[str]:
    """A list that modules enter by name, in order, when their output is not finite."""
    names: list[str] = []

    def watch(name: str):
        def hook(module, inputs, output) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            if any(isinstance(o, Tensor) and not _finite(o) for o in outputs):
                names.append(name)

        return hook

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(watch(name))
    return names
