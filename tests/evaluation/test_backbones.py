"""Stand-ins by what is known of them; adapters by small programs with the real ones' interface.

The real networks of the benchmark were never loaded here: their weights cannot be had.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from skimage import data
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional as F

from pusa.evaluation.backbones import (
    amt,
    brisque,
    cotracker,
    dino,
    laion,
    musiq,
    openai_clip,
    perceptual,
    raft,
)  # fmt: skip
from pusa.evaluation.backbones.dis_tracks import grid_of_points
from pusa.evaluation.backbones.outside import checkpoint, module_in
from pusa.evaluation.backbones.registry import BACKBONES, FOLDER, choose, digest, load
from pusa.evaluation.metrics.catalogue import DIMENSIONS
from pusa.evaluation.metrics.frames import TensorFrames
from pusa.evaluation.metrics.resize import centre_crop, shorter_side

SHIFTS = [(4, 0), (0, 6), (12, -8)]


def pixels_of(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).movedim(-1, 0)[None] / 255.0


def exactly(image: np.ndarray) -> torch.Tensor:
    """In float64: in flat parts BRISQUE's statistics see the rounding of float32."""
    return torch.from_numpy(image.astype(np.float64)).movedim(-1, 0)[None] / 255.0


# Stand-ins, with the weights that packages ship.


@pytest.mark.parametrize(
    ("photo", "classes"),
    [("chelsea", {281, 282, 285}), ("coffee", {967}), ("rocket", {657})],  # cats, espresso, missile
)
def test_efficientnet_knows_what_a_photo_shows(photo, classes):
    features = load("efficientnet-lite0").network
    network = features.network.network
    pixels = shorter_side(pixels_of(getattr(data, photo)()), 224, "bicubic", antialias=True)
    pixels = centre_crop(pixels, 224)
    with torch.inference_mode():
        logits = network._fc(features(pixels))
    assert int(logits.argmax()) in classes


@pytest.mark.parametrize(("x", "y"), SHIFTS)
def test_dis_finds_a_shift_exactly(x, y):
    picture = torch.from_numpy(data.astronaut().copy()).movedim(-1, 0)[None].float()
    flow = load("dis-medium").network(picture, picture.roll((y, x), (2, 3)))
    inside = flow[0, :, 64:-64, 64:-64].flatten(1).median(dim=1).values
    torch.testing.assert_close(inside, torch.tensor([x, y]).float(), atol=0.01, rtol=0)


def test_tracks_follow_a_shift_over_many_frames():
    picture = torch.from_numpy(data.astronaut().copy()).movedim(-1, 0)
    clip = TensorFrames(torch.stack([picture.roll((t, 2 * t), (1, 2)) for t in range(6)]))
    first, last = load("dis-medium-chained").network(clip, 10)
    assert torch.equal(first, grid_of_points(10, 512, 512))
    inside = (last - first).reshape(10, 10, 2)[2:8, 2:8]
    torch.testing.assert_close(inside.median(0).values.median(0).values, torch.tensor([10.0, 5.0]),
                               atol=0.1, rtol=0)  # fmt: skip


def test_the_grid_is_laid_row_by_row_a_64th_of_the_width_from_the_border():
    grid = grid_of_points(10, 96, 128).reshape(10, 10, 2)
    assert grid[0, 0].tolist() == [2, 2]
    assert grid[0, -1].tolist() == [126, 2]
    assert grid[-1, 0].tolist() == [2, 94]


def test_rife_makes_the_frame_half_way_and_no_batch_changes_it():
    picture = pixels_of(data.astronaut())[:, :, 100:196, 100:244]
    first, last = (pixels_of(data.astronaut()).roll(x, 3)[:, :, 100:196, 100:244] for x in (-4, 4))
    between = load("rife-4").network
    with torch.inference_mode():
        alone = between(first, last)
        # Nothing like one another: the network answers this by changing its scales.
        together = between(torch.cat([first, first]), torch.cat([1 - picture.flip(3), last]))
    mean = (first + last) / 2
    assert (alone - picture).abs().mean() < 0.5 * (mean - picture).abs().mean()
    torch.testing.assert_close(together[1:], alone)


