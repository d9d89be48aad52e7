"""Ray for the time of a command: a local one that ends with it, or a cluster that runs already."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from hwmodel import InputError
from search.spec import ResourceSection


@contextmanager
def ray_session(resources: ResourceSection) -> Iterator[None]:
    """A Ray cluster: the one at ``address``, or a local one that ends with the run."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C must reach this process
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    if resources.address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # it listens on localhost alone
        ray.init(
            num_cpus=resources.num_cpus or os.cpu_count(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    else:
        ray.init(address=resources.address, log_to_driver=False, logging_level="ERROR")
    for name in ("ray.tune", "ray.train", "ray.rllib"):
        # What fails is raised here, as one line; their tracebacks would bury it.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        _require_resources(resources)
        yield
    finally:
        ray.shutdown()


def _require_resources(resources: ResourceSection) -> None:
    """Refuse what the cluster can never give one trial, instead of waiting for it forever."""
    cluster = ray.cluster_resources()
    cpus = resources.trainer_cpus + resources.evaluators * resources.evaluator_cpus
    gpus = resources.evaluators * resources.evaluator_gpus
    # A cluster that scales may get what it does not have yet.
    if resources.address is not None:
        return
    for field, needed, kind in (("evaluator_cpus", cpus, "CPU"), ("evaluator_gpus", gpus, "GPU")):
        available = cluster.get(kind, 0.0)
        if needed > available + 1e-6:
            allowed = f"a trial would need {needed:g} {kind}s, and there are {available:g}"
            raise InputError(f"resources.{field}", getattr(resources, field), allowed)
