"""Links that lead out of docs/: on the site they lead to a page that shows the file.

On GitHub the links work as they are. A page of the site is known here by its path in the repository.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")  # of the navigation
ELSEWHERE = {"README.md": "index.md"}  # files in whose place the site has a page of its own
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?(?=\))")
LANGUAGES = {".py": "python", ".sh": "bash", ".sbatch": "bash", ".yaml": "yaml", ".json": "json"}


def uri_of(path: str) -> str:
    """Where the site has a file of the repository.

    Args:
        path: from the root of the repository on.
    """
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    return f"project/{path}" if path.endswith(".md") else f"project/{path}.md"


def targets(text: str, page: str) -> list[str]:
    """The files that a page links to, from the root of the repository on."""
    return [
        posixpath.normpath(posixpath.join(posixpath.dirname(page), found[1])) for found in LINK.finditer(text)
    ]


def rewritten(text: str, page: str) -> str:
    """A page's text with its links as the site needs them."""
    here = posixpath.dirname(uri_of(page))

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), found[1]))
        return posixpath.relpath(uri_of(target), here or ".") + (found[2] or "")

    return LINK.sub(link, text)


def pages() -> dict[str, str]:
    """The files outside of docs/ that its pages, or such files, link to: path in the repository to text."""
    found: dict[str, str] = {}
    waiting = [*PROJECT, *(os.fspath(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
    while waiting:
        path = waiting.pop()
        text = shown(path)
        if not path.startswith("docs/"):
            found[path] = text
        linked = targets(text, path) if path.endswith(".md") else []
        outside = (name for name in linked if not name.startswith("docs/") and name not in ELSEWHERE)
        waiting += [name for name in outside if name not in found]
    return found


def shown(path: str) -> str:
    """A file as markdown; what is not markdown, in a block of code."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    return f"# {path}\n\n```{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}```\n"
