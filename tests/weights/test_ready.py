"""One copy in training's dtype, made once, mapped by all."""

import shutil

import torch

from pusa.weights import ready
from pusa.weights.files import load_weights, read_checkpoint
from pusa.weights.ready import ready_copy
from tests.weights.conftest import make_twin, save

T2V = "wan21_t2v_14b_tiny"
KEEP = ("time_embedding", "time_projection", "modulation", "norm")


def test_a_checkpoint_that_must_be_cast_gets_one_copy(tmp_path, caplog):
    caplog.set_level("INFO")
    save(make_twin(T2V), T2V, tmp_path / "base")
    made = ready_copy(tmp_path / "base", tmp_path / "copy", torch.bfloat16, KEEP)
    assert made == tmp_path / "copy"
    assert "for all processes to map" in caplog.text
    copy, base = read_checkpoint(made).tensors, read_checkpoint(tmp_path / "base").tensors
    for key in base:
        kept = any(part in key for part in KEEP)
        expected = base[key] if kept else base[key].bfloat16()
        assert copy[key].dtype == expected.dtype
        assert torch.equal(copy[key], expected)
    stamp = {p.name: p.stat().st_mtime_ns for p in made.iterdir()}
    assert ready_copy(tmp_path / "base", made, torch.bfloat16, KEEP) == made
    assert {p.name: p.stat().st_mtime_ns for p in made.iterdir()} == stamp  # not made again
    again = ready_copy(made, tmp_path / "other", torch.bfloat16, KEEP)
    assert again == made  # nothing to cast
    assert not (tmp_path / "other").exists()


def test_what_is_loaded_from_the_copy_is_what_is_loaded_from_the_base(tmp_path):
    save(make_twin(T2V), T2V, tmp_path / "base")
    made = ready_copy(tmp_path / "base", tmp_path / "copy", torch.bfloat16, KEEP)
    states = []
    for path in (tmp_path / "base", made):
        model = make_twin(T2V)
        load_weights(model, path, torch.bfloat16)
        states.append(model.state_dict())
    for key, value in states[0].items():
        assert states[1][key].dtype == value.dtype
        assert torch.equal(states[1][key], value)


def test_a_checkpoint_in_the_right_dtype_is_used_as_it_is(tmp_path):
    save(make_twin(T2V), T2V, tmp_path / "base")
    assert ready_copy(tmp_path / "base", tmp_path / "copy", torch.float32) == tmp_path / "base"


def test_two_runs_may_write_the_copy_at_once(tmp_path, monkeypatch):
    save(make_twin(T2V), T2V, tmp_path / "base")
    target = tmp_path / "copy"
    other = ready_copy(tmp_path / "base", tmp_path / "other", torch.bfloat16, KEEP)
    write = ready.write

    def slowly(*arguments):
        shutil.copytree(other, target)  # the other run's appears meanwhile
        write(*arguments)

    monkeypatch.setattr(ready, "write", slowly)
    assert ready_copy(tmp_path / "base", target, torch.bfloat16, KEEP) == target
    assert read_checkpoint(target).tensors.keys() == read_checkpoint(other).tensors.keys()
