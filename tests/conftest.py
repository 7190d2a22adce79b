"""Settings of every test."""

from __future__ import annotations

from hypothesis import settings

# A loaded machine is no failure.
settings.register_profile("lowerkit", deadline=None, print_blob=True)
settings.load_profile("lowerkit")
