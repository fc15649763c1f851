"""Ray's nodes: a head without CPUs and workers, each a process of its own, behind a token."""

import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from deploy.local.processes import Service

HEAD = "ray-head"
WORKER = "ray-worker"
OBJECT_STORE_BYTES = 128 << 20
STARTED = "Ray runtime started."  # said once the node is known to the cluster


def make_token(file: Path) -> None:
    """A token that no other user can read; one that is there is kept."""
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_hex(32))


def client_env(token: Path) -> dict[str, str]:
    """What a process needs to be let in by the cluster, and to find it on loopback.

    The last is Ray's switch for systems whose firewalls ask: it takes this machine's address to be
    127.0.0.1. `ray start --address` refuses it, so nodes go without (ray_node.py).
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def make_folder(link: Path, logs: Path) -> Path:
    """A new folder for Ray's sockets and logs, behind `link`; the last one's logs go to `logs`.

    It is in the system's folder for temporary files because a socket's path has 107 bytes at most.
    """
    drop_folder(link, logs)
    folder = Path(tempfile.mkdtemp(prefix="tutti-ray-"))
    link.symlink_to(folder)
    return folder


def drop_folder(link: Path, logs: Path) -> None:
    """Remove that folder; its logs move to `logs`."""
    if not link.is_symlink():
        return
    for node in link.iterdir() if link.is_dir() else ():
        if (found := node / "session_latest" / "logs").is_dir():
            shutil.rmtree(logs / node.name, ignore_errors=True)
            shutil.copytree(found.resolve(), logs / node.name, symlinks=True)
    shutil.rmtree(link.readlink(), ignore_errors=True)
    link.unlink()


def head(folder: Path, port: int, client_port: int, env: Mapping[str, str]) -> Service:
    """The node that holds the cluster's state, and what drivers attach to; no task runs on it."""
    flags = ("--head", f"--port={port}", f"--ray-client-server-port={client_port}")
    return _node(HEAD, folder, 0, (*flags, "--include-dashboard=false"), env)


def worker(number: int, folder: Path, num_cpus: int, port: int, env: Mapping[str, str]) -> Service:
    name = f"{WORKER}-{number}"
    return _node(name, folder, num_cpus, (f"--address=127.0.0.1:{port}",), env)


def _node(
    name: str, folder: Path, num_cpus: int, flags: tuple[str, ...], env: Mapping[str, str]
) -> Service:
    """Nothing of a node is worth a slow goodbye: it is killed, as a failing machine would be."""
    command = (
        sys.executable, "-P", str(Path(__file__).with_name("ray_node.py")), "start", "--block",
        *flags,
        "--node-ip-address=127.0.0.1", f"--num-cpus={num_cpus}",
        f"--node-name={name}", f"--temp-dir={folder / name}",
        f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats",
        "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0",
        "--include-log-monitor=false", "--log-color=false",
    )  # fmt: skip
    own = {k: v for k, v in env.items() if k != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    own["GLOO_SOCKET_IFNAME"] = "lo"  # what workers say to each other stays on loopback too
    return Service(name, command, own, lambda _, said: STARTED in said, signal.SIGKILL)
