"""Trained networks with the data and the metric that judge their compressed versions."""

from envs.task_spec import TaskSpec
from envs.tasks.registry import architecture
from envs.tasks.registry import load_task
from envs.tasks.registry import task_names
from envs.tasks.task import Draw
from envs.tasks.task import Metric
from envs.tasks.task import Split
from envs.tasks.task import Task
from envs.tasks.task import top1
from hwmodel.files import cache_directory

__all__ = [
    "Draw",
    "Metric",
    "Split",
    "Task",
    "TaskSpec",
    "architecture",
    "cache_directory",
    "load_task",
    "task_names",
    "top1",
]
