"""A search as a job of a cluster: submitted, stopped, and gone on with by another job."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_task import FAULTS

pytest.importorskip("aiohttp_cors", reason="jobs need ray[default]")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TASK = f"{Path(__file__).parent}/faulty_task.py:task"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
BUDGET = 24


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[str]:
    """Address of a head's dashboard; evaluations take half a second."""
    (tmp_path / "seconds").write_text("0.5")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        FAULTS: str(tmp_path),
    }
    options = ["--num-cpus=2", "--object-store-memory=80000000", "--port=0"]
    options += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    head = subprocess.Popen(
        [*RAY, "start", "--head", "--block", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert head.poll() is None
            try:
                urllib.request.urlopen(f"{address}/api/jobs/").close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait()


def job(dashboard: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    verb, *rest = arguments
    return subprocess.run(
        [*RAY, "job", verb, "--address", dashboard, *rest],
        capture_output=True,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        check=False,
    )


def test_a_job_is_stopped_and_another_goes_on(dashboard: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    spec = {"task": TASK, "accelerator": "eyeriss-like", "algorithm": "random", "budget": BUDGET}
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    joulecut = [sys.executable, "-m", "search.cli"]
    search = ["search", str(tmp_path / "spec.yaml"), "--address", "auto", "--output", str(run)]

    started = job(dashboard, "submit", "--no-wait", "--submission-id=1", "--", *joulecut, *search)
    assert started.returncode == 0, started.stderr
    while len(list(run.glob("ledger/part-*.parquet"))) < 10:
        assert "FAILED" not in job(dashboard, "status", "1").stdout
        time.sleep(0.5)
    assert job(dashboard, "stop", "1").returncode == 0
    state = json.loads((run / "state.json").read_text())
    assert (state["state"], state["message"]) == ("interrupted", "stopped by SIGTERM")
    assert (run / "report" / "report.html").exists()

    resumed = job(dashboard, "submit", "--", *joulecut, "resume", str(run))
    assert resumed.returncode == 0, resumed.stderr
    assert "succeeded" in resumed.stdout
    state = json.loads((run / "state.json").read_text())
    assert state["state"] == "completed"
