"""Tables of docs/performance.md for the cases that are no row of ours beside diffusers'."""

from collections.abc import Sequence
from typing import Any

from benchmarks.goals import GIB, file_excess, file_time, memory_ratio, verdicts

Row = dict[str, Any]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    every = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in every)


def exact_table(rows: list[Row]) -> str:
    head = ["kernel", "dtype", "", "worst", "root mean square"]
    return (
        "Against float64 of the same numbers, in parts of the output's root mean square: 2048 "
        "tokens, heads of 128; cross-attention, whose few keys for a caption's padding are "
        "compared with all 472 of them, always takes torch's own kernel.\n\n"
    ) + table(head, [
        [row["mode"], row["dtype"], row["detail"], f"{row['worst']:.0e}", f"{row['rms']:.0e}"]
        for row in rows
    ])  # fmt: skip


def rounded_table(rows: list[Row]) -> str:
    head = ["size", "frames", "checkpointing", "error", "cosine"]
    return (
        "A LoRA's gradients under bfloat16 autocast against those in float32, of the same weights "
        "and inputs; error in parts of their norm. With `blocks_half` the inputs of blocks wait as "
        "bfloat16.\n\n"
    ) + table(head, [
        [row["width"], str(row["frames"]), row["detail"], f"{row['error']:.3%}",
         f"{row['cosine']:.6f}"]
        for row in rows
    ])  # fmt: skip


def profile_table(rows: list[Row]) -> str:
    kinds = list(rows[0]["parts"]["ours"])
    head = ["", "size", "dtype", "frames", "", *kinds, "s in all"]
    return (
        "Where the time of a forward pass and of a LoRA step whose blocks are kept goes, with a "
        "timestep per frame, as torch's profiler has it. Attention and matrix products are the "
        "same work on both sides, but for a caption's padding; what is left beside them is all "
        "that a better design can save.\n\n"
    ) + table(head, [
        [row["detail"], row["width"], row["dtype"], str(row["frames"]), who,
         *(f"{parts[kind] / sum(parts.values()):.0%}" for kind in kinds),
         f"{sum(parts.values()):.2f}"]
        for row in rows for who, parts in row["parts"].items()
    ])  # fmt: skip


def frontier_table(rows: list[Row]) -> str:
    fastest = {
        (row["width"], row["dtype"], row["frames"]): row["job_seconds"]
        for row in rows if (row["mode"], row["detail"]) == ("ours", "none")
    }  # fmt: skip
    head = ["size", "dtype", "frames", "", "checkpointing", "s", "of ours with none", "peak, MB"]
    lines = [
        [row["width"], row["dtype"], str(row["frames"]), row["mode"], row["detail"],
         f"{row['job_seconds']:.3g}",
         f"{row['job_seconds'] / fastest[row['width'], row['dtype'], row['frames']]:.2f}",
         f"{row['most_bytes'] / 1e6:.1f}"]
        for row in sorted(rows, key=lambda r: (r["width"], r["frames"], -r["most_bytes"]))
    ]  # fmt: skip
    return (
        "A LoRA step, eager, medians of rounds in turn. docs/training.md says what each policy "
        "keeps, `pusa plan` what it holds of a model of your size.\n\n" + table(head, lines)
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
        "activations at once, by the same ledger for both.\n\n" + table(head, lines)
    )


def vae_table(rows: list[Row]) -> str:
    head = ["job", "tiles", "pixel frames", "s", "peak, MB"]
    return table(head, [
        [row["detail"], "yes" if row["mode"] == "tiles" else "no", str(row["frames"]),
         f"{row['job_seconds']:.1f}", f"{row['mb']:.0f}"]
        for row in sorted(rows, key=lambda r: (r["mode"], r["detail"].split(": ")[1], r["frames"]))
    ])  # fmt: skip


def cache_table(rows: list[Row]) -> str:
    head = ["reader", "samples a second", "times the plain reader", "first batch, s"]
    return table(head, [
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
        + table(head, lines)
    )
