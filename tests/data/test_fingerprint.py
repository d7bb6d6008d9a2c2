"""What weight files are, told quickly."""

import pytest

from pusa.data import hashing
from pusa.data.hashing import fingerprint


def test_content_and_names_count_but_not_other_files(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"one")
    (tmp_path / "notes.txt").write_text("x")
    first = fingerprint(tmp_path)
    (tmp_path / "notes.txt").write_text("y")
    assert fingerprint(tmp_path) == first
    (tmp_path / "a.safetensors").write_bytes(b"two")
    second = fingerprint(tmp_path)
    assert second != first
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert fingerprint(tmp_path) not in (first, second)
    assert fingerprint(tmp_path / "b.safetensors") == fingerprint(tmp_path)


def test_large_files_are_sampled_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "LARGE", 1000)
    size = 10_000_000
    file = tmp_path / "x.pth"
    file.write_bytes(bytes(size))
    marks = {fingerprint(file)}
    for place in (0, size // 255 + 5, size - 1):
        content = bytearray(size)
        content[place] = 1
        file.write_bytes(content)
        marks.add(fingerprint(file))
    file.write_bytes(bytes(size + 1))
    marks.add(fingerprint(file))
    assert len(marks) == 5


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no weight files there"):
        fingerprint(tmp_path)
    with pytest.raises(ValueError, match="no weight files there"):
        fingerprint(tmp_path / "absent")
