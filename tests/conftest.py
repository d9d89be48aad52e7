from __future__ import annotations

from hypothesis import settings

# The same examples in every run: what a change breaks is the change's, not that of a lucky draw.
# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")
