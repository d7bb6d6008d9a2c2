"""The page of all studies, docs/replica.md: every number in it comes from the studies' tables."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pusa.atomic import write_text
from pusa.evaluation.claims import ALPHA, CLAIMS, QUESTIONS, Finding, Tables, judge
from pusa.evaluation.crossed import Estimate, estimate
from pusa.evaluation.study_measure import UNTRAINED
from pusa.evaluation.study_pages import SECTIONS, Panel, Section
from pusa.evaluation.study_plots import write_plot
from pusa.evaluation.study_table import NotMeasured, Point, Table

HEAD = """# The paper in miniature

What Pusa's paper finds, tried on the tiny replica ([what that is](replica_base.md)): several
trainings a variant, with intervals that hold for new trainings and new clips. A stand-in: its
numbers say how this method behaves on small moving pictures, not how Wan does, and none of them
is a VBench number. Everything below is written by the commands that stand beside it; `make
reproduce` runs them all.

**How it is measured.** {seeds} trainings of each variant, alike in all but their seed (order of
the data, noise, start of the LoRA); {clips} held-out clips that no training saw, with the same
noise for every variant. Fidelity is the PSNR of the pixels that the first frame and the caption
determine, over all later frames (`psnr_continuation`); of other tasks, that of the frames that
are not given (`psnr_free`). ± is half of a 95% interval in which seeds and clips are both random
(`pusa/evaluation/crossed.py`). Claims were written down as contrasts
(`pusa/evaluation/claims.py`) before the studies were run; one training had been looked at, and
the comparisons of methods were moved to the best strength, as the paper's are, when those at
strength 1 had been seen. A claimed difference is *reproduced* if it has the claimed sign at p <
{alpha}, Holm-corrected for all of its table; *not reproduced* if it has the other sign, likewise,
or if its whole interval is too small to be of note; *undecided* if {seeds} trainings cannot tell.
That there is no difference of note is judged by the interval alone. A best strength is chosen on
other seeds and clips than it is judged with.
"""


def write_report(tables: str | Path, page: str | Path) -> Path:
    """Write the page, and its plots to images/ beside it, of the tables that are there."""
    page = Path(page)
    found = _read(Path(tables))
    first = next(iter(found.values()), None)
    if first is None:
        raise ValueError(
            f"{tables}: holds no table of a study; run one: python train.py -m "
            "experiment=replica/strategies"
        )
    trained = {row["seed"] for row in first.rows if row["variant"] not in UNTRAINED}
    clips = {row["clip"] for row in first.rows}
    parts = [HEAD.format(seeds=len(trained), clips=len(clips), alpha=ALPHA)]
    parts.append(_findings("What the paper finds", judge(CLAIMS, found)))
    parts.append(_findings("What it leaves open", judge(QUESTIONS, found)))
    parts += [_section(section, found, page.parent / "images") for section in SECTIONS]
    write_text(page, "\n".join(parts))
    return page


def _read(folder: Path) -> dict[str, Table]:
    tables = {}
    for section in SECTIONS:
        path = folder / f"{section.study}.csv"
        if path.is_file():
            tables[section.study] = Table.read(path)
    return tables


def _findings(title: str, findings: Sequence[Finding]) -> str:
    lines = [
        f"## {title}", "",
        "| claim | source | verdict | difference, 95% interval | p, of all | study |",
        "|---|---|---|---|---:|---|",
    ]  # fmt: skip
    for one in findings:
        claim, found = one.claim, one.estimate
        if found is None:
            interval, p = one.why, ""
        else:
            interval = f"{found.mean:+.3g} ({found.low:+.3g} to {found.high:+.3g}) {claim.unit}"
            p = "" if one.p_value is None else f"{one.p_value:.3f}"
            p = "< 0.001" if p == "0.000" else p
        verdict = (
            f"**{one.verdict}**" if one.verdict in ("reproduced", "not reproduced") else one.verdict
        )
        lines.append(
            f"| {claim.text} | {claim.source} | {verdict} | {interval} | {p} | "
            f"[{claim.study}](#{claim.study}) |"
        )
    return "\n".join([*lines, ""])


def _section(section: Section, tables: Tables, images: Path) -> str:
    lines = [f"## {section.study}", "", section.words, "", "```bash"]
    lines += [
        f"python train.py -m experiment=replica/{section.study}   # trains, measures, writes this"
    ]
    lines += ["```", ""]
    table = tables.get(section.study)
    if table is None:
        return "\n".join([*lines, "Not measured yet.", ""])
    for number, panel in enumerate(section.panels, 1):
        try:
            lines += _panel(panel, table)
        except NotMeasured as error:
            lines += [f"{panel.title}: {error}.", ""]
            continue
        if panel.plot:
            path = images / f"replica_{section.study}_{number}.png"
            write_plot(path, panel, curves(panel, table))
            lines += [f"![{panel.title}](images/{path.name})", ""]
    picture = images / f"replica_{section.study}.png"
    if picture.is_file():
        lines += [f"![{section.picture}](images/{picture.name})", "", section.picture, ""]
    return "\n".join(lines)


def curves(panel: Panel, table: Table) -> dict[str, dict[str, Estimate]]:
    """Row -> column -> mean with its interval, of what is measured.

    A row without the columns' setting, as the base has no strength, has one entry, under "".
    """
    found: dict[str, dict[str, Estimate]] = {}
    for row, where in panel.row_points(table):
        for column, point in panel.column_points(table, where):
            values = _values(table, point)
            if values is not None:
                found.setdefault(row, {})[column] = estimate(values)
    if not found:
        raise NotMeasured("not measured")
    return found


def _values(table: Table, point: Point) -> Tensor | None:
    try:
        values = table.values(point)
    except NotMeasured:
        return None
    return values if bool(torch.isfinite(values).all(0).any()) else None


def _panel(panel: Panel, table: Table) -> list[str]:
    cells = curves(panel, table)
    columns = list(dict.fromkeys(name for row in cells.values() for name in row if name))
    lines = [f"**{panel.title}**", "", f"| {panel.corner} | {' | '.join(columns)} |"]
    lines.append("|---|" + "---:|" * len(columns))
    for row, entries in cells.items():
        alone = entries.get("")
        texts = [_cell(entries.get(column)) for column in columns]
        if alone is not None:
            texts = [_cell(alone)] + ["〃"] * (len(columns) - 1)
        lines.append(f"| {row} | {' | '.join(texts)} |")
    return [*lines, ""]


def _cell(found: Estimate | None) -> str:
    if found is None:
        return ""
    digits = 2 if abs(found.mean) >= 3 else 3
    return f"{found.mean:.{digits}f} ± {found.half_width:.{digits}f}"
