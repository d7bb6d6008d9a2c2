"""Our Wan DiT, trainer and sampler beside diffusers': the one command, and its page.

    make bench ARGS='--cases forward lora --frames 5 21'
    python -m benchmarks.suite --quick
    python -m benchmarks.suite --page

Cases that are run again replace their rows in the JSON; the others stay if machine and torch are
the same. A case whose two sides differ is an error and is not measured.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from benchmarks import cases_exact, cases_files, cases_sampling, cases_trace, cases_train
from benchmarks.cases_forward import Setting, forward, forward_compiled
from benchmarks.goals import times_faster
from benchmarks.harness import (
    DTYPES,
    Row,
    UnequalError,
    machine_facts,
    matmul_rates,
    native_dtypes,
)
from benchmarks.networks import WIDTHS
from benchmarks.page import write_page
from benchmarks.store import Store, read

ROOT = Path(__file__).resolve().parents[1]
COMPILED_LENGTHS = (5, 21)  # compiling takes longest; of the lengths asked for, if among them


@dataclass(frozen=True)
class Case:
    """A case on networks; rows: the fields by which its rows are known."""

    run: Callable[[Setting], Iterator[Row]]
    rows: dict[str, str] = field(default_factory=dict)
    compiled: bool = False


NETWORK_CASES = {
    "forward": Case(partial(forward, detail="per frame"),
                    {"case": "forward", "detail": "per frame", "mode": "eager"}),
    "scalar": Case(partial(forward, detail="per clip"),
                   {"case": "forward", "detail": "per clip", "mode": "eager"}),
    "forward-compiled": Case(forward_compiled, {"case": "forward", "mode": "compiled"}, True),
    "lora": Case(cases_train.lora_step, {"case": "lora", "mode": "eager"}),
    "lora-compiled": Case(cases_train.lora_step_compiled,
                          {"case": "lora", "mode": "compiled"}, True),
    "full": Case(cases_train.full_step_of_all_weights, {"case": "full"}),
    "sampling": Case(cases_sampling.sampling, {"case": "sampling"}),
    "frontier": Case(cases_train.frontier, {"case": "frontier"}),
    "profile": Case(cases_exact.profile, {"case": "profile"}),
    "rounded": Case(cases_exact.rounded, {"case": "rounded"}),
}  # fmt: skip
OTHER_CASES: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "exact": lambda options: cases_exact.exact(torch.device(options.device)),
    "trace": lambda options: cases_trace.trace(options.quick),
    "vae": lambda options: cases_files.vae([9] if options.quick else [9, 33, 65]),
    "cache": lambda options: cases_files.cache(400 if options.quick else 10_000),
    "files": lambda options: cases_files.files(options.checkpoint_gb),
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny network, 1 and 5 frames")
    parser.add_argument("--page", action="store_true", help="only make the page from the JSON")
    parser.add_argument("--cases", nargs="+", choices=[*NETWORK_CASES, *OTHER_CASES])
    parser.add_argument("--frames", nargs="+", type=int, help="latent frames (1 5 13 21)")
    parser.add_argument("--widths", nargs="+", choices=WIDTHS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default: what is native")
    parser.add_argument("--rounds", type=int, help="default 5; 3 of training and sampling")
    parser.add_argument("--threads", type=int, help="default: torch's own")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--checkpoint-gb", type=float)
    parser.add_argument("--out", type=Path, help="folder of JSON, page and plots (default: the "
                        "committed ones; with --quick outputs/bench_quick)")  # fmt: skip
    options = parser.parse_args(arguments)
    quick = options.quick
    options.frames = options.frames or ([1, 5] if quick else [1, 5, 13, 21])
    options.widths = options.widths or (["tiny"] if quick else [w for w in WIDTHS if w != "tiny"])
    if options.checkpoint_gb is None:
        options.checkpoint_gb = 0.5 if quick else 8.0
    if options.out is None and quick:
        options.out = ROOT / "outputs" / "bench_quick"
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; use --device cpu.")
    return options


@dataclass(frozen=True)
class Places:
    """Where results, page and plots go."""

    results: Path
    page: Path
    images: Path

    @classmethod
    def of(cls, out: Path | None) -> "Places":
        if out is not None:
            return cls(out / "suite.json", out / "performance.md", out / "images")
        docs = ROOT / "docs"
        folder = Path(__file__).parent / "results"
        return cls(folder / "suite.json", docs / "performance.md", docs / "images")


def settings(options: argparse.Namespace, name: str) -> Iterator[Setting]:
    device, case = torch.device(options.device), NETWORK_CASES[name]
    frames = tuple(options.frames)
    if case.compiled and not options.quick:
        frames = tuple(n for n in frames if n in COMPILED_LENGTHS) or frames
    if options.quick and name == "lora-compiled":
        frames = frames[-1:]  # the slowest to compile
    few = 2 if options.quick else 5 if name.startswith(("forward", "scalar")) else 3
    for dtype in options.dtypes or native_dtypes(device):
        for width in options.widths:
            yield Setting(WIDTHS[width], dtype, frames, device, options.rounds or few)


def run_networks(options: argparse.Namespace, store: Store, name: str) -> Iterator[str]:
    """One case at all sizes; yields what went wrong."""
    case = NETWORK_CASES[name]
    for setting in settings(options, name):
        size = {"width": setting.width.name, "dtype": setting.dtype}
        rates = partial(matmul_rates, setting.dtype, setting.device, options.quick)
        store.add_matmul(setting.dtype, rates())
        try:
            for row in case.run(setting):
                store.add(row)
                told = f": x {times_faster(row):.2f}" if "flop" in row else ""
                print(f"{name} {row['detail']} {setting.width.name} {setting.dtype} "
                      f"{row['frames']} frames{told}", flush=True)  # fmt: skip
        except UnequalError as error:
            store.drop(**case.rows, **size)  # an earlier run's, of code that was another
            yield f"{name} {setting.width.name} {setting.dtype}: {error}"
        store.add_matmul(setting.dtype, rates())


def run(options: argparse.Namespace, places: Places) -> list[str]:
    """All cases that were asked for; the errors."""
    store = Store(places.results, machine_facts(torch.device(options.device)))
    print(", ".join(f"{name} {value}" for name, value in store.facts.items()), flush=True)
    errors = []
    for name in options.cases or [*NETWORK_CASES, *OTHER_CASES]:
        if name in NETWORK_CASES:
            errors += run_networks(options, store, name)
            continue
        for row in OTHER_CASES[name](options):
            store.add(row)
            print(f"{name} {row['detail']}: done", flush=True)
    return errors


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Loggers tell nothing but errors meanwhile."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    places = Places.of(options.out)
    errors: list[str] = []
    if not options.page:
        if options.threads:
            torch.set_num_threads(options.threads)
        warnings.filterwarnings("ignore", ".*self.log.*")  # there is no trainer to log to
        warnings.filterwarnings("ignore", ".*srun.*")
        with quiet("pusa", "lightning.pytorch"):
            errors = run(options, places)
    write_page(places.page, places.images, read(places.results))
    print(f"wrote {places.page}")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
