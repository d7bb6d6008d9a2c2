"""Manifests of every kind are read to the same clips, or refused with file and line."""

import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pusa.data import clips
from pusa.data.clips import Clip, Quarantined, read_manifest
from pusa.data.media import Media

# Name below the folder -> bytes and caption. Readers do not decode: any bytes will do.
FILES = {
    "a.mp4": (b"\x00\x00\x00\x18ftypmp42 first", "a cat, asleep"),
    "b ünï.png": (b"\x89PNG second", 'a dog says "wau"\nand runs'),
    "sub/c.MKV": (b"\x1a\x45\xdf\xa3 third", "x" * 5000),
}


def write_media(folder: Path) -> None:
    for name, (data, _) in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def as_csv(folder: Path) -> Path:
    write_media(folder / "train")
    quoted = {name: caption.replace('"', '""') for name, (_, caption) in FILES.items()}
    rows = [f'{name},9,"{caption}"\r\n' for name, caption in quoted.items()]
    (folder / "metadata.csv").write_text(
        "file_name,score,text\r\n" + "".join(rows), "utf-8-sig", newline=""
    )
    return folder / "metadata.csv"


def as_jsonl(folder: Path) -> Path:
    write_media(folder / "elsewhere")
    keys = [("file_name", "text"), ("video", "caption"), ("media", "text")]
    lines = [
        json.dumps({name_key: str(folder / "elsewhere" / name), caption_key: caption, "fps": 8})
        for (name_key, caption_key), (name, (_, caption)) in zip(keys, FILES.items(), strict=True)
    ]
    (folder / "clips.jsonl").write_text("\n\n".join(lines), "utf-8")
    return folder / "clips.jsonl"


def as_folder(folder: Path) -> Path:
    write_media(folder)
    for name, (_, caption) in FILES.items():
        (folder / name).with_suffix(".txt").write_text(f"{caption}\n", "utf-8")
    (folder / "README.txt").write_text("not a caption")
    (folder / "._a.mp4").write_text("left by a Mac")
    (folder / "sub" / "up").symlink_to(folder)
    return folder


def as_videofolder(folder: Path) -> Path:
    return as_csv(folder).parent


def as_shards(folder: Path) -> str:
    for number, (name, (data, caption)) in enumerate(FILES.items()):
        stem = name.rpartition(".")[0]
        text = (".json", json.dumps({"caption": caption})) if number == 1 else (".txt", caption)
        write_tar(
            folder / f"s-{number:03d}.tar",
            {f"./{stem}.cls": b"7", f"./{name}": data, f"./{stem}{text[0]}": text[1].encode()},
        )
    return f"{folder}/s-{{000..002}}.tar"


def write_tar(path: Path, members: dict[str, bytes], mode: Any = "w:") -> None:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def as_datasets(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    rows = {
        "video": [{"bytes": data, "path": Path(name).name} for name, (data, _) in FILES.items()],
        "caption": [caption for _, caption in FILES.values()],
        "id": [1, 2, 3],
    }
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows).save_to_disk(folder / "saved")
    return folder / "saved"


