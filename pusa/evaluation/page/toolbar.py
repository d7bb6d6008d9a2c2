"""What can be chosen about the items: column, systems, order, filters. It needs the script."""

from collections.abc import Sequence

from pusa.evaluation.page.markup import Markup, tag
from pusa.evaluation.page.table import system_name
from pusa.evaluation.page.view import View

# By page.js. A gap is by how much the subject is better than its rival.
ORDERS = {
    "gap": "worst difference first",
    "-gap": "best difference first",
    "own": "worst of the system first",
    "-own": "best of the system first",
    "suite": "as in the suite",
}


def toolbar(view: View) -> Markup:
    """A form; page.css hides it where there is no script."""
    names = [(str(i), system.name) for i, system in enumerate(view.result.systems)]
    columns = [(str(i), column.name) for i, column in enumerate(view.scored)]
    kinds = sorted({item.kind for item in view.result.items if item.kind})
    samples = sorted({shot.sample for shot in view.result.shots})
    rival = "" if view.rival is None else str(view.place(view.rival.name))
    boxes = [
        tag("label", tag("input", type="checkbox", name="system", value=place, checked=True),
            system_name(view, system))
        for place, system in enumerate(view.result.systems)
    ]  # fmt: skip
    return tag(
        "form",
        _select("column", "column", columns),
        _select("subject", "system", names, str(view.place(view.subject.name))),
        _select("rival", "against", [("", "none"), *names], rival),
        _select("order", "order", list(ORDERS.items())),
        _select("kind", "kind", [("", "all"), *((kind, kind) for kind in kinds)]),
        _select("sample", "sample", [(str(s), str(s)) for s in samples]) if samples[1:] else None,
        tag("label", tag("span", "prompt contains"), tag("input", type="search", name="text")),
        tag("fieldset", tag("legend", "systems shown"), *boxes, class_="legend"),
        tag("label", tag("input", type="checkbox", name="embedded"), "only with videos here",
            class_="box"),
        tag("button", "\N{BLACK RIGHT-POINTING TRIANGLE} play all in view", type="button",
            id="play-all", aria_pressed="false"),
        tag("output", "", id="count"),
        id="tools", aria_label="Choose and filter items",
    )  # fmt: skip


def _select(
    name: str, label: str, options: Sequence[tuple[str, str]], chosen: str | None = None
) -> Markup:
    listed = [tag("option", text, value=v, selected=v == chosen) for v, text in options]
    return tag("label", tag("span", label), tag("select", *listed, name=name))
