"""Build wheel and sdist, the same bytes each time: python .ci/build.py OUT.

They are built from a copy of what belongs to them, with the installed setuptools. Times are those of
SOURCE_DATE_EPOCH, or of the last commit; users, groups and the permissions of this machine are left out.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from setuptools import build_meta

ROOT = Path(__file__).parents[1]
PARTS = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "alphadecay_dist")


def copy_tree(folder: Path) -> None:
    """Copy the parts, without what Python compiled; a link becomes what it leads to."""
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copyfile(source, folder / name)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def rewrite(sdist: Path, epoch: int) -> None:
    """Write an sdist again with what is the same everywhere."""
    packed = io.BytesIO()
    with tarfile.open(sdist) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old, key=lambda member: member.name):
            member.mtime, member.pax_headers = epoch, {}
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            new.addfile(member, old.extractfile(member))
    sdist.write_bytes(gzip.compress(packed.getvalue(), mtime=epoch))


def last_commit() -> str:
    """When the last commit was made, in seconds."""
    command = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Build both into the directory that is named."""
    if len(sys.argv) != 2:
        sys.exit("usage: python .ci/build.py OUT")
    out = Path(sys.argv[1]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if "SOURCE_DATE_EPOCH" not in os.environ:
        os.environ["SOURCE_DATE_EPOCH"] = last_commit()
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    os.umask(0o022)
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        os.chdir(folder)
        sdist = out / build_meta.build_sdist(str(out))
        wheel = out / build_meta.build_wheel(str(out))
    rewrite(sdist, epoch)
    print(sdist, wheel, sep="\n")


if __name__ == "__main__":
    main()
