"""A schedule drawn: for the terminal, as a page, as a picture."""

import html
import math
from pathlib import Path

from PIL import Image, ImageDraw

from pusa.atomic import replacing, write_text
from pusa.pipelines.schedule import Schedule

BARS = "·▁▂▃▄▅▆▇█"  # from clean to noise
# From clean to noise; between them colours are mixed. Dark to light, so that it reads in grey, too.
COLOURS = ((38, 20, 72), (52, 94, 141), (33, 145, 140), (122, 209, 81), (253, 231, 37))
CELL_WIDTH, CELL_HEIGHT = 46, 18  # pixels of the picture


def as_text(schedule: Schedule, width: int = 120, coloured: bool = False) -> str:
    """A table with a row for each call. Its columns are groups of latent frames that go together, a
    bar and the model's timestep in each; where that is wider than `width`, all frames, bars alone.
    coloured: with the terminal's colours."""
    margin = _margin(schedule)
    frames = _numbers(schedule, coloured)
    if len(margin[0]) + 2 + len(frames[0]) > width:
        frames = _bars(schedule, coloured)
    table = [f"{left}  {right}".rstrip() for left, right in zip(margin, frames, strict=True)]
    return "\n".join([schedule.title, *conditions(schedule), "", *table, "", _rule(schedule)])


def conditions(schedule: Schedule) -> list[str]:
    """What is given, a line each."""
    return [
        f"given: latent frame {frame} (pixel frames "
        f"{_span(schedule.pixel_frames(range(frame, frame + 1)))}), noise multiplier {multiplier:g}"
        for frame, multiplier in schedule.given.items()
    ]


def write_report(schedule: Schedule, path: str | Path) -> None:
    """A .html page or a .png picture; ValueError for another name."""
    path = Path(path)
    if path.suffix == ".html":
        write_text(path, as_page(schedule))
    elif path.suffix == ".png":
        with replacing(path) as partial:
            as_picture(schedule).save(partial)
    else:
        raise ValueError(f"{path}: a schedule is drawn as .png or .html.")


def as_page(schedule: Schedule) -> str:
    """A page of its own, no file beside it: the table of all latent frames in colours."""
    heads = [["call", "t", _expert_head(schedule)], *_labels(schedule)]
    latent = "".join(f"<th>{label}</th>" for label in heads[1])
    pixel = "".join(f"<th>{label}</th>" for label in heads[2])
    names = "".join(f"<th>{name}</th>" for name in heads[0])
    rows = "\n".join(
        f"<tr><th>{i + 1}</th><th>{timestep(call.step)}</th><th>{call.expert}</th>"
        + "".join(_page_cell(level) for level in call.levels)
        + "</tr>"
        for i, call in enumerate(schedule.calls)
    )
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in conditions(schedule))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(schedule.title)}</title>
<style>
body {{ font: 14px system-ui, sans-serif; }} table {{ border-collapse: collapse; }}
td, th {{ padding: 2px 6px; text-align: right; font-weight: normal; }}
</style>
<h1 style="font-size: 18px">{html.escape(schedule.title)}</h1>{lines}
<p>The model's timestep of every latent frame, 0 clean to 1000 noise. {_rule(schedule)}</p>
<table>
<tr><th colspan="3">latent frame</th>{latent}</tr>
<tr><th colspan="3">pixel frames</th>{pixel}</tr>
<tr>{names}</tr>
{rows}
</table></html>
"""


def as_picture(schedule: Schedule) -> Image.Image:
    """The same table as a picture."""
    latent, pixel = _labels(schedule)
    table = [["", "", "latent", *latent], ["", "", "pixel", *pixel]]
    table += [["call", "t", _expert_head(schedule), *([""] * len(latent))]]
    table += [
        [str(i + 1), timestep(call.step), call.expert, *map(timestep, call.levels)]
        for i, call in enumerate(schedule.calls)
    ]
    notes = [schedule.title, *conditions(schedule), _rule(schedule)]
    width = max(len(table[0]) * CELL_WIDTH, 7 * max(map(len, notes))) + 10
    picture = Image.new("RGB", (width, (len(table) + len(notes) + 1) * CELL_HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    for i, note in enumerate(notes):
        draw.text((5, i * CELL_HEIGHT + 3), note, fill="black")
    for i, cells in enumerate(table):
        y = (i + len(notes)) * CELL_HEIGHT + CELL_HEIGHT // 2
        levels = (None,) * 3 + (schedule.calls[i - 3].levels if i > 2 else (None,) * len(latent))
        for j, (cell, level) in enumerate(zip(cells, levels, strict=True)):
            x, ink = j * CELL_WIDTH, "black"
            if level is not None:
                ink = "white" if level < 0.6 else "black"
                draw.rectangle((x, y, x + CELL_WIDTH - 1, y + CELL_HEIGHT - 1), colour(level))
            draw.text((x + CELL_WIDTH - 4, y + 3), cell, fill=ink, anchor="ra")
    return picture


def colour(level: float) -> tuple[int, int, int]:
    """Red, green, blue of a noise level."""
    place = level * (len(COLOURS) - 1)
    below = min(int(place), len(COLOURS) - 2)
    share = place - below
    red, green, blue = (
        round(a + share * (b - a))
        for a, b in zip(COLOURS[below], COLOURS[below + 1], strict=True)
    )  # fmt: skip
    return red, green, blue


def timestep(sigma: float) -> str:
    """A sigma as the model's timestep, 0 to 1000, to one decimal."""
    return f"{1000 * sigma:.1f}".removesuffix(".0")


