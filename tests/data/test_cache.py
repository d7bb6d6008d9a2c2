"""The latent cache: whole files, damage found, packing, collection, many readers and writers."""

import json
import os
import pickle
import subprocess
import time

import pytest
import torch

from pusa.data import care
from pusa.data.cache import CacheError, Entry, LatentCache
from pusa.data.care import collect, delete_damaged, leftovers, pack, unreferenced, verify


def filled(folder, count: int = 5, name: str = "set") -> tuple[LatentCache, list[Entry]]:
    cache = LatentCache(folder)
    generator = torch.Generator().manual_seed(0)
    entries = []
    for i in range(count):
        latents = torch.randn(4, 3, 2, 2, generator=generator).bfloat16()
        cache.write("latents", f"{i:02x}aa", latents)
        cache.write("text", f"{i:02x}bb", torch.randn(2 + i, 8, generator=generator).bfloat16())
        entries.append(Entry(f"clip{i}", f"caption {i}", f"{i:02x}aa", f"{i:02x}bb", (4, 3, 2, 2)))
    cache.write_index(name, "f" * 32, entries)
    return cache, entries


def contents(cache: LatentCache, entries) -> list[torch.Tensor]:
    return [cache.read(k, getattr(e, k)).clone() for e in entries for k in ("latents", "text")]


def test_an_index_and_its_tensors_come_back(tmp_path):
    cache, entries = filled(tmp_path)
    assert LatentCache(tmp_path).read_index("set") == entries
    assert cache.has_index("set", "f" * 32)
    assert not cache.has_index("set", "0" * 32)
    assert all(t.dtype == torch.bfloat16 for t in contents(cache, entries))
    with pytest.raises(ValueError, match="no index 'other'"):
        cache.read_index("other")


def test_the_newest_index_of_a_name_is_read_unless_one_is_named(tmp_path):
    cache, entries = filled(tmp_path)
    cache.write_index("set", "e" * 32, entries[:2])
    assert cache.read_index("set") == entries[:2]
    assert cache.read_index("set", "f" * 32) == entries


def test_packed_tensors_are_the_same_and_loose_files_are_gone(tmp_path, monkeypatch):
    cache, entries = filled(tmp_path)
    before = contents(cache, entries)
    reader = LatentCache(tmp_path)
    reader.packed()  # looked before the packing
    monkeypatch.setattr(care, "PACK_BYTES", 300)
    assert pack(cache, entries) == 10
    assert not list(tmp_path.glob("latents/*/*.safetensors"))
    assert len(list(tmp_path.glob("packs/*.safetensors"))) > 1
    for some in (cache, reader, LatentCache(tmp_path), pickle.loads(pickle.dumps(cache))):
        assert all(map(torch.equal, contents(some, entries), before))
    assert pack(cache, entries) == 0
    assert verify(cache).num_items == 10
    assert not verify(cache).damaged


def test_packs_do_not_depend_on_when_they_were_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(care, "PACK_BYTES", 300)
    whole, entries = filled(tmp_path / "whole")
    pack(whole, entries)
    stopped, _ = filled(tmp_path / "stopped")

    def stop_after(items, count=3):
        for i, item in enumerate(items):
            if i == count:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        pack(stopped, entries, stop_after)
    pack(stopped, entries)
    assert all(map(torch.equal, contents(stopped, entries), contents(whole, entries)))
    assert not verify(stopped).damaged


@pytest.mark.parametrize("packed", [False, True])
def test_one_flipped_bit_is_found_and_only_that_tensor_lost(tmp_path, packed):
    cache, entries = filled(tmp_path)
    if packed:
        pack(cache, entries)
    files = list(tmp_path.glob("packs/*" if packed else f"latents/*/{entries[2].latents}*"))
    content = bytearray(files[0].read_bytes())
    content[-3] ^= 1
    files[0].write_bytes(content)
    fresh = LatentCache(tmp_path)
    health = verify(fresh)
    assert len(health.damaged) == len(health.indices) == 1
    ((_, name),) = health.damaged
    delete_damaged(fresh, health)
    kind, key = name.split("/")
    assert not fresh.has(kind, key)
    assert verify(fresh).num_items == 9
    assert not verify(fresh).damaged


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, None])
def test_a_file_that_is_no_cache_file_is_named_with_the_remedy(tmp_path, content):
    cache, entries = filled(tmp_path)
    file = cache.path("latents", entries[0].latents)
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(CacheError, match="pusa data cache verify --delete"):
        cache.read("latents", entries[0].latents)
    if content is not None:
        delete_damaged(cache, verify(cache))
        assert not file.exists()


def test_not_finite_tensors_are_reported(tmp_path):
    cache = LatentCache(tmp_path)
    cache.write("latents", "aabb", torch.tensor([1.0, float("nan")]))
    assert list(verify(cache).damaged.values()) == ["is not finite"]


def test_what_no_index_names_is_collected_and_nothing_else(tmp_path):
    cache, entries = filled(tmp_path)
    cache.write("latents", "ffaa", torch.zeros(3))
    pack(cache, [*entries[:1], Entry("", "", "ffaa", entries[0].text, (3,))])
    cache.write("text", "ffbb", torch.zeros(3))
    unused = unreferenced(cache)
    assert {(item.kind, item.key) for item in unused} == {("latents", "ffaa"), ("text", "ffbb")}
    before = contents(cache, entries)
    collect(cache, unused)
    assert not cache.has("latents", "ffaa")
    assert not cache.has("text", "ffbb")
    assert not unreferenced(cache)
    assert all(map(torch.equal, contents(cache, entries), before))


def test_unfinished_files_of_yesterday_are_leftovers(tmp_path):
    cache, _ = filled(tmp_path, 1)
    names = {"old": ".0a.123.partial.safetensors", "new": ".0b.123.partial.safetensors",
             "old of safetensors": ".tmpA1b2C3", "new of safetensors": ".tmpD4e5F6"}  # fmt: skip
    for kind, name in names.items():
        file = tmp_path / "latents" / "00" / name
        file.write_bytes(b"half")
        os.utime(file, (time.time() - (90_000 if "old" in kind else 0),) * 2)
    assert [p.name for p in leftovers(cache)] == [names["old"], names["old of safetensors"]]
    assert len(list(cache.items())) == 2
    assert not verify(cache).damaged


def test_a_damaged_index_is_named(tmp_path):
    cache, _ = filled(tmp_path)
    cache.index_path("set", "f" * 32).write_text('{"rows": [[1]]}')
    with pytest.raises(CacheError, match="not a readable index"):
        cache.read_index("set")


def test_a_full_disk_leaves_no_part_of_a_file(small_disk):
    cache = LatentCache(small_disk)
    with pytest.raises(OSError, match="written"):
        cache.write("latents", "aabb", torch.zeros(200_000))
    assert not [p for p in small_disk.rglob("*") if p.is_file()]


def test_a_read_only_cache_is_read(read_only_disk, tmp_path):
    _, entries = filled(tmp_path / "cache")
    subprocess.run(["chmod", "-R", "a-w", str(tmp_path / "cache")], check=True)
    assert len(contents(LatentCache(tmp_path / "cache"), entries)) == 10
    with pytest.raises(OSError, match="Read-only"):
        LatentCache(read_only_disk / "cache").write("latents", "aa", torch.zeros(1))


def test_metadata_holds_a_hash_for_every_tensor(tmp_path):
    cache, entries = filled(tmp_path, 1)
    from safetensors import safe_open

    with safe_open(cache.path("text", entries[0].text), "pt") as file:
        digests = json.loads(file.metadata()["digests"])
    assert list(digests) == [f"text/{entries[0].text}"]
