from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mappings found by other runs are not tested here."""
    monkeypatch.setenv("JOULECUT_CACHE", str(tmp_path))
