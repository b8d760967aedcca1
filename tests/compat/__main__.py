"""Run what matters with other versions: python -m tests.compat --torch 2.9.1 --deepspeed 0.17.6.

Makes a virtual environment, installs the versions with pip, runs the parts below in it and prints a row for
docs/versions.md. The exit code is 1 where a part failed; its output is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "deepspeed", "transformers", "datasets")
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--tb=short")
FAST = (
    "tests/spectral",
    "tests/decay",
    "tests/sharding",
    "tests/engines",
    "tests/checkpoint",
    "tests/compat",
    "tests/commands/test_spectrum_models.py",
    "tests/training/test_config.py",
    "tests/training/tasks/language/test_hf_tokenizer.py",
    "tests/training/tasks/language/test_pretrained.py",
    "tests/training/data/test_tokenizer.py",
)
RANKS = (
    "tests/compat",
    "tests/engines/zero/test_contract.py",
    "tests/engines/test_state.py",
    "tests/engines/native/test_fsdp1.py",
    "tests/engines/native/test_dtensor.py",
    "tests/control/test_ranks.py",
)
STEPS, STOP = 6, 3
RUNS = {  # name: how the demo is started
    "one process": (),
    "ZeRO-2, 2 ranks": ("--deepspeed", "ds_configs/zero2.json"),
    "ZeRO-3, 2 ranks": ("--deepspeed", "ds_configs/zero3.json"),
    "FSDP2, 2 ranks": ("--engine", "fsdp2"),
}
# What of a line does not depend on the clock.
EXACT = {"metrics.jsonl": ("step", "loss", "lr", "grad_norm", "tokens"), "decay.jsonl": ("step", "modules")}
# As tests/compat/private.py says it, and pytest shows it.
GONE = re.compile(r"^E +(?:AssertionError: )?(\S+ \S+: no private attribute .*)", re.MULTILINE)
VERSIONS = "import importlib.metadata as m, platform; print(platform.python_version(), *map(m.version, {}))"


class Environment:
    """An interpreter with the versions, and a folder for what it prints."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder
        self.faults: list[str] = []

    def run(self, name: str, *arguments: str, cwd: Path = ROOT, path: Path | str = ROOT) -> bool:
        """Run the interpreter, at the root of the repository; what it prints goes to a file."""
        log = self.folder / f"{name.replace(' ', '_').replace(',', '')}.log"
        settings = {"PYTHONPATH": str(path), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
        search = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        with log.open("w", encoding="utf-8") as output:
            code = subprocess.run(
                [str(self.python), *arguments],
                cwd=cwd,
                env={**os.environ, **settings, "PATH": search},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        if code:
            text = log.read_text(encoding="utf-8", errors="replace")
            gone = sorted(set(GONE.findall(text)))
            self.faults.append(f"{name} ({'; '.join(gone)})" if gone else name)
            print(f"{name}: exit code {code}; all of it is in {log}\n{text[-2000:]}", file=sys.stderr)
        return code == 0

    def versions(self) -> list[str]:
        """Of Python and the packages."""
        command = [str(self.python), "-c", VERSIONS.format(repr(PACKAGES))]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    def wheel(self) -> None:
        """The trainer of what pip installed, where nothing of the repository is."""
        empty = self.folder / "empty"
        empty.mkdir()
        train = ("-m", "alphadecay_dist", "train", "--deepspeed", "zero2", "--logging.wandb=off")
        self.run("the wheel alone", *train, f"--train.steps={STOP}", "--eval.every=0", cwd=empty, path="")

    def demo(self, name: str) -> None:
        """The demo in one go, and stopped and started again: the same numbers, bit for bit."""
        whole, parts = self.folder / f"{name} whole", self.folder / f"{name} parts"
        ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2") if RUNS[name] else ()
        common = (*ranks, "train.py", *RUNS[name], f"--train.steps={STEPS}", "--decay.interval=2")
        quiet = ("--eval.every=0", "--logging.wandb=off")
        fine = self.run(f"{name} whole", *common, *quiet, "--output_dir", str(whole))
        if fine and self.run(
            f"{name} stopped", *common, *quiet, f"--train.stop_after={STOP}", "--output_dir", str(parts)
        ):
            fine = self.run(f"{name} resumed", *common, *quiet, "--output_dir", str(parts))
            if fine and exact_lines(whole) != exact_lines(parts):
                self.faults.append(f"{name}: another result after a resume")


def exact_lines(run: Path) -> list[list[object]]:
    """All that a run logged, less times."""
    return [
        [json.loads(line)[key] for key in keys]
        for name, keys in EXACT.items()
        for line in (run / name).read_text(encoding="utf-8").splitlines()
    ]


def interpreter(version: str) -> str:
    """The interpreter of a version such as 3.12, or a path."""
    found = shutil.which(version) or shutil.which(f"python{version}")
    if found is None:
        sys.exit(f"--python {version}: found no python{version} on PATH; give the path of an interpreter")
    return found


def installed(args: argparse.Namespace, folder: Path) -> Path:
    """A virtual environment with the versions; returns its interpreter."""
    subprocess.run([interpreter(args.python), "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    wanted = [f"{name}=={getattr(args, name)}" for name in PACKAGES if getattr(args, name)]
    pip = [str(python), "-m", "pip", "install", "-q", f"{ROOT}[test]", *wanted]
    subprocess.run(pip, check=True)
    return python


def main() -> int:
    """Install, run all parts, print the row."""
    parser = argparse.ArgumentParser(prog="python -m tests.compat", description=__doc__)
    for name in PACKAGES:
        parser.add_argument(f"--{name}", help="default: the newest that pip finds")
    parser.add_argument("--python", default=sys.executable, help="a version such as 3.12, or a path")
    parser.add_argument("--installed", type=Path, help="an interpreter that has all: nothing is installed")
    parser.add_argument("--folder", type=Path, help="for venv and output, made; default: a temporary one")
    args = parser.parse_args()
    started = time.monotonic()
    if args.folder:
        args.folder.mkdir(parents=True)
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="compat-"))).resolve()
    environment = Environment(
        args.installed.absolute() if args.installed else installed(args, folder), folder
    )
    environment.run("fast tests", *PYTEST, "-m", "not (ranks or launcher or kills)", *FAST)
    environment.run("tests on ranks", *PYTEST, "-m", "ranks", *RANKS)
    for name in RUNS:
        environment.demo(name)
    if not args.installed:
        environment.wheel()
    seconds = time.monotonic() - started
    result = f"FAILED: {'; '.join(environment.faults)}" if environment.faults else "passed"
    print(f"| {' | '.join(environment.versions())} | {date.today()} | {result}, {seconds / 60:.0f} min |")
    if not environment.faults and not args.folder:
        shutil.rmtree(folder)
    return 1 if environment.faults else 0


if __name__ == "__main__":
    sys.exit(main())
