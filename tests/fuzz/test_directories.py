"""Output directories with any files in any state: a start is decided, or refused, and nothing is changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphadecay_dist.checkpoint.manifest import MANIFEST
from alphadecay_dist.training.config import to_yaml
from alphadecay_dist.training.outputs.run_files import METRICS, STATUS
from alphadecay_dist.training.recipe import Config, TrainConfig
from alphadecay_dist.training.resume import CHECKPOINTS, RunStart, decide_start
from tests.checkpoint.layouts import SHARD, rewritten, save
from tests.fuzz.drawn import accepted, changed, damaged, draws, snapshot
from tests.training.states import FINISHED, STATE

CONFIG = Config(train=TrainConfig(steps=2, dtype="float32"))
STEPS = [f"{CHECKPOINTS}/step-{step:08d}" for step in (1, 2)]
FILES = [
    "config.yaml",
    STATUS,
    METRICS,
    "wandb_id",
    "tokenizer.model",
    "lock",
    f"{CHECKPOINTS}/latest",
    *(f"{step}/{name}" for step in STEPS for name in (MANIFEST, "state.json", SHARD, "shards")),
    *STEPS,
    CHECKPOINTS,
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is finished."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    for step in (1, 2):
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        save(folder / CHECKPOINTS, step, extra=STATE)
    (folder / "config.yaml").write_text(to_yaml(CONFIG))
    (folder / STATUS).write_text(json.dumps(FINISHED))
    for name in (METRICS, "wandb_id", "tokenizer.model", "lock"):
        (folder / name).write_text(f"{name}\n")
    return folder


@st.composite
def harms(draw):
    """What is done to a file: its name and a function."""
    file = draw(st.sampled_from(FILES))
    kind = draw(st.sampled_from(["gone", "damaged", "a directory", "a link", "a loop", "another", "signed"]))
    seed = draw(st.data())
    return file, kind, seed


def outside(path):
    """A file beside the run's directory; not one of the machine's: later harms write through the link."""
    run = next(folder for folder in path.parents if folder.name == "run")
    (run.parent / "outside").write_text("of somebody else\n")
    return run.parent / "outside"


def harm(path, kind, seed):
    run = next(folder for folder in path.parents if folder.name == "run")
    # Links are followed by what writes here: whatever is drawn, nothing outside of the test's own is touched.
    assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(run.parent)), path
    if kind == "gone":
        remove(path)
    elif kind == "damaged" and path.is_file():
        path.write_bytes(seed.draw(damaged(path.read_bytes())))
    elif kind == "a directory":
        remove(path)
        path.mkdir(parents=True)
    elif kind in ("a link", "a loop"):
        remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(outside(path) if kind == "a link" else path)
    elif kind == "another" and path.is_file():
        path.write_text("step-00000001\n")
    elif kind == "signed" and path.name == MANIFEST and path.is_file():
        try:
            tree = seed.draw(changed(json.loads(path.read_text())))
            rewritten(path.parent, lambda data: (data.clear(), data.update(tree)))
        except (ValueError, TypeError):
            return


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def contents(folder):
    return {name: content for name, content in snapshot(folder).items() if not (folder / name).is_symlink()}


@draws(75)
@given(
    done=st.lists(harms(), min_size=1, max_size=4),
    resume=st.sampled_from(["auto", "auto", "none", *STEPS, "nowhere"]),
    overwrite=st.booleans(),
    seed=st.integers(0, 1),
)
def test_a_start(place, whole, done, resume, overwrite, seed):
    folder = place / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    for file, kind, draw in done:
        if (folder / file).parent.is_dir():
            harm(folder / file, kind, draw)
    named = str(folder / resume) if "step" in resume else resume
    config = Config(train=TrainConfig(steps=2, dtype="float32", seed=seed))
    before = contents(place)
    found = []
    accepted(lambda: found.append(decide_start(folder, config, named, overwrite, {})))
    accepted(lambda: [start.evaluated for start in found])
    assert contents(place) == before
    assert all(isinstance(start, RunStart) for start in found)


def test_a_finished_run_is_finished(whole):
    assert decide_start(whole, CONFIG, "auto", False, {}).finished == FINISHED
