from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler._private.util import validate_config

from hwmodel import InputError
from search.cli import _parser
from search.ray_session import ray_session
from search.spec import ResourceSection

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster.yaml"


def read() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CLUSTER.read_text())
    return config


def test_rays_own_validation_accepts_the_cluster_file() -> None:
    config = prepare_config(read())
    validate_config(config)
    assert config["available_node_types"]["gpu_worker"]["resources"]["GPU"] == 1


def documented(name: str) -> dict[str, Any]:
    """The example of docs/cluster.md under the comment ``name``."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    block = text.split(f"<!-- {name} -->\n```yaml\n")[1].split("```")[0]
    config: dict[str, Any] = yaml.safe_load(block)
    return config


def test_rays_own_validation_accepts_the_variant_for_machines_of_ones_own() -> None:
    config = documented("on-premise")
    validate_config(prepare_config({**config, "provider": {**config["provider"]}}))
    cloud = read()
    for key in ("file_mounts", "rsync_exclude", "worker_start_ray_commands"):
        assert config[key] == cloud[key]


def test_only_the_workers_are_spot_machines_and_all_may_go() -> None:
    types = read()["available_node_types"]
    assert "GPU" not in types["head"]["resources"]
    assert types["gpu_worker"]["min_workers"] == 0
    assert types["gpu_worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert read()["idle_timeout_minutes"] > 0


def test_the_ray_job_runs_a_command_that_exists() -> None:
    job = documented("rayjob")
    assert job["kind"] == "RayJob"
    program, verb, *arguments = job["spec"]["entrypoint"].split()
    assert program == "joulecut"
    options = [word for word in arguments if word.startswith("--")]
    parser = _parser()
    assert parser.parse_args([verb, *arguments]).address == "auto"
    assert options == ["--address", "--output"]
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] == 0


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "nonsense"])
def test_an_address_where_no_cluster_is(address: str) -> None:
    with pytest.raises(InputError, match=r"resources\.address: .* start a cluster"):
        ray_session(ResourceSection(address=address)).__enter__()


def test_rays_validation_refuses_a_misspelt_key() -> None:
    with pytest.raises(Exception, match="min_worker"):
        validate_config({**prepare_config(read()), "min_worker": 1})


def test_every_node_installs_what_the_tests_ran_with() -> None:
    (install,) = [line for line in read()["setup_commands"] if "pip install" in line]
    assert "constraints.txt" in install
    assert "'ray[default]' boto3" in install  # without them the autoscaler cannot start a worker


def test_nobody_without_the_token_can_connect() -> None:
    config = read()
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [line for line in starts if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
