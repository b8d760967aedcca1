"""A hub on this machine that holds a small allenai/c4 and fails as it is told, and what C4 then gives.

``python -m tests.training.fake_hub '[["ok", "cut", "503"]]'`` answers the first three requests for a part of
a file so (the last answer holds for all later ones), and prints what was read as JSON; so for each list.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

README = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
---
"""


def documents(count: int, seed: int) -> list[str]:
    """Texts of which a thousand fill a chunk of the JSON reader (10 MiB)."""
    draw = random.Random(seed)
    return [f"{seed} {row} {draw.randbytes(6000).hex()}" for row in range(count)]


TRAIN = documents(2500, 0)


def _file(texts: list[str]) -> bytes:
    return gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode(), 1)


class Hub(BaseHTTPRequestHandler):
    """Enough of the hub's interface for ``load_dataset(..., streaming=True)`` and ``snapshot_download``."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    faults = ("ok",)
    requests = 0
    repository = "datasets/allenai/c4"
    commit = "a" * 40

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            name = path.split("/resolve/")[1].partition("/")[2]
            if name not in self.files:
                self._answer(404, b"")
            elif name.endswith(".gz") and self.command == "GET":
                self._part(self.files[name])
            else:
                tag = {"etag": f'"{hashlib.md5(self.files[name]).hexdigest()}"'}  # of the same content alone
                self._answer(200, self.files[name], tag)
            return
        if "/tree/" in path:
            self._answer(200, json.dumps(self._listing(path.split("/tree/")[1].partition("/")[2])).encode())
        elif path.startswith(f"/api/{self.repository}"):
            name = self.repository.partition("/")[2]
            info = {"_id": "x", "id": name, "sha": self.commit, "private": False, "tags": []}
            names = [{"rfilename": name} for name in self.files]
            self._answer(200, json.dumps({**info, "siblings": names, "downloads": 0, "likes": 0}).encode())
        else:
            self._answer(404, b"")

    def _listing(self, folder: str) -> list[dict]:
        """The files, or folders, in a folder."""
        entries = []
        for name, content in self.files.items():
            head, _, tail = name.rpartition("/")
            if head == folder:
                entries.append({"type": "file", "path": name, "size": len(content), "oid": "b" * 40})
            elif not folder and tail:
                entries.append({"type": "directory", "path": head, "oid": "c" * 40})
        return entries

    def _part(self, content: bytes) -> None:
        """A range of a file, or the fault that is due."""
        fault = self.faults[min(Hub.requests, len(self.faults) - 1)]
        Hub.requests += 1
        first, last = (int(x) for x in self.headers["range"].removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        headers = {"content-range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}
        if fault == "ok":
            self._answer(206, part, headers)
        elif fault == "cut":
            self._answer(206, part, headers, sent=len(part) // 2)
        elif fault == "reset":
            self.close_connection = True
        else:
            self._answer(int(fault), b"")

    def _answer(self, status: int, body: bytes, headers: dict | None = None, sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"etag": '"x"', "x-repo-commit": self.commit, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        self.close_connection = self.close_connection or sent is not None


def main(runs: list[list[str]]) -> None:
    """Read C4 from a hub with faults, each time in a fork of its own, and print what came of each."""
    Hub.files = {
        "README.md": README.encode(),
        "en/c4-train.00000-of-00001.json.gz": _file(TRAIN),
        "en/c4-validation.00000-of-00001.json.gz": _file(documents(3, 1)),
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    os.environ.pop("HF_HUB_OFFLINE", None)
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

    os.environ["HF_HOME"] = tempfile.mkdtemp()

    import datasets.packaged_modules.json.json
    import fsspec
    import torch

    assert datasets
    assert torch  # each fork would load them again
    fsspec.spec.AbstractBufferedFile.DEFAULT_BLOCK_SIZE = 1 << 22  # several requests a file
    for faults in runs:
        child = os.fork()
        if not child:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            print(json.dumps(_read(faults)), flush=True)
            os._exit(0)  # connections are open
        assert os.waitpid(child, 0)[1] == 0


def _read(faults: list[str]) -> dict[str, object]:
    """Read C4 once; from its training file on the hub fails as it is told."""
    from alphadecay_dist.errors import UserError
    from alphadecay_dist.training.data.corpus import open_corpora
    from alphadecay_dist.training.recipe import DataConfig

    corpus, _ = open_corpora(DataConfig(source="c4"))
    revision = corpus.revision
    corpus, validation = open_corpora(DataConfig(source="c4", revision=revision))  # as a resume asks for it
    assert [text for _, text in validation.rows(0, 0)] == documents(3, 1)
    Hub.requests, Hub.faults = 0, faults
    waits: list[float] = []
    time.sleep = waits.append
    read, rows, error = hashlib.sha256(), 0, None
    try:
        for row, text in corpus.rows(0, 0):
            assert row == rows
            rows += 1
            read.update(text.encode())
    except UserError as caught:
        error = str(caught)
    return {
        "rows": rows,
        "digest": read.hexdigest(),
        "error": error,
        "requests": Hub.requests,
        "waits": waits,
        "revision": revision,
    }


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # the server is open
