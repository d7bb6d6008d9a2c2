"""The report of a comparison: table.md, table.json and report.html beside its videos.

The page is self-contained but for the videos, which it links to by relative path.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional

from pusa.atomic import write_text
from pusa.data import video
from pusa.evaluation import tables
from pusa.evaluation.compare import video_path
from pusa.evaluation.score import Row
from pusa.evaluation.stats import Contrast
from pusa.evaluation.suite import SUITE_NAME, SuiteItem
from pusa.evaluation.tables import Table
from pusa.metrics import registry

ZOOM, SHEET_ZOOM = 5, 4  # the clips are tiny
NUM_EXAMPLES = 12
STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5b6570; --page: #fbfbfa; --card: #fff;
  --line: #dfe3e6; --yes: #14713a; --no: #8a5200; --lost: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #9aa4ae; --page: #14171a;
  --card: #1c2024; --line: #32383e; --yes: #63c98a; --no: #e2aa55; --lost: #f0857d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 2rem 1.5rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p.lead, p.note { color: var(--soft); margin: .25rem 0 1rem; max-width: 60rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
ul.verdicts { list-style: none; margin: 0; padding: 0; }
ul.verdicts li { padding: .2rem 0 .2rem 3.6rem; text-indent: -3.6rem; }
.badge { display: inline-block; width: 3rem; margin-right: .6rem; text-indent: 0;
  font-weight: 650; }
.yes { color: var(--yes); } .no { color: var(--no); } .lost { color: var(--lost); }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th, td { padding: .45rem .6rem; text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; } tr:last-child td { border-bottom: 0; }
th { font-weight: 600; line-height: 1.25; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--card); }
td:first-child, tr.contender td { font-weight: 600; }
td i { display: block; font-style: normal; font-size: .92em; color: var(--soft);
  font-weight: 400; }
section.item { margin: 0 0 1.5rem; } section.item h3 { font-size: .95rem; font-weight: 500;
  margin: 0 0 .4rem; } h3 span { color: var(--soft); margin-right: .5rem; }
.row { display: flex; flex-wrap: wrap; gap: .75rem; }
figure { margin: 0; } figcaption { font-size: .8rem; color: var(--soft); }
video { display: block; image-rendering: pixelated; border-radius: 4px; background: var(--line); }
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{contender} against {baseline}</h1>
<p class="lead">{title}</p>
<dl>{facts}</dl>
<h2>Verdicts</h2>
<p class="note">Does {contender} beat {baseline} by more than both 95% intervals, so that they do
not even touch? The difference is {contender} minus {baseline}, paired by clip.</p>
<ul class="verdicts">{verdicts}</ul>
<h2>All systems</h2>
<p class="note">Mean ± half of the 95% interval (Student t over clips, seeds averaged first);
the arrow says which way is better. Every video is scored as decoded from its file. {coverage}</p>
{means}
{retention}
<h2>Examples</h2>
{examples}
</body>
</html>
"""


def write_report(
    folder: str | Path,
    rows: Sequence[Row],
    suite: Sequence[SuiteItem],
    facts: Mapping[str, str],
    contender: str = "VTA",
    baseline: str = "base",
    retention: Sequence[Contrast] = (),
) -> Path:
    """Write table.md, table.txt, table.json and report.html into a comparison's folder.

    rows: as compare() returned them. facts: what was run, by name, shown on top. retention:
    contrasts (contender first) measured elsewhere. Returns the path of report.html.
    """
    folder = Path(folder)
    table = tables.make_table(rows, facts, contender, baseline, retention)
    tables.write_markdown(folder / "table.md", table)
    tables.write_numbers(folder / "table.json", table)
    write_text(folder / "table.txt", tables.console(table))
    page = folder / "report.html"
    write_text(page, _page(folder, table, rows, suite))
    return page


