"""What processes that were started together must know before Lightning connects them.

The first of them decides (which checkpoint, which data) and does the work that is done once,
however long that takes; the others wait for its answer. Nothing of the data goes this way.
"""

import json
import logging
import os
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.fabric.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)
PATIENCE = timedelta(days=7)  # encoding a data set may take long
ANSWERS = "PUSA_ANSWERS"  # how a process tells those that it starts itself: its number, answers
PORT_STEP = 5000  # away from the port that torch.distributed will use
_open: list[dist.TCPStore] = []  # the first process serves its answer until it ends


def environment() -> ClusterEnvironment:
    """Who started this process: SLURM's srun, torchrun, or nobody (or Lightning itself)."""
    if SLURMEnvironment.detect():
        return SLURMEnvironment(auto_requeue=False)  # Checkpoints saves and requeues
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    return LightningEnvironment()


def is_first() -> bool:
    """Whether this is the process that decides and writes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    found = environment()
    if isinstance(found, LightningEnvironment):
        return found.node_rank() == 0 and found.local_rank() == 0
    return found.global_rank() == 0


def begin_command() -> None:
    """Forget what an earlier command in this process has answered: no room of the environment is
    endless. ValueError for a sweep's later job whose children served the first alone."""
    if os.environ.get(ANSWERS, "").startswith(f"{os.getpid()} "):
        del os.environ[ANSWERS]
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    if isinstance(environment(), LightningEnvironment):
        raise ValueError(
            "a sweep (-m) of runs on several processes needs a process of its own for each: use "
            "hydra/launcher=slurm, or one command after the other."
        )


def hush_others() -> None:
    """What "only the first process" does, logs and writes must hold before Lightning has connected
    the processes, too: it would take every node's first for the first of all."""
    if not is_first():
        rank_zero_only.rank = 1  # until Lightning knows better
        for name in ("pusa", "train"):
            logging.getLogger(name).setLevel(logging.WARNING)


def first_decides(decide: Callable[[], dict], about: str, num_nodes: int = 1) -> dict:
    """The first process's answer, a dict of plain values, on every process.

    decide: runs on the first process only. If it fails there, the others raise ValueError.
    about: what is asked, the run's name: one command may make several runs, of which the first may
    be finished. num_nodes: of the run, which several nodes started by hand must know.
    """
    if dist.is_available() and dist.is_initialized():
        return _ask_group(decide)
    found = environment()
    own_children = isinstance(found, LightningEnvironment)
    told_by, _, told = os.environ.get(ANSWERS, "").partition(" ")
    answers = json.loads(told or "{}")
    if own_children and "LOCAL_RANK" in os.environ and answers and told_by != str(os.getpid()):
        return _unpacked(answers[about])
    alone = num_nodes == 1 if own_children else found.world_size() == 1
    store = None if alone else _connect(found)
    if store is not None and not is_first():
        log.info("waiting for the first process ...")
        answer = _waited(store, about)
    else:
        answer = _decided(decide, store, about)
    if own_children:  # for those that Lightning starts from here, who ask all questions again
        os.environ[ANSWERS] = f"{os.getpid()} {json.dumps(answers | {about: answer})}"
    return _unpacked(answer)


def _decided(decide: Callable[[], dict], store: dist.TCPStore | None, about: str) -> str:
    try:
        answer = json.dumps({"answer": decide()})
    except BaseException as error:
        if store is not None:
            store.set(_key(about), json.dumps({"failed": f"{type(error).__name__}: {error}"}))
        raise
    if store is not None:
        store.set(_key(about), answer)
    return answer


def _unpacked(answer: str) -> dict:
    found = json.loads(answer)
    if "failed" in found:
        raise ValueError(f"the first process stopped ({found['failed']}).")
    return found["answer"]


def _ask_group(decide: Callable[[], dict]) -> dict:
    box: list = [None]
    if dist.get_rank() == 0:
        try:
            box = [{"answer": decide()}]
        except BaseException as error:
            dist.broadcast_object_list([{"failed": f"{type(error).__name__}: {error}"}])
            raise
    dist.broadcast_object_list(box)
    return _unpacked(json.dumps(box[0]))


def _connect(found: ClusterEnvironment) -> dist.TCPStore:
    """A place to meet: torchrun's own store, or one that the first process serves."""
    if _open:
        return _open[0]
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    port = found.main_port if served else (found.main_port + PORT_STEP - 1024) % 64000 + 1024
    host = is_first() and not served
    store = dist.TCPStore(
        found.main_address, port, is_master=host, timeout=PATIENCE, wait_for_workers=False
    )
    _open.append(store)
    return store


def _waited(store: dist.TCPStore, about: str) -> str:
    try:
        return store.get(_key(about)).decode()
    except RuntimeError as error:
        raise ValueError(f"the first process ended before it answered ({error}).") from error


def _key(about: str) -> str:
    """Another one for each start under the same store (torchrun starts workers again)."""
    return f"pusa/answer/{about}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def plugins() -> list[ClusterEnvironment]:
    """What the trainer must be told of who started this process."""
    found = environment()
    return [found] if isinstance(found, SLURMEnvironment) else []
