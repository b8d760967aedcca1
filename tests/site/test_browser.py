"""The site as readers meet it: built strictly, searched, without a network, on narrow and wide screens."""

from __future__ import annotations

import functools
import html
import re
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest
import yaml

from tests.commands.page import browser
from tests.site import DOCS

ROOT = DOCS.parent
NO_MKDOCS = "mkdocs is not installed (CONTRIBUTING.md, Documentation)"

pytestmark = [
    pytest.mark.launcher,
    pytest.mark.skipif(not find_spec("material") or not find_spec("mkdocstrings"), reason=NO_MKDOCS),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", folder
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    if browser.why_not():
        pytest.skip(browser.why_not())
    with browser.running() as running:
        yield running


def pages(nav):
    """The pages of the navigation."""
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages(value)


class Loader(yaml.SafeLoader):
    """Of mkdocs.yml, whose tags are mkdocs' own."""


Loader.add_constructor("!ENV", lambda loader, node: None)
NAV = list(pages(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]))


def address(page):
    return re.sub(r"(^|/)index/$", r"\1", f"{page.removesuffix('.md')}/")


def test_every_page_of_docs_is_in_the_navigation():
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} <= set(NAV)


def test_what_is_generated_is_on_the_pages(site):
    _, folder = site
    texts = {
        name: (folder / name / "index.html").read_text()
        for name in ("reference/recipe", "reference/commands")
    }
    texts |= {
        name: (folder / name / "index.html").read_text() for name in ("reference/api", "troubleshooting")
    }
    assert "train.seq_len" in texts["reference/recipe"]
    assert "--world_size" in texts["reference/commands"]
    assert "min_ratio" in texts["reference/api"]
    api = html.unescape(re.sub(r"<[^>]+>", "", texts["reference/api"]))
    assert 'untuned: str = "base"' in api  # the constant's value
    assert re.search(r"Dicts with params, [^–]* in followers\.", api)  # one thing is returned, in a paragraph
    assert "fetch it again" in texts["troubleshooting"]
    assert not any("generated:" in text or ":meth:" in text for text in texts.values())


def test_search_finds_resume(site, chromium):
    tab = browser.Tab(chromium, 1440, "light")
    tab.page.goto(site[0])
    tab.page.locator(".md-search__input").first.fill("resume")
    tab.page.wait_for_selector(".md-search-result__link")
    found = tab.page.eval_on_selector_all(".md-search-result__link", "all => all.map(link => link.href)")
    assert any("/concepts/resume/" in link for link in found), found
    assert tab.complaints == []
    tab.page.close()


@pytest.mark.parametrize(("width", "scheme", "step"), [(400, "dark", 1), (1440, "light", 6)])
def test_no_page_asks_a_network_or_is_too_wide(site, chromium, width, scheme, step):
    tab = browser.Tab(chromium, width, scheme)
    backgrounds = set()
    for page in NAV[::step]:
        response = tab.page.goto(site[0] + address(page))
        assert response.status == 200, page
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page
        tab.until("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        backgrounds.add(tab.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    (background,) = backgrounds
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
    assert tab.complaints == []
    tab.page.close()