def contact_sheet(
    videos: Mapping[str, Tensor], path: str | Path, frames: Sequence[int] = (0, 4, 8, 12, 16)
) -> None:
    """Write one PNG: a row per system in the order of `videos`, a column per frame number.

    videos: uint8 (T, 3, H, W) of one size. ValueError if one has too few frames.
    """
    border, rows = 2, []
    for system, clip in videos.items():
        if max(frames) >= len(clip):
            raise ValueError(
                f"contact sheet: {system!r} has {len(clip)} frames, frame {max(frames)} is wanted; "
                "ask for earlier frames."
            )
        zoomed = repeat(
            clip[list(frames)], "t c h w -> t c (h a) (w b)", a=SHEET_ZOOM, b=SHEET_ZOOM
        )
        rows.append(functional.pad(zoomed, (border,) * 4, value=255))
    video.write_image(path, rearrange(torch.stack(rows), "s t c h w -> c (s h) (t w)"))


def _page(folder: Path, table: Table, rows: Sequence[Row], suite: Sequence[SuiteItem]) -> str:
    escape = html.escape
    titles = [tables.heading(m, registry.lookup(m).better) for m in table.metrics]
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in table.facts.items())
    return PAGE.format(
        title=escape(SUITE_NAME),
        style=STYLE,
        contender=escape(table.contender),
        baseline=escape(table.baseline),
        facts=facts,
        verdicts=_verdicts(table),
        means=_html_table(["system", *titles], tables.mean_cells(table), table.contender),
        coverage=escape(_spaced(tables.coverage(table))),
        retention=_retention(table),
        examples=_examples(folder, rows, suite),
    )


def _verdicts(table: Table) -> str:
    items = []
    for item in table.contrasts:
        word = "yes" if item.first_beats else "no"
        look = "lost" if item.first_loses else word
        sentence = html.escape(_spaced(tables.verdict(table, item)))
        items.append(f'<li><span class="badge {look}">{word}</span>{sentence}</li>')
    return "\n".join(items)


def _retention(table: Table) -> str:
    if not table.retention:
        return ""
    note = (
        f"What {table.baseline} could do before, measured again on {table.contender}. A loss or a "
        "gain is stated only if the interval of the paired difference leaves out zero."
    )
    cells = _html_table(tables.retention_titles(table), tables.retention_cells(table), "")
    return f'<h2>Retention</h2>\n<p class="note">{html.escape(note)}</p>\n{cells}'


def _html_table(titles: Sequence[str], cells: Sequence[Sequence[str]], highlighted: str) -> str:
    head = "".join(f"<th>{html.escape(_spaced(title))}</th>" for title in titles)
    lines = []
    for first, *rest in cells:
        look = ' class="contender"' if first == highlighted else ""
        values = "".join(f"<td>{_dim_spread(html.escape(value))}</td>" for value in rest)
        lines.append(f"<tr{look}><td>{html.escape(_spaced(first))}</td>{values}</tr>")
    body = "\n".join(lines)
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def _dim_spread(cell: str) -> str:
    mean, plus_minus, spread = cell.partition(" ± ")
    return f"{mean}<i>± {spread}</i>" if plus_minus else mean


def _spaced(text: str) -> str:
    """Metric names as words, so that narrow columns can break them."""
    return text.replace("_", " ")


def _examples(folder: Path, rows: Sequence[Row], suite: Sequence[SuiteItem]) -> str:
    """The first items with every system's video of its first seed side by side."""
    seeds: dict[str, int] = {}
    for row in rows:
        seeds.setdefault(row.system, row.seed)
    sections = []
    for item in suite[:NUM_EXAMPLES]:
        figures = "\n".join(_figure(folder, s, seed, item) for s, seed in seeds.items())
        sections.append(
            f'<section class="item"><h3><span>{item.index}</span>{html.escape(item.caption)}</h3>\n'
            f'<div class="row">\n{figures}\n</div></section>'
        )
    return "\n".join(sections)


def _figure(folder: Path, system: str, seed: int, item: SuiteItem) -> str:
    source = quote(video_path(folder, system, seed, item.index).relative_to(folder).as_posix())
    width, height = item.scene.width * ZOOM, item.scene.height * ZOOM
    return (
        f'<figure><video autoplay loop muted playsinline width="{width}" height="{height}" '
        f'src="{source}"></video><figcaption>{html.escape(system)}</figcaption></figure>'
    )
