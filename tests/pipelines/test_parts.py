"""Shares of a work: by flag, or by the task of a SLURM array job."""

import pytest

from pusa.pipelines.parts import Part, read_part


@pytest.fixture
def task(monkeypatch):
    """Be a task of a SLURM array job."""

    def set_variables(**values: int):
        for name, value in values.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))

    return set_variables


def test_the_parts_are_the_whole():
    parts = [Part(i, 3).of(range(8)) for i in range(3)]
    assert sorted(n for part in parts for n in part) == list(range(8))


def test_all_unless_told_otherwise_even_inside_an_array(task):
    task(ID=1, MIN=0, MAX=1, STEP=1, COUNT=2)
    assert read_part(None) == Part(0, 1)
    assert read_part("3/8") == Part(3, 8)


@pytest.mark.parametrize(
    ("first", "last", "step", "ids"),
    [(0, 3, 1, (0, 1, 2, 3)), (3, 4, 1, (3, 4)), (0, 14, 7, (0, 7, 14)), (5, 5, 1, (5,))],
)
def test_tasks_of_an_array_are_counted_from_its_first(task, first, last, step, ids):
    parts = []
    for one in ids:
        task(ID=one, MIN=first, MAX=last, STEP=step, COUNT=len(ids))
        parts.append(read_part("array"))
    assert parts == [Part(i, len(ids)) for i in range(len(ids))]


def test_an_array_with_gaps_is_refused(task):
    task(ID=5, MIN=2, MAX=5, STEP=1, COUNT=2)  # --array=2,5
    with pytest.raises(ValueError, match=r"2 tasks, 2 to 5, have gaps; use --array=0-1"):
        read_part("array")


def test_what_is_no_part_is_said(monkeypatch):
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    with pytest.raises(ValueError, match="no task of a SLURM array job"):
        read_part("array")
    for text in ("3", "a/b", "1/2/3"):
        with pytest.raises(ValueError, match="is not I/N, as 0/4"):
            read_part(text)
    with pytest.raises(ValueError, match="part 4/4 is none"):
        read_part("4/4")
