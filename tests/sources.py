"""The files of the package, and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "alphadecay_dist"
FILES = [*sorted(PACKAGE.rglob("*.py")), ROOT / "train.py"]
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Dotted names that a file imports, with their lines; ``from a import b`` is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
