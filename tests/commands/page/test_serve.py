"""The server of a page: for this machine alone, and silent where nothing is new."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request

import pytest

from alphadecay_dist import cli
from alphadecay_dist.commands.page.serve import PageServer
from tests.commands.page.written import write_refresh, write_run


@pytest.fixture
def served(tmp_path):
    with PageServer([tmp_path / "run"], 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def asked(server, path, host=None):
    """Status, token and text of an answer."""
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.headers.get("X-Token"), answer.read().decode()


def test_data_are_sent_where_they_are_new_alone(served):
    run = write_run(served.folders[0])
    status, token, page = asked(served, "/")
    assert status == 200
    assert f'"token":"{token}"' in page
    assert asked(served, f"/data?after={token}")[::2] == (204, "")
    write_refresh(run, 30)
    status, later, text = asked(served, f"/data?after={token}")
    assert (status, later != token) == (200, True)
    assert json.loads(text)["runs"][0]["refreshes"]["step"] == [0, 10, 20, 30]


def test_a_run_without_a_line_yet_is_waited_for(served):
    status, _, text = asked(served, "/")
    assert (status, text.startswith(str(served.folders[0]))) == (200, True)
    status, _, why = asked(served, "/data")
    assert (status, why.startswith(f"{served.folders[0]}: found no line in")) == (503, True)
    write_run(served.folders[0])
    assert asked(served, "/")[2].startswith("<!doctype html>")


def test_no_other_name_and_no_other_path_is_answered(served):
    write_run(served.folders[0])
    assert served.server_address[0] == "127.0.0.1"
    assert asked(served, "/", host="elsewhere.example:80")[0] == 403
    assert asked(served, "/../run/config.yaml")[0] == 404
    assert asked(served, "/", host="localhost:1")[0] == 200
    assert asked(served, "/", host="127.0.0.1")[0] == 200  # what a browser says of port 80


def test_a_browser_that_goes_away_is_passed_over_in_silence(served, capfd):
    write_run(served.folders[0])
    for _ in range(3):
        with socket.create_connection(served.server_address) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            connection.recv(1)  # the page is on its way
    assert asked(served, "/data")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_one_line(served, capsys):
    run, port = write_run(served.folders[0]), served.server_address[1]
    assert cli.main(["report", str(run), "--watch", f"--port={port}"]) == 2
    assert f"--port {port}: Address already in use; choose another" in capsys.readouterr().err


@pytest.mark.launcher
def test_the_command_serves_until_ctrl_c(tmp_path):
    command = [
        sys.executable,
        "-m",
        "alphadecay_dist",
        "report",
        str(write_run(tmp_path)),
        "--watch",
        "--port=0",
    ]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it,
    try:  # and so would what they start
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        url = process.stdout.readline().split()[0]
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.read().startswith(b"<!doctype html>")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
