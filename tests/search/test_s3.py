"""A run on an S3-compatible server, started here and resumed from elsewhere by its URI alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from faulty_task import __file__ as TASK_FILE

from hwmodel.errors import InputError
from search.run_directory import RunDirectory
from search.storage import Storage

moto_server = pytest.importorskip("moto.server", reason="moto is in the extra 'test'")

ROOT = Path(__file__).parents[2]
BUCKET = "runs"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of a server with an empty bucket; credentials are in the environment."""
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"{host.replace('0.0.0.0', '127.0.0.1')}:{port}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        Storage.at(uri(address, "")).make()
        yield address
    server.stop()


def uri(address: str, path: str) -> str:
    options = f"scheme=http&endpoint_override={quote(address)}&region=us-east-1"
    return f"s3://{BUCKET}/{path}?{options}&allow_bucket_creation=true"


def test_files_come_and_go(server: str) -> None:
    storage = Storage.at(uri(server, "folder")).child("inner")
    assert storage.names() == []
    storage.make()
    storage.write("name", b"content")
    assert storage.names() == ["name"]
    assert storage.read("name") == b"content"
    storage.move("name", storage.child("aside"))
    assert storage.child("aside").names() == ["name"]
    with pytest.raises(FileNotFoundError):
        storage.read("name")
    storage.child("aside").delete("name")
    assert storage.child("aside").names() == []


def test_a_child_can_be_named_to_another_process(server: str) -> None:
    storage = Storage.at(uri(server, "folder")).child("child")
    storage.make()
    storage.write("name", b"content")
    assert Storage.at(storage.location).read("name") == b"content"


def test_a_server_that_is_not_there_is_one_line() -> None:
    with pytest.raises(InputError) as caught:
        RunDirectory.open(uri("127.0.0.1:9", "run"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_is_resumed_from_another_checkout_and_environment(
    server: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for checkout in (first, second):
        for package in ("hwmodel", "envs", "search"):
            shutil.copytree(ROOT / package, checkout / package)
        venv.create(checkout / "venv")
        packages = sysconfig.get_path("purelib", vars={"base": str(checkout / "venv")})
        # Dependencies alone: what is installed there editably is not found by way of another.
        (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run = uri(server, "run")
    spec = {
        "task": f"{TASK_FILE}:task",
        "accelerator": "eyeriss-like",
        "output": run,
        "algorithm": "random",
        "budget": 18,
        "time_budget": "1s",
        "resources": {"num_cpus": 2},
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    joulecut(first, "search", tmp_path / "spec.yaml")
    shutil.rmtree(first)
    storage = Storage.at(run)
    text = storage.read("spec.yaml").decode()
    storage.write("spec.yaml", text.replace("time_budget: 1s", "time_budget: null").encode())
    joulecut(second, "resume", run)
    status = json.loads(joulecut(second, "status", run, "--json"))
    assert (status["state"], status["evaluations"]) == ("completed", 18)


def joulecut(checkout: Path, *arguments: Any) -> str:
    result = subprocess.run(
        [checkout / "venv" / "bin" / "python", "-m", "search.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=checkout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
