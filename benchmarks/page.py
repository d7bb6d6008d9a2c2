"""docs/performance.md out of the suite's JSON: tables, plots, goals met or missed. Measures
nothing."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import (
    Peaks,
    judge,
    median,
    memory_ratio,
    share,
    times_faster,
    times_faster_at_best,
    times_faster_at_most,
    verdicts,
)
from benchmarks.networks import CAPTION_LEN, RANK, TEXT_LEN, WIDTHS
from benchmarks.plots import PLOTS, write_frontier, write_plots
from benchmarks.tables import (
    cache_table,
    exact_table,
    files_table,
    frontier_table,
    profile_table,
    rounded_table,
    table,
    trace_table,
    vae_table,
)
from pusa.atomic import write_text

Row = dict[str, Any]
SECTIONS = (  # title, case, detail, mode
    ("Forward pass, a timestep per frame, eager", "forward", "per frame", "eager"),
    ("Forward pass, a timestep per clip, eager", "forward", "per clip", "eager"),
    ("Forward pass, a timestep per frame, compiled", "forward", "per frame", "compiled"),
    ("LoRA step, blocks kept, eager", "lora", "none", "eager"),
    ("LoRA step, blocks recomputed, eager", "lora", "blocks", "eager"),
    ("LoRA step, blocks kept, compiled", "lora", "none", "compiled"),
    ("LoRA step, blocks recomputed, compiled", "lora", "blocks", "compiled"),
    ("Step of all weights with AdamW, eager", "full", "none", "eager"),
    ("Guided sampling with a clean first frame, eager", "sampling", None, "eager"),
)


def write_page(path: Path, images: Path, results: dict[str, Any]) -> None:
    """The page, and its plots into `images`, a folder beside it."""
    rows, peaks = results["rows"], {d: max(rates) for d, rates in results["matmul"].items()}
    parts = [introduction(results), goals_table(rows, peaks)]
    for title, case, detail, mode in SECTIONS:
        chosen = [
            row
            for row in rows
            if row["case"] == case and row["mode"] == mode and detail in (None, row["detail"])
        ]
        if chosen:
            make = compiled_table if mode == "compiled" else eager_table
            parts.append(f"## {title}\n\n{make(chosen, peaks)}")
    others: tuple[tuple[str, str, Callable[[list[Row]], str]], ...] = (
        ("Where the time goes", "profile", profile_table),
        ("Checkpointing: time against memory", "frontier", frontier_table),
        ("14B on fake tensors", "trace", trace_table),
        ("Exactness of attention", "exact", exact_table),
        ("Gradients from a rounded stream", "rounded", rounded_table),
        ("VAE", "vae", vae_table),
        ("Latent cache", "cache", cache_table),
        ("Loading and merging a checkpoint", "files", files_table),
    )
    for title, case, make_other in others:
        if chosen := [row for row in rows if row["case"] == case]:
            parts.append(f"## {title}\n\n{make_other(chosen)}")
            if case == "frontier":
                parts.append("\n\n".join(
                    f"![Time against memory]({place.relative_to(path.parent).as_posix()})"
                    for place in write_frontier(images, chosen)
                ))  # fmt: skip
    plots = []
    for dtype in peaks:
        folder = images if dtype == "float32" else images / dtype
        for name in write_plots(folder, rows, dtype):
            place = (folder / f"{name}.png").relative_to(path.parent).as_posix()
            plots.append(f"![{PLOTS[name][0]}]({place})")
    if plots:
        parts.append("## Growth with the frames\n\n" + "\n\n".join(plots))
    write_text(path, "\n\n".join(parts) + "\n")


def introduction(results: dict[str, Any]) -> str:
    facts, rows = results["facts"], results["rows"]
    peaks = "; ".join(
        f"{dtype}: best {max(rates) / 1e9:.0f}, median {statistics.median(rates) / 1e9:.0f} GFLOP/s"
        for dtype, rates in results["matmul"].items()
    )
    sizes = "\n".join(
        f"- `{name}`: {WIDTHS[name].words}"
        for name in dict.fromkeys(row.get("width") for row in rows)
        if name in WIDTHS
    )
    different = [value for row in rows for value in row.get("differences", {}).values()]
    agree = f"{max(different):.0e}" if different else "not compared"
    return f"""# Speed and memory beside diffusers

Written by `make bench` (`python -m benchmarks.suite`); `python -m benchmarks.suite --page` makes
this page again from its JSON. Our Wan DiT, training step and sampler, and diffusers'
WanTransformer3DModel with a timestep per token and peft's LoRA, on the same random weights and
inputs: batch 1, a caption of {CAPTION_LEN} tokens, padded to {TEXT_LEN} (which diffusers attends to
one by one; ours lets a few keys stand for the padding), LoRA of rank {RANK}.

