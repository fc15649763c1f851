"""The cluster of a folder without Ray; tests/acceptance/test_cluster.py starts a real one."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import cluster_file
from deploy.local.__main__ import main
from deploy.local.cluster import Cluster
from deploy.local.cluster_file import ClusterFile
from deploy.local.processes import ClusterError, Service, members, spawn
from deploy.local.ray_nodes import make_token

PORTS = ClusterFile(password="secret").with_ports()


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """A folder as a start leaves it before anything runs."""
    made = Cluster(tmp_path / "cluster")
    for folder in ("parts", "logs"):
        (made.home / folder).mkdir(parents=True)
    cluster_file.write(made.home / "cluster.json", PORTS)
    return made


def begin(cluster: Cluster, name: str) -> int:
    """Start something that stays, under the name of a part."""
    command = (sys.executable, "-c", "import time; time.sleep(600)")
    service = Service(name, command, dict(os.environ), lambda _, __: True)
    return spawn(service, cluster.log(name), cluster.home, cluster.home / "parts").pid


def test_ports_are_different_and_kept_while_they_are_free() -> None:
    assert len(set(PORTS.ports)) == 4
    assert PORTS.with_ports() == PORTS


def test_ports_that_another_took_are_chosen_anew() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", PORTS.mlflow_port))
        again = PORTS.with_ports()
    assert PORTS.mlflow_port not in again.ports
    assert again.password == PORTS.password


def test_secrets_are_nobody_elses_and_stay_the_same(cluster: Cluster) -> None:
    token = cluster.home / "ray_token"
    make_token(token)
    first = token.read_text()
    make_token(token)
    assert token.read_text() == first
    assert len(first) == 64
    for file in (token, cluster.home / "cluster.json"):
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_new_folder_has_a_password_of_its_own(tmp_path: Path) -> None:
    one, two = (cluster_file.read(tmp_path / name).password for name in ("one", "two"))
    assert one != two


def test_the_environment_names_only_loopback(cluster: Cluster) -> None:
    env = cluster.env()
    assert env["TUTTI_DATABASE_URL"].endswith(f"@127.0.0.1:{PORTS.postgres_port}/tutti")
    assert env["TUTTI_MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{PORTS.mlflow_port}"
    assert env["TUTTI_RAY_ADDRESS"] == f"127.0.0.1:{PORTS.ray_port}"
    assert env["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("change", [{"num_workers": 1}, {"cpus_per_worker": 2}])
def test_a_cluster_that_runs_can_only_grow(cluster: Cluster, change: dict[str, int]) -> None:
    begin(cluster, "mlflow")
    with pytest.raises(ClusterError, match="can only grow: stop it first"):
        cluster.start(**change)
    assert cluster.file == PORTS
    assert cluster.parts["mlflow"].is_alive
    cluster.stop()


def test_another_services_settings_do_not_reach_the_parts(cluster: Cluster) -> None:
    outer = {"TUTTI_LEASE_S": "9", "RAY_ADDRESS": "far:1", "MLFLOW_RUN_ID": "x", "PATH": "/bin"}
    assert cluster.process_env(outer) == {"PATH": "/bin", **cluster.env()}


def test_only_tutti_is_told_the_way_into_its_database(cluster: Cluster) -> None:
    make_token(cluster.home / "ray_token")
    (cluster.home / "ray").symlink_to(cluster.home)
    for service in cluster._workers():
        assert not [name for name in service.env if name.startswith("TUTTI_")]
        assert "RAY_AUTH_TOKEN_PATH" in service.env
        assert not [text for text in service.env.values() if PORTS.password in text]


def test_half_a_cluster_is_stopped_whole_and_only_once(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(cluster, "ray-worker-1")
    begin(cluster, "postgres")
    parts = cluster.parts
    arguments = ["--home", str(cluster.home), "stop"]
    assert main(arguments) == 0
    assert "stopped postgres, ray-worker-1" in capsys.readouterr().out
    assert [members(part) for part in parts.values()] == [[], []]
    assert cluster.parts == {}
    assert main(arguments) == 0
    assert "no part" in capsys.readouterr().out


def test_status_tells_the_living_from_the_dead(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(cluster, "mlflow")
    begin(cluster, "controller")
    cluster.kill("controller")
    assert main(["--home", str(cluster.home), "status"]) == 0
    dead, alive = capsys.readouterr().out.splitlines()
    assert dead.split()[:2] == ["controller", "DEAD"]
    assert alive.split()[:2] == ["mlflow", "runs"]
    cluster.stop()


def test_an_unknown_part_is_answered_with_those_there_are(cluster: Cluster) -> None:
    begin(cluster, "mlflow")
    with pytest.raises(ClusterError, match=r"ray-worker-9: no such part .*there are: mlflow"):
        cluster.kill("ray-worker-9")
    cluster.stop()


def test_two_commands_on_one_folder_do_not_mix(cluster: Cluster) -> None:
    with cluster._alone(), pytest.raises(ClusterError, match="another command is at work"):
        cluster.stop()


def test_a_folder_without_a_cluster_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "none"
    assert main(["--home", str(home), "env"]) == 1
    assert "there is no cluster" in capsys.readouterr().err
    assert main(["--home", str(home), "stop"]) == 0
    assert "there is no cluster" in capsys.readouterr().out
    assert not home.exists()


def test_a_file_in_the_folders_place_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--home", str(tmp_path / "file"), "start"]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "two", "65"])
def test_a_count_of_nodes_is_checked(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["start", f"--nodes={count}"])
    assert "from 1 to 64" in capsys.readouterr().err


def test_what_is_printed_can_be_sourced(cluster: Cluster) -> None:
    cluster._write_env()
    command = f"set -eu; . {shlex.quote(str(cluster.home / 'env'))}; {sys.executable} -c " + (
        shlex.quote("import json, os; print(json.dumps(dict(os.environ)))")
    )
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert cluster.env().items() <= json.loads(done.stdout).items()
    assert (cluster.home / "env").stat().st_mode & 0o777 == 0o600
