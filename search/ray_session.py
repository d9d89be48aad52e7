"""The Ray cluster that a run works on: a running one, or a local one of its own."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from typing import Any

import ray
from ray._private import ray_constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hwmodel import InputError
from search.failure import RunError
from search.storage import reason

if TYPE_CHECKING:
    from search.spec import ResourceSection

_CONNECT_SECONDS = 10.0


@contextmanager
def ray_session(resources: ResourceSection) -> Iterator[None]:
    """The cluster at ``resources.address``, or a local one that ends with the block.

    Inside a process of a cluster it is that one.

    Raises:
        InputError: nothing answers at the address, or a local cluster is too small for a trial.
        RunError: a local Ray does not start.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C must reach this process
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    if ray.is_initialized():
        _quieten()
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with _sigint_held():  # Ray, interrupted while it starts, may crash the process
            if resources.address is None:
                _start_local(resources.num_cpus)
            else:
                _connect(resources.address)
        signal.signal(signal.SIGTERM, on_sigterm)  # ray.init replaces the handler
        _quieten()
        _require_resources(resources)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _sigint_held() -> Iterator[None]:
    """Raise KeyboardInterrupt for a SIGINT at the end of the block instead of within it."""
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt


def _start_local(num_cpus: int | None) -> None:
    """A Ray of this machine alone, whose every port is on localhost."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nobody else can connect
    # Ray listens on all interfaces where a machine may become a cluster's, as Linux ones may by
    # default, and there it takes 127.0.0.1 for the address that others reach the machine at.
    may_cluster, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        ray.init(
            address="local",  # a cluster that this machine belongs to is only used if named
            num_cpus=num_cpus or os.cpu_count(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except Exception as error:  # of no narrower kind, where the machine is too busy for it
        logs = "Ray's logs are in /tmp/ray/session_latest/logs"
        raise RunError(f"a local Ray did not start ({reason(error)}); {logs}") from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = may_cluster


def on_this_node() -> Any:
    """Scheduling of actors that a run cannot lose: where its driver is, which it ends with."""
    node = ray.get_runtime_context().get_node_id()
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if host and "/" not in host and port.isdigit():  # Ray would try for minutes
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        allowed = f"start a cluster, or leave it out for a local one ({reason(error)})"
        raise InputError("resources.address", address, allowed) from error


def _quieten() -> None:
    for name in ("ray.tune", "ray.train", "ray.rllib"):
        # What fails is raised here, as one line; their tracebacks would bury it.
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _require_resources(resources: ResourceSection) -> None:
    """Refuse what the cluster can never give one trial, instead of waiting for it forever."""
    # A cluster that scales may get what it does not have yet.
    if resources.address is not None:
        return
    available = ray.cluster_resources()
    needed = trial_resources(resources)
    for field, kind in (("evaluator_cpus", "CPU"), ("evaluator_gpus", "GPU")):
        there = available.get(kind, 0.0)
        if needed[kind] > there + 1e-6:
            allowed = f"a trial would need {needed[kind]:g} {kind}s, and there are {there:g}"
            if resources.evaluators is not None and resources.evaluators > 1:
                field = "evaluators"
            raise InputError(f"resources.{field}", getattr(resources, field), allowed)


def trial_resources(resources: ResourceSection) -> dict[str, float]:
    """CPUs and GPUs that one trial reserves, at the least: trainer and evaluators together."""
    evaluators = resources.evaluators or 1
    return {
        "CPU": resources.trainer_cpus + evaluators * resources.evaluator_cpus,
        "GPU": evaluators * resources.evaluator_gpus,
    }


def evaluators_that_fit(resources: ResourceSection, trials: int) -> int:
    """Evaluators for which the cluster as it is now has room in each of ``trials``; at least 1."""
    there = ray.cluster_resources()
    rooms = [(there.get("CPU", 0.0) / trials - resources.trainer_cpus) / resources.evaluator_cpus]
    if resources.evaluator_gpus > 0:
        rooms.append(there.get("GPU", 0.0) / trials / resources.evaluator_gpus)
    return max(1, int(min(rooms) + 1e-6))
