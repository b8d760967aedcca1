"""What the runs are made of that are stopped and held here."""

from __future__ import annotations

SIZES = {"train__steps": 12, "decay__interval": 5, "eval__every": 4, "checkpoint__every": 5}
