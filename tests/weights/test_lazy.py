"""Tensors that stay in their files, and files that are refused."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from pusa.weights.lazy import InMemory, Piece, SafetensorsFiles, View, WeightsError, open_tensors


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("wrap", [None, "state_dict", "model_state", "module"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_read_in_any_wrapper(tmp_path, wrap, zipped):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    content = tensors if wrap is None else {wrap: tensors, "epoch": 3}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = open_tensors(tmp_path / "x.pth")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert found.spec("b").dtype == torch.bfloat16


@pytest.mark.parametrize("save", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x, 2))])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, save):
    mark = tmp_path / "was_run"
    save({"a": torch.zeros(1), "b": Evil(mark)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"x\.pt: holds more than tensors.*refused"):
        open_tensors(tmp_path / "x.pt")
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    path = tmp_path / f"x{suffix}"
    tensors = {"a": torch.randn(64, 64)}
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=r"not a whole|holds more than tensors"):
        open_tensors(path)


def test_missing_files_and_foreign_suffixes_are_named(tmp_path):
    for name in ("x.safetensors", "x.pt"):
        with pytest.raises(WeightsError, match="no such weight file"):
            open_tensors(tmp_path / name)
    with pytest.raises(WeightsError, match=r"\.gguf is not a weight format"):
        open_tensors(tmp_path / "x.gguf")


def test_a_torch_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="no tensors in it"):
        open_tensors(tmp_path / "x.pt")


def test_a_key_in_two_shards_is_refused(tmp_path):
    for name in ("a", "b"):
        save_file({"w": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match=r"w is in a\.safetensors as well"):
        SafetensorsFiles([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


def test_tensors_outlive_the_release_of_their_file(tmp_path):
    save_file({"w": torch.arange(1000.0)}, tmp_path / "a.safetensors")
    tensors = open_tensors(tmp_path / "a.safetensors")
    w = tensors["w"]
    tensors.release()
    assert torch.equal(w, torch.arange(1000.0))
    assert torch.equal(tensors["w"], w)


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (Piece(("a", "b")), [0, 1, 2, 3, 4, 5]),
        (Piece(("a",), part=(1, 2)), [2, 3]),
        (Piece(("a",), swap=True), [2, 3, 0, 1]),
    ],
)
def test_pieces_are_exact_and_known_without_reading(piece, expected):
    base = InMemory({"a": torch.tensor([0, 1, 2, 3]), "b": torch.tensor([4, 5])})
    view = View(base, {"x": piece})
    assert view["x"].tolist() == expected
    assert view.spec("x").shape == view["x"].shape
    assert view.spec("x").is_meta