def packages_statistics(image: np.ndarray, monkeypatch) -> np.ndarray:
    """36 numbers by the `brisque` package's own program."""
    monkeypatch.setitem(sys.modules, "libsvm", ModuleType("libsvm"))
    monkeypatch.setitem(sys.modules, "libsvm.svmutil", ModuleType("libsvm.svmutil"))
    sys.modules["libsvm"].svmutil = sys.modules["libsvm.svmutil"]
    import cv2
    from brisque.brisque import BRISQUE
    from skimage.color import rgb2gray

    own = BRISQUE.__new__(BRISQUE)
    grey = rgb2gray(image)
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
    found = [own.calculate_brisque_features(picture, 7, 7 / 6) for picture in (grey, half)]
    return np.array([float(np.ravel(value)[0]) for part in found for value in part])


def test_brisques_statistics_are_the_packages(monkeypatch):
    """On a grainy picture: where one is flat, the signs of deviations are those of rounding."""
    grain = np.random.default_rng(0).integers(-8, 9, (240, 320, 3))
    image = (load_sample_image("china.jpg")[120:360, 200:520] + grain).clip(0, 255).astype(np.uint8)
    expected = packages_statistics(image, monkeypatch)
    found = brisque.statistics(exactly(image))[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_brisques_judgement_is_the_packages(monkeypatch):
    """china.jpg is 14.5 by brisque 0.2.0 itself, with its support vectors read by libsvm."""
    root = Path(importlib.util.find_spec("brisque").submodule_search_locations[0])
    judge = brisque.read_judge(*(root / file.path for file in BACKBONES["brisque"].files))
    theirs = packages_statistics(load_sample_image("china.jpg"), monkeypatch)
    assert judge(torch.from_numpy(theirs)[None]).item() == pytest.approx(14.5, abs=0.05)


def test_brisque_of_a_photo_falls_with_damage():
    photo = exactly(load_sample_image("china.jpg"))
    blurred = F.avg_pool2d(photo, 5, stride=1, padding=2)
    generator = torch.Generator().manual_seed(0)
    noisy = photo + 0.1 * torch.randn(photo.shape, generator=generator)
    quality = load("brisque").network
    sharp, blurred, noisy = quality(torch.cat([photo, blurred, noisy.clamp(0, 1)])).tolist()
    assert sharp == pytest.approx(85.5, abs=0.5)  # the sky is flat, see above
    assert max(blurred, noisy) < sharp - 25


def test_brisque_of_a_flat_picture_is_a_number():
    assert load("brisque").network(torch.full((1, 3, 64, 64), 0.5)).isfinite().all()


def test_a_pickle_that_asks_for_code_is_refused(tmp_path):
    (tmp_path / "ranges.pickle").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with (
        (tmp_path / "ranges.pickle").open("rb") as stream,
        pytest.raises(ValueError, match="asks for"),
    ):
        brisque._NumbersOnly(stream).load()


# The registry.


def test_every_dimension_has_the_benchmarks_backbone_and_all_but_one_a_stand_in():
    asking = [name for name, dimension in DIMENSIONS.items() if dimension.kind is not None]
    for name in asking:
        assert choose(name, "benchmark").kind == DIMENSIONS[name].kind
        if name != "aesthetic_quality":
            assert choose(name, "standin").kind == DIMENSIONS[name].kind
    with pytest.raises(ValueError, match="aesthetic_quality has no standin"):
        choose("aesthetic_quality", "standin")


def test_stand_ins_are_not_comparable_and_name_their_files():
    loaded = load("efficientnet-lite0")
    assert not loaded.comparable
    assert loaded.sha256 == BACKBONES["efficientnet-lite0"].files[0].sha256


def test_what_is_missing_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(ValueError, match=r"dino_main is missing; clone https.*dino there"):
        load("dino-vitb16")
    (tmp_path / BACKBONES["dino-vitb16"].code).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"pretrain.pth is missing; get it from https"):
        load("dino-vitb16")
    with pytest.raises(ImportError, match=r"pip install pyiqa \(licence: PolyForm"):
        load("musiq-spaq")
    with pytest.raises(ValueError, match="unknown; use one of dino"):
        load("vgg")


def test_another_file_than_the_benchmarks_is_refused_and_a_pin_cannot_change_that(
    tmp_path, monkeypatch
):
    package(tmp_path, monkeypatch, "clip", "")
    file = BACKBONES["clip-vit-b-32"].files[0]
    (tmp_path / file.path).parent.mkdir(parents=True)
    (tmp_path / file.path).write_bytes(b"other weights")
    with pytest.raises(ValueError, match=f"expected {file.sha256}"):
        load("clip-vit-b-32", tmp_path, pins={file.path: digest(tmp_path / file.path)})