def _margin(schedule: Schedule) -> list[str]:
    """The left part of the text, line by line: three of heads, one for each call."""
    columns = [["call", *(str(i + 1) for i in range(len(schedule.calls)))],
               ["t", *(timestep(call.step) for call in schedule.calls)]]  # fmt: skip
    if _expert_head(schedule):
        columns.append(["expert", *(call.expert for call in schedule.calls)])
    sizes = [max(map(len, column)) for column in columns]
    lines = ["  ".join(cell.rjust(size) for cell, size in zip(row, sizes, strict=True))
             for row in zip(*columns, strict=True)]  # fmt: skip
    width = max(len(lines[0]), len("latent"))
    return [line.rjust(width) for line in ("latent", "pixel", *lines)]


def _numbers(schedule: Schedule, coloured: bool) -> list[str]:
    groups = schedule.groups()
    heads = [[_span(g) for g in groups], [_span(schedule.pixel_frames(g)) for g in groups]]
    cell = max(7, *(len(label) for head in heads for label in head))
    lines = [" ".join(label.rjust(cell) for label in head) for head in heads]
    rows = [
        " ".join(
            _painted(f"{_bar(level)}{timestep(level):>6}".rjust(cell), level, coloured)
            for level in (call.levels[group[0]] for group in groups)
        )
        for call in schedule.calls
    ]
    return [*lines, "", *rows]


def _bars(schedule: Schedule, coloured: bool) -> list[str]:
    every = range(0, len(schedule.calls[0].levels), 5)
    pixel = [str(schedule.pixel_frames(range(f, f + 1))[0]) for f in every]
    lines = ["".join(str(f).ljust(5) for f in every), "".join(p.ljust(5) for p in pixel)]
    rows = ["".join(_painted(_bar(level), level, coloured) for level in call.levels)
            for call in schedule.calls]  # fmt: skip
    return [*lines, "", *rows]


def _labels(schedule: Schedule) -> tuple[list[str], list[str]]:
    """Of every latent frame: itself, and its pixel frames."""
    frames = range(len(schedule.calls[0].levels))
    return [str(f) for f in frames], [_span(schedule.pixel_frames(range(f, f + 1))) for f in frames]


def _expert_head(schedule: Schedule) -> str:
    return "expert" if any(call.expert for call in schedule.calls) else ""


def _rule(schedule: Schedule) -> str:
    n = schedule.spec.temporal_stride
    return f"Latent frame 0 is pixel frame 0, latent frame k is {n}k-{n - 1}..{n}k."


def _page_cell(level: float) -> str:
    ink = "#fff" if level < 0.6 else "#000"
    background = "#{:02x}{:02x}{:02x}".format(*colour(level))
    return f'<td style="background:{background};color:{ink}">{timestep(level)}</td>'


def _painted(text: str, level: float, coloured: bool) -> str:
    if not coloured:
        return text
    ink = "97" if level < 0.6 else "30"
    red, green, blue = colour(level)
    return f"\x1b[{ink};48;2;{red};{green};{blue}m{text}\x1b[0m"


def _bar(level: float) -> str:
    return BARS[math.ceil(level * (len(BARS) - 1))]


def _span(frames: range) -> str:
    return f"{frames[0]}" if len(frames) == 1 else f"{frames[0]}..{frames[-1]}"
