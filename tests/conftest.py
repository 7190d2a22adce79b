"""Settings of every test."""

from __future__ import annotations

import os

from hypothesis import settings

# A loaded machine is no failure. In CI every run draws the same examples; elsewhere each draws new ones.
settings.register_profile("lowerkit", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("lowerkit")
