"""Print what a benchmark runs on: GPUs with their driver, Python, torch and the others that matter."""

from __future__ import annotations

import argparse
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch
from refresh import machine

PACKAGES = ("torch", "deepspeed", "transformers", "triton", "numpy")


def main() -> None:
    """Print a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    parts = [machine(device)]
    if device.type == "cuda":
        parts = [
            f"{torch.cuda.device_count()} x {parts[0]}",
            f"driver {driver()}",
            f"CUDA {torch.version.cuda}",
        ]
    parts += [f"Python {platform.python_version()}", *(f"{name} {found(name)}" for name in PACKAGES)]
    print(", ".join(parts))


def driver() -> str:
    """The version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def found(package: str) -> str:
    """The version of a package that may be missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
