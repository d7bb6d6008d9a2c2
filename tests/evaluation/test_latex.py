"""The LaTeX table: escaped, balanced, and accepted by pdflatex where there is one."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pusa.evaluation.latex import escaped, latex
from pusa.evaluation.results import Result
from tests.evaluation.results_for_tests import (
    BASELINE,
    CONTENDER,
    OTHER,
    STILL,
    make_result,
    single,
)


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    return make_result(tmp_path_factory.mktemp("result"), 3)


def line_of(text: str, system: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(escaped(system)))


def test_every_special_letter_is_printed_as_it_is():
    assert escaped(r"50% & #1 $x_1^2$ {a}~\n ±") == (
        r"50\% \& \#1 \$x\_1\textasciicircum{}2\$ \{a\}\textasciitilde{}"
        r"\textbackslash{}n $\pm$"
    )


@pytest.mark.parametrize("make", [lambda r: r, single])
def test_rows_columns_and_braces_fit(result, make):
    text = latex(make(result))
    bare = re.sub(r"\\[{}]", "", text)
    depth = 0
    for letter in bare:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(result.systems)
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(result.columns)
    assert "\\begin{tabular}{l" + "r" * len(result.columns) + "}" in text
    assert escaped(result.title) in text


def test_what_is_best_is_bold_above_the_line_alone(result):
    text = latex(result)
    total = {name: line_of(text, name).split(" & ")[1] for name in (CONTENDER, BASELINE, OTHER)}
    assert [name for name, cell in total.items() if r"\textbf" in cell] == [CONTENDER]
    column = [c.name for c in result.columns].index("i2v_subject") + 1
    cells = dict(result.cells)
    cells[STILL, "i2v_subject"] = cells[CONTENDER, "i2v_subject"]  # a control that equals the best
    text = latex(replace(result, cells=cells))
    assert r"\textbf" in line_of(text, CONTENDER).split(" & ")[column]
    assert r"\textbf" not in line_of(text, STILL)
    error = [line_of(text, name).split(" & ")[-1] for name in (CONTENDER, BASELINE)]
    assert [r"\textbf" in cell for cell in error] == [True, False]  # lower is better


def test_infinite_intervals_and_missing_cells_are_shown(result):
    text = latex(single(result))
    assert r"$\pm \infty$" in text
    assert line_of(text, STILL).split(" & ")[1] == "--"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex here")
def test_pdflatex_takes_it(result, tmp_path: Path):
    (tmp_path / "a.tex").write_text(
        r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage{booktabs}"
        r"\newcommand{\a}{}\DeclareUnicodeCharacter{03B1}{a}\begin{document}"
        + latex(result) + r"\end{document}"
    )  # fmt: skip
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
