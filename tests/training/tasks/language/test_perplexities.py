"""Both perplexities of an evaluation, against a plain loop over the whole batches of the validation set."""

from __future__ import annotations

import math

import pytest
import torch

from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.data.batches import make_batch, validation_sequences
from alphadecay_dist.training.data.corpus import open_corpora
from alphadecay_dist.training.data.sentencepiece_tokenizer import SentencePieceTokenizer
from alphadecay_dist.training.tasks.language import model as models
from tests.training.runs import final_weights, summed_loss, tiny_options, train_on

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]


def losses_of_batches(options, output):
    """Summed loss and tokens of each batch of ``train.global_batch`` sequences, by one process."""
    config = load_config("demo", [option.removeprefix("--") for option in options])
    tokenizer = SentencePieceTokenizer((output / "tokenizer.model").read_bytes())
    _, corpus = open_corpora(config.data)
    joined, lengths = validation_sequences(corpus, tokenizer, config.data, config.train, config.eval.tokens)
    sequences = torch.from_numpy(joined).split(lengths.tolist())
    model = models.build_model(models.read_model_config(config.model.name, 32), config.train)
    model.load_state_dict(final_weights(output))
    model.eval()
    size = config.train.global_batch
    with torch.no_grad():
        for start in range(0, len(sequences), size):
            batch = make_batch(sequences[start : start + size], config.train.seq_len, tokenizer.pad)
            yield float(summed_loss(model, batch)), batch.targets


@pytest.mark.parametrize(("engine", "world_size"), [("fsdp2", 1), ("3", 2), ("ddp", 3)])
def test_both_perplexities_do_not_depend_on_ranks(tmp_path, engine, world_size):
    options = tiny_options(tmp_path, train__steps=2, data__pack=False, train__global_batch=12)
    found = train_on(world_size, engine, tmp_path / "run", options)["eval"][-1]
    batches = list(losses_of_batches(options, tmp_path / "run"))
    losses, tokens = zip(*batches, strict=True)
    assert len({count for _, count in batches}) > 1  # batches of several sizes: the means differ
    exact = sum(losses) / sum(tokens)
    published = sum(loss / count for loss, count in batches) / (len(batches) + 1)
    assert found["tokens"] == sum(tokens)
    assert found["batches"] == len(batches) > 2
    assert found["loss"] == pytest.approx(exact, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(exact), rel=1e-4)
    assert found["perplexity_as_published"] == pytest.approx(math.exp(published), rel=1e-4)
