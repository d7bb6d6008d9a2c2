"""One evaluation of the network: a timestep per frame or one per clip, eager or compiled."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from benchmarks.harness import (
    TOLERANCE,
    Row,
    Side,
    check_equal,
    cold_compiler,
    compiled_call,
    measure,
    num_flops,
    stopwatch,
    take_turns,
    tensors_of,
)
from benchmarks.networks import (
    RANK,
    Width,
    compile_blocks,
    make_batch,
    our_network,
    pair,
    training_pair,
)
from pusa.types import LatentBatch
from pusa.weights.lazy import InMemory
from pusa.weights.lora import LoRA, adapter_of
from pusa.weights.merge import Merged


@dataclass(frozen=True)
class Setting:
    """What a case runs on."""

    width: Width
    dtype: str
    frames: tuple[int, ...]
    device: torch.device
    rounds: int

    def row(self, case: str, detail: str, mode: str, frames: int) -> Row:
        """The beginning of a row: which case it is."""
        return {"case": case, "detail": detail, "mode": mode, "width": self.width.name,
                "dtype": self.dtype, "frames": frames}  # fmt: skip


def sigma_of(detail: str, frames: int, device: torch.device) -> Tensor:
    """detail: "per frame" (1, F), all different, or "per clip" (1,)."""
    if detail == "per clip":
        return torch.full((1,), 0.6, device=device)
    return torch.linspace(0, 1, frames + 1, device=device)[None, 1:]


@torch.no_grad()
def evaluate(network: nn.Module, batch: LatentBatch, sigma: Tensor) -> Tensor:
    return network(batch.latents, sigma, batch.text)


def compare(networks: dict[str, nn.Module], setting: Setting, frames: int) -> dict[str, float]:
    """Outputs with a timestep per frame and one per clip. UnequalError."""
    batch = make_batch(setting.width, frames, setting.device)
    values = {}
    for detail in ("per frame", "per clip"):
        sigma = sigma_of(detail, frames, setting.device)
        ours, theirs = (evaluate(network, batch, sigma) for network in networks.values())
        values[f"outputs, a timestep {detail},"] = ours, theirs
    return check_equal("forward", values, TOLERANCE[setting.dtype])


@torch.no_grad()
def compare_merged(setting: Setting) -> dict[str, float]:
    """Outputs with a LoRA merged into the weights: ours by `pusa merge`, theirs by peft."""
    ours, theirs = (
        module.backbone
        for module in training_pair(
            setting.width, "float32", torch.device("cpu"), LoRA(RANK, RANK)
        ).values()
    )
    state = {
        key.replace(".base_layer.", "."): value
        for key, value in ours.state_dict().items()
        if ".lora_" not in key
    }
    network = our_network(setting.width)()
    network.load_state_dict(dict(Merged(InMemory(state), [(adapter_of(ours), 1.0)], None)))
    for module in theirs.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    batch = make_batch(setting.width, 2, torch.device("cpu"))
    sigma = sigma_of("per frame", 2, torch.device("cpu"))
    both = (one(batch.latents, sigma, batch.text) for one in (network, theirs))
    values = {"outputs of merged LoRAs": tuple(both)}
    return check_equal("forward", values, TOLERANCE["float32"])


def forward(setting: Setting, detail: str) -> Iterator[Row]:
    """Eager against eager."""
    merged = compare_merged(setting)
    networks = pair(setting.width, setting.dtype, setting.device)
    for frames in setting.frames:
        differences = compare(networks, setting, frames) | merged
        sides = sides_of(networks, setting, detail, frames)
        measured = measure(sides, setting.device, setting.rounds)
        row = setting.row("forward", detail, "eager", frames)
        yield row | {"differences": differences} | measured


def sides_of(
    networks: dict[str, nn.Module], setting: Setting, detail: str, frames: int
) -> dict[str, Side]:
    batch = make_batch(setting.width, frames, setting.device)
    sigma = sigma_of(detail, frames, setting.device)

    def side(network: nn.Module) -> Side:
        there = (batch.latents, sigma, batch.text.embedding, batch.text.mask)
        return Side(lambda: evaluate(network, batch, sigma), lambda: (*there, *tensors_of(network)))

    return {who: side(network) for who, network in networks.items()}


def forward_compiled(setting: Setting) -> Iterator[Row]:
    """Compiled against compiled, block by block. The first length of all compiles from nothing; a
    later one says what a change of length costs."""
    networks = pair(setting.width, setting.dtype, setting.device)
    sides = {n: sides_of(networks, setting, "per frame", n) for n in setting.frames}
    flops = {
        n: {who: num_flops(side.run) for who, side in both.items()} for n, both in sides.items()
    }
    for network in networks.values():
        compile_blocks(network)
    with cold_compiler():
        for frames, both in sides.items():
            compiling = {who: compiled_call(side.run) for who, side in both.items()}
            differences = compare(networks, setting, frames)
            taken = take_turns(
                {who: side.run for who, side in both.items()},
                stopwatch(setting.device),
                setting.rounds,
            )
            yield setting.row("forward", "per frame", "compiled", frames) | {
                "differences": differences, "compiling": compiling,
                "first_length": frames == setting.frames[0], "flop": flops[frames],
                "seconds": taken,
            }  # fmt: skip
