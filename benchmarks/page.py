"""docs/performance.md out of the suite's JSON: tables, plots, goals met or missed. Measures
nothing."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import (
    GIB,
    Peaks,
    file_excess,
    file_time,
    judge,
    median,
    memory_ratio,
    share,
    times_faster,
    times_faster_at_best,
    verdicts,
)
from benchmarks.networks import CAPTION_LEN, RANK, TEXT_LEN, WIDTHS
from benchmarks.plots import PLOTS, write_plots
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
            table = compiled_table if mode == "compiled" else eager_table
            parts.append(f"## {title}\n\n{table(chosen, peaks)}")
    others: tuple[tuple[str, str, Callable[[list[Row]], str]], ...] = (
        ("14B on fake tensors", "trace", trace_table),
        ("VAE", "vae", vae_table),
        ("Latent cache", "cache", cache_table),
        ("Loading and merging a checkpoint", "files", files_table),
    )
    for title, case, make in others:
        if chosen := [row for row in rows if row["case"] == case]:
            parts.append(f"## {title}\n\n{make(chosen)}")
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
            "times faster (best)", "ours, MB", "diffusers, MB", "memory", "share, ours",
            "diffusers", "goals"]  # fmt: skip
    return _table(head, [
        [*_place(row), *_times(row), *(f"{row['bytes'][who] / 1e6:.1f}" for who in row["bytes"]),
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
    return _table(head, lines) + (
        "\n\nFirst call: seconds on the clock with an empty compile cache, and the graphs that it "
        "compiled; `again`: of another length, after the one before."
    )


def trace_table(rows: list[Row]) -> str:
    one = rows[0]
    head = ["blocks", "ours, GiB", "diffusers, GiB", "memory", "goals"]
    names = {
        "none": "kept", "blocks": "recomputed", "blocks_half": "recomputed, inputs in bfloat16",
    }  # fmt: skip
    lines = [
        [names[row["detail"]], *(f"{row['bytes'][who] / GIB:.1f}" for who in row["bytes"]),
         f"**{memory_ratio(row):.2f}**", verdicts(row, {})]
        for row in rows
    ]  # fmt: skip
    return (
        f"A LoRA step of {one['layers']} blocks, rank {one['rank']}, latents "
        f"{' x '.join(map(str, one['shape']))}, bfloat16 weights under autocast: the most bytes of "
        "activations at once, by the same ledger for both.\n\n" + _table(head, lines)
    )


def vae_table(rows: list[Row]) -> str:
    head = ["job", "tiles", "pixel frames", "s", "peak, MB"]
    return _table(head, [
        [row["detail"], "yes" if row["mode"] == "tiles" else "no", str(row["frames"]),
         f"{row['job_seconds']:.1f}", f"{row['mb']:.0f}"]
        for row in sorted(rows, key=lambda r: (r["mode"], r["detail"].split(": ")[1], r["frames"]))
    ])  # fmt: skip


def cache_table(rows: list[Row]) -> str:
    head = ["reader", "samples a second", "times the plain reader", "first batch, s"]
    return _table(head, [
        [row["detail"], f"{row['samples_per_s']:.0f}", f"**{row['ratio']:.2f}**",
         f"{row['first_batch_s']:.3f}"]
        for row in rows
    ])  # fmt: skip


def files_table(rows: list[Row]) -> str:
    one = rows[0]
    head = ["job", "page cache", "s", "its peer", "of its peer", "peak, GB", "imports", "result",
            "GiB beyond two shards", "goals"]  # fmt: skip
    lines = [
        [row["detail"], row["mode"], f"{row['job_seconds']:.2f}", row["peer"],
         f"{file_time(row):.2f}", f"{row['peak_gb']:.2f}", f"{row['imports_gb']:.2f}",
         f"{row['result_gb']:.2f}", f"{file_excess(row):.2f}", verdicts(row, {})]
        for row in rows
    ]  # fmt: skip
    return (
        f"{one['checkpoint_gb']:.1f} GB of float32 in shards of at most {one['shard_gb']:.2f} GB. "
        "Warm: the files are in the page cache; cold: they are not. Peak resident memory, mapped "
        "pages counted; beyond two shards: less imports and the model that is the result.\n\n"
        + _table(head, lines)
    )


def _place(row: Row) -> list[str]:
    return [row["width"], row["dtype"], str(row["frames"])]


def _times(row: Row) -> list[str]:
    taken = [f"{median(row, who):.3g} ({min(row['seconds'][who]):.3g})" for who in row["seconds"]]
    return [*taken, f"**{times_faster(row):.2f}** ({times_faster_at_best(row):.2f})"]


def _shares(row: Row, peaks: Peaks) -> list[str]:
    return [f"{share(row, peaks, who):.0%}" for who in row["seconds"]]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    every = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in every)
