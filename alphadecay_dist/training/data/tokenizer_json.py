"""A tokenizer.json, as Hugging Face's fast tokenizers are stored, read by the ``tokenizers`` library alone.

The ids of a text are those of ``AutoTokenizer.from_pretrained(DIR)(text).input_ids``, with what its template
adds, such as Llama 3's beginning of text. They differ in two things. A document ends with the end of
sequence, once. And the names of special tokens are text where a document holds them, unless
tokenizer_config.json has ``"split_special_tokens": false``: a text cannot end its own document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tokenizers

from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.json_fields import get
from alphadecay_dist.training.data.tokenizer import Tokenizer

JSON, CONFIG, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
GENERATION = "generation_config.json"
OTHERS = ("added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt")  # not read, but kept
NAMES = (JSON, CONFIG, MAP, GENERATION, *OTHERS)
FOLDER = "tokenizer"  # in runs and prepared corpora
Named = Mapping[str, Any]


class JSONTokenizer(Tokenizer):
    """A tokenizer.json with the files beside it that say which tokens are special.

    Args:
        files: of :data:`NAMES`, by these names; JSON at least.

    Raises:
        UserError: they are not such files, or name an end of sequence that has no id.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.parts = {name: files[name] for name in NAMES if name in files}
        self.files = {f"{FOLDER}/{name}": content for name, content in self.parts.items()}
        self.config = _object(files, CONFIG)
        self._tokenizer = _loaded(files[JSON])
        self._names = _names(files, self.config)
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not self.vocab_size:
            raise UserError(f"{JSON}: has no token")
        self.eos = self._ending(files)
        pad = self.id_of("pad")
        self.pad = 0 if pad is None else pad
        text = self.config.get("split_special_tokens") is not False
        self._tokenizer.encode_special_tokens = text
        deciding = [hashlib.sha256(files[JSON]).hexdigest(), self.eos, text]
        self.fingerprint = hashlib.sha256(json.dumps(deciding).encode()).hexdigest()

    def id_of(self, name: str) -> int | None:
        """The id of ``bos``, ``eos`` or ``pad``; None where the files name none, or one that has no id."""
        token = self._names.get(f"{name}_token")
        return None if token is None else self._tokenizer.token_to_id(token)

    def encode(self, documents: list[str], threads: int = 1) -> list[list[int]]:
        """See :meth:`Tokenizer.encode`; more threads than one are as many as the library takes."""
        with _one_line(f"{JSON}: cannot encode a document"):
            if threads == 1:  # without the library's threads, which do not live through a fork
                found = [self._tokenizer.encode(document) for document in documents]
            else:
                found = self._tokenizer.encode_batch_fast(documents)
        return [self._ended(encoding.ids) for encoding in found]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, those of special tokens by their names."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _ended(self, ids: list[int]) -> list[int]:
        """With the end of sequence, which the template may have added."""
        return ids if self.eos is None or ids[-1:] == [self.eos] else [*ids, self.eos]

    def _ending(self, files: Mapping[str, bytes]) -> int | None:
        """The id of the end of sequence, or the first that generation_config.json has where none is named."""
        if "eos_token" in self._names:
            id = self.id_of("eos")
            if id is None:
                raise UserError(f"{CONFIG}: eos_token {shown(self._names['eos_token'])} is not in {JSON}")
            return id
        found = _object(files, GENERATION).get("eos_token_id")
        first = found[0] if isinstance(found, list) and found else found
        if first is None:
            return None
        if type(first) is not int or not 0 <= first < self.vocab_size:
            raise UserError(f"{GENERATION}: eos_token_id {shown(first)} is not in {JSON}")
        return first


def _loaded(content: bytes) -> tokenizers.Tokenizer:
    """The tokenizer, so that each text always gets all of its ids."""
    with _one_line(f"{JSON}: not a tokenizer of the tokenizers library"):
        tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None) is not None:
            tokenizer.model.dropout = None  # chance, which a resume could not repeat
        tokenizer.encode("a 1\n")
    return tokenizer


def _names(files: Mapping[str, bytes], config: Named) -> dict[str, str]:
    """The special tokens by their roles, such as ``eos_token``, from the file that transformers takes."""
    told = dict(config)
    if "added_tokens_decoder" not in config:
        told |= _object(files, MAP)
    names = {}
    for role in ("bos_token", "eos_token", "pad_token"):
        token = told.get(role)
        try:
            names[role] = get(token, "content", str) if isinstance(token, dict) else token
        except ValueError as error:
            raise UserError(f"{CONFIG}: {role} {error}") from None
        if not isinstance(names[role], str | None):
            raise UserError(f"{CONFIG}: {role} is {shown(token)}, expected a text")
    return {role: token for role, token in names.items() if token is not None}


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A file's JSON object; nothing where there is no such file."""
    try:
        found = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{name}: found {shown(found)}, expected a JSON object")
    return found


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """The library's errors, also where it panics, as one line."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what}: {' '.join(str(error).split())}") from None
