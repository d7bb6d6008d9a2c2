"""Encoding in parts and looking after the cache, as it is typed."""

import pytest
import torch

from pusa.data import toy
from pusa.data.cache import LatentCache
from tests.conftest import run_pusa as run

NAME = "mine"


@pytest.fixture
def clips(root):
    scenes = [toy.make_scene(0, "train", i) for i in range(4)]
    return toy.write_dataset(root / "clips", scenes)


def test_parts_and_then_care_of_the_cache(root, clips, caplog):
    caplog.set_level("INFO")
    folder = root / "data" / "cache"
    assert run("encode", clips, "--name", NAME, "--part", "0/2") == 0
    assert "this part is done" in caplog.text
    with pytest.raises(ValueError, match="no index"):
        LatentCache(folder).read_index(NAME)
    assert run("encode", clips, "--name", NAME, "--part", "1/2") == 0
    assert len(LatentCache(folder).read_index(NAME)) == 4
    caplog.clear()
    assert run("data", "cache", "status") == 0
    assert "4 samples, 8 of 8 tensors there (0 packed)" in caplog.text
    assert run("data", "cache", "pack", NAME) == 0
    assert run("data", "cache", "status", "--cache", folder) == 0
    assert "8 of 8 tensors there (8 packed)" in caplog.text
    assert run("data", "cache", "verify") == 0
    (pack,) = folder.glob("packs/*.safetensors")
    content = bytearray(pack.read_bytes())
    content[-1] ^= 4
    pack.write_bytes(content)
    assert run("data", "cache", "verify") == 1
    assert run("data", "cache", "verify", "--delete") == 0
    assert run("data", "cache", "verify") == 0
    caplog.clear()
    assert run("encode", clips, "--name", NAME) == 0
    assert "1 clips and 0 captions to encode" in caplog.text or "0 clips and 1 cap" in caplog.text
    assert run("data", "cache", "verify") == 0
    assert run("data", "cache", "gc") == 0
    assert "0 tensors that no data set uses" in caplog.text


def test_gc_spares_what_is_young_and_takes_old_versions_when_told(root, clips, caplog):
    caplog.set_level("INFO")
    cache = LatentCache(root / "data" / "cache")
    assert run("encode", clips, "--name", NAME) == 0
    text = clips.read_text().split("\n")
    clips.write_text("\n".join(text[:-2]) + "\n")  # one clip less
    assert run("encode", clips, "--name", NAME) == 0
    assert len(cache.indices()) == 2
    cache.write("text", "ab", torch.zeros(1, 4))
    assert run("data", "cache", "gc", "--yes") == 0
    assert cache.has("text", "ab")  # a running job may be about to name it
    assert run("data", "cache", "gc", "--yes", "--hours", 0) == 0
    assert len(list(cache.items())) == 8
    assert run("data", "cache", "gc", "--yes", "--hours", 0, "--old-versions") == 0
    assert "and 1 old versions" in caplog.text
    assert len(list(cache.items())) == 6
    assert len(cache.indices()) == 1
    assert run("data", "cache", "verify") == 0


def test_what_an_experiment_trains_on_is_encoded(root):
    words = ("experiment=tiny_vta", "data.num_clips=2", "data.heldout.toy.num_clips=1")
    assert run("encode", *words) == 0
    cache = LatentCache(root / "data" / "cache")
    assert len(cache.read_index("toy_train_2_17x32x32")) == 2
    assert len(cache.read_index("toy_heldout_1_17x32x32")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("encode", "clips/metadata.csv"), "give one manifest and --name"),
        (("encode", "a", "b", "--name", "x"), "give one manifest and --name"),
        (("encode", "clips/none.csv", "--name", "x"), "none.csv"),
        (("encode", "clips/metadata.csv", "--name", "x", "--part", "half"), "is not I/N"),
        (("encode", "clips/metadata.csv", "--name", "x", "--part", "2/2"), "part 2/2 is none"),
        (("encode", "experiment=tiny_vae"), "nothing to encode"),
        (("data", "cache", "status"), "no such cache"),
    ],
)
def test_bad_input_is_one_message(root, clips, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(root)
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_gc_of_a_cache_without_index_is_refused(root, capsys):
    LatentCache(root / "data" / "cache").folder.mkdir(parents=True)
    assert run("data", "cache", "gc", "--yes") == 1
    assert "all of it would go" in capsys.readouterr().err
