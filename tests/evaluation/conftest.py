"""A toy folder of four short clips, rendered once; and tiny benchmarks."""

from pathlib import Path

import pytest

from pusa.data import toy
from pusa.evaluation.suite import SuiteItem, toy_suite
from tests.evaluation.benchmarks_for_tests import Run, runner


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy.write_dataset(folder, [toy.make_scene(9, "heldout", i, num_frames=9) for i in range(4)])
    return folder


@pytest.fixture
def suite(toy_folder) -> list[SuiteItem]:
    return toy_suite(toy_folder, 4)


@pytest.fixture
def bench(root) -> Run:
    """Evaluates a tiny benchmark of the test's own."""
    return runner(root)
