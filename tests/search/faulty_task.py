"""A tiny task whose metric misbehaves where a test asks for it.

The folder in ``FAULTS`` holds one ``.fault`` file for each fault to come, named by what is to
happen; the first evaluator that takes it away has that fault. A file ``seconds`` says how long
every evaluation takes. Drivers are spared.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

FAULTS = "JOULECUT_TEST_FAULTS"
IMAGES = 240
_calls = itertools.count()  # the first is that of the check when a process loads the task


def task(width: int = 32):
    """Four classes of blobs, learnt in a second; 240 images in a split."""
    torch.manual_seed(0)
    labels = torch.arange(IMAGES * 3) % 4
    inputs = torch.randn(IMAGES * 3, 16) + torch.eye(4, 16)[labels] * 4
    network = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    network.append(nn.Linear(width, 4))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs[:IMAGES]), labels[:IMAGES]).backward()
        optimizer.step()
    splits = zip(inputs.split(IMAGES), labels.split(IMAGES), strict=True)
    return network, *([split] for split in splits), accuracy


def wide_task():
    return task(width=48)


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    folder = os.environ.get(FAULTS)
    if folder and len(targets) == IMAGES and _is_evaluator() and next(_calls) > 0:
        seconds = Path(folder) / "seconds"
        time.sleep(float(seconds.read_text()) if seconds.exists() else 0.0)
        for fault in sorted(Path(folder).glob("*.fault")):
            try:
                fault.unlink()
            except FileNotFoundError:  # another evaluator has it
                continue
            return _misbehave(fault.stem)
    return float((outputs.argmax(1) == targets).float().mean())


def _is_evaluator() -> bool:
    return Path(sys.argv[0]).name == "default_worker.py"


def _misbehave(fault: str) -> float:
    if "dies" in fault:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hangs" in fault:
        time.sleep(600)
    if "raises" in fault:
        raise ZeroDivisionError("no images left")
    return float("nan")