def test_a_file_without_a_published_sha256_counts_only_when_pinned(tmp_path):
    folder, file = tmp_path / BACKBONES["raft-things"].code, BACKBONES["raft-things"].files[0]
    raft_program(folder)
    (tmp_path / file.path).parent.mkdir(parents=True)
    torch.save({"module.scale": torch.tensor(2.0)}, tmp_path / file.path)
    assert not load("raft-things", tmp_path).comparable
    pins = {file.path: digest(tmp_path / file.path)}
    assert load("raft-things", tmp_path, pins=pins).comparable
    with pytest.raises(ValueError, match="expected 00"):
        load("raft-things", tmp_path, pins={file.path: "00"})


def test_a_folders_digest_depends_on_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    before = digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest(tmp_path) != before


def test_a_checkpoint_that_would_run_code_is_not_opened(tmp_path):
    torch.save({"config": SimpleNamespace(a=1)}, tmp_path / "amt-s.pth")
    with pytest.raises(ValueError, match="save its state dict alone"):
        checkpoint(tmp_path / "amt-s.pth")


# Adapters, over programs of a few lines.


def program(folder, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def package(folder, monkeypatch, name: str, text: str) -> None:
    program(folder / "site", f"{name}/__init__.py", text)
    monkeypatch.syspath_prepend(str(folder / "site"))
    monkeypatch.delitem(sys.modules, name, raising=False)


def raft_program(folder) -> None:
    program(folder, "utils/__init__.py", "")
    program(folder, "utils/utils.py", "FACTOR = 1.0")
    program(
        folder, "raft.py",
        "import torch\nfrom utils.utils import FACTOR\n"
        "class RAFT(torch.nn.Module):\n"
        "    def __init__(self, args):\n"
        "        super().__init__()\n"
        "        assert not (args.small or args.mixed_precision or args.alternate_corr)\n"
        "        self.scale = torch.nn.Parameter(torch.zeros(()))\n"
        "    def forward(self, a, b, iters, test_mode):\n"
        "        assert iters == 20 and test_mode\n"
        "        return None, (b - a)[:, :2] * self.scale * FACTOR\n",
    )  # fmt: skip


def test_modules_of_a_folder_do_not_meet_others_of_their_name(tmp_path):
    taken = ModuleType("utils")
    sys.modules["utils"] = taken
    try:
        raft_program(tmp_path)
        assert module_in(tmp_path, "raft").FACTOR == 1.0
        assert sys.modules["utils"] is taken
        assert "raft" not in sys.modules
        assert str(tmp_path) not in sys.path
    finally:
        del sys.modules["utils"]
    with pytest.raises(ImportError, match="cannot import nothing"):
        module_in(tmp_path, "nothing")


def test_dino_is_taken_from_its_repository(tmp_path):
    program(
        tmp_path / BACKBONES["dino-vitb16"].code, "vision_transformer.py",
        "import torch\n"
        "def vit_base(patch_size, num_classes):\n"
        "    assert (patch_size, num_classes) == (16, 0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))\n",
    )  # fmt: skip
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    torch.save(network.state_dict(), tmp_path / "dino.pth")
    features = dino.load([tmp_path / "dino.pth"], tmp_path, "cpu")
    pixels = torch.rand(3, 3, 2, 2)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = network((pixels - mean[:, None, None]) / deviation[:, None, None])
    torch.testing.assert_close(features(pixels), expected)


def test_amt_is_asked_for_the_frame_half_way(tmp_path):
    program(
        tmp_path / BACKBONES["amt-s"].code, "networks/AMT-S.py",
        "import torch\n"
        "class Model(torch.nn.Module):\n"
        "    def __init__(self, corr_radius, corr_lvls, num_flows):\n"
        "        super().__init__()\n"
        "        assert (corr_radius, corr_lvls, num_flows) == (3, 4, 3)\n"
        "        self.bias = torch.nn.Parameter(torch.zeros(()))\n"
        "    def forward(self, a, b, time, scale_factor, eval):\n"
        "        assert eval and scale_factor == 1\n"
        "        return {'imgt_pred': a + (b - a) * time + self.bias}\n",
    )  # fmt: skip
    torch.save({"state_dict": {"bias": torch.tensor(1.0)}}, tmp_path / "amt.pth")
    between = amt.load([tmp_path / "amt.pth"], tmp_path, "cpu")
    found = between(torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16))
    assert (found == 1.5).all()


def test_raft_gives_the_upsampled_flow(tmp_path):
    raft_program(tmp_path / BACKBONES["raft-things"].code)
    torch.save({"module.scale": torch.tensor(2.0)}, tmp_path / "raft.pth")
    flow = raft.load([tmp_path / "raft.pth"], tmp_path, "cpu")
    assert (flow(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)) == 2).all()


