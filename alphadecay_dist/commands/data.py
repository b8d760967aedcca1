"""``alphadecay data``: a corpus that is tokenized once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from alphadecay_dist.commands.paths import require_there
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.arguments import Parser
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.tasks.registry import DEFAULT

if TYPE_CHECKING:
    from alphadecay_dist.training.data.prepared import Manifest


def add_arguments(parser: Parser) -> None:
    """The actions and the arguments of each."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    prepare = actions.add_parser(
        "prepare",
        help="tokenize a recipe's corpus into shards; where it was broken off, go on",
        epilog="Any field of the recipe is an option, as for alphadecay train: --data.source='texts/*.jsonl'",
        allow_abbrev=False,
    )
    prepare.add_argument("--recipe", default="demo", help="a name or a YAML file (default: demo)")
    prepare.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to")
    prepare.set_defaults(action=_prepare, left_over=prepare.fields_of)
    verify = actions.add_parser("verify", help="compare a prepared corpus with its checksums")
    verify.add_argument("folder", type=Path, metavar="DIR")
    verify.set_defaults(action=_verify, left_over=verify.refuse)


def run(args: argparse.Namespace) -> None:
    """Do what was asked for, and print what is there then."""
    args.action(args)


def _prepare(args: argparse.Namespace) -> None:
    config = load_config(args.recipe, args.overrides)
    if config.model.task != DEFAULT:
        raise UserError(
            f"--recipe {args.recipe}: found model.task {config.model.task!r}, expected {DEFAULT!r}: text "
            "alone is prepared; training reads other data as they are"
        )
    from alphadecay_dist.training.data.prepare import prepare_corpus
    from alphadecay_dist.training.tasks.language.model import read_model_config

    vocabulary = read_model_config(config.model.name, config.train.seq_len).vocab_size
    _describe(args.output, prepare_corpus(config, vocabulary, args.output))
    print(f"train from it: --data.prepared={args.output}")


def _verify(args: argparse.Namespace) -> None:
    require_there(args.folder, "the directory of a prepared corpus")
    from alphadecay_dist.training.data.prepared import verify

    _describe(args.folder, verify(args.folder))


def _describe(folder: Path, manifest: Manifest) -> None:
    from alphadecay_dist.training.data.prepared import SPLITS

    for split in SPLITS:
        shards = manifest.shards(split)
        documents, tokens = sum(s.documents for s in shards), sum(s.tokens for s in shards)
        print(f"{folder}: {split}: {documents:,} documents, {tokens:,} tokens, {len(shards)} shards")
