"""A headless Chromium for the tests of pages, and why there is none."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT_MS = 60_000  # for a machine that does much else


def path() -> str | None:
    """The program, as Debian's package or a site installs it."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def why_not() -> str | None:
    """Why pages cannot be opened here; None where they can."""
    return None if path() else "no Chromium is installed: apt-get install chromium"


class Tab:
    """A page that is open, on a screen that has room for all its figures unless it is less high.

    Attributes:
        page: playwright's.
        complaints: errors and warnings of the console, and whatever was asked of a network.
    """

    def __init__(self, browser: Any, width: int, scheme: str, height: int = 6000) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page.set_default_timeout(WAIT_MS)
        self.complaints: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._asked)

    def open(self, url: str) -> Tab:
        """Open a page, and wait until the figures on the screen are drawn."""
        self.page.goto(url)
        return self.drawn()

    def drawn(self) -> Tab:
        self.page.wait_for_selector("html[data-drawn=true]")
        return self

    def until(self, expression: str) -> None:
        """Wait until it is true; playwright's own wait needs an eval in the page, which the page forbids."""
        end = time.monotonic() + WAIT_MS / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def facts(self) -> dict[str, str]:
        """The numbers of the chosen module, as they are read."""
        terms, values = (self.page.locator(f"#numbers {tag}").all_inner_texts() for tag in ("dt", "dd"))
        return dict(zip(terms, values, strict=True))

    def rows(self, place: str) -> list[list[str]]:
        """The texts of a table's cells, the head's first."""
        return self.page.evaluate(
            "place => [...document.querySelectorAll(`${place} tr`)].map(row => "
            "[...row.cells].map(cell => cell.textContent))",
            place,
        )

    def traces(self, figure: str) -> list[dict[str, Any]]:
        """What plotly has drawn, as plain data: its name and numbers."""
        return self.page.evaluate(
            "id => document.getElementById(id).data.map(({name, x, y, z}) => "
            "JSON.parse(JSON.stringify({name, x, y, z})))",
            figure,
        )

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:")):
            self.complaints.append(f"asked for {request.url}")


@contextmanager
def running() -> Iterator[Any]:
    """The browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
