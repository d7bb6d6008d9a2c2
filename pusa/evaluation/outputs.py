"""A result's files: text, Markdown, JSON, CSV, LaTeX, the page. Their names say what it is."""

import logging
from pathlib import Path

from pusa.atomic import write_json, write_text
from pusa.evaluation import numbers, tables
from pusa.evaluation.latex import latex
from pusa.evaluation.page.page import write_page
from pusa.evaluation.results import Result

log = logging.getLogger(__name__)


def write_outputs(folder: str | Path, result: Result) -> Path:
    """Write STEM.txt, .md, .json, .csv, .tex, .html and STEM_videos.csv; returns the page."""
    folder = Path(folder)

    def file(ending: str) -> Path:
        return folder / f"{result.stem}{ending}"

    text = tables.console(result)
    write_text(file(".txt"), text)
    write_text(file(".md"), tables.markdown(result))
    write_json(file(".json"), numbers.numbers(result))
    write_text(file(".csv"), numbers.system_csv(result))
    write_text(file("_videos.csv"), numbers.video_csv(result))
    write_text(file(".tex"), latex(result))
    write_page(file(".html"), result)
    log.info("%s", text)
    return file(".html")
