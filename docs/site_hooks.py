"""What mkdocs calls while it builds the site (mkdocs.yml names this file)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mkdocs.structure.files import File, Files
from sitegen import commands, fields, messages, outside

PARTS: dict[str, Callable[[], str]] = {
    "recipe fields": fields.page,
    "commands": commands.page,
    "messages": messages.page,
}
ROLE = re.compile(r":(?:attr|class|func|meth|mod):(?=<code)")  # Sphinx's, of docstrings
MARK = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)
PATHS = {outside.uri_of(path): path for path in outside.pages()}


def on_files(files: Files, config: Any) -> Files:
    """Add pages for the files outside of docs/ that pages link to."""
    for path, text in outside.pages().items():
        files.append(File.generated(config, outside.uri_of(path), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is generated, and let links lead where the site has what they name."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # which has but the page itself there
    text = MARK.sub(lambda found: PARTS[found[1]](), markdown)
    uri = page.file.src_uri
    return outside.rewritten(text, PATHS.get(uri, f"docs/{uri}"))


def on_page_content(html: str, **_: Any) -> str:
    """Leave out what docstrings say of a name's kind."""
    return ROLE.sub("", html)
