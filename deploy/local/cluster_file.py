"""What a cluster is like, kept in its folder from the first start on: size, ports, password."""

import json
import os
import random
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from deploy.local.postgres import new_password

#: Below what Linux gives to outgoing connections, so that a chosen port stays free.
PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class ClusterFile:
    """`num_workers` nodes of `cpus_per_worker`; where each part listens on 127.0.0.1."""

    num_workers: int = 2
    cpus_per_worker: int = 1
    has_controller: bool = True
    postgres_port: int = 0
    mlflow_port: int = 0
    ray_port: int = 0
    ray_client_port: int = 0
    password: str = ""

    @property
    def ports(self) -> tuple[int, int, int, int]:
        return self.postgres_port, self.mlflow_port, self.ray_port, self.ray_client_port

    def grows_from(self, other: "ClusterFile") -> bool:
        """Whether it has all nodes of `other`, as they are."""
        is_same = self.cpus_per_worker == other.cpus_per_worker
        return is_same and self.num_workers >= other.num_workers

    def with_ports(self) -> "ClusterFile":
        """Its ports if they are free, else others."""
        if all(port and _is_free(port) for port in self.ports):
            return self
        free = (port for port in iter(lambda: random.choice(PORTS), None) if _is_free(port))
        chosen: set[int] = set()
        while len(chosen) < 4:
            chosen.add(next(free))
        postgres, mlflow, ray, ray_client = chosen
        return replace(
            self,
            postgres_port=postgres,
            mlflow_port=mlflow,
            ray_port=ray,
            ray_client_port=ray_client,
        )


def read(path: Path) -> ClusterFile:
    """The file at `path`; a cluster that was never started has a new password and no ports."""
    if path.exists():
        return ClusterFile(**json.loads(path.read_text(encoding="utf-8")))
    return ClusterFile(password=new_password())


def write(path: Path, cluster: ClusterFile) -> None:
    write_private(path, json.dumps(asdict(cluster), indent=1))


def write_private(path: Path, text: str) -> None:
    """Write a file that no other user can read, at once as a whole."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    new.replace(path)


def _is_free(port: int) -> bool:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
