"""Small tokenizers in the forms in which Hugging Face's are published, trained on the demo's text."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from alphadecay_dist.training.data.corpus import open_corpora
from alphadecay_dist.training.recipe import DataConfig

SIZE = 400  # of the base vocabulary
# How Llama 3 cuts words.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BEGIN, END, TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
GPT2_END = "<|endoftext|>"


@functools.cache
def texts() -> list[str]:
    """The demo's documents."""
    return [text for _, text in open_corpora(DataConfig())[0].rows(0, 0)]


def gpt2(folder: Path) -> Path:
    """GPT-2's form: its only special token is in the base vocabulary, and nothing is added by a template."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    _train(tokenizer, special_tokens=[GPT2_END])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), GPT2_END)
    own = {"model_max_length": 1024, "tokenizer_class": "GPT2Tokenizer", **roles}
    return _written(folder, tokenizer, own, special_tokens_map=roles)


def llama3(folder: Path) -> Path:
    """Llama 3's form: special tokens above the base vocabulary, a template that begins each text."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_alone])
    _train(tokenizer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in (BEGIN, END, TURN)])
    begin = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    roles = {"bos_token": BEGIN, "eos_token": END}
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 131072, **roles}
    return _written(folder, tokenizer, own, special_tokens_map=roles)


FORMS: dict[str, Callable[[Path], Path]] = {"gpt2": gpt2, "llama3": llama3}


def change(folder: Path, name: str, **values: Any) -> Path:
    """The same directory with other values in one of its JSON files; None takes a value out."""
    path = folder / name
    tree = {**(json.loads(path.read_text()) if path.is_file() else {}), **values}
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))
    return folder


def _train(tokenizer: Any, **options: Any) -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False, **options)
    tokenizer.train_from_iterator(texts()[:300], trainer)
    tokenizer.decoder = decoders.ByteLevel()


def _written(folder: Path, tokenizer: Any, config: dict, special_tokens_map: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=3))
    (folder / "special_tokens_map.json").write_text(json.dumps(special_tokens_map))
    return folder
