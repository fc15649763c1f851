"""A small real cluster on this machine, all of it in one folder and on 127.0.0.1.

PostgreSQL, an MLflow server, a Ray head, Ray workers and a controller, each a process of its own.
`start` starts what does not run, so it is also what follows a crash or `kill`; `stop` ends all
that was started from this folder, and nothing else.
"""

import fcntl
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.local import cluster_file, controller, mlflow_server, postgres, ray_nodes
from deploy.local.cluster_file import ClusterFile
from deploy.local.processes import (
    ClusterError,
    Part,
    Service,
    kill,
    members,
    read_parts,
    spawn,
    stop,
    wait_freed,
    wait_ready,
)

START_TIMEOUT_S = 180.0  # a machine that is busy with tests takes a minute
STOP_GRACE_S = 20.0
OWN_PREFIXES = ("TUTTI_", "RAY_", "MLFLOW_")


@dataclass(frozen=True)
class Cluster:
    """The cluster of the folder `home`. Its verbs raise ClusterError; one is at work at a time."""

    home: Path

    @property
    def file(self) -> ClusterFile:
        return cluster_file.read(self.home / "cluster.json")

    @property
    def parts(self) -> dict[str, Part]:
        """What was started and not stopped, alive or not, by name."""
        return read_parts(self.home / "parts")

    def start(
        self,
        num_workers: int | None = None,
        cpus_per_worker: int | None = None,
        has_controller: bool | None = None,
    ) -> list[str]:
        """Start what does not run; the names of what was started. None: as at the last start.

        What runs stays as it is, so a cluster that runs can only grow.
        """
        given = {
            "num_workers": num_workers,
            "cpus_per_worker": cpus_per_worker,
            "has_controller": has_controller,
        }
        with self._alone():
            changed = {name: value for name, value in given.items() if value is not None}
            self._prepare(replace(self.file, **changed))  # type: ignore[arg-type]
            started: list[str] = []
            try:
                self._start_all(self._servers(), started)
                self._start_all(self._workers(), started)
                controller.upgrade_schema(self.process_env(), self.home)
                if self.file.has_controller:
                    url = self.env()["TUTTI_DATABASE_URL"]
                    self._start_all([controller.service(url, self.process_env())], started)
            except BaseException:
                for name in reversed(started):
                    self._stop(name)
                raise
            return started

    def stop(self) -> list[str]:
        """End all processes of the cluster; the names of those that ran. Its data stays."""
        with self._alone():
            running = [name for name, part in self.parts.items() if members(part)]
            for name in sorted(self.parts, key=_stop_order):
                self._stop(name)
            ray_nodes.drop_folder(self.home / "ray", self.home / "logs" / "ray")
            return running

    def kill(self, name: str) -> None:
        """Kill a part and all it started, as a failing machine would. `start` brings it back."""
        part = self.part(name)
        with self._alone():
            kill(part)

    def part(self, name: str) -> Part:
        """A started part by its name."""
        if name not in self.parts:
            known = ", ".join(self.parts) or "nothing was started"
            raise ClusterError(f"{name}: no such part in {self.home} (there are: {known})")
        return self.parts[name]

    def env(self) -> dict[str, str]:
        """The variables with which `tutti` and Ray's own commands work on this cluster."""
        file = self.file
        if not file.postgres_port:
            raise ClusterError(f"there is no cluster in {self.home}: start it first")
        return {
            "TUTTI_HOME": str(self.home / "tutti"),
            "TUTTI_DATABASE_URL": postgres.url(file.postgres_port, file.password),
            "TUTTI_MLFLOW_TRACKING_URI": mlflow_server.url(file.mlflow_port),
            "TUTTI_ARTIFACT_URL": str(self.home / "artifacts"),
            "TUTTI_RAY_ADDRESS": f"127.0.0.1:{file.ray_port}",
            "TUTTI_NUM_WORKERS": str(max(1, file.num_workers * file.cpus_per_worker)),
            **ray_nodes.client_env(self.home / "ray_token"),
        }

    def process_env(self, outer: Mapping[str, str] = os.environ) -> dict[str, str]:
        """`env` over `outer`, which must not say where other services are."""
        kept = {name: text for name, text in outer.items() if not name.startswith(OWN_PREFIXES)}
        return {**kept, **self.env()}

    def _service_env(self) -> dict[str, str]:
        """What the services need that are not Tutti: no way into its database, for one."""
        own = self.process_env()
        return {name: text for name, text in own.items() if not name.startswith("TUTTI_")}

    def _prepare(self, file: ClusterFile) -> None:
        """Folders, ports, token and the file to source."""
        for name in ("parts", "logs", "tutti", "artifacts"):
            (self.home / name).mkdir(exist_ok=True)
        alive = any(part.is_alive for part in self.parts.values())
        if alive and not file.grows_from(self.file):
            raise ClusterError(f"the cluster in {self.home} runs, and can only grow: stop it first")
        cluster_file.write(self.home / "cluster.json", file if alive else file.with_ports())
        ray_nodes.make_token(self.home / "ray_token")
        self._write_env()

    def _write_env(self) -> None:
        lines = [f"export {name}={shlex.quote(text)}\n" for name, text in self.env().items()]
        cluster_file.write_private(self.home / "env", "".join(lines))

    def _servers(self) -> list[Service]:
        file, env, folder = self.file, self._service_env(), self.home / "ray"
        if not self._is_alive(ray_nodes.HEAD):  # no worker outlives the head it belongs to
            for name in [name for name in self.parts if name.startswith(ray_nodes.WORKER)]:
                self._stop(name)
            ray_nodes.make_folder(folder, self.home / "logs" / "ray")
        return [
            postgres.service(self.home / "postgres", file.postgres_port, file.password, env),
            mlflow_server.service(self.home / "mlflow", file.mlflow_port, env),
            ray_nodes.head(folder.resolve(), file.ray_port, file.ray_client_port, env),
        ]

    def _workers(self) -> list[Service]:
        file, env, folder = self.file, self._service_env(), (self.home / "ray").resolve()
        return [
            ray_nodes.worker(number, folder, file.cpus_per_worker, file.ray_port, env)
            for number in range(1, file.num_workers + 1)
        ]

    def _start_all(self, services: list[Service], started: list[str]) -> None:
        """Start those that do not run, side by side, and wait for each; `started` grows."""
        begun = []
        for service in services:
            if self._is_alive(service.name):
                continue
            if (old := self.parts.get(service.name)) is not None:  # what a crash left of it
                self._stop(service.name)
                wait_freed(old)
            log = self.log(service.name)
            log.touch()
            offset = log.stat().st_size
            begun.append((service, spawn(service, log, self.home, self.home / "parts"), offset))
            started.append(service.name)
        for service, part, offset in begun:
            wait_ready(service, part, self.log(service.name), offset, START_TIMEOUT_S)

    def log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def _is_alive(self, name: str) -> bool:
        part = self.parts.get(name)
        return part is not None and part.is_alive

    def _stop(self, name: str) -> None:
        if (part := self.parts.get(name)) is not None:
            stop(part, STOP_GRACE_S)
            (self.home / "parts" / f"{name}.json").unlink()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One command at a time on a folder."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ClusterError(f"another command is at work on {self.home}") from None
            yield


def _stop_order(name: str) -> tuple[int, str]:
    """Who uses others goes first."""
    order = (controller.NAME, mlflow_server.NAME, ray_nodes.WORKER, ray_nodes.HEAD, postgres.NAME)
    return next(i for i, prefix in enumerate(order) if name.startswith(prefix)), name
