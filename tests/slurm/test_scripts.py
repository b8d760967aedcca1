"""Every script of slurm/: its form, and that SLURM would take it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.runs import ROOT

SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
# recipe, nodes, GPUs of each, cores a GPU: images are decoded and augmented on the host
PUBLISHED = {
    "60m": ("llama_60m", 1, 4, 4),
    "130m": ("llama_130m", 1, 8, 4),
    "350m": ("llama_350m", 1, 8, 4),
    "1b": ("llama_1b", 2, 8, 4),
    "vit_tiny": ("vit_tiny", 1, 2, 16),
}


def options(script):
    lines = script.read_text().splitlines()
    return dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if "#SBATCH" in line)


def test_shellcheck_has_nothing_to_say():
    files = [*SCRIPTS, *(ROOT / "slurm").glob("*.sh"), *(ROOT / "slurm").glob("*.env")]
    files += (ROOT / "examples").glob("*.sh")
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert checker, "shellcheck comes with the extra test"
    done = subprocess.run(
        [checker, "--external-sources", *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_all_scripts_stop_and_come_back_alike():
    """sbatch reads these lines of the submitted script alone."""
    common = {"signal": "B:USR2@180", "requeue": "", "open-mode": "append"}
    assert {script.stem for script in SCRIPTS} == {"train", "table", *PUBLISHED}
    for script in SCRIPTS:
        cores = PUBLISHED[script.stem][-1] if script.stem in PUBLISHED else 4
        assert {**common, "cpus-per-gpu": str(cores)}.items() <= options(script).items(), script


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_run_is_a_recipe_over_train(name):
    script = ROOT / "slurm" / f"{name}.sbatch"
    recipe, nodes, gpus, _ = PUBLISHED[name]
    assert (options(script)["nodes"], options(script)["gpus-per-node"]) == (str(nodes), str(gpus))
    *_, last = script.read_text().splitlines()
    assert last.startswith('exec bash "${SLURM_SUBMIT_DIR:?}/slurm/train.sbatch" --recipe ' + f"{recipe} ")
    assert (ROOT / last.split()[6]).is_file()


@pytest.mark.slurm
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_sbatch_would_take_it(cluster, script):
    cluster.run("sbatch", "--test-only", script, cwd=ROOT)


@pytest.mark.slurm
def test_a_script_that_is_submitted_from_elsewhere_says_so(cluster, tmp_path):
    with pytest.raises(AssertionError):
        cluster.run("sbatch", "--wait", "--output=out", ROOT / "slurm" / "train.sbatch", cwd=tmp_path)
    assert "is not the root of the repository; submit from there" in (tmp_path / "out").read_text()


@pytest.mark.slurm
def test_a_rank_knows_its_place(cluster):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "SLURMD_NODENAME")
    code = f"import json, os; print(json.dumps([os.environ[name] for name in {names}]))"
    step = ["--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=3", "--distribution=block"]
    printed = cluster.run("srun", *step, "bash", "slurm/rank.sh", "-c", code, cwd=ROOT, OMP_NUM_THREADS="")
    assert sorted(map(json.loads, printed.splitlines())) == [
        [str(rank), str(rank % 2), "4", "3", f"n{1 + rank // 2}"] for rank in range(4)
    ]
