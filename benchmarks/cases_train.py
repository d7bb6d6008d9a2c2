"""A training step: VTA's with a LoRA, blocks kept or recomputed, eager or compiled, and one of all
weights with its optimizer."""

from collections.abc import Iterator
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks.cases_forward import Setting, evaluate, sigma_of
from benchmarks.harness import (
    TOLERANCE,
    Row,
    Side,
    check_equal,
    cold_compiler,
    compiled_call,
    measure,
    num_flops,
    peak_bytes,
    stopwatch,
    take_turns,
    tensors_of,
)
from benchmarks.networks import (
    RANK,
    compile_blocks,
    make_batch,
    recompute_blocks,
    their_name,
    training_pair,
)
from pusa.training.module import VTAModule
from pusa.types import LatentBatch
from pusa.weights.lora import LoRA

POLICIES = ("none", "blocks")
# Of ours, what is kept of a block, the most first; diffusers has `POLICIES`.
FRONTIER = ("none", "selective", "every_2", "blocks", "selective_half", "blocks_half")


def step(module: VTAModule, batch: LatentBatch) -> Tensor:
    """Forward and backward pass; the loss."""
    module.zero_grad(set_to_none=True)
    with module.trainer.precision_plugin.forward_context():
        loss = module.training_step(batch, 0)
    loss.backward()
    return loss.detach()


def full_step(module: VTAModule, optimizer: torch.optim.Optimizer, batch: LatentBatch) -> None:
    step(module, batch)
    optimizer.step()


def compare(modules: dict[str, VTAModule], setting: Setting, frames: int) -> dict[str, float]:
    """Output, loss and every gradient. UnequalError."""
    batch = make_batch(setting.width, frames, setting.device)
    sigma = sigma_of("per frame", frames, setting.device)
    ours, theirs = modules.values()
    values = {
        "outputs": (evaluate(ours.backbone, batch, sigma), evaluate(theirs.backbone, batch, sigma)),
        "losses": (step(ours, batch), step(theirs, batch)),
    }
    others = {name.removeprefix("model."): p for name, p in theirs.backbone.named_parameters()}
    gradients = {
        f"gradients of {name}": (_gradient(parameter), _gradient(others[their_name(name)]))
        for name, parameter in ours.backbone.named_parameters()
        if parameter.requires_grad
    }
    found = check_equal("training step", values, TOLERANCE[setting.dtype])
    # Sums over all tokens in which much cancels, such as a key's bias, have fewer digits.
    agreed = check_equal("training step", gradients, 10 * TOLERANCE[setting.dtype])
    return found | {"gradients": max(agreed.values())}


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None  # after a backward pass
    return parameter.grad


def side_of(module: VTAModule, batch: LatentBatch) -> Side:
    there = (batch.latents, batch.text.embedding, batch.text.mask)
    return Side(partial(fresh_step, module, batch), lambda: (*there, *tensors_of(module)))


def fresh_step(module: VTAModule, batch: LatentBatch) -> None:
    """The gradients are given back, so that they count in the next step's memory again."""
    step(module, batch)
    module.zero_grad(set_to_none=True)


def lora_step(setting: Setting) -> Iterator[Row]:
    """Eager against eager."""
    modules = training_pair(setting.width, setting.dtype, setting.device, LoRA(RANK, RANK))
    for frames in setting.frames:
        batch = make_batch(setting.width, frames, setting.device)
        for policy in POLICIES:
            for module in modules.values():
                recompute_blocks(module.backbone, policy)
            differences = compare(modules, setting, frames)
            sides = {who: side_of(module, batch) for who, module in modules.items()}
            measured = measure(sides, setting.device, setting.rounds)
            row = setting.row("lora", policy, "eager", frames)
            yield row | {"differences": differences} | measured


def frontier(setting: Setting) -> Iterator[Row]:
    """Time against memory of a LoRA step, policy by policy, all of them in turns; eager."""
    modules = training_pair(setting.width, setting.dtype, setting.device, LoRA(RANK, RANK))
    for frames in setting.frames:
        batch = make_batch(setting.width, frames, setting.device)
        runs, num_bytes = {}, {}
        for who, policies in (("ours", FRONTIER), ("diffusers", POLICIES)):
            for policy in policies:
                run = partial(step_under, modules[who], policy, batch)
                there = side_of(modules[who], batch).there
                num_bytes[who, policy] = peak_bytes(Side(run, there), setting.device)
                runs[f"{who} {policy}"] = run
        taken = take_turns(runs, stopwatch(setting.device), setting.rounds)
        for (who, policy), most in num_bytes.items():
            yield setting.row("frontier", policy, who, frames) | {
                "most_bytes": most, "job_seconds": median(taken[f"{who} {policy}"]),
            }  # fmt: skip


def step_under(module: VTAModule, policy: str, batch: LatentBatch) -> None:
    recompute_blocks(module.backbone, policy)
    fresh_step(module, batch)


def lora_step_compiled(setting: Setting) -> Iterator[Row]:
    """Compiled against compiled; each policy compiles from nothing at its first length."""
    for policy in POLICIES:
        modules = training_pair(setting.width, setting.dtype, setting.device, LoRA(RANK, RANK))
        for module in modules.values():
            recompute_blocks(module.backbone, policy)
        sides, flops = {}, {}
        for frames in setting.frames:
            batch = make_batch(setting.width, frames, setting.device)
            sides[frames] = {who: side_of(module, batch) for who, module in modules.items()}
            flops[frames] = {who: num_flops(side.run) for who, side in sides[frames].items()}
        for module in modules.values():
            compile_blocks(module.backbone)
        with cold_compiler():
            for frames, both in sides.items():
                compiling = {who: compiled_call(side.run) for who, side in both.items()}
                differences = compare(modules, setting, frames)
                taken = take_turns(
                    {who: side.run for who, side in both.items()},
                    stopwatch(setting.device),
                    setting.rounds,
                )
                yield setting.row("lora", policy, "compiled", frames) | {
                    "differences": differences, "compiling": compiling,
                    "first_length": frames == setting.frames[0], "flop": flops[frames],
                    "seconds": taken,
                }  # fmt: skip


def full_step_of_all_weights(setting: Setting) -> Iterator[Row]:
    """Forward, backward and AdamW's step, eager."""
    modules = training_pair(setting.width, setting.dtype, setting.device, None)
    optimizers = {
        who: module.make_optimizer(list(module.trainable().values()))
        for who, module in modules.items()
    }
    for frames in setting.frames:
        batch = make_batch(setting.width, frames, setting.device)
        differences = compare(modules, setting, frames)
        sides = {}
        for who, module in modules.items():
            sides[who] = full_side(module, optimizers[who], batch)
            sides[who].run()  # makes the optimizer's moments
        measured = measure(sides, setting.device, setting.rounds)
        row = setting.row("full", "none", "eager", frames)
        yield row | {"differences": differences} | measured


def full_side(module: VTAModule, optimizer: torch.optim.Optimizer, batch: LatentBatch) -> Side:
    def run() -> None:
        full_step(module, optimizer, batch)
        module.zero_grad(set_to_none=True)

    def there() -> Iterator[Tensor]:
        yield from (batch.latents, batch.text.embedding, batch.text.mask, *tensors_of(module))
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    return Side(run, there)
