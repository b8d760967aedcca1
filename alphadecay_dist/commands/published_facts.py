"""What was published, as data: ``recipes/tables/published.yaml``."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

import yaml


@functools.cache
def facts() -> dict[str, Any]:
    """The YAML, as it is."""
    file = resources.files("alphadecay_dist.recipes") / "tables" / "published.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))