def as_datasets_of_paths(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    write_media(folder)
    rows = {"file_name": list(FILES), "text": [caption for _, caption in FILES.values()]}
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(folder / "saved")
    for name in FILES:
        target = folder / "saved" / name
        target.parent.mkdir(exist_ok=True)
        (folder / name).rename(target)
    return folder / "saved"


KINDS = [
    as_csv, as_jsonl, as_folder, as_videofolder, as_shards, as_datasets, as_datasets_of_paths
]  # fmt: skip


@pytest.mark.parametrize("write", KINDS)
def test_every_kind_of_manifest_gives_the_same_clips(write, tmp_path):
    manifest = write(tmp_path)
    for _ in range(2):  # the second time, embedded media are already there
        found = read_manifest(manifest)
        assert [clip.caption for clip in found] == [caption for _, caption in FILES.values()]
        for clip, (name, (data, _)) in zip(found, FILES.items(), strict=True):
            with clip.media.open() as stream:
                assert stream.read() == data
            assert clip.media.num_bytes() == len(data)
            assert clip.path == clip.media.path
            assert clip.path.is_file()
            assert write is as_datasets or clip.name.endswith(name)
            assert not clip.name.startswith("/")


def test_names_are_relative_to_the_manifest_wherever_it_is_read_from(tmp_path, monkeypatch):
    as_csv(tmp_path)
    monkeypatch.chdir(tmp_path)
    for manifest in ("metadata.csv", ".", tmp_path, "../" + tmp_path.name):
        assert [c.name for c in read_manifest(manifest)] == [f"train/{name}" for name in FILES]
    folder = tmp_path / "tars"
    folder.mkdir()
    as_shards(folder)
    names = [f"s-{n:03d}.tar/{name}" for n, name in enumerate(FILES)]
    for manifest in ("tars", "tars/*.tar", "tars/s-{000,001,002}.tar"):
        assert [c.name for c in read_manifest(manifest)] == names
    assert [c.name for c in read_manifest("tars/s-001.tar")] == names[1:2]


def test_embedded_media_are_written_to_the_folder_that_is_named(tmp_path):
    read_manifest(as_datasets(tmp_path), tmp_path / "media")
    assert sorted(p.suffix for p in (tmp_path / "media").iterdir()) == [".mkv", ".mp4", ".png"]
    assert not (tmp_path / "saved.media").exists()


def test_datasets_columns_of_images_and_videos_are_not_decoded(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    for kind, data in (("image", b"\x89PNG broken"), ("video", b"\x00\x00\x00\x18ftyp broken")):
        feature = (datasets.Image if kind == "image" else datasets.Video)(decode=False)
        features = datasets.Features({kind: feature, "text": datasets.Value("string")})
        rows = {kind: [{"bytes": data, "path": None}], "text": ["a"]}
        datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / kind)
        (clip,) = read_manifest(tmp_path / kind)
        assert clip.path.read_bytes() == data


def refused(manifest, *parts: str) -> None:
    with pytest.raises(ValueError, match=re.escape(parts[0])) as error:
        read_manifest(manifest)
    for part in parts:
        assert part in str(error.value)


CSV_FAULTS = [
    (b"", "misses column 'file_name'"),
    (b"file_name;text\na.mp4;x\n", "misses column 'file_name'", "it is 'file_name;text'"),
    (b"file_name,text\n", "lists no clips"),
    (b"file_name,text\na.mp4,ok\na.mp4\n", "line 3", "a.mp4 has no caption"),
    (b"file_name,text\na.mp4,  \n", "line 2", "a.mp4 has no caption"),
    (b"file_name,text\n,words\n", "line 2", "name is empty"),
    (b"file_name,text\nabsent.mp4,words\n", "line 2", "absent.mp4 is not in", "train"),
    (b"file_name,text\n" + b"words " * 1000 + b",a.mp4\n", "line 2", "is not in"),
    (b"file_name,text\nnotes.md,words\n", "line 2", "unknown suffix '.md'", ".mp4"),
    (b"file_name,text\na.mp4,one, two\n", "line 2", "3 fields", "in quotes"),
    (b'file_name,text\na.mp4,"never closed\n', "broken csv"),
    (b"file_name,text\na.mp4,caf\xe9\n", "line 2", "not UTF-8", "0xe9"),
    ("file_name,text\n".encode("utf-16"), "line 1", "not UTF-8"),
    (b"file_name,text\n../a.mp4,words\n", "line 2", "leads out of", "absolute path"),
    (b"file_name,text\ntwice.mp4,words\n", "line 2", "fits two files"),
    (b"file_name,text\ntrain,words\n", "line 2", "is not in"),
]


@pytest.mark.parametrize(("content", "parts"), [(content, parts) for content, *parts in CSV_FAULTS])
def test_a_faulty_csv_is_refused_with_its_line(content, parts, tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("a.mp4", "notes.md", "twice.mp4", "train/twice.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "metadata.csv").write_bytes(content)
    refused(tmp_path / "metadata.csv", str(tmp_path / "metadata.csv"), *parts)


def test_a_caption_may_be_longer_than_the_csv_module_allows(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "metadata.csv").write_text(f"file_name,text\na.mp4,{'word ' * 40_000}\n")
    (clip,) = read_manifest(tmp_path / "metadata.csv")
    assert len(clip.caption) == 200_000


JSONL_FAULTS = [
    ('{"file_name": "a.mp4", "text": "x"}\n{"file_name": ', "line 2", "broken JSON"),
    ('["a.mp4", "x"]', "line 1", "no JSON object"),
    ('{"file": "a.mp4", "text": "x"}', "line 1", "no file_name or video or media, only file, text"),
    ('{"video": "a.mp4", "prompt": "x"}', "line 1", "no text or caption"),
    ('{"video": "a.mp4", "text": null}', "line 1", "text is None", "a string"),
    ('\n\n{"video": "absent.mp4", "text": "x\u2028y"}', "line 3", "absent.mp4 is not in"),
]


@pytest.mark.parametrize(("content", "parts"), [(text, parts) for text, *parts in JSONL_FAULTS])
def test_a_faulty_jsonl_is_refused_with_its_line(content, parts, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "clips.jsonl").write_text(content, "utf-8")
    refused(tmp_path / "clips.jsonl", *parts)


def test_a_faulty_folder_is_refused(tmp_path):
    refused(tmp_path, "lists no clips")
    (tmp_path / "a.mp4").write_bytes(b"x")
    refused(tmp_path, "a.mp4 has no caption", "a.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff")
    refused(tmp_path, "a.txt, line 1: not UTF-8")
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "a.jpg").write_bytes(b"x")
    refused(tmp_path, "a.jpg and a.mp4 share")
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.divx").write_bytes(b"x")
    assert len(read_manifest(tmp_path)) == 1
    (tmp_path / "b.txt").write_text("a dog")
    refused(tmp_path, "b.divx", "unknown suffix '.divx'")
    write_tar(tmp_path / "s.tar", {})
    refused(tmp_path, "clips and .tar shards")
    (tmp_path / "metadata.csv").touch()
    (tmp_path / "metadata.jsonl").touch()
    refused(tmp_path, "name the one that is meant")


def test_a_faulty_shard_is_refused(tmp_path):
    shard = tmp_path / "s.tar"
    sample = {"a.mp4": b"x" * 2000, "a.txt": b"a cat"}
    refused(tmp_path / "*.tar", "matches no file")
    refused(tmp_path / "s-{0..1}.tar", "s-0.tar: no such shard")
    write_tar(shard, {"a.mp4": b"x"})
    refused(shard, "a.mp4 has no caption", "a.txt or a.json")
    write_tar(shard, {"a.mp4": b"x", "a.json": b"{}"})
    refused(shard, "member a.json", "no text or caption")
    write_tar(shard, sample | {"./a.mp4": b"y"})
    refused(shard, "holds a.mp4 twice")
    for mode, command in (("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")):
        write_tar(shard, sample, mode)
        refused(shard, "is packed", command)
    write_tar(shard, {"a.txt": b"a cat", "a.mp4": b"x" * 2000})
    whole = shard.read_bytes()
    shard.write_bytes(whole[:2500])
    refused(shard, "no whole tar file")
    shard.write_bytes(whole[:1024] + b"?" * 512 + whole[1536:])
    refused(shard, "damaged at byte 1024")
    shard.write_bytes(b"no tar at all " * 100)
    refused(shard, "no whole tar file")


def test_a_faulty_datasets_folder_is_refused(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict({"clip": ["a.mp4"], "text": ["a"]})
    table.save_to_disk(tmp_path / "saved")
    refused(tmp_path / "saved", "no column video or image or file_name", "only clip, text")
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "both")
    refused(tmp_path / "both", "splits train, test", str(tmp_path / "both" / "train"))
    embedded = datasets.Dataset.from_dict({"video": [{"bytes": b"?", "path": None}], "text": ["a"]})
    embedded.save_to_disk(tmp_path / "bytes")
    refused(tmp_path / "bytes", "row 0", "unknown suffix")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(tmp_path / "saved", "pip install 'pusa[datasets]'")


def test_a_manifest_of_no_known_kind_is_refused(tmp_path):
    refused(tmp_path / "absent.csv", "no such manifest")
    (tmp_path / "clips.tsv").touch()
    refused(tmp_path / "clips.tsv", "not a manifest of a known kind", ".jsonl")


def test_faults_of_single_clips_can_be_collected(tmp_path):
    for name in ("a.mp4", "d.mp4"):
        (tmp_path / name).write_bytes(b"x")
    manifest = tmp_path / "metadata.csv"
    manifest.write_text("file_name,text\na.mp4,1\nb.mp4,2\na.mp4,1,2\nd.mp4,4\na.mp4,5\n")
    faults = []
    found = read_manifest(manifest, on_fault=faults.append)
    assert [(clip.name, clip.caption) for clip in found] == [
        ("a.mp4", "1"), ("d.mp4", "4"), ("a.mp4", "5"),
    ]  # fmt: skip
    assert [clip.where.rpartition(", ")[2] for clip in found] == ["line 2", "line 5", "line 6"]
    assert ["line 3" in str(faults[0]), "line 4" in str(faults[1])] == [True, True]


NAMES = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=40)


@given(NAMES, NAMES, st.floats(0, 1), st.integers(0, 9))
def test_more_clips_move_no_other_between_the_splits(names, more, share, seed):
    def made(names):
        return [Clip(Media(Path("x.mp4")), "caption", "line 1", name) for name in names]

    train, heldout = clips.split_by_hash(made(names), share, seed)
    assert sorted(clip.name for clip in train + heldout) == sorted(names)
    everything = made(dict.fromkeys(more + names))
    train_of_all, heldout_of_all = clips.split_by_hash(everything, share, seed)
    assert {clip.name for clip in train} <= {clip.name for clip in train_of_all}
    assert {clip.name for clip in heldout} <= {clip.name for clip in heldout_of_all}
    assert share < 1 or not train
    assert share > 0 or not heldout


def test_the_held_out_share_is_kept_and_depends_on_the_seed():
    many = [Clip(Media(Path("x.mp4")), "", "", f"{number}.mp4") for number in range(4000)]
    halves = [clips.split_by_hash(many, 0.1, seed)[1] for seed in (0, 1)]
    # Four standard deviations of a binomial.
    assert all(abs(len(heldout) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5 for heldout in halves)
    assert halves[0] != halves[1]
    # A split must never change between versions: what was held out stays held out.
    assert [clip.name for clip in halves[0][:3]] == FIRST_HELDOUT
    with pytest.raises(ValueError, match=r"share=1.5"):
        clips.split_by_hash(many, 1.5)


FIRST_HELDOUT = ["4.mp4", "12.mp4", "21.mp4"]


def quarantined(clip: Clip, digest: str) -> Quarantined:
    stat = clip.path.stat()
    return Quarantined(clip.name, clip.media.num_bytes(), stat.st_mtime_ns, digest, "unreadable")


def test_a_repaired_clip_leaves_the_quarantine(tmp_path):
    manifest = as_csv(tmp_path)
    found = read_manifest(manifest)
    assert clips.usable(found, clips.read_quarantine(manifest)) == found
    entries = [quarantined(found[0], found[0].media.digest()), quarantined(found[1], "")]
    path = clips.write_quarantine(manifest, entries)
    assert path == tmp_path / "metadata.csv.quarantine.jsonl"
    listed = clips.read_quarantine(tmp_path)  # the same manifest, by its folder
    assert list(listed.values()) == entries
    assert clips.usable(found, listed) == found[2:]
    for clip in found:  # copied: another time, the same bytes
        os.utime(clip.path, ns=(5, 5))
    assert clips.usable(found, listed) == found[2:]
    found[0].path.write_bytes(FILES["a.mp4"][0][::-1])
    found[1].path.write_bytes(b"longer than before")
    assert clips.usable(found, listed) == found
    path.write_text('{"media": "a.mp4"}\n')
    with pytest.raises(ValueError, match=r"quarantine.jsonl, line 1: no line of a quarantine"):
        clips.read_quarantine(manifest)
    clips.write_quarantine(manifest, [])
    assert not path.exists()


def test_the_quarantine_of_a_folder_or_pattern_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    assert clips.quarantine_path("set/") == tmp_path / "set.quarantine.jsonl"
    assert clips.quarantine_path("s-{0..1}*.tar").name == "s-_0..1__.tar.quarantine.jsonl"
