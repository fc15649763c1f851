"""`python -m deploy.local`: start, stop and look at the cluster of a folder."""

import argparse
import os
import sys
import time
from pathlib import Path

from deploy.local.cluster import Cluster
from deploy.local.processes import ClusterError, members, memory_bytes

DEFAULT_HOME = Path(__file__).parents[2] / ".tutti-cluster"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 1 for what went wrong, with the reason on stderr."""
    given = _parser().parse_args(arguments)
    try:
        _run(given)
    except (ClusterError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _run(given: argparse.Namespace) -> None:
    cluster = Cluster(given.home.expanduser().absolute())
    if given.command == "start":
        _start(cluster, given)
    elif given.command == "stop":
        _stop(cluster)
    elif given.command == "status":
        print(_status(cluster))
    elif given.command == "env":
        print("".join(f"{name}={text}\n" for name, text in cluster.env().items()), end="")
    else:
        cluster.kill(given.part)
        print(f"killed {given.part}; `start` brings it back")


def _start(cluster: Cluster, given: argparse.Namespace) -> None:
    begun = time.monotonic()
    print(f"starting the cluster in {cluster.home} (about half a minute)", file=sys.stderr)
    started = cluster.start(given.nodes, given.cpus, given.controller)
    took = f"started {', '.join(started)} in {time.monotonic() - begun:.0f} s"
    file = cluster.file
    print(
        f"{took if started else 'it runs already'}\n{_status(cluster)}\n"
        f"PostgreSQL 127.0.0.1:{file.postgres_port}   MLflow http://127.0.0.1:{file.mlflow_port}   "
        f"Ray 127.0.0.1:{file.ray_port} (with a token)\n"
        f"use it:   source {cluster.home / 'env'}   then any command, such as `tutti doctor`\n"
        f"end it:   make cluster-stop"
    )


def _stop(cluster: Cluster) -> None:
    if not cluster.home.exists():
        print(f"there is no cluster in {cluster.home}")
        return
    begun = time.monotonic()
    ran = cluster.stop()
    took = f"stopped {', '.join(ran)} in {time.monotonic() - begun:.0f} s"
    print(took if ran else f"no part of the cluster in {cluster.home} was running")


def _status(cluster: Cluster) -> str:
    """A line for each part: its state, process, memory and log."""
    lines = []
    for name, part in cluster.parts.items():
        pids = members(part)
        state = "runs" if part.is_alive else "DEAD"
        memory = f"{memory_bytes(pids) >> 20} MiB"
        lines.append(f"{name:14}{state}  pid {part.pid:<8}{memory:>10}  {cluster.log(name)}")
    return "\n".join(lines) or f"nothing runs in {cluster.home}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    default = Path(os.environ.get("TUTTI_CLUSTER_HOME") or DEFAULT_HOME)
    parser.add_argument(
        "--home", type=Path, default=default, help="its folder (TUTTI_CLUSTER_HOME; %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="start what does not run, and wait until it answers")
    start.add_argument("--nodes", type=_count, help="worker nodes (2, or as at the last start)")
    start.add_argument("--cpus", type=_count, help="CPUs of each (1, or as at the last start)")
    start.add_argument(
        "--controller", action=argparse.BooleanOptionalAction, help="run `tutti controller` (yes)"
    )
    commands.add_parser("stop", help="end all of it; its data stays")
    commands.add_parser("status", help="each part's state, memory and log")
    commands.add_parser("env", help="print the variables that the file `env` sets")
    ending = commands.add_parser("kill", help="kill a part as a failing machine would")
    ending.add_argument("part", help="its name in `status`, such as ray-worker-1")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 64")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
