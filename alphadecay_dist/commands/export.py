"""``alphadecay export``: a run's weights in the formats of others."""

from __future__ import annotations

import argparse
from pathlib import Path

from alphadecay_dist.commands.paths import require_there
from alphadecay_dist.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "path", type=Path, help="a run, of which the newest checkpoint is taken, or a checkpoint"
    )
    parser.add_argument(
        "--to",
        choices=("hf", "deepspeed"),
        required=True,
        help="hf: weights, config and tokenizer "
        "for transformers, or for timm; deepspeed: its universal checkpoint, optimizer state included",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to; new or empty")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="hf: of the weights (default: float32, the masters)",
    )
    parser.add_argument(
        "--weights", metavar="KIND", help="hf: ema is the moving average of vision (default: the weights)"
    )
    parser.add_argument("--model", metavar="JSON", help="hf: the model's config, where the run's own is gone")


def run(args: argparse.Namespace) -> None:
    """Write the export, and print where it is and what of."""
    require_there(args.path, "the directory of a run or of a checkpoint")
    import torch

    from alphadecay_dist.commands.formats import export_hf, export_universal, trained

    found = trained(args.path)
    if args.weights is not None and args.to != "hf":
        raise UserError(f"--weights {args.weights}: found with --to {args.to}, which holds all; leave it out")
    if args.to == "hf":
        found = found if args.weights is None else found.with_weights(args.weights)
        export_hf(found, args.output, getattr(torch, args.dtype), args.model)
    else:
        export_universal(found, args.output)
    print(f"{args.output}: {found.checkpoint.folder}, update {found.checkpoint.manifest.step}")
