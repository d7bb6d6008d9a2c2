"""The items: input image, every system's videos side by side, sigma pictures, values."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pusa.evaluation.page.markup import Markup, join, tag
from pusa.evaluation.page.media import Clip, Embedded, heat_map, link
from pusa.evaluation.page.table import system_name
from pusa.evaluation.page.view import View, words
from pusa.evaluation.results import Column, Item, Shot, System


@dataclass(frozen=True)
class Show:
    """What sections are made of. column: whose values they show before another is chosen, None if
    there are none. folder: the page's own, which links start from."""

    view: View
    embedded: Embedded
    column: Column | None
    folder: Path


def sections(show: Show) -> Markup:
    """All items, worst first by the first column."""
    items = show.view.worst_first(show.column)
    return tag("div", *(_section(show, item) for item in items), id="items")


def plan_symbols(view: View) -> Markup:
    """Each system's sigma picture once; figures refer to it."""
    symbols = []
    for place, system in enumerate(view.result.systems):
        if system.plan is not None:
            steps, frames = system.plan.shape
            image = tag(
                "image", href=heat_map(system.plan), width=frames, height=steps,
                preserveAspectRatio="none", class_="pixels",
            )  # fmt: skip
            symbols.append(
                tag("symbol", image, id=f"plan-{place}", viewBox=f"0 0 {frames} {steps}",
                    preserveAspectRatio="none")
            )  # fmt: skip
    return tag("svg", *symbols, width=0, height=0, class_="symbols", aria_hidden="true")


def _section(show: Show, item: Item) -> Markup:
    view = show.view
    whole = item.index in show.embedded.images
    figures = [_figure(show, item, system, whole) for system in view.result.systems]
    given = _given(show, item) if whole else None
    play = tag(
        "button", "\N{BLACK RIGHT-POINTING TRIANGLE} play", type="button", class_="play",
        aria_pressed="false", aria_label=f"Play the videos of item {item.index}",
    )  # fmt: skip
    heading = tag(
        "h3", tag("a", f"#{item.index}", href=f"#item-{item.index}", class_="number"), " ",
        tag("span", item.text, class_="prompt"),
        tag("span", item.kind, class_="kind") if item.kind else None,
    )  # fmt: skip
    gap = tag("span", _gap(show, item), class_="gap")
    bar = tag("div", play if whole else None, gap, class_="bar")
    row = tag("div", given, *figures, class_="row")
    return tag(
        "section", heading, bar, row, id=f"item-{item.index}",
        class_="item" if whole else "item lean",
        data_item=view.positions[item.index],
    )  # fmt: skip


def _gap(show: Show, item: Item) -> str:
    """What the items are ordered by; page.js writes the same of another column."""
    view, column = show.view, show.column
    gap = None if column is None else view.gaps(column).get(item.index)
    if column is None or gap is None:
        return ""
    shown = view.number(gap, column.name, signed=view.rival is not None)
    who = view.subject.name
    who = f"{who} \N{MINUS SIGN} {view.rival.name}" if view.rival else who
    return f"{words(column.name)}, {who}: {shown}"


def _given(show: Show, item: Item) -> Markup:
    image = show.embedded.images[item.index]
    picture = (
        tag("img", src=image, alt=f"Input image of item {item.index}: {item.text}")
        if image
        else tag("p", "no image", class_="absent")
    )
    caption = tag("figcaption", "input image")
    return tag("figure", tag("div", picture, class_="stage"), caption, class_="given")


def _figure(show: Show, item: Item, system: System, whole: bool) -> Markup:
    view, place = show.view, show.view.place(system.name)
    shots = view.shots.get((item.index, system.name), ())
    caption = tag("figcaption", system_name(view, system), _value(show, item, system, shots[:1]))
    files = [_file(show, shot, len(shots)) for shot in shots]
    links = tag("p", *files, class_="files") if files else tag("p", "no video", class_="files")
    if not whole:
        return tag("figure", caption, links, class_="shot", data_system=place)
    clips = [(s, show.embedded.clips.get((s.system, s.index, s.sample))) for s in shots]
    here = [(shot, clip) for shot, clip in clips if clip is not None]
    videos = [_video(item, shot, clip, i > 0) for i, (shot, clip) in enumerate(here)]
    stage = tag("div", *(videos or [tag("p", "not embedded", class_="absent")]), class_="stage")
    return tag(
        "figure", stage, caption, _plan(system, place), links, class_="shot", data_system=place
    )


def _video(item: Item, shot: Shot, clip: Clip, hidden: bool) -> Markup:
    return tag(
        "video", src=clip.source, poster=clip.still, width=clip.width, height=clip.height,
        preload="none", loop=True, muted=True, playsinline=True, controls=True,
        data_sample=shot.sample, hidden=hidden,
        aria_label=f"{shot.system}, sample {shot.sample}, item {shot.index}: {item.text}",
    )  # fmt: skip


def _value(show: Show, item: Item, system: System, shots: Sequence[Shot]) -> Markup:
    """Of the sample that is seen first."""
    column, text = show.column, ""
    if column is not None and shots and column.name in shots[0].values:
        text = show.view.number(shots[0].values[column.name] * column.scale, column.name)
    return tag("span", text, class_="value")


def _plan(system: System, place: int) -> Markup:
    if system.plan is None:
        return tag("p", "no sampling", class_="plan none")
    steps, frames = system.plan.shape
    label = f"Sigmas of {system.name}: {steps} steps down, {frames} latent frames across"
    picture = tag("svg", tag("use", href=f"#plan-{place}"), role="img", aria_label=label)
    return tag("div", picture, tag("small", "steps down, latent frames across"), class_="plan")


def _file(show: Show, shot: Shot, count: int) -> Markup:
    """A link where the file is at hand, else its name alone."""
    text = f"sample {shot.sample}" if count > 1 else "file"
    address = link(shot.path, show.folder)
    if address is None:
        return join(tag("span", f"{text} (not here)", title=shot.path.name), " ")
    return join(tag("a", text, href=address, title=shot.path.name), " ")
