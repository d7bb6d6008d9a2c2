"""The roof's small parts, loggers, and files that appear whole or not at all."""

import os

import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from omegaconf import OmegaConf

from pusa import entry
from pusa.atomic import replacing, write_json
from pusa.pipelines.parts import Part
from pusa.training.loggers import build_loggers, close_wandb, wandb_key_at_hand


def test_a_failed_write_leaves_the_old_content_and_no_other_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_written_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "a.bin") as partial:
        partial.touch(mode=0o600)
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("links", [True, False])
def test_what_another_process_made_meanwhile_is_kept_if_told(tmp_path, monkeypatch, links):
    def link(source, target):
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", link)
    path = tmp_path / "a.txt"
    for text in ("first", "second"):
        with replacing(path, keep=True) as partial:
            partial.write_text(text)
    assert path.read_text() == ("first" if links else "second")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_refuses_what_json_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not os.listdir(tmp_path)


def test_differences_name_nested_keys():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "e": 5}}
    assert entry.differences(old, new) == ["b.c: 2 -> 4", "b.d: 3 -> None", "b.e: None -> 5"]


def test_additions_are_allowed_only_where_a_constructor_reads_them():
    cfg = OmegaConf.create({"lora": {"_target_": "x", "new": 1}, "paths": {}})
    entry.check_additions(cfg, ["+lora.new=1", "seed=3", "+experiment=x"])
    for override in ("+paths.new=1", "++new=1"):
        with pytest.raises(ValueError, match="new: no such config key"):
            entry.check_additions(cfg, [override])


def test_a_key_that_nothing_reads_is_told_as_one():
    with pytest.raises(TypeError) as caught:
        Part(indx=0)  # pyright: ignore[reportCallIssue]
    assert entry.explain(caught.value).startswith("indx: no such config key of Part; see --help")


def test_errors_of_the_system_get_a_remedy():
    said = entry.explain(OSError(28, "No space left on device", "/x/a"))
    assert said == "/x/a: No space left on device; free space, or choose another folder (paths.*)."


def test_programming_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        entry.guarded(lambda: 1 / 0)


def test_wandb_is_offline_unless_logged_in_and_off_by_flag(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not wandb_key_at_hand()
    csv, wandb = build_loggers(tmp_path, "pusa", "run", "auto")
    assert isinstance(csv, CSVLogger)
    assert isinstance(wandb, WandbLogger)
    assert wandb._offline
    close_wandb()
    assert len(build_loggers(tmp_path, "pusa", "run", "off")) == 1
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x")
    assert wandb_key_at_hand()
    with pytest.raises(ValueError, match="auto, online, offline, off"):
        build_loggers(tmp_path, "pusa", "run", "yes")


def test_the_second_run_of_a_process_is_another_run_at_wandb(tmp_path):
    seen = []
    for name in ("high", "low"):
        logger = build_loggers(tmp_path / name, "pusa", name, "offline")[1]
        seen.append(logger.experiment.id)
        assert seen[-1] == (tmp_path / name / "wandb_run").read_text()
        close_wandb()
    assert len(set(seen)) == 2
