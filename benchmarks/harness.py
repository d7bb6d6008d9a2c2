"""How two networks are measured side by side: equality first, then seconds in turns, FLOPs, peak
memory and the machine's own matrix multiplications. Knows no network."""

import gc
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.memory import LiveMemory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # of a norm's own size
# Instructions that multiply bfloat16; a processor without them emulates it in float32.
BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16", "svebf16")
aten = torch.ops.aten
UNKNOWN_TO_TORCH: dict[Any, Callable[..., int]] = {  # of shapes; torch has GPUs' attention alone
    aten._scaled_dot_product_flash_attention_for_cpu: lambda *qkv, **_: sdpa_flop_count(*qkv[:3]),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: (
        sdpa_backward_flop_count(*shapes[:4])
    ),
    aten.addmm_: lambda bias, a, b, *_, **__: 2 * a[0] * a[1] * b[1],
    aten.baddbmm_: lambda bias, a, b, *_, **__: 2 * a[0] * a[1] * a[2] * b[2],
}
Run = Callable[[], Any]
Row = dict[str, Any]


class UnequalError(RuntimeError):
    """The two sides do not compute the same; nothing of the case was measured."""


@dataclass(frozen=True)
class Side:
    """What is measured: a call, and the tensors that are there before it (weights, inputs)."""

    run: Run
    there: Callable[[], Iterable[Tensor]]


def check_equal(
    case: str, values: Mapping[str, tuple[Tensor, Tensor]], tolerance: float
) -> dict[str, float]:
    """The difference of each named pair, in parts of the second one's norm. UnequalError beyond
    the tolerance, or if one of them is no number."""
    found = {}
    for name, (ours, theirs) in values.items():
        ours, theirs = ours.detach().float(), theirs.detach().float()
        found[name] = float((ours - theirs).norm() / theirs.norm())
    bad = {name: value for name, value in found.items() if not value <= tolerance}
    if bad:
        name, value = max(bad.items(), key=lambda item: item[1])
        raise UnequalError(
            f"{case}: {name} differ by {value:.1e}, {tolerance:.0e} is allowed; not measured."
        )
    return found


def cpu_seconds(run: Run) -> float:
    """Processor time of all threads: another job on the machine disturbs it less."""
    start = time.process_time()
    run()
    return time.process_time() - start


def cuda_seconds(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def stopwatch(device: torch.device) -> Callable[[Run], float]:
    return cuda_seconds if device.type == "cuda" else cpu_seconds


def take_turns(
    runs: Mapping[str, Run], seconds: Callable[[Run], float], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every run in every round; who goes first alternates."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    for number in range(rounds):
        for name, run in list(runs.items())[:: -1 if number % 2 else 1]:
            taken[name].append(seconds(run))
    return taken


def num_flops(run: Run) -> int:
    """A multiply-add counts two."""
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH) as counter:
        run()
    return counter.get_total_flops()


def peak_bytes(side: Side, device: torch.device) -> int:
    """The most that a run holds at once beyond what was there; what it returns is part of it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side.run()
        return torch.cuda.max_memory_allocated() - before
    with LiveMemory() as memory:
        memory.ignore(*side.there())
        side.run()
    return memory.peak


def measure(sides: Mapping[str, Side], device: torch.device, rounds: int) -> Row:
    """FLOPs, bytes and seconds by side. The runs have been called before."""
    runs = {who: side.run for who, side in sides.items()}
    return {
        "flop": {who: num_flops(run) for who, run in runs.items()},
        "bytes": {who: peak_bytes(side, device) for who, side in sides.items()},
        "seconds": take_turns(runs, stopwatch(device), rounds),
    }


@contextmanager
def cold_compiler() -> Iterator[None]:
    """Inside the block torch.compile finds nothing that it compiled before; its workers are up."""
    torch._dynamo.reset()
    with fresh_cache(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own advice
        torch.compile(lambda x: (x * 2).sin())(torch.ones(64))
        try:
            yield
        finally:
            torch._dynamo.reset()


def compiled_call(run: Run) -> dict[str, float]:
    """Of a call that may compile: wall-clock seconds, graphs that were made."""
    before, start = counters["stats"]["unique_graphs"], time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "graphs": counters["stats"]["unique_graphs"] - before}


def matmul_rates(dtype: str, device: torch.device, quick: bool = False) -> list[float]:
    """FLOP per second of large matrix products (quick: of smaller ones), several times each."""
    seconds, rates = stopwatch(device), []
    sizes = (512,) if quick else (4096, 8192) if device.type == "cuda" else (1024, 2048)
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
        out = torch.empty_like(a)
        torch.mm(a, b, out=out)
        for _ in range(4):
            rates.append(2 * size**3 / seconds(lambda: torch.mm(a, b, out=out)))  # noqa: B023
    return rates


def bfloat16_flags() -> list[str]:
    """The processor's own instructions for products of bfloat16; none: they are emulated."""
    words = _cpu_lines().get("flags", _cpu_lines().get("Features", "")).split()
    return [flag for flag in BFLOAT16_FLAGS if flag in words]


def _cpu_lines() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = [line.split(":", 1) for line in reversed(lines) if ":" in line]
    return {name.strip(): value.strip() for name, value in pairs}


def native_dtypes(device: torch.device) -> list[str]:
    """The dtypes whose products the device does not emulate."""
    lower = torch.cuda.is_bf16_supported() if device.type == "cuda" else bfloat16_flags()
    return ["float32", "bfloat16"] if lower else ["float32"]


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What a measurement depends on besides the code; rows of other facts are not mixed."""
    processor = _cpu_lines().get("model name") or platform.processor() or platform.machine()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": processor, "threads": torch.get_num_threads(),
        "bfloat16_instructions": bfloat16_flags(), "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }  # fmt: skip


def tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
