"""What to do about errors that do not say it themselves, by their words, for troubleshooting.md."""

from __future__ import annotations

import re

_DAMAGED = "the checkpoint is damaged or was changed: go on from another one, and look at the disk"
_BEHIND = "the rest of the line says it"
_UNSERVED = "this architecture is not served; [trainer.md](trainer.md), Other architectures, says which are"

RULES = (  # a pattern in the message, and what to do; the first that fits counts
    (r"cannot be written: ", "the end says why: mostly rights, or a full disk"),
    (r"image \.\.\. cannot be read|cannot be augmented|no idx file", "replace this file, or remove it"),
    (r"parquet files cannot be read", "download them again; the end says what was found"),
    (r"process that reads images failed", "the end says why; with `task.workers=1` memory is used once"),
    (r"cannot be read: ", "the end says why: look at the path, its rights, and whether the file is whole"),
    (r"no such file", "correct the path; it is taken from where the command is started"),
    (r"no JSON|not JSON|not YAML", "correct the file at the place that the line names"),
    (
        r"no regular expression",
        "correct it at the place that the line names, or put a `\\` before its `.`, `*`, `(`",
    ),
    (r"content that was written|leads out of|not in the checkpoint|not among the files", _DAMAGED),
    (r"manifest.json \.\.\.$|has the shape \.\.\.$|no states of random generators", _DAMAGED),
    (r"pending refresh of other modules|other modules in 'before'", _DAMAGED),
    (
        r"the pieces have|nobody holds the piece",
        "an engine tells of its pieces wrongly: please report the line",
    ),
    (r"unexpected keyword argument", "the line names the nearest; [API](reference/api.md) has all"),
    (r"missing the keyword argument", "give the base decay, as to `param_groups()`"),
    (r"^expected a real floating-point matrix", "give a tensor of two or four dimensions"),
    (r"no optimizer state", "train at least one update first"),
    (r"a model of it: |these sizes: ", "the end says which value of the config does not fit"),
    (r"the table is \.\.\. already", "leave `--size` out"),
    (r"nested too deep", "make the row flat: a text is enough"),
    (r"another process prepares data", "wait for it, or choose another `--output`"),
    (r"^dtype |^unknown \.\.\.$", "the file was not written by this program, or changed: write it again"),
    (
        r"not a sentencepiece model|has neither",
        "give a `tokenizer.model` of sentencepiece, or a `tokenizer.json`",
    ),
    (
        r"cannot train \.\.\. pieces",
        "the corpus is too small for this vocabulary: lower the model's `vocab_size`",
    ),
    (
        r"eos_token|has no token|^tokenizer_config",
        "correct the tokenizer's files, or take them again from where they came",
    ),
    (r"is not divisible by|^model\.name \.\.\.: a directory without", "correct the model's JSON"),
    (
        r"^train\.seq_len: found \.\.\., above",
        "a shorter `train.seq_len`, or more positions in the model's JSON",
    ),
    (r"is not trained|are not trained|no causal language model", _UNSERVED),
    (
        r"its own before its head|is not causal|means than gradients|is not known$|not a decoder and a head",
        _UNSERVED,
    ),
    (r"decoder's output|does more to its logits|cross entropy alone", _UNSERVED),
    (r"has no such format", "only language models have it: [evaluate.md](evaluate.md)"),
    (r"has no \.\.\. image|ubyte", "[vision.md](vision.md) has the layouts that are read"),
    (r"one of train and validation alone", "both need a folder for each class"),
    (r"table \.\.\.: see above", "the command's own line stands before it"),
    (r"sbatch --array", "start it as the line shows"),
    (r"has no document", "fewer `data.lanes`, or more documents"),
    (r"reads gradients: \.\.\.$|^step\(boundary=\.\.\.\): \.\.\.$", _BEHIND),
    (r"^tokenizer\.model \.\.\.: \.\.\.$|^optimizer\.\.\.\.$|^--(resume:|init_from) \.\.\.$", _BEHIND),
)


def from_rules(message: str) -> str | None:
    """What the first rule that fits says; None where none does."""
    return next((advice for pattern, advice in RULES if re.search(pattern, message)), None)
