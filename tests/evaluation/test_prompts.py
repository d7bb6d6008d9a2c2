"""Sources of prompts: the public list, a folder of one's own, the photos that ship, and subsets."""

import importlib.util
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from pusa.data.video import read_fitted, read_frames
from pusa.evaluation import photos as photos_module
from pusa.evaluation.photos import Photo, photo_prompts, photos
from pusa.evaluation.prompts import Folder, Photos, PromptSource, Public, Subset, subset
from pusa.evaluation.vbench_suite import (
    CAMERA_MOVES,
    PromptSuite,
    is_public,
    kind_of,
    public_suite,
    read_info,
)
from tests.evaluation.info_for_tests import entries, write_info

WIDTH, HEIGHT = 52, 30


@pytest.fixture
def public(tmp_path: Path) -> Public:
    for ratio, size in {"16-9": (32, 18), "26-15": (52, 30)}.items():
        (tmp_path / "crop" / ratio).mkdir(parents=True)
        for name in ("dunes.jpg", "goat.jpg"):
            Image.new("RGB", size).save(tmp_path / "crop" / ratio / name)
    return Public(str(write_info(tmp_path, entries())), str(tmp_path / "crop"))


def picture_folder(folder: Path, **sizes: tuple[int, int]) -> Folder:
    folder.mkdir()
    for stem, size in sizes.items():
        Image.linear_gradient("L").resize(size).save(folder / f"{stem}.jpg")
        (folder / f"{stem}.txt").write_text(f"a {stem}")
    return Folder(str(folder))


def test_the_public_list_takes_the_ratio_of_the_size_and_no_other(public: Public, tmp_path: Path):
    suite = public.read(WIDTH, HEIGHT, 3, tmp_path / "images")
    assert suite.images == tmp_path / "crop" / "26-15"
    assert len(suite.videos()) == 12
    assert not (tmp_path / "images").exists()
    with pytest.raises(ValueError, match=r"crop has 16-9, 26-15, and none .*--target_ratio 7-4 "):
        public.read(7, 4, 5, tmp_path)
    with pytest.raises(ValueError, match=r"ratio 20-11: .* or ratio=16-9, of which the model"):
        public.read(1280, 704, 5, tmp_path)
    wide = Public(public.info, public.crop, "16-9")
    assert wide.read(1280, 704, 5, tmp_path).images == tmp_path / "crop" / "16-9"


def test_a_folders_images_are_cut_as_the_model_sees_them(tmp_path: Path):
    source = picture_folder(tmp_path / "zoo", seal=(200, 90), moose=(20, 20))
    suite = source.read(WIDTH, HEIGHT, 2, tmp_path / "images")
    assert (suite.name, suite.num_samples) == ("zoo", 2)
    assert [p.image_name for p in suite.prompts] == ["moose.png", "seal.png"]
    moose, seal = (suite.image(prompt) for prompt in suite.prompts)
    assert seal == tmp_path / "images" / "seal.png"
    assert torch.equal(
        read_frames(seal)[0], read_fitted(tmp_path / "zoo" / "seal.jpg", [0], HEIGHT, WIDTH)
    )
    assert tuple(read_frames(moose)[0].shape[2:]) == (12, 20)


