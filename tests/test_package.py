"""Wheel and sdist: what they hold, that they are the same each time, and that they need no repository."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from alphadecay_dist import __version__
from tests.ports import free_port
from tests.python_path import python_path
from tests.sources import PACKAGE, ROOT, TREES, imported_modules
from tests.test_torch_alone import closure
from tests.training.runs import left_behind, tiny_options

NAME = f"alphadecay_dist-{__version__}"
BASE = ("torch", "deepspeed", "datasets", "sentencepiece", "wandb", "pyyaml", "transformers")


def program(*command, cwd=ROOT, path=ROOT, **variables):
    """Run a program; its exit code, and all that it printed."""
    unwanted = ("OMP_NUM_THREADS", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, "PATH": search, "PYTHONPATH": python_path(path), "HF_HUB_OFFLINE": "1", **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def build(out, source=ROOT, mask="022", zone="UTC", locale="C.UTF-8"):
    """Build both from a tree; the files by ending."""
    command = 'umask "$1" && exec "$2" "$3" "$4"'
    parts = ("sh", "-c", command, "sh", mask, sys.executable, source / ".ci" / "build.py", out)
    code, printed = program(*parts, cwd=out.parent, SOURCE_DATE_EPOCH="1700000000", TZ=zone, LC_ALL=locale)
    assert code == 0, printed
    return out / f"{NAME}-py3-none-any.whl", out / f"{NAME}.tar.gz"


def test_a_build_without_a_place_says_how_it_is_called(tmp_path):
    assert program(sys.executable, ROOT / ".ci" / "build.py", cwd=tmp_path) == (
        1,
        "usage: python .ci/build.py OUT\n",
    )


def test_pages_and_the_citation_name_this_version():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        name for page in pages for name in re.findall(r"alphadecay_dist-[\d.]+-[\w-]+\.whl", page.read_text())
    }
    assert named == {f"{NAME}-py3-none-any.whl"}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built") / "first")


@pytest.fixture(scope="module")
def unpacked(built, tmp_path_factory):
    """The wheel, as pip lays it out."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.mark.launcher
def test_both_are_the_same_bytes_each_time_and_from_the_sdist(built, tmp_path):
    again = build(tmp_path / "again", mask="077", zone="Asia/Tokyo", locale="POSIX")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in built]
    with tarfile.open(built[1]) as sdist:
        sdist.extractall(tmp_path, filter="data")
        owners = {(file.uid, file.gid, file.uname, file.mtime) for file in sdist}
    assert owners == {(0, 0, "", 1700000000)}
    (tmp_path / NAME / ".ci").mkdir()
    (tmp_path / NAME / ".ci" / "build.py").write_text((ROOT / ".ci" / "build.py").read_text())
    wheel, _ = build(tmp_path / "third", source=tmp_path / NAME)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(built[0]) as other:
        assert {name: one.read(name) for name in one.namelist()} == {
            name: other.read(name) for name in other.namelist()
        }


