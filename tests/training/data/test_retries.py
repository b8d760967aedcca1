"""A connection that fails in the middle of a file: the same documents, or one clear error."""

from __future__ import annotations

import itertools

import datasets
import pytest
import requests
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data import retries
from alphadecay_dist.training.data.corpus import Corpus, DocumentLane, open_corpora
from alphadecay_dist.training.data.hub import HubFiles
from alphadecay_dist.training.data.retries import WAITS, is_transient
from alphadecay_dist.training.recipe import DataConfig
from tests.training.corpora import numbered, texts_of, write_files


def hub_error(status):
    return HfHubHTTPError("no", response=httpx.Response(status, request=httpx.Request("GET", "http://x")))


def caused_by(error, cause):
    error.__cause__ = cause
    return error


PASSING = [
    ConnectionResetError("reset"),
    TimeoutError(),
    httpx.ReadTimeout("slow"),
    httpx.RemoteProtocolError("peer closed connection"),
    httpx.ConnectError("[Errno -3] Temporary failure in name resolution"),
    requests.exceptions.ChunkedEncodingError("broken"),
    requests.exceptions.ConnectionError("gone"),
    caused_by(ConnectionError("Server Disconnected"), httpx.ReadError("x")),
    caused_by(ValueError("wrapped"), httpx.ReadError("x")),
    *(hub_error(status) for status in (408, 429, 500, 502, 503, 504)),
    caused_by(ConnectionError("Server Disconnected"), hub_error(504)),
]
LASTING = [
    *(hub_error(status) for status in (400, 401, 403, 404, 416)),
    caused_by(ConnectionError("Couldn't reach"), hub_error(404)),
    FileNotFoundError("a.jsonl"),
    PermissionError("a.jsonl"),
    EOFError("Compressed file ended before the end-of-stream marker was reached"),
    ValueError("not JSON"),
    OfflineModeIsEnabled("offline"),
    caused_by(ConnectionError("Couldn't reach"), OfflineModeIsEnabled("offline")),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass(error):
    assert is_transient(error)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_stays_as_it_is(error):
    assert not is_transient(error)


class Failing:
    """A stream of which every reading fails after some records, as ``failures`` says."""

    def __init__(self, stream, failures, error):
        self._stream = stream
        self._failures = failures
        self._error = error
        self.num_shards = stream.num_shards

    def shard(self, **options):
        return Failing(self._stream.shard(**options), self._failures, self._error)

    def skip(self, count):
        return Failing(self._stream.skip(count), self._failures, self._error)

    def __iter__(self):
        left = next(self._failures, None)
        yield from itertools.islice(self._stream, left)
        if left is not None:
            raise self._error


@pytest.fixture
def waits(monkeypatch):
    """The waits between attempts, which take no time."""
    found = []
    monkeypatch.setattr(retries.time, "sleep", found.append)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("data"), [numbered(30), numbered(17, 100)])


@pytest.fixture(scope="module")
def stream(folder):
    """The same files as the hub's library streams them."""
    names = sorted(str(path) for path in folder.iterdir())
    return datasets.load_dataset("json", data_files=names, split="train", streaming=True)


def failing(stream, failures, error=None):
    error = error or httpx.ReadError("connection reset")
    return Corpus(HubFiles(Failing(stream, iter(failures), error), "text", "c4"), "c4")


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(failures=st.lists(st.integers(0, 9), max_size=len(WAITS)), shuffle=st.sampled_from([1, 4, 100]))
def test_a_connection_that_fails_changes_no_document_and_no_order(folder, stream, waits, failures, shuffle):
    corpus, _ = open_corpora(DataConfig(source=str(folder), holdout=1000))
    plain = DocumentLane(corpus, 0, 1, 0, shuffle)
    broken = DocumentLane(failing(stream, failures), 0, 1, 0, shuffle)
    for _ in range(100):
        assert broken.next() == plain.next()
        assert broken.state() == plain.state()


def test_each_wait_is_longer_and_progress_begins_anew(stream, waits, capsys):
    assert len(texts_of(failing(stream, [0, 0, 0, 5, 0]))) == 47
    assert waits == [1, 2, 4, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == f"data: c4: connection reset; attempt 2 of {len(WAITS)} in 2 s"


def test_a_connection_that_stays_away_is_one_error(stream, waits):
    with pytest.raises(
        UserError, match=r"^data: c4: cannot be read: connection reset \(at row 0\); check it"
    ):
        texts_of(failing(stream, itertools.repeat(0)))
    assert waits == list(WAITS)


def test_what_the_server_refuses_is_not_asked_again(stream, waits):
    with pytest.raises(UserError, match=r"c4: cannot be read: no \(at row 3\)"):
        texts_of(failing(stream, [3], hub_error(403)))
    assert waits == []
