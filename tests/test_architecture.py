from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "hwmodel": {"hwmodel"},
    "envs": {"hwmodel", "envs"},
    "search": {"hwmodel", "envs", "search"},
}


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) & set(ALLOWED) <= ALLOWED[package], path
        if package == "hwmodel":
            assert not imported(path) & {"torch", "ray"}, path
        if package == "envs" and path.name != "compression_env.py":
            assert "ray" not in imported(path), path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("hwmodel", {"torch", "ray", "pandas"}),
        ("envs.evaluator", {"ray"}),
        ("envs.setup", {"ray"}),
        ("search.trial", {"torch"}),
    ],
)
def test_what_a_package_does_not_need_is_not_loaded(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({absent!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""
