"""Videos under names that look alike: composed and decomposed letters, capitals and small ones."""

import unicodedata
from pathlib import Path

import pytest

from pusa.evaluation.presence import presence, require_complete
from pusa.evaluation.vbench_suite import Prompt, SuiteVideo

STEM = unicodedata.normalize("NFC", "\u00c9t\u00e9 \u00e0 la mer")
DECOMPOSED = unicodedata.normalize("NFD", STEM)
OTHERS = {
    "decomposed": DECOMPOSED, "in capitals": STEM.upper(), "in small letters": STEM.lower(),
    "both": DECOMPOSED.lower(),
}  # fmt: skip


def video_of(stem: str) -> SuiteVideo:
    return SuiteVideo(0, Prompt(stem, stem, "a.png", "", ("i2v_subject",)), 0)


def folder_of(folder: Path, *stems: str) -> Path:
    for stem in stems:
        (folder / f"{stem}-0.mp4").write_bytes(b"1")
    return folder


def test_a_composed_name_is_found(tmp_path: Path):
    assert require_complete(folder_of(tmp_path, STEM), [video_of(STEM)]).complete


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_name_that_looks_alike_is_another_file_and_named_as_such(tmp_path: Path, other: str):
    """macOS decomposes names when it copies; the video is not taken for the one that is asked."""
    folder = folder_of(tmp_path, other, "a cat")
    videos = [video_of(STEM), video_of("a cat")]
    found = presence(folder, videos)
    assert found.missing == (f"{STEM}-0.mp4",)
    assert found.unexpected == (f"{other}-0.mp4",)
    assert found.clashing == tuple(sorted([f"{STEM}-0.mp4", f"{other}-0.mp4"]))
    with pytest.raises(ValueError, match=r"1 missing .*; 1 unexpected .*; 2 spelt in more than"):
        require_complete(folder, videos)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_two_that_look_alike_are_refused_though_nothing_is_missing(tmp_path: Path, other: str):
    folder = folder_of(tmp_path, STEM, other)
    with pytest.raises(ValueError, match=r"1 unexpected .*; 2 spelt in more than one way"):
        require_complete(folder, [video_of(STEM)])
    with pytest.raises(ValueError, match="of 2 videos, 2 spelt in more than one way"):
        require_complete(folder, [video_of(STEM), video_of(other)])