def test_cotracker_is_version_2_and_its_first_and_last_positions_are_taken(tmp_path):
    program(tmp_path / BACKBONES["cotracker2"].code, "cotracker/__init__.py", "")
    program(
        tmp_path / BACKBONES["cotracker2"].code, "cotracker/predictor.py",
        "import torch\n"
        "class CoTrackerPredictor(torch.nn.Module):\n"
        "    def __init__(self, checkpoint, window_len, v2):\n"
        "        super().__init__()\n"
        "        assert (checkpoint, window_len, v2) == (None, 8, True)\n"
        "        self.model = torch.nn.Linear(1, 1)\n"
        "    def forward(self, video, grid_size):\n"
        "        assert video.dtype == torch.float32 and video.shape[:3] == (1, 4, 3)\n"
        "        start = torch.zeros(1, 1, grid_size**2, 2)\n"
        "        return start + video[:, :, 0, 0, 0, None, None], None\n",
    )  # fmt: skip
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "cotracker2.pth")
    track = cotracker.load([tmp_path / "cotracker2.pth"], tmp_path, "cpu")
    clip = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 6, 6)
    first, last = track(TensorFrames(clip), 10)
    assert first.shape == last.shape == (100, 2)
    assert (first == 0).all()
    assert (last == 3).all()


CLIP_PROGRAM = (
    "import torch\n"
    "class Net(torch.nn.Module):\n"
    "    def encode_image(self, pixels):\n"
    "        return pixels.flatten(1).half()\n"
    "def load(path, device):\n"
    "    return Net(), None\n"
)


def test_clip_sees_normalised_pixels(tmp_path, monkeypatch):
    package(tmp_path, monkeypatch, "clip", CLIP_PROGRAM)
    features = openai_clip.load([tmp_path / "ViT-B-32.pt"], tmp_path, "cpu")
    white = features(torch.ones(1, 3, 1, 1))
    torch.testing.assert_close(
        white.float(), torch.tensor([[1.930, 2.075, 2.146]]), atol=2e-3, rtol=0
    )


def test_laions_head_rates_embeddings_of_length_1(tmp_path, monkeypatch):
    package(tmp_path, monkeypatch, "clip", CLIP_PROGRAM)
    state = {"weight": torch.tensor([[3.0, 0.0, 0.0]]), "bias": torch.tensor([1.0])}
    torch.save(state, tmp_path / "head.pth")
    rate = laion.load([tmp_path / "ViT-L-14.pt", tmp_path / "head.pth"], tmp_path, "cpu")
    found = rate(torch.ones(2, 3, 1, 1))
    length = (1.930**2 + 2.075**2 + 2.146**2) ** 0.5
    torch.testing.assert_close(found, torch.full((2,), 1 + 3 * 1.930 / length), atol=2e-3, rtol=0)


def test_dreamsim_is_never_asked_to_download(tmp_path, monkeypatch):
    package(
        tmp_path, monkeypatch, "dreamsim",
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def embed(self, pixels):\n"
        "        return pixels.mean((2, 3))\n"
        "def dreamsim(pretrained, cache_dir, device):\n"
        "    return Net(), None\n",
    )  # fmt: skip
    with pytest.raises(ValueError, match="ensemble_lora is missing"):
        perceptual.load([tmp_path], tmp_path, "cpu")
    (tmp_path / "ensemble_lora").mkdir()
    embed = perceptual.load([tmp_path], tmp_path, "cpu")
    assert embed(torch.ones(2, 3, 4, 4)).shape == (2, 3)


def test_musiq_gives_a_number_a_frame(tmp_path, monkeypatch):
    program(tmp_path / "site", "pyiqa/archs/__init__.py", "")
    program(
        tmp_path / "site", "pyiqa/archs/musiq_arch.py",
        "import torch\n"
        "class MUSIQ(torch.nn.Module):\n"
        "    def __init__(self, pretrained_model_path):\n"
        "        super().__init__()\n"
        "        assert pretrained_model_path.endswith('spaq.pth')\n"
        "    def forward(self, pixels):\n"
        "        return pixels.mean((1, 2, 3))[:, None] * 100\n",
    )  # fmt: skip
    package(tmp_path, monkeypatch, "pyiqa", "")
    quality = musiq.load([tmp_path / "spaq.pth"], tmp_path, "cpu")
    assert quality(torch.ones(3, 3, 8, 8)).tolist() == [100, 100, 100]
