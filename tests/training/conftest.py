from __future__ import annotations

import pytest

from alphadecay_dist.training.data import prepare as preparing
from alphadecay_dist.training.data.prepare import prepare_corpus
from tests.training.corpora import numbered, write_files
from tests.training.preparations import VOCABULARY, recipe
from tests.training.sequences import SIZES


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    parts = [numbered(size, 100 * i) for i, size in enumerate(SIZES)]
    return write_files(tmp_path_factory.mktemp("texts") / "data", parts)


@pytest.fixture(scope="session")
def prepared(texts, tmp_path_factory):
    """Prepared data in several small shards."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "SHARD_TOKENS", 100)
        patch.setattr(preparing, "BATCH", 3)
        prepare_corpus(recipe(texts), VOCABULARY, folder)
    return folder
