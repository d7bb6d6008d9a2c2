"""A scratch root that sees the shipped replica, and configs composed as commands do."""

import functools
import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from pusa import cli

REPOSITORY = Path(__file__).parent.parent
REPLICA = REPOSITORY / "data" / "replica"
CHROMIUM = shutil.which("chromium")
CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


def compose_config(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def add_replica(folder: Path) -> Path:
    """Make a folder a root in which the tiny experiments run; returns it."""
    (folder / "data").mkdir()
    (folder / "data" / "replica").symlink_to(REPLICA)
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """PUSA_ROOT for a test: empty but for the replica's files."""
    add_replica(tmp_path)
    monkeypatch.setenv("PUSA_ROOT", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory) -> Path:
    """A root whose toy clips and latent cache are made once for all tests of a process."""
    folder = tmp_path_factory.mktemp("shared")
    return add_replica(folder)


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """A tiny benchmark that ran once. What runs it again has to leave it as it is."""
    from tests.evaluation.benchmarks_for_tests import finish

    return finish(add_replica(tmp_path_factory.mktemp("benchmark")))


def small_config(shared: Path, experiment: str, *overrides: str) -> DictConfig:
    """`experiment` with 16 training and 4 held-out clips of `shared`, 4 steps and no wandb."""
    if experiment != "tiny_vae":  # which holds nothing out
        overrides = ("data.heldout.toy.num_clips=4", *overrides)
    return compose_config(
        "train", f"experiment={experiment}", f"name={experiment}", "logger.wandb=off",
        "callbacks.track.curve=null",
        "data.num_clips=16", "batch_size=4",
        "trainer.max_steps=4",
        "trainer.val_check_interval=2", f"paths.toy={shared}/data/toy",
        f"paths.cache={shared}/data/cache", *overrides,
    )  # fmt: skip


@pytest.fixture
def small_run(root, shared_data) -> Callable[..., DictConfig]:
    """Compose an experiment, `small_config`, in a root of the test's own."""
    return functools.partial(small_config, shared_data)


def pytest_configure(config):
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items):
    """Files with slow tests first: the last file is done by one process, and the others wait."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish(session):
    """What imports and collection have made lives to the end: half a second less for each of the
    garbage collections that a training asks for."""
    gc.collect()
    gc.freeze()


def run_pusa(*arguments) -> int:
    """Exit code of `pusa` with these arguments, in this process."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs at `folder`; needs root, as in CI."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A folder on a file system of 300 kB."""
    yield from mounted(tmp_path / "small", "size=300k")


@pytest.fixture
def read_only_disk(tmp_path) -> Iterator[Path]:
    yield from mounted(tmp_path / "read_only", "ro,size=300k")


@pytest.fixture
def open_browser(tmp_path) -> Iterator[Callable]:
    """Makes a tab of the machine's own Chromium, by playwright's options of a context."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running, ExitStack() as stack:

        def make(**options):
            context = running.chromium.launch_persistent_context(
                tempfile.mkdtemp(prefix="profile", dir=tmp_path), executable_path=CHROMIUM,
                args=list(CHROMIUM_FLAGS), viewport={"width": 1500, "height": 1400}, **options,
            )  # fmt: skip
            stack.callback(context.close)
            tab = context.new_page()
            tab.set_default_timeout(60_000)
            return tab

        yield make


@pytest.fixture
def browser(open_browser):
    """A tab of the machine's own Chromium."""
    return open_browser()
