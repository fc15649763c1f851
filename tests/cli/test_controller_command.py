import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.cli.conftest import Run, open_tutti

TUTTI = [sys.executable, "-c", "from orchestrator.cli import main; main()"]


def test_a_controller_serves_metrics_and_ends_cleanly_on_sigterm(home: Path) -> None:
    process = subprocess.Popen(
        [*TUTTI, "controller", "--metrics-port", "0"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = [json.loads(process.stderr.readline())]
    while said[-1]["message"] != "leads":
        said.append(json.loads(process.stderr.readline()))
    with urllib.request.urlopen(said[0]["url"], timeout=10) as answer:
        assert "tutti_controller_leading" in answer.read().decode()
    with open_tutti(home) as tutti:
        leader = tutti.leader()
        assert leader is not None
        assert f":{process.pid}:" in leader
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[1].splitlines()
        assert process.returncode == 0
        assert json.loads(rest[-1])["message"] == "the controller has ended"
        assert tutti.leader() is None


def test_once_idle_it_ends_where_there_is_nothing_to_do(run: Run, home: Path) -> None:
    done = run("controller", "--once-idle")
    assert (done.code, done.out) == (0, "")
    messages = [json.loads(line)["message"] for line in done.err.splitlines() if line[0] == "{"]
    assert messages[0] == "the controller is up"
    assert messages[-1] == "the controller has ended"


def test_a_metrics_host_that_is_not_here_is_refused(run: Run, home: Path) -> None:
    done = run("controller", "--metrics-port", "0", "--metrics-host", "no.such.host.invalid")
    assert done.code == 2
    assert "cannot serve metrics at no.such.host.invalid:0" in done.err
    assert "Traceback" not in done.err
