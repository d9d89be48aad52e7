"""Ray on this machine for tests whose actors are defined in the test itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parents[2]


@contextmanager
def local_cluster(num_cpus: int) -> Iterator[None]:
    """With Ray, whose workers find the packages and the tests of this folder."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("PYTHONPATH", f"{ROOT}:{Path(__file__).parent}")
        ray.init(
            "local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield
        ray.shutdown()
