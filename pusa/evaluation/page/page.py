"""The report of an evaluation: one HTML file that asks for nothing, with videos inside.

What needs no script is drawn here and by its neighbours; page.js sorts, filters and plays.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path

from pusa.atomic import size_text, write_text
from pusa.evaluation.manifest import Manifest
from pusa.evaluation.page import contrasts, dots, radar, toolbar
from pusa.evaluation.page.examples import Show, plan_symbols, sections
from pusa.evaluation.page.markup import Markup, join, tag
from pusa.evaluation.page.media import Embedded, choose, embed
from pusa.evaluation.page.table import system_name, table
from pusa.evaluation.page.view import View, make_view, words
from pusa.evaluation.results import Result

# What a browser is forbidden: everything from elsewhere.
POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)


def write_page(path: Path, result: Result, max_examples: int = 24, budget: float = 32e6) -> None:
    """Write the page, whole or not at all.

    max_examples: items whose videos are embedded, the worst of several columns among them; the
    others are listed with links to the files. budget: bytes of embedded images and videos.
    ValueError for a result without systems or columns, VideoError for a damaged video.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(result, path.parent, max_examples, budget))


def page(result: Result, folder: Path, max_examples: int, budget: float) -> str:
    """The page's text; `folder` is where its links start from."""
    view = make_view(result)
    column = view.scored[0] if view.scored else None
    show = Show(view, embed(view, choose(view, max_examples), budget), column, folder)
    parts = {
        "results": ("Results", table(view)),
        "comparisons": ("Comparisons", contrasts.comparisons(view)),
        "retention": ("Retention", contrasts.retention(view) if result.retention else None),
        "radar": ("Dimensions at a glance", radar.radar(view)),
        "prompts": ("Item by item", _items(show) if result.items else None),
        "setup": ("How it was run", _setup(view)),
    }
    shown = {name: part for name, part in parts.items() if part[1]}
    links = [tag("a", title, href=f"#{name}") for name, (title, _) in shown.items()]
    blocks = [
        tag("section", tag("h2", title), content, id=name)
        for name, (title, content) in shown.items()
    ]
    body = tag(
        "body",
        tag("a", "Skip to the results", href="#results", class_="skip"),
        plan_symbols(view),
        _header(view),
        tag("nav", *links, aria_label="Parts of the page"),
        tag("main", *blocks),
        tag("div", id="tip", role="status", hidden=True),
        tag("script", _json(_data(view, show.embedded)), type="application/json", id="data"),
        tag("script", Markup(_file("page.js"))),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", result.title),
        tag("style", Markup(_file("page.css") + radar.style(view))),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, "\n", body, lang="en") + "\n"


def _header(view: View) -> Markup:
    result = view.result
    facts = [join(tag("dt", name), tag("dd", value)) for name, value in result.facts.items()]
    warnings = [tag("p", text) for text in result.warnings]
    return tag(
        "header",
        tag("h1", result.title),
        contrasts.headline(view),
        tag("div", *warnings, class_="warnings", role="note") if warnings else None,
        tag("dl", *facts) if facts else None,
    )


def _items(show: Show) -> Markup:
    count, embedded = len(show.view.result.items), len(show.embedded.images)
    note = (
        f"{embedded} of {count} items have their videos on this page "
        f"({size_text(show.embedded.size)}, re-encoded small; every score is of the original "
        "file). Stills are last frames. Point at an item to play its videos in step. Sigma "
        "pictures: every sampling step is a row, every latent frame a column; "
    )
    key = tag("span", "clean ", tag("i", class_="ramp"), " noise", class_="key")
    return join(
        toolbar.toolbar(show.view),
        dots.plots(show.view, show.column) if show.column else None,
        tag("p", note, key, class_="note"),
        sections(show),
    )  # fmt: skip


def _setup(view: View) -> Markup:
    blocks = []
    for system in view.result.systems:
        name = tag("summary", system_name(view, system), f" ({system.role})")
        about = tag("p", system.about or "no description")
        content = _manifest(system.manifest) if system.manifest else None
        blocks.append(tag("details", name, about, content, class_="run"))
    return join(*blocks)


def _manifest(manifest: Manifest) -> Markup:
    lines = []
    for name, value in asdict(manifest).items():
        lines += [tag("dt", words(name)), tag("dd", _plain(value))]
    return tag("dl", *lines)


def _plain(value: object) -> str:
    """A record's fields in a line, records of a list or by name below one another."""
    if isinstance(value, Mapping):
        parts = [join(f"{name}: ", _plain(inner)) for name, inner in value.items() if inner != ""]
        apart = any(isinstance(inner, Mapping) for inner in value.values())
        return join(*(tag("div", part) for part in parts)) if apart else Markup("; ".join(parts))
    if isinstance(value, (list, tuple)):
        return Markup(", ".join(join(_plain(inner)) for inner in value)) or "none"
    return str(value)


def _data(view: View, embedded: Embedded) -> dict:
    """What the script knows: means of every item, and values of every embedded sample."""
    result, columns = view.result, view.scored

    def means(system: str, column: str) -> list[float | None]:
        found = view.values.get((system, column), {})
        digits = view.digits[column] + 2
        return [
            round(found[item.index], digits) if item.index in found else None
            for item in result.items
        ]

    shots: dict[int, dict[int, dict[int, list[float | None]]]] = {}
    for shot in result.shots:
        if shot.index in embedded.images:
            values = [_finite(shot.values.get(c.name), c.scale) for c in columns]
            systems = shots.setdefault(shot.index, {})
            systems.setdefault(view.place(shot.system), {})[shot.sample] = values
    return {
        "columns": [
            {"name": words(c.name), "better": c.better, "digits": view.digits[c.name]}
            for c in columns
        ],
        "systems": [system.name for system in result.systems],
        "items": [[item.index, item.text, item.kind] for item in result.items],
        "means": [[means(s.name, c.name) for c in columns] for s in result.systems],
        "shots": shots,
        "frame": dots.FRAME,
    }


def _finite(value: float | None, scale: float) -> float | None:
    """JSON has no NaN."""
    return value * scale if value is not None and abs(value) < float("inf") else None


def _json(value: dict) -> Markup:
    """Without "<", so that no text in it ends or opens a script."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c"))


def _file(name: str) -> str:
    return resources.files("pusa.evaluation.page").joinpath(name).read_text("utf-8")