def test_a_folders_own_images_are_never_overwritten(tmp_path: Path):
    source = picture_folder(tmp_path / "zoo", seal=(8, 8))
    with pytest.raises(ValueError, match="your images would be overwritten"):
        source.read(4, 4, 1, tmp_path / "zoo" / ".." / "zoo")
    assert sorted(path.name for path in (tmp_path / "zoo").iterdir()) == ["seal.jpg", "seal.txt"]
    (tmp_path / "zoo" / "seal.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"seal\.jpg"):
        source.read(4, 4, 1, tmp_path / "images")


def test_fitted_names_have_one_form_of_unicode(tmp_path: Path):
    apart, whole = "cafe\u0301", "caf\u00e9"
    suite = picture_folder(tmp_path / "s", **{apart: (8, 8)}).read(4, 4, 1, tmp_path / "images")
    assert [p.name for p in (tmp_path / "images").iterdir()] == [f"{whole}.png"]
    assert [video.name for video in suite.videos()] == [f"{whole}-0.mp4"]


def test_the_photos_are_a_suite_of_vbenchs_kinds_and_not_vbench(tmp_path: Path):
    suite = Photos().read(WIDTH, HEIGHT, 1, tmp_path)
    assert suite.name == "photos (of pusa)"
    assert not is_public(suite.prompts)
    kinds = Counter(kind_of(prompt) for prompt in suite.prompts)
    assert kinds == {"subject": 6, "background": 6, "camera": 42}
    asked = {
        (prompt.image_name, move)
        for prompt in suite.prompts
        for move in CAMERA_MOVES
        if prompt.text.endswith(f", {move}")
    }
    assert len(asked) == 42
    assert len({prompt.stem for prompt in suite.prompts}) == 54
    for prompt in suite.prompts:
        height, width = read_frames(suite.image(prompt))[0].shape[2:]
        assert (width, height) == (WIDTH, HEIGHT)  # all are larger than that


@pytest.mark.parametrize("count", [3, 6, 18])
def test_any_beginning_of_the_photos_has_all_kinds(tmp_path: Path, count: int):
    suite = Photos(count).read(8, 8, 1, tmp_path)
    assert suite.name == f"photos (of pusa), first {count} of 54"
    assert len(suite.prompts) == count
    kinds = Counter(kind_of(prompt) for prompt in suite.prompts)
    assert set(kinds.values()) == {count // 3}
    assert {path.name for path in tmp_path.iterdir()} == {p.image_name for p in suite.prompts}


def test_every_photo_has_its_credit_and_licence_and_is_installed():
    kinds = {"subject": {"single-human", "animal", "food", "plant", "transportation"}}
    kinds["background"] = {"architecture", "scenery", "abstract"}
    for photo in photos():
        assert photo.path().stat().st_size > 50_000
        assert photo.credit
        assert photo.licence
        assert photo.image_type in kinds[photo.kind]


def test_a_photo_that_is_not_installed_names_the_package(monkeypatch: pytest.MonkeyPatch):
    gone = Photo("x", "skimage/data/none.png", "subject", "food", "a", "b", "c")
    with pytest.raises(ImportError, match=r"scikit-image does not ship skimage/data/none\.png"):
        gone.path()
    monkeypatch.setattr(photos_module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"scikit-image is not installed; .* pip install"):
        gone.path()
    assert importlib.util.find_spec("skimage")


def test_a_subset_is_reproducible_and_a_smaller_one_is_part_of_it(tmp_path: Path):
    whole = PromptSuite("photos", photo_prompts(), tmp_path, 5)
    some = subset(whole, 2, 3, 10, seed=0)
    assert Counter(kind_of(p) for p in some.prompts) == {
        "subject": 2, "background": 3, "camera": 10
    }  # fmt: skip
    assert [p for p in whole.prompts if p in some.prompts] == list(some.prompts)
    assert some.name == "subset of photos (subject 2, background 3, camera 10, seed 0)"
    assert subset(whole, 2, 3, 10, seed=0) == some
    backwards = PromptSuite("photos", whole.prompts[::-1], tmp_path, 5)
    assert set(subset(backwards, 2, 3, 10, seed=0).prompts) == set(some.prompts)
    assert set(subset(whole, 1, 1, 5, seed=0).prompts) < set(some.prompts)
    assert set(subset(whole, 2, 3, 10, seed=1).prompts) != set(some.prompts)
    assert {kind_of(p) for p in subset(whole, 0, 0, None, 0).prompts} == {"camera"}
    assert subset(whole, None, 6, 42, seed=0) is whole


def test_a_subset_that_cannot_be_chosen_is_refused(tmp_path: Path, public: Public):
    whole = PromptSuite("photos", photo_prompts(), tmp_path, 5)
    with pytest.raises(ValueError, match="background=7, but photos has 6 such prompts"):
        subset(whole, None, 7, None, 0)
    own = picture_folder(tmp_path / "zoo", seal=(8, 8))
    with pytest.raises(ValueError, match=r"zoo: 1 prompts \('seal'\) are of none of the kinds"):
        Subset(own, 1, 1, 1).read(4, 4, 1, tmp_path / "images")
    with pytest.raises(ValueError, match="no prompt is left"):
        subset(PromptSuite("s", whole.prompts[:1], tmp_path, 5), 0, None, None, 0)
    source: PromptSource = Subset(public, subject=0, camera=1)
    assert len(source.read(WIDTH, HEIGHT, 5, tmp_path).prompts) == 2


@pytest.mark.skipif("VBENCH_I2V_INFO" not in os.environ, reason="VBENCH_I2V_INFO names no file")
def test_a_subset_of_the_public_list_is_not_called_by_its_name(tmp_path: Path):
    prompts = read_info(os.environ["VBENCH_I2V_INFO"])
    folder = tmp_path / "16-9"
    folder.mkdir()
    for name in {prompt.image_name for prompt in prompts}:
        Image.new("RGB", (16, 9)).save(folder / name)
    suite = public_suite(os.environ["VBENCH_I2V_INFO"], tmp_path, "16-9")
    assert suite.name == "VBench-I2V 16-9"
    some = subset(suite, 50, 50, 50, seed=0)
    assert len(some.videos()) == 750
    assert some.name.startswith("subset of VBench-I2V 16-9 (subject 50")
    assert not is_public(some.prompts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Public("", "crop"), "info is empty; give the path of VBench's"),
        (lambda: Public("info", ""), "crop is empty"),
        (lambda: Public("info", "crop", "16:9"), "ratio '16:9' is not W-H"),
        (lambda: Folder(""), "folder is empty"),
        (lambda: Photos(0), "num_prompts=0; use a number from 1 on, or null for all"),
        (lambda: Photos(True), "num_prompts=True"),
        (lambda: Subset(Photos(), camera=-1), "camera=-1; use a number from 0 on"),
        (lambda: Subset(Photos(), 0, 0, 0), "a subset of no prompts"),
    ],
)
def test_what_a_config_gets_wrong_is_told_before_anything_is_read(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_more_photos_than_there_are_and_folders_that_are_not_there(tmp_path: Path):
    with pytest.raises(ValueError, match="num_prompts=55, but there are 54"):
        Photos(55).read(8, 8, 1, tmp_path)
    with pytest.raises(ValueError, match="no such folder of images and prompts"):
        Folder(str(tmp_path / "none")).read(8, 8, 1, tmp_path)
    with pytest.raises(ValueError, match="no such file; VBench's repository has it"):
        Public(str(tmp_path / "none.json"), str(tmp_path)).read(16, 9, 1, tmp_path)
