"""A toy folder of four short clips, rendered once; and a benchmark that ran once."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from pusa.data import toy
from pusa.evaluation.suite import SuiteItem, toy_suite
from tests.conftest import add_replica
from tests.evaluation.benchmarks_for_tests import Run, runner


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy.write_dataset(folder, [toy.make_scene(9, "heldout", i, num_frames=9) for i in range(4)])
    return folder


@pytest.fixture
def suite(toy_folder) -> list[SuiteItem]:
    return toy_suite(toy_folder, 4)


@dataclass(frozen=True)
class Done:
    """A benchmark that ran: its output, its root, and what runs it again."""

    folder: Path
    root: Path
    again: Run


@pytest.fixture(scope="session")
def done(tmp_path_factory) -> Done:
    """Four photographs, two samples, base, VTA and all controls in four dimensions. Not to be
    changed: what runs it again has to leave it as it is."""
    root = add_replica(tmp_path_factory.mktemp("benchmark"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUSA_ROOT", str(root))
        run = runner(root)
        dimensions = "temporal_flickering,dynamic_degree,motion_smoothness,imaging_quality"

        def again(*overrides: str) -> Path:
            patched = pytest.MonkeyPatch()
            patched.setenv("PUSA_ROOT", str(root))
            try:
                return run(f"suite.dimensions=[{dimensions}]", *overrides)
            finally:
                patched.undo()

        return Done(again(), root, again)


@pytest.fixture
def bench(root) -> Run:
    """Evaluates a tiny benchmark of the test's own."""
    return runner(root)
