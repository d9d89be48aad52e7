"""How much of a cluster a search takes, and who reaches the one that it starts."""

from __future__ import annotations

import ipaddress
import signal

import pytest
import ray

from search.failure import RunError
from search.ray_session import evaluators_that_fit
from search.ray_session import ray_session
from search.spec import ResourceSection


@pytest.mark.parametrize(
    ("there", "trials", "resources", "expected"),
    [
        ({"CPU": 2.0}, 1, {}, 2),
        ({"CPU": 2.0}, 2, {}, 1),
        ({"CPU": 1.0}, 4, {}, 1),
        ({"CPU": 64.0}, 2, {}, 39),
        ({"CPU": 64.0, "GPU": 2.0}, 2, {"evaluator_gpus": 0.25}, 4),
        ({"CPU": 64.0}, 2, {"evaluator_gpus": 0.25}, 1),  # until a machine with one joins
    ],
)
def test_evaluators_share_the_cluster_with_all_trials(
    there: dict[str, float],
    trials: int,
    resources: dict[str, float],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    assert evaluators_that_fit(ResourceSection(**resources), trials) == expected


def test_ctrl_c_waits_until_ray_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray may crash where it is interrupted within its start."""
    steps = []

    def start(**_: object) -> None:
        steps.append("starting")
        signal.raise_signal(signal.SIGINT)
        steps.append("started")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: steps.append("shut down"))
    with pytest.raises(KeyboardInterrupt), ray_session(ResourceSection()):
        steps.append("at work")
    assert steps == ["starting", "started", "shut down"]
    assert signal.getsignal(signal.SIGINT) is before


def addresses_of_open_ports() -> set[str]:
    """Where this process and all that it started listen."""
    import psutil  # Ray brings it and shows it to those who have imported Ray

    here = psutil.Process()
    return {
        connection.laddr.ip
        for process in [here, *here.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_a_local_cluster_has_no_port_beyond_localhost() -> None:
    before = addresses_of_open_ports()
    with ray_session(ResourceSection(num_cpus=1)):
        ray.get(ray.remote(lambda: None).remote())
        found = addresses_of_open_ports() - before
    assert found
    for address in found:
        assert ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback, address


def test_a_local_cluster_that_does_not_start_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nMore of it.")  # as Ray does

    monkeypatch.setattr(ray, "init", slow)
    with (
        pytest.raises(RunError, match=r"^a local Ray did not start \(.*startup\.\); Ray's logs"),
        ray_session(ResourceSection(num_cpus=1)),
    ):
        pass
