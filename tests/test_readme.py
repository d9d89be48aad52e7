"""What the README promises about itself; the search it begins with is run in test_search.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from search.spec import Spec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(name: str) -> list[str]:
    """Lines of the code block that follows ``<!-- name -->``."""
    found = re.search(rf"<!-- {name} -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1].splitlines()


def test_both_commands_bring_their_own_set_up() -> None:
    for name, last in (("search", "joulecut search "), ("tests", "pytest")):
        lines = block(name)
        assert lines[0] == "python3 -m venv .venv"
        assert any(line.startswith("pip install -c constraints.txt") for line in lines)
        assert lines[-1].startswith(last)


@pytest.mark.parametrize(
    "document", ["README.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document if document == "README.md" else ROOT / "docs" / document
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())
    for link in links:
        assert link.startswith("https://") or (path.parent / link).exists(), link


def test_the_specification_shown_is_valid(tmp_path: Path) -> None:
    found = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert found is not None
    path = tmp_path / "SPEC.yaml"
    path.write_text(found[1])
    assert Spec.load(path).task.name == "cifar10-resnet20"
