"""Formats of weights that are not read: how a path is recognised, and how to convert it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from alphadecay_dist.checkpoint.shards import SHARDS
from alphadecay_dist.checkpoint.writer import CHECKPOINTS, LATEST, STATE
from alphadecay_dist.errors import shown

ZERO = "*zero_pp_rank_*"
DEEPSPEED = (ZERO, "*mp_rank_*_model_states.pt", "layer_*-model_states.pt")
DCP = ("*.distcp", ".metadata")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # those of a directory that are read
ADAPTERS = ("adapter_model*", "adapter_config.json")
MEGATRON = ("is a Megatron checkpoint", "convert it to Hugging Face's format with Megatron's own tools")
# Files whose names say what they, or their directory, are.
FILES = {
    "*.gguf": ("is in the format GGUF", "give the safetensors that it was made from"),
    "*.h5": ("is in Keras' format", "give the safetensors of the same model"),
    "*.msgpack": ("is in Flax' format", "give the safetensors of the same model"),
    "consolidated.*.pth": (
        "is in Meta's own format",
        "convert it with transformers' convert_llama_weights_to_hf.py, and give the result",
    ),
    "model_optim_rng.pt": MEGATRON,
    "latest_checkpointed_iteration.txt": MEGATRON,
}


class Other(NamedTuple):
    """What a path is, and what to do with it."""

    what: str
    remedy: str


def recognised(path: Path) -> Other | None:
    """What a path is, where its weights are in a format that is not read, or it is missing; else None."""
    if not os.path.exists(path):
        return Other("no such file or directory", "give one that is there")
    if not os.path.isdir(path):
        return _of_file(path)
    for folder in (path, *folders_in(path)):
        found = _deepspeed(folder) or _universal(folder) or _dcp(folder)
        if found:
            return found
    found = _adapter(path) if _any(path, ADAPTERS) else None
    return found or next((Other(*said) for name, said in FILES.items() if _any(path, (name,))), None)


def own(path: Path) -> Other | None:
    """A run or a checkpoint of this trainer; None for anything else."""
    if not any(os.path.exists(path / name) for name in (CHECKPOINTS, LATEST, STATE)):
        return None
    command = f"alphadecay export {path} --to hf --output OUT"
    return Other("is a run or checkpoint of this trainer", f"export it with `{command}`, and give OUT")


def checkpoint_around(path: Path) -> Path | None:
    """The checkpoint of this trainer whose shards, or one of them, a path is."""
    shards = path.absolute() if path.name == SHARDS else path.absolute().parent
    return shards.parent if shards.name == SHARDS and os.path.isfile(shards.parent / STATE) else None


def is_deepspeed(path: Path) -> bool:
    """Whether DeepSpeed saved this directory or one in it: its file ``latest`` has the name of ours."""
    return any(_deepspeed(folder) or _universal(folder) for folder in (path, *folders_in(path)))


def holds_weights(path: Path) -> bool:
    """Whether weights that are read lie in a directory, or are this file."""
    return _fits(path, WEIGHTS) if os.path.isfile(path) else _any(path, WEIGHTS)


def folders_in(path: Path) -> list[Path]:
    """The directories in a directory, sorted; empty where it cannot be read."""
    try:
        return sorted(Path(entry) for entry in os.scandir(path) if entry.is_dir())
    except OSError:
        return []


def _of_file(path: Path) -> Other | None:
    """What one file is; for a part of a checkpoint, what the checkpoint is."""
    if _fits(path, DEEPSPEED):
        return _deepspeed(path.parent)
    if _fits(path, DCP):
        return _dcp(path.parent)
    if _fits(path, ADAPTERS):
        return _adapter(path.parent)
    if path.match("*.index.json"):
        return Other("is an index of weight files", "give the directory that it is in")
    return next((Other(*said) for name, said in FILES.items() if path.match(name)), None)


def _deepspeed(folder: Path) -> Other | None:
    """The directory of one tag of a DeepSpeed checkpoint."""
    if not _any(folder, DEEPSPEED):
        return None
    what = f"is a DeepSpeed checkpoint ({folder.name})"
    if not _any(folder, (ZERO,)):
        entry = "the entry 'module' of its *_model_states.pt"
        return Other(what, f"save its weights, which are {entry}, as safetensors, and give that file")
    root = folder.absolute().parent
    script = root / "zero_to_fp32.py"
    program = f"python {script}" if script.is_file() else "python -m deepspeed.utils.zero_to_fp32"
    command = f"{program} {root} OUT --safe_serialization -t {folder.name}"
    return Other(what, f"convert it with `{command}`, and give OUT")


def _universal(folder: Path) -> Other | None:
    if not _any(folder, ("zero/*/fp32.pt",)):
        return None
    return Other("is DeepSpeed's universal checkpoint", "give the run or checkpoint that it was made from")


def _dcp(folder: Path) -> Other | None:
    if not _any(folder, DCP):
        return None
    command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} OUT.pt"
    return Other("is a checkpoint of torch.distributed", f"convert it with `{command}`, and give OUT.pt")


def _adapter(folder: Path) -> Other:
    """Weights that are added to those of a model."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = shown(config["base_model_name_or_path"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        base = "another model"
    return Other(
        f"is an adapter of {base}",
        "merge the two (peft: merge_and_unload(), then save_pretrained()), and give the result",
    )


def _fits(path: Path, names: Iterable[str]) -> bool:
    return any(path.match(name) for name in names)


def _any(folder: Path, names: Iterable[str]) -> bool:
    return any(next(folder.glob(name), None) is not None for name in names)
