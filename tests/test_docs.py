"""README.md and docs/ name files that exist."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "alphadecay_dist|benchmarks|docs|ds_configs|examples|slurm|tests"
PATH = re.compile(
    rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\w"  # whatever begins with a folder of this repository
    r"|\w[\w./-]*\.(?:py|sh|sbatch)\b)"  # and every module and script, from the root on
)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
MODULE = re.compile(r"python3? -m (tests[\w.]*\w)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    links = LINK.findall(text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [name for name in PATH.findall(LINK.sub("", text)) if not (ROOT / name).exists()]
    missing += [name for name in MODULE.findall(text) if find_spec(name) is None]
    assert not missing


def test_a_path_is_found_wherever_it_stands():
    text = "`tests/a/test_b.py`, test_c.py (see tests/fuzz/). /home/me/slurm/d.sbatch, ds_configs/e.json."
    assert PATH.findall(text) == ["tests/a/test_b.py", "test_c.py", "tests/fuzz", "ds_configs/e.json"]
    assert LINK.findall("[x](https://a.b/c) [y](../slurm/table.yaml)") == ["../slurm/table.yaml"]
