"""HTML and SVG that cannot be forgotten to escape: text is text unless it was made by `tag`."""

import html

VOID = {"br", "img", "input", "link", "meta"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(element: str, *children: str | None, **attributes: str | float | bool | None) -> Markup:
    """An element. Children that are no Markup are escaped, None is nothing.

    An attribute's underscores are hyphens (`data_item`, `stroke_width`), one at the end is dropped
    (`class_`). True is an attribute without value, False and None are none at all.
    """
    words = [element]
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            shown = f"{value:.7g}" if isinstance(value, float) else str(value)
            words.append(f'{name}="{html.escape(shown)}"')
    opened = f"<{' '.join(words)}>"
    return Markup(opened if element in VOID else f"{opened}{join(*children)}</{element}>")


def join(*children: str | None) -> Markup:
    """Children side by side, escaped as `tag` does."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else html.escape(child)
            for child in children
            if child is not None
        )
    )
