"""A sentencepiece model -> the tokenizer.json that transformers reads, which gives the same ids."""

from __future__ import annotations

from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, normalizers
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE, Unigram

from alphadecay_dist.errors import UserError

UNIGRAM, BYTE_PAIRS = 1, 2  # sentencepiece's numbers of its kinds of model
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what sentencepiece writes in its pieces
NOWHERE = "\ue000"  # a character for private use, in no vocabulary
KINDS = sentencepiece_model_pb2.ModelProto.SentencePiece


def hf_tokenizer(proto: bytes) -> HFTokenizer:
    """The tokenizer that gives each text the ids that sentencepiece gives it; it adds none to them.

    One thing differs, in all of transformers' tokenizers that were sentencepiece models: an accent right
    after a character that is normalised away, such as a full-width letter, is lost. And with a unigram model
    that falls back to bytes the text "</s>" is the end of sequence.

    Raises:
        UserError: a model of words or characters, which transformers has no tokenizer for.
    """
    model = sentencepiece_model_pb2.ModelProto.FromString(proto)
    tokenizer = HFTokenizer(_model(model))
    tokenizer.normalizer = normalizers.Sequence([*_normalized(model.normalizer_spec), *_kept_apart(model)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [piece.piece for piece in model.pieces if piece.type in (KINDS.CONTROL, KINDS.UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    return tokenizer


def hf_tokenizer_config(proto: bytes, longest: int) -> dict[str, Any]:
    """The tokenizer_config.json beside it.

    Args:
        proto: the sentencepiece model.
        longest: positions of the model.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # the text "</s>" ends nothing: it is text, as it was in training
        **{f"{name}_token": processor.id_to_piece(id) for name, id in special_ids(processor).items()},
    }


def special_ids(processor: sentencepiece.SentencePieceProcessor) -> dict[str, int]:
    """Ids of bos, eos, unk and pad, those that the model has."""
    found = {name: getattr(processor, f"{name}_id")() for name in ("bos", "eos", "unk", "pad")}
    return {name: id for name, id in found.items() if id >= 0}


def _model(model: Any) -> Unigram | BPE:
    trainer = model.trainer_spec
    if trainer.model_type == UNIGRAM:
        return Unigram(_scores(model), unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)
    if trainer.model_type == BYTE_PAIRS:
        return BPE(
            {piece.piece: id for id, piece in enumerate(model.pieces)},
            _merges(model),
            unk_token=trainer.unk_piece,
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    raise UserError(
        f"tokenizer.model: is of sentencepiece's kind {trainer.model_type}, expected unigram or bpe, the "
        "kinds that transformers has"
    )


def _merges(model: Any) -> list[tuple[str, str]]:
    """Every pair of pieces that joins to a piece; the pairs of the likeliest piece first.

    No pair joins to a piece that is no text: those of "</s>" stay apart.
    """
    no_text = frozenset(_no_text(model))
    scores = {piece.piece: piece.score for piece in model.pieces if piece.piece not in no_text}
    likeliest_first = sorted(scores, key=lambda piece: -scores[piece])
    cuts = ((piece[:i], piece[i:]) for piece in likeliest_first for i in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in scores and right in scores]


def _scores(model: Any) -> list[tuple[str, float]]:
    """Pieces with their log probabilities; those that are no text get one that any other segmentation beats.

    The penalty of an unknown character, which follows from the lowest, decides nothing: each character of a
    piece is a piece itself.
    """
    no_text = frozenset(_no_text(model))
    lowest = min(piece.score for piece in model.pieces)
    never = (lowest - 10) * (1 + max(len(piece.piece) for piece in model.pieces))
    return [(piece.piece, never if piece.piece in no_text else piece.score) for piece in model.pieces]


def _no_text(model: Any) -> list[str]:
    """Pieces that no text is cut into: controls, such as the end of sequence, unknown, unused, and bytes."""
    kinds = (KINDS.CONTROL, KINDS.UNKNOWN, KINDS.UNUSED, KINDS.BYTE)
    return [piece.piece for piece in model.pieces if piece.type in kinds]


def _normalized(rules: Any) -> list[Any]:
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]


def _kept_apart(model: Any) -> list[Any]:
    """A text like "</s>" with a character that is unknown beats nothing: another unknown one hides it."""
    if model.trainer_spec.model_type != UNIGRAM or model.trainer_spec.byte_fallback:
        return []
    pieces = {piece.piece for piece in model.pieces}
    steps = []
    for piece in _no_text(model):
        unknown = next((character for character in piece if character not in pieces), None)
        if unknown is not None:
            steps.append(normalizers.Replace(piece, piece.replace(unknown, NOWHERE)))
    return steps