- Machine: {facts["processor"]}, {facts["device"]}, {facts["threads"]} thread(s); torch
  {facts["torch"]}, diffusers {facts["diffusers"]}. {bfloat16_words(results)}
- Time: {clock_words(facts)}, median (best) of rounds in turn.
  Times faster: diffusers' median / ours, in brackets the same of the bests; above 1 is better.
  At most: what it would be if ours were nothing but its FLOPs at the machine's best.
- Memory: the most that is held at once beyond weights and inputs (gradients count); ours /
  diffusers', below 1 is better. A compiled graph's is not seen on a CPU.
- Matrix products of the same run, in the same dtype and threads: {peaks or "not measured"}. Shares
  are of the best, by FLOPs as torch counts them in the eager network, in the median round.
- Both sides agree before anything is timed (outputs with a timestep per frame and per clip and with
  merged LoRAs; loss; every gradient): to {agree} at most, in parts of a tensor's norm.

Sizes:
{sizes or "- none measured"}"""


def bfloat16_words(results: dict[str, Any]) -> str:
    flags = results["facts"]["bfloat16_instructions"]
    if "bfloat16" in results["matmul"]:
        return "bfloat16 was measured" + ("." if flags else ", emulated on this processor.")
    if flags or results["facts"]["device"] != "cpu":
        return "bfloat16 was not asked for."
    return "bfloat16 is left out: the processor has no products of it and would emulate them."


def clock_words(facts: dict[str, Any]) -> str:
    if facts["device"] != "cpu":
        return "CUDA events"
    return "seconds of processor time, of all threads together"


def goals_table(rows: Sequence[Row], peaks: Peaks) -> str:
    lines = [
        "## Goals",
        "",
        "| goal | limit | worst | rows that meet it | |",
        "|---|---|---|---|---|",
    ]
    for verdict in judge(rows, peaks):
        worst = "" if verdict.worst is None else f"{verdict.worst:.2f}"
        lines.append(
            f"| {verdict.goal.text} | {verdict.goal.sign} {verdict.goal.limit:g} | {worst} | "
            f"{verdict.met} of {verdict.rows} | **{verdict.word}** |"
        )
    return "\n".join(lines)


def eager_table(rows: Sequence[Row], peaks: Peaks) -> str:
    head = ["size", "dtype", "frames", "ours, s (best)", "diffusers, s (best)",
            "times faster (best)", "at most", "ours, MB", "diffusers, MB", "memory",
            "share, ours", "diffusers", "goals"]  # fmt: skip
    return table(head, [
        [*_place(row), *_times(row), f"{times_faster_at_most(row, peaks):.2f}",
         *(f"{row['bytes'][who] / 1e6:.1f}" for who in row["bytes"]),
         f"**{memory_ratio(row):.2f}**", *_shares(row, peaks), verdicts(row, peaks)]
        for row in rows
    ])  # fmt: skip


def compiled_table(rows: Sequence[Row], peaks: Peaks) -> str:
    """Without memory; with the seconds on the clock of the first call of each length."""
    head = ["size", "dtype", "frames", "ours, s (best)", "diffusers, s (best)",
            "times faster (best)", "first call, s (graphs), ours", "diffusers", "share, ours",
            "diffusers", "goals"]  # fmt: skip
    lines = []
    for row in rows:
        cold = [f"{one['seconds']:.1f} ({one['graphs']})" for one in row["compiling"].values()]
        kind = "" if row["first_length"] else " again"
        lines.append([*_place(row), *_times(row), *(text + kind for text in cold),
                      *_shares(row, peaks), verdicts(row, peaks)])  # fmt: skip
    return table(head, lines) + (
        "\n\nFirst call: seconds on the clock with an empty compile cache, and the graphs that it "
        "compiled; `again`: of another length, after the one before."
    )


def _place(row: Row) -> list[str]:
    return [row["width"], row["dtype"], str(row["frames"])]


def _times(row: Row) -> list[str]:
    taken = [f"{median(row, who):.3g} ({min(row['seconds'][who]):.3g})" for who in row["seconds"]]
    return [*taken, f"**{times_faster(row):.2f}** ({times_faster_at_best(row):.2f})"]


def _shares(row: Row, peaks: Peaks) -> list[str]:
    return [f"{share(row, peaks, who):.0%}" for who in row["seconds"]]
