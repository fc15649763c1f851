"""A rank of the workers that hold bases together (ZeRO-3): answers its own shards, in step.

All of its work is done in one thread, which makes the others' passes while it has no shard. What
ends that thread ends the group: the driver hears of it by the next answer or pulse. A rank never
restarts by itself, for the others could not go on without it.
"""

import os
import queue
import socket
import threading
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.domain.batch_run import ShardClaim, ShardDone
from orchestrator.domain.errors import DETERMINISTIC, TuttiError
from orchestrator.inference.shard_worker import ShardWorker, WorkerPlan

if TYPE_CHECKING:
    from encoders.packed.packed_model import PackedModel
    from orchestrator.inference.pass_turns import PassTurns

ANSWERING = "answering"  # the last stage
REST_S = 0.05  # between two looks whether anybody has a pass, when nobody had


@dataclass(frozen=True)
class MeetingPoint:
    """Where ranks may meet: an address that this rank listens at, on a machine."""

    node_id: str
    host: str
    port: int


@dataclass(frozen=True)
class Pulse:
    """How far a rank has come: its stage, and the passes it has made."""

    stage: str
    num_passes: int = 0


class SplitWorker:
    """A Ray actor with threads. `meet` and `join` are called once, in this order."""

    def __init__(self, plan: WorkerPlan, rank: int, world_size: int) -> None:
        self._plan, self._rank, self._world_size = plan, rank, world_size
        self._listener: socket.socket | None = None
        self._inbox: queue.SimpleQueue[tuple[ShardClaim, Future[ShardDone]]] = queue.SimpleQueue()
        self._stage = "starting"
        self._turns: PassTurns | None = None
        self._end: BaseException | None = None

    def meet(self) -> MeetingPoint:
        """Listen at an address where the others may come."""
        import ray

        node_id = ray.get_runtime_context().get_node_id()
        return self.listen(node_id, ray.util.get_node_ip_address())

    def listen(self, node_id: str, host: str) -> MeetingPoint:
        self._listener = socket.create_server((host, 0))
        return MeetingPoint(node_id, host, self._listener.getsockname()[1])

    def join(self, point: MeetingPoint, local_rank: int) -> None:
        """Begin to work; `point` is the first rank's."""
        arguments = (point, local_rank)
        threading.Thread(target=self._run, args=arguments, name="rank", daemon=True).start()

    def answer(self, claim: ShardClaim) -> ShardDone:
        """The shard's answer, when it is there. Raises what is wrong with it, or what has ended
        this rank."""
        done: Future[ShardDone] = Future()
        self._inbox.put((claim, done))
        if self._end is not None:
            self._fail_all(self._end)
        return done.result()

    def pulse(self) -> Pulse:
        """How far this rank is. Raises what has ended it."""
        if self._end is not None:
            raise self._end
        return Pulse(self._stage, self._turns.num_passes if self._turns else 0)

    def _run(self, point: MeetingPoint, local_rank: int) -> None:
        try:
            self._work(point, local_rank)
        except BaseException as error:  # told by `answer` and `pulse`
            self._end = error
            if isinstance(error, DETERMINISTIC) and not isinstance(error, TuttiError):
                self._end = TuttiError(f"{type(error).__name__}: {error}")
            self._fail_all(self._end)

    def _fail_all(self, error: BaseException) -> None:
        while True:
            try:
                _, done = self._inbox.get(timeout=0)
            except queue.Empty:
                return
            done.set_exception(error)

    def _work(self, point: MeetingPoint, local_rank: int) -> None:
        self._stage = "importing torch and deepspeed"
        import torch

        from orchestrator.inference.pass_turns import PassTurns

        torch.set_num_threads(self._plan.answers.num_threads)
        self._stage = "meeting the other workers"
        self._join_group(point, local_rank)
        models = self._load_bases()
        self._turns = turns = PassTurns(list(models.values()))
        answers = replace(self._plan.answers, weight_copies_bytes=0)
        worker = ShardWorker(replace(self._plan, answers=answers), models.__getitem__)
        self._stage, has_passes = ANSWERING, True
        while True:
            try:
                claim, done = self._inbox.get(timeout=0 if has_passes else REST_S)
            except queue.Empty:
                has_passes = turns.rest()
            else:
                _answer(worker, claim, done)

    def _join_group(self, point: MeetingPoint, local_rank: int) -> None:
        """Bring up the process group, over the port that the first rank listens at already."""
        import torch.distributed as dist
        from torch._C._distributed_c10d import TCPStore

        os.environ |= {"MASTER_ADDR": point.host, "MASTER_PORT": str(point.port)}
        os.environ |= {"RANK": str(self._rank), "WORLD_SIZE": str(self._world_size)}
        os.environ["LOCAL_RANK"] = str(local_rank)
        if point.host.startswith("127."):
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        assert self._listener is not None
        listening = self._listener.detach() if self._rank == 0 else None
        store = TCPStore(
            point.host,
            point.port,
            self._world_size,
            is_master=self._rank == 0,
            master_listen_fd=listening,
        )
        dist.init_process_group("gloo", store=store, rank=self._rank, world_size=self._world_size)

    def _load_bases(self) -> "dict[Path, PackedModel]":
        """Every rank loads all bases in the same order, by folder."""
        from encoders.text.tokenization import TextTokenizer
        from orchestrator.sharding.load_sharded import load_sharded

        split = self._plan.split
        assert split is not None
        models = {}
        for fingerprint, base in sorted(self._plan.answers.bases.items()):
            self._stage = f"loading the base {fingerprint[:12]}"
            models[base.folder] = load_sharded(
                base.folder,
                TextTokenizer.load(base.folder),
                3,
                split.offload,
                split.offload_folder,
            )
        return models


def _answer(worker: ShardWorker, claim: ShardClaim, done: "Future[ShardDone]") -> None:
    """What is wrong with the shard alone is told of it; what else comes up ends the rank."""
    try:
        done.set_result(worker.answer(claim))
    except TuttiError as error:
        done.set_exception(error)
    except BaseException as error:
        done.set_exception(error)
        raise