@pytest.mark.launcher
def test_the_wheel_has_all_of_the_package_and_its_licences_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        content = {name: wheel.read(name) for name in wheel.namelist()}
    metadata = f"{NAME}.dist-info/"
    own = {name: data for name, data in content.items() if not name.startswith(metadata)}
    files = [path for folder in (PACKAGE, PACKAGE / "ds_configs") for path in folder.rglob("*")]
    expected = {path for path in files if path.is_file() and path.suffix != ".pyc"}
    assert own == {str(path.relative_to(ROOT)): path.read_bytes() for path in expected}
    for folder in ("recipes", "recipes/text", "ds_configs"):
        assert any(name.startswith(f"{PACKAGE.name}/{folder}/") for name in own)
    text = f"{PACKAGE.name}/recipes/text/README.md"
    assert content[f"{metadata}licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert content[f"{metadata}licenses/{text}"] == (ROOT / text).read_bytes()
    assert b"License-Expression: Apache-2.0 AND MIT\n" in content[f"{metadata}METADATA"]


def test_the_jsons_of_the_package_are_those_of_the_repository():
    assert (PACKAGE / "ds_configs").samefile(ROOT / "ds_configs")


@pytest.mark.launcher
def test_torchrun_starts_the_trainer_of_the_wheel_where_nothing_else_is(unpacked, tmp_path):
    """The deepspeed launcher starts it in tests/test_secrets.py."""
    here = tmp_path / "here"
    here.mkdir()
    where = (sys.executable, "-c", "import alphadecay_dist; print(alphadecay_dist.__file__)")
    assert program(*where, cwd=here, path=unpacked) == (0, f"{unpacked}/alphadecay_dist/__init__.py\n")
    options = tiny_options(tmp_path, train__steps=2, data__source="demo")
    launcher = ["torchrun", "--nproc_per_node", "2", "--master_port", free_port(), "-m", "alphadecay_dist"]
    command = [*launcher, "train", *options, "--deepspeed", "zero2", "--output_dir", "run"]
    code, printed = program(*command, cwd=here, path=unpacked)
    assert code == 0, printed
    run = left_behind(here / "run")
    assert [line["step"] for line in run["metrics"]] == [1, 2]
    assert '"stage": 2' in (here / "run" / "inputs.json").read_text()


STOPPING = "import os, signal, time\nos.kill(os.getpid(), signal.{})\ntime.sleep(20)\n"


@pytest.mark.launcher
@pytest.mark.parametrize("command", [["train.py"], ["-m", "alphadecay_dist", "train"]], ids=" ".join)
@pytest.mark.parametrize(("module", "name"), [("yaml", "SIGTERM"), ("torch", "SIGUSR2")])
def test_a_signal_while_it_loads_ends_the_trainer_with_75(tmp_path, command, module, name):
    (tmp_path / f"{module}.py").write_text(STOPPING.format(name))
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    assert program(sys.executable, *command, "--output_dir", tmp_path / "run", path=path)[0] == 75
    assert not (tmp_path / "run").exists()


def test_the_workflows_call_what_there_is():
    """What they check out is this repository."""
    called = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            text = "\n".join(step.get("run", "") for step in job["steps"])
            called |= set(re.findall(r"(\.ci/\w+|constraints\.txt)", text))
            called |= {
                f"{name.replace('.', '/')}/__main__.py" for name in re.findall(r"-m (tests\.\w+)", text)
            }
    assert called == {".ci/run", ".ci/release", "constraints.txt", "tests/compat/__main__.py"}
    assert [name for name in called if not (ROOT / name).is_file()] == []


def test_a_release_shows_what_was_built_with_its_bill_of_materials():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    (command,) = (step["run"] for step in jobs["show"]["steps"] if "run" in step)
    assert command.startswith("gh release create")
    assert command.endswith("out/dist/* out/sbom.json")
    written = re.findall(r'"\$out/([\w.]+)"', (ROOT / ".ci" / "release").read_text())
    assert {"dist", "sbom.json"} <= set(written)


def test_the_subject_of_the_bill_of_materials_is_the_release(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"wheel")
    (tmp_path / "a.tar.gz").write_bytes(b"sdist")
    reference = [{"type": "distribution", "url": "file:///somewhere/a.whl"}]
    own = {"bom-ref": "own", "name": "alphadecay-dist", "version": "1.2", "externalReferences": reference}
    others = [{"bom-ref": name, "name": name, "version": "3"} for name in ("torch", "pip")]
    needs = [{"ref": "own", "dependsOn": ["torch"]}, {"ref": "torch"}, {"ref": "pip"}]
    found = {
        "specVersion": "1.6",
        "metadata": {"tools": 1},
        "components": [own, *others],
        "dependencies": needs,
    }
    of_release = runpy.run_path(str(ROOT / ".ci" / "sbom.py"))["of_release"]
    bom = of_release(found, tmp_path)
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", bom["serialNumber"])  # which the attestation asks for
    assert of_release(found, tmp_path)["serialNumber"] == bom["serialNumber"]
    subject = bom["metadata"]["component"]
    assert (subject["purl"], bom["metadata"]["tools"]) == ("pkg:pypi/alphadecay-dist@1.2", 1)
    assert [component["name"] for component in bom["components"]] == ["torch"]
    assert [need["ref"] for need in bom["dependencies"]] == ["own", "torch"]
    assert [reference["url"] for reference in subject["externalReferences"]] == ["a.tar.gz", "a.whl"]
    digests = [reference["hashes"][0]["content"] for reference in subject["externalReferences"]]
    assert digests == [hashlib.sha256(content).hexdigest() for content in (b"sdist", b"wheel")]
    assert "somewhere" not in json.dumps(bom)


def names(lines):
    """Names of distributions as they are compared, without versions and extras."""
    return {re.match(r"[\w.-]+", line).group().lower().replace("_", "-") for line in lines}


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_the_base_is_seven_packages_and_what_they_bring(setup):
    required = names(setup["options"]["install_requires"].split())
    assert required >= set(BASE)
    assert required <= {name.replace("_", "-") for name in names(d.name for d in closure(*BASE))}


def test_all_that_the_base_brings_is_pinned_and_so_audited():
    """The weekly audit reads constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name.replace("_", "-") for name in names(line for line in lines if line[:1].isalnum())}
    brought = {found.name.replace("_", "-").lower() for found in closure(*BASE)} - {"pip", "setuptools"}
    assert brought - pinned == set()


def test_what_is_imported_is_required_or_an_extra(setup):
    brought = names(found.name for found in closure(*BASE))
    extras = setup["options.extras_require"]
    optional = names(line for extra in extras if extra != "test" for line in extras[extra].split())
    optional |= {"torchtitan", "peft", "megatron-core"}  # of hosts that users bring: docs/hosts.md
    homes = packages_distributions()
    missing = {}
    for path, tree in TREES.items():
        tops = {name.split(".")[0] for _, name in imported_modules(tree)}
        for top in tops - set(sys.stdlib_module_names) - {PACKAGE.name}:
            if not names(homes.get(top, [top])) & (brought | optional):
                missing.setdefault(top, []).append(str(path.relative_to(ROOT)))
    assert missing == {}


def test_all_is_every_extra_of_the_package_itself(setup):
    extras = setup["options.extras_require"]
    (line,) = extras["all"].split()
    own = set(extras) - {"all", "docs", "test"}  # these two are of the repository
    assert set(re.fullmatch(r"alphadecay-dist\[(.*)\]", line)[1].split(",")) == own
