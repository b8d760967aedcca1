"""Tests of the site of docs/: what is generated, what its pages show, how it looks."""

import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
sys.path.append(str(DOCS))  # sitegen, as mkdocs finds it
