"""Where tokenizers are found: a file, a directory, the hub, beside a run or a prepared corpus; or trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from alphadecay_dist.errors import UserError, warn
from alphadecay_dist.training.data.sentencepiece_tokenizer import (
    SENTENCEPIECE,
    SentencePieceTokenizer,
    normalization_of,
    train_tokenizer,
)
from alphadecay_dist.training.data.tokenizer import Tokenizer
from alphadecay_dist.training.data.tokenizer_json import FOLDER, JSON, NAMES, JSONTokenizer
from alphadecay_dist.training.recipe import Config

TRAIN = "train"
SPIECE = "spiece.model"  # T5's name of a sentencepiece model
MODELS = (SENTENCEPIECE, SPIECE)
WITHOUT_JSON = ("vocab.json", "vocab.txt")  # older tokenizers, which have their rules in Python
KNOWN = (*MODELS, JSON, *WITHOUT_JSON)
KEPT = (SENTENCEPIECE, *(f"{FOLDER}/{name}" for name in NAMES))  # in runs and prepared corpora


def find_tokenizer(config: Config, documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """The tokenizer of a recipe: loaded, or trained on documents.

    Raises:
        UserError: see :func:`load_tokenizer` and :func:`.sentencepiece_tokenizer.train_tokenizer`.
    """
    if config.tokenizer.model == TRAIN:
        return train_tokenizer(documents, vocab_size, normalization_of(config))
    tokenizer = load_tokenizer(config.tokenizer.model)
    if tokenizer.eos is None:
        warn(
            f"tokenizer.model {config.tokenizer.model}: has no end of sequence: documents follow each other "
            'without one; a tokenizer.json gets it by "eos_token" in tokenizer_config.json beside it'
        )
    return tokenizer


def load_tokenizer(model: str) -> Tokenizer:
    """A tokenizer from a file, a directory, or a repository of the hub.

    Args:
        model: a sentencepiece model or a tokenizer.json (with the files beside it), a directory with one, or
            the name of a repository with one.

    Raises:
        UserError: there is none, the hub does not give it, or it cannot be read.
    """
    path = Path(model)
    if is_local(model):
        return _named(model, lambda: _in_folder(path) if path.is_dir() else _of_file(path))
    if path.suffix in (".model", ".json") or model.startswith((".", "/", "~")):
        raise UserError(f"tokenizer.model {model}: no such file or directory")
    folder = _from_hub(model)
    return _named(model, lambda: _in_folder(folder))


def is_local(model: str) -> bool:
    """Whether a recipe's tokenizer is a file or a directory with a tokenizer; else it is one of the hub."""
    path = Path(model)
    if os.path.isfile(path):
        return True
    named = model.startswith((".", "/"))
    return os.path.isdir(path) and (named or any(map(os.path.isfile, map(path.joinpath, KNOWN))))


def local_fingerprint(model: str) -> str | None:
    """The fingerprint of a recipe's tokenizer where it is on this machine, else None."""
    return load_tokenizer(model).fingerprint if is_local(model) else None


def tokenizer_in(folder: Path) -> str | None:
    """What ``tokenizer.model`` is for the tokenizer of a checkpoint directory; None if it has none.

    Raises:
        UserError: it has one that cannot be read.
    """
    if not any((folder / name).is_file() for name in KNOWN):
        return None
    try:
        found = _named(str(folder), lambda: _in_folder(folder))
    except UserError as error:
        raise UserError(
            f"--init_from {folder}: {error}; or give one that fits its vocabulary as --tokenizer.model=PATH"
        ) from None
    if isinstance(found, JSONTokenizer):
        return str(folder)
    return str(next(folder / name for name in MODELS if (folder / name).is_file()))


def kept_in(folder: Path, fingerprint: str | None = None) -> Tokenizer | None:
    """The tokenizer that a run or a prepared corpus keeps; None if it is missing.

    Args:
        folder: of the run or the corpus.
        fingerprint: of several, such as after a change of tokenizers, the one that has it.

    Raises:
        UserError: it cannot be read.
    """
    there = [name for name in KEPT if (folder / name).is_file()]
    found: Tokenizer | None = None
    for names in ([SENTENCEPIECE], [name for name in KEPT if name != SENTENCEPIECE]):
        if names[0] in there:
            files = {name: folder / name for name in names if name in there}
            tokenizer = _read(folder, files)
            if found is None or tokenizer.fingerprint == fingerprint:
                found = tokenizer
    return found


def kept_at(folder: Path) -> Path:
    """What ``tokenizer.model`` is for the tokenizer that a run or a prepared corpus keeps."""
    return folder / (SENTENCEPIECE if (folder / SENTENCEPIECE).is_file() else FOLDER)


def of_files(files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer whose :attr:`Tokenizer.files` these are.

    Raises:
        UserError: they cannot be read.
    """
    if f"{FOLDER}/{JSON}" in files:
        return JSONTokenizer({name.removeprefix(f"{FOLDER}/"): content for name, content in files.items()})
    return SentencePieceTokenizer(files[SENTENCEPIECE])


def _of_file(path: Path) -> Tokenizer:
    """A tokenizer.json's files beside it belong to it; those beside a JSON of another name do not."""
    if path.name == JSON:
        return JSONTokenizer(_contents(path.parent))
    content = path.read_bytes()
    if path.suffix == ".json" or content.startswith(b"{"):
        return JSONTokenizer({JSON: content})
    return SentencePieceTokenizer(content)


def _in_folder(folder: Path) -> Tokenizer:
    """A sentencepiece model, unless a tokenizer.json beside it has more tokens or it is of another kind.

    T5's ``spiece.model`` is complete without the tokens that its tokenizer.json adds.
    """
    model = next((folder / name for name in MODELS if (folder / name).is_file()), None)
    if not (folder / JSON).is_file():
        if model is None:
            raise UserError(_nothing(folder))
        return SentencePieceTokenizer(model.read_bytes())
    if model is None:
        return JSONTokenizer(_contents(folder))
    if model.name == SPIECE:
        return SentencePieceTokenizer(model.read_bytes())
    whole = JSONTokenizer(_contents(folder))
    try:
        pieces = SentencePieceTokenizer(model.read_bytes())
    except UserError:
        return whole
    return whole if whole.vocab_size > pieces.vocab_size else pieces


def _nothing(folder: Path) -> str:
    """Why a directory has no tokenizer, and what to do."""
    other = next((name for name in WITHOUT_JSON if (folder / name).is_file()), None)
    if other is None:
        return f"has neither {JSON} nor {' nor '.join(MODELS)}"
    return (
        f"has {other} without {JSON}; write one by transformers: "
        "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    )


def _read(folder: Path, files: Mapping[str, Path]) -> Tokenizer:
    return _named(str(folder), lambda: of_files({name: path.read_bytes() for name, path in files.items()}))


def _contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}


def _named(model: str, load: Callable[[], Tokenizer]) -> Tokenizer:
    """With the tokenizer's name in errors."""
    try:
        return load()
    except OSError as error:
        raise UserError(f"tokenizer.model {model}: cannot be read: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"tokenizer.model {model}: {error}") from None


def _from_hub(repository: str) -> Path:
    """The directory with a repository's tokenizer; files of other kinds stay on the hub."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (slow, and seldom needed)

    try:
        return Path(snapshot_download(repository, allow_patterns=[*KNOWN, *NAMES]))
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"tokenizer.model {repository}: not a file, and the hub did not give {repository} "
            f"({reason}); give the path of a sentencepiece model or a tokenizer.json"
        ) from None
