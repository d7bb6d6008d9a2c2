"""Streamed writing: safetensors' own bytes, shards with an index, all or nothing."""

import json
import os
import platform

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from pusa.weights.lazy import SAFETENSORS_DTYPES, InMemory, WeightsError
from pusa.weights.writing import plan_shards, stream_tensors, write_checkpoint

SHAPES = st.lists(st.integers(0, 5), min_size=0, max_size=3)
TENSORS = st.dictionaries(
    st.text("abcé._0", min_size=1, max_size=6),
    st.tuples(SHAPES, st.sampled_from(sorted(SAFETENSORS_DTYPES))),
    min_size=1,
    max_size=6,
)


@given(TENSORS)
def test_the_bytes_are_those_of_safetensors_itself(tmp_path_factory, described):
    folder = tmp_path_factory.mktemp("bytes")
    tensors = {
        key: torch.ones(shape).to(SAFETENSORS_DTYPES[dtype])
        for key, (shape, dtype) in described.items()
    }
    save_file(tensors, folder / "theirs.safetensors", metadata={"format": "pt"})
    stream_tensors(folder / "ours", InMemory(tensors), list(tensors), {"format": "pt"})
    assert (folder / "ours").read_bytes() == (folder / "theirs.safetensors").read_bytes()


def several(count: int = 6) -> InMemory:
    return InMemory({f"layer.{i}": torch.full((10,), float(i)) for i in range(count)})


def test_shards_are_within_the_limit_and_their_index_is_true(tmp_path):
    write_checkpoint(tmp_path / "m", several(), {"dim": 1}, shard_bytes=100)
    index = json.loads((tmp_path / "m/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 240
    assert sorted(set(index["weight_map"].values())) == [
        f"diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    for key, name in index["weight_map"].items():
        with safe_open(tmp_path / "m" / name, "pt") as file:
            assert torch.equal(file.get_tensor(key), several()[key])
    assert json.loads((tmp_path / "m/config.json").read_text()) == {"dim": 1}


def test_a_tensor_larger_than_a_shard_has_one_alone():
    tensors = InMemory({"a": torch.zeros(2), "b": torch.zeros(100), "c": torch.zeros(2)})
    assert plan_shards(tensors, 50) == [["a"], ["b"], ["c"]]
    with pytest.raises(ValueError, match="must be positive"):
        plan_shards(tensors, 0)


def test_a_folder_with_files_in_it_is_not_touched(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(WeightsError, match="is there already"):
        write_checkpoint(tmp_path / "m", several())
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["notes.txt"]


class Failing(InMemory):
    def __getitem__(self, key):
        if key == "layer.4":
            raise OSError(5, "Input/output error", "shard")
        return super().__getitem__(key)


@pytest.mark.parametrize("name", ["m", "m.safetensors"])
def test_nothing_is_left_of_a_write_that_fails(tmp_path, name):
    failing = Failing(dict(several()))
    with pytest.raises(OSError, match="Input/output"):
        write_checkpoint(tmp_path / name, failing, shard_bytes=100)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_told_before_writing(small_disk):
    big = InMemory({"w": torch.zeros(200_000)})
    with pytest.raises(OSError, match=r"needs 0\.0 GB"):
        write_checkpoint(small_disk / "m", big)
    assert not list(small_disk.iterdir())


def test_what_a_killed_process_left_is_swept_and_a_living_ones_is_not(tmp_path):
    """Nor that of another machine, whose processes are not known here."""
    here, gone = platform.node().replace(".", "_"), 2**22 - 3
    marks = (f"{here}-{gone}", f"{here}-{os.getppid()}", f"other-{here}-{gone}")
    dead, *alive = (tmp_path / f".m.{mark}.partial" for mark in marks)
    for folder in (dead, *alive):
        folder.mkdir()
        (folder / "shard").write_text("half")
    write_checkpoint(tmp_path / "m", several())
    assert not dead.exists()
    assert all(folder.exists() for folder in alive)


@pytest.mark.parametrize("name", ["m.pt", "m.bin"])
def test_pickles_are_not_written(tmp_path, name):
    with pytest.raises(ValueError, match="are written as"):
        write_checkpoint(tmp_path / name, several())
