"""The page's own files that are no Python: style and script, beside this one."""

from importlib.resources import files


def read_text(name: str) -> str:
    return (files("pusa.demo") / name).read_text("utf-8")
