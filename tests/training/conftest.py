"""What the tests of this folder compare with: a training that nothing disturbed."""

from pathlib import Path

import pytest

import train
from tests.conftest import add_replica, small_config


@pytest.fixture(scope="session")
def whole(tmp_path_factory, shared_data) -> Path:
    """The folder of a run of four steps, to be read only: rank 4, a row and a checkpoint after each
    step, no grid. It leaves the clips and the cache of `small_run` too."""
    root = add_replica(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUSA_ROOT", str(root))
        cfg = small_config(
            shared_data, "tiny_vta", "name=whole", "lora.rank=4", "callbacks.grid=null",
            "callbacks.checkpoints.every=1", "trainer.log_every_n_steps=1",
        )  # fmt: skip
        train.train(cfg)
        return Path(cfg.paths.run)
