"""Which weights of a file are quantised: numbers that mean nothing without the scales beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from alphadecay_dist.errors import UserError, shown

# Types on disk, as safetensors and torch name them.
ALWAYS = re.compile(r"(f|float)(4|6|8)_.*|qu?int.*", re.IGNORECASE)
INTEGERS = re.compile(r"[IU](4|8|16|32)|u?int(4|8|16|32)")
# How names beside a quantised weight end, and which scheme writes them; the first that fits counts.
SIDECARS = tuple(
    (re.compile(rf"(?P<stem>.+?)({ending})"), scheme)
    for ending, scheme in (
        (r"\.weight_scale_inv", "FP8 with block scales"),
        (r"\.SCB", "int8 of bitsandbytes"),
        (r"\.weight\.((nested_)?(absmax|quant_map)|quant_state\..+)", "4 bits of bitsandbytes"),
        (r"\.g_idx", "GPTQ"),
        (r"\.qweight|\.qzeros", "GPTQ or AWQ"),
        (r"\.weight_(packed|zero_point|global_scale)", "compressed-tensors"),
        (r"_blocks", "MXFP4"),
        (r"\.W_q", "HQQ"),
        (r"\.codebooks", "AQLM"),
        (r"[._:](_?qdata|_data)", "torchao or quanto"),
        (r"\.weight_scale", "a scale per row or tensor"),
    )
)
# Integers of two dimensions in a block that are not weights: causal masks, tables of positions.
TABLES = ("bias", "mask", "index", "ids")


class Described(Protocol):
    """What is known of a stored tensor before it is read."""

    @property
    def file(self) -> Path:
        """Where it is."""

    @property
    def name(self) -> str:
        """Dotted name of the parameter."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""

    @property
    def dtype(self) -> str:
        """Its type on disk, as safetensors or torch names it."""


def require_plain(tensors: Sequence[Described], config: Mapping[str, Any], config_file: Path) -> None:
    """Refuse weights if one of them is quantised, or their config says so.

    Args:
        tensors: all of them.
        config: the config.json beside them; empty without one.
        config_file: its path.

    Raises:
        UserError: they are quantised; names the file, the largest tensor of the first weight, and the scheme.
    """
    method = quantisation_of(config)
    schemes = _schemes(tensors)
    if schemes:
        first, scheme = next(iter(schemes.items()))
        tensor = max((t for t in tensors if _stem(t.name) == first), key=lambda t: math.prod(t.shape))
        said = f"; quant_method in {config_file.name}: {method}" if method else ""
        more = f", and so are {len(schemes) - 1} weights more" if len(schemes) > 1 else ""
        raise UserError(
            f"{tensor.file}: {tensor.name!r:.200} is quantised ({scheme}, {tensor.dtype}{said}){more}; "
            "expected float32, bfloat16 or float16; give the weights from before the quantisation, or "
            "dequantise them first"
        )
    if method:
        raise UserError(
            f"{config_file}: quantization_config says that the weights beside it are quantised ({method}); "
            "give the weights from before the quantisation, or, if these are dequantised, remove that entry"
        )


def quantisation_of(config: Mapping[str, Any]) -> str | None:
    """The quantisation that a config.json names; None without one."""
    nested = config.get("text_config")
    for place in (config, nested if isinstance(nested, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            said = place.get(key)
            if said:
                return shown(said.get("quant_method", said) if isinstance(said, dict) else said)
    return None


def _schemes(tensors: Sequence[Described]) -> dict[str, str]:
    """The quantised weights by their names without ending, and how they are quantised."""
    names = {tensor.name for tensor in tensors}
    found = dict(_by_type(tensors))
    beside: dict[str, int] = {}
    for name in names:
        place = _sidecar(name)
        if place is not None and (SIDECARS[place][1] != "MXFP4" or f"{_stem(name)}_scales" in names):
            stem = _stem(name)
            beside[stem] = min(place, beside.get(stem, place))
    found |= {stem: SIDECARS[place][1] for stem, place in beside.items()}
    order = {_stem(tensor.name): None for tensor in tensors}
    return {stem: found[stem] for stem in order if stem in found}


def _by_type(tensors: Sequence[Described]) -> Iterator[tuple[str, str]]:
    """Weights whose type alone shows that they are quantised, and how."""
    for tensor in tensors:
        parts = tensor.name.split(".")
        in_block = any(part.isdigit() for part in parts) and len(tensor.shape) > 1
        weight = parts[-1] == "weight" or (in_block and not parts[-1].endswith(TABLES))
        if ALWAYS.fullmatch(tensor.dtype):
            yield _stem(tensor.name), "8 bits or fewer"
        elif weight and INTEGERS.fullmatch(tensor.dtype):
            yield _stem(tensor.name), "integers"


def _sidecar(name: str) -> int | None:
    """Which of SIDECARS a name is."""
    fits = (place for place, (ending, _) in enumerate(SIDECARS) if ending.fullmatch(name))
    return next(fits, None)


def _stem(name: str) -> str:
    """A weight's name without the ending that distinguishes it from the tensors beside it."""
    place = _sidecar(name)
    if place is not None:
        match = SIDECARS[place][0].fullmatch(name)
        assert match is not None
        name = match["stem"]
    for ending in (".weight", "._weight"):
        name = name.removesuffix(ending)
    return name
