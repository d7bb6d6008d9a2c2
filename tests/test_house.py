"""The house around the package: dependencies, pins, paths, make targets and scripts agree."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_BYTES = 12 * 2**20
MACHINE_PATH = re.compile(rb"(?<![\w.}-])/(?:work|root|tmp|home)/[^\s\"'`)]*")
SCRIPTS = [
    ".ci/run",
    "slurm/train.sbatch",
    "slurm/evaluate.sbatch",
    "slurm/array.sbatch",
    "slurm/cache.sbatch",
    "slurm/generate.sbatch",
    "tests/slurm/cluster.sh",
]


def read(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def requirements() -> dict[str, Requirement]:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in read("constraints.txt").splitlines()]
    return {canonicalize_name(n): v for n, v in (line.split("==") for line in lines if line)}


def make_targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE))


def mentioned_targets(markdown: str) -> set[str]:
    """Targets of every `make ...` in the code blocks and code spans of a page."""
    fences = re.findall(r"^```[^\n]*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S))
    targets = set()
    for line in [line for block in fences for line in block.splitlines()] + spans:
        code = line.split("#")[0]
        for words in re.findall(r"(?:^|&&|;|\$)[ ]*make((?:[ ]+[\w=.-]+)+)", code):
            targets |= {w for w in words.split() if re.fullmatch(r"[a-z][\w-]*", w)}
    return targets


def tracked_files() -> list[Path]:
    """Files that git has or would take in; skips the test outside a checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_every_direct_dependency_is_pinned_and_nothing_else():
    assert requirements().keys() == pins().keys()


def test_every_pin_satisfies_its_range():
    pinned = pins()
    outside = [str(r) for n, r in requirements().items() if pinned[n] not in r.specifier]
    assert not outside


def test_pins_are_plain_so_that_every_platform_can_follow_them():
    assert not [v for v in pins().values() if not re.fullmatch(r"\d+(\.\d+)+", v)]


def test_lightning_excludes_the_malicious_releases():
    allowed = requirements()["lightning"].specifier
    assert pins()["lightning"] in allowed
    assert not [v for v in ("2.6.2", "2.6.3", "2.6.5") if v in allowed]


def test_torchvision_is_no_dependency():
    assert "torchvision" not in requirements()
    assert "torchvision" not in pins()


def test_no_tracked_file_names_a_path_of_one_machine():
    found = []
    for path in tracked_files():
        for hit in MACHINE_PATH.findall(path.read_bytes()):
            found.append(f"{path.relative_to(ROOT)}: {hit[:80].decode('utf-8', 'replace')}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["work", "root", "tmp", "home"])
def test_a_machine_path_would_be_found(folder: str):
    assert MACHINE_PATH.search(f'root: "/{folder}/main/data"'.encode())
    assert not MACHINE_PATH.search(f"see example.org/{folder}/x and ./{folder}/y".encode())


def test_no_tracked_file_is_too_large():
    large = [p for p in tracked_files() if p.stat().st_size > MAX_FILE_BYTES]
    assert not large, f"over {MAX_FILE_BYTES >> 20} MiB; let a recipe make them: {large}"


def test_the_pages_name_only_make_targets_that_exist():
    targets = make_targets(read("Makefile"))
    assert {"install", "demo", "test", "lint", "format", "reproduce", "base", "clean"} <= targets
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    missing = {p.name: mentioned_targets(p.read_text("utf-8")) - targets for p in pages}
    assert not any(missing.values()), missing
    assert mentioned_targets(read("README.md")), "the README names no make target"


def test_make_targets_are_found_in_code_and_not_in_prose():
    block = "```bash\n$ make demo JOBS=2  # make nothing\ncd a && make x-y\n```"
    page = f"We make sure.\n{block}\nThen `make z` makes sense."
    assert mentioned_targets(page) == {"demo", "x-y", "z"}
    assert make_targets(".PHONY: a\nb: c ## B\nD := 1\ne:=2\n") == {"b"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_bash(script: str):
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ci_can_be_executed():
    assert os.access(ROOT / ".ci/run", os.X_OK)
