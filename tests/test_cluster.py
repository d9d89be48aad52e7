from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler._private.util import validate_config

CLUSTER = Path(__file__).parents[1] / "cluster.yaml"


def read() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CLUSTER.read_text())
    return config


def test_rays_own_validation_accepts_the_cluster_file() -> None:
    config = prepare_config(read())
    validate_config(config)
    assert config["available_node_types"]["gpu_worker"]["resources"]["GPU"] == 1


def test_rays_validation_refuses_a_misspelt_key() -> None:
    with pytest.raises(Exception, match="min_worker"):
        validate_config({**prepare_config(read()), "min_worker": 1})


def test_every_node_installs_what_the_tests_ran_with() -> None:
    (install,) = [line for line in read()["setup_commands"] if "pip install" in line]
    assert "constraints.txt" in install


def test_nobody_without_the_token_can_connect() -> None:
    config = read()
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [line for line in starts if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
