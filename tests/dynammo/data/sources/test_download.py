from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from dynammo.data.sources.download import downloads_folder, fetch
from dynammo.errors import DataError

CONTENT = bytes(range(256)) * 20
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """Serves CONTENT; counts what was asked for, and misbehaves when told."""

    def __init__(self) -> None:
        self.ranges: list[str | None] = []
        self.understands_ranges = True
        self.cuts = 0  # connections to break in the middle
        self.content = CONTENT


class Handler(BaseHTTPRequestHandler):
    def __init__(self, state: Server, *args: object) -> None:
        self.state = state
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        state, wanted = self.state, self.headers.get("Range")
        state.ranges.append(wanted)
        if self.path != "/set.bin":
            return self.send_error(404)
        start = 0
        if wanted and state.understands_ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(state.content):
                return self.send_error(416)
        body = state.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if state.cuts:
            state.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[Server, str]]:
    state = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, state)) as http:
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state, f"http://127.0.0.1:{http.server_port}/set.bin"
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNAMMO_HOME", str(tmp_path))
    return tmp_path / "downloads"


def test_a_file_is_fetched_once(server: tuple[Server, str], home: Path) -> None:
    state, url = server
    assert downloads_folder() == home
    for _ in range(2):
        path = fetch(url, "set.bin", MD5)
        assert path == home / "set.bin" and path.read_bytes() == CONTENT
    assert state.ranges == [None]
    assert list(home.iterdir()) == [path]


def test_a_broken_download_goes_on_where_it_stopped(server: tuple[Server, str], home: Path) -> None:
    state, url = server
    state.cuts = 1
    with pytest.raises(DataError, match="connection broke after 2560 of 5120 bytes"):
        fetch(url, "set.bin", MD5)
    assert [file.name for file in home.iterdir()] == ["set.bin.part"]
    assert fetch(url, "set.bin", MD5).read_bytes() == CONTENT
    assert state.ranges == [None, "bytes=2560-"]


def test_a_server_without_ranges_sends_all_again(server: tuple[Server, str], home: Path) -> None:
    state, url = server
    state.understands_ranges = False
    home.mkdir()
    (home / "set.bin.part").write_bytes(CONTENT[:100])
    assert fetch(url, "set.bin", MD5).read_bytes() == CONTENT
    assert state.ranges == ["bytes=100-"]


@pytest.mark.parametrize("part", [b"other" * 100, CONTENT + b"more", CONTENT[:-1] + b"x"])
def test_a_wrong_part_is_thrown_away(part: bytes, server: tuple[Server, str], home: Path) -> None:
    state, url = server
    home.mkdir()
    (home / "set.bin.part").write_bytes(part)
    assert fetch(url, "set.bin", MD5).read_bytes() == CONTENT
    assert state.ranges == [f"bytes={len(part)}-", None]


def test_a_part_that_is_whole_already_is_taken(server: tuple[Server, str], home: Path) -> None:
    home.mkdir()
    (home / "set.bin.part").write_bytes(CONTENT)
    assert fetch(server[1], "set.bin", MD5).read_bytes() == CONTENT


def test_another_file_on_the_server_is_refused(server: tuple[Server, str], home: Path) -> None:
    state, url = server
    state.content = b"a page that says: please log in"
    found = hashlib.md5(state.content).hexdigest()
    with pytest.raises(DataError, match=f"its MD5 is {found}, expected {MD5}") as caught:
        fetch(url, "set.bin", MD5)
    assert f"put it at {home}/set.bin" in str(caught.value)
    assert list(home.iterdir()) == []
    assert len(state.ranges) == 2


def test_without_a_network_the_message_says_what_to_put_where(home: Path) -> None:
    url = "http://127.0.0.1:9/set.bin"  # the discard port: nothing listens
    with pytest.raises(DataError) as caught:
        fetch(url, "set.bin", MD5)
    message = str(caught.value)
    assert message.startswith(f"cannot download {url} (") and "\n" not in message
    assert message.endswith(f"put it at {home}/set.bin (MD5 {MD5})")


def test_an_unknown_address(server: tuple[Server, str]) -> None:
    with pytest.raises(DataError, match=r"cannot download .*/other \(Not Found\)"):
        fetch(server[1].replace("set.bin", "other"), "set.bin", MD5)


def test_a_file_put_there_by_hand_is_checked_and_kept(home: Path) -> None:
    home.mkdir()
    file = home / "set.bin"
    file.write_bytes(CONTENT)
    assert fetch("http://127.0.0.1:9/set.bin", "set.bin", MD5) == file
    file.write_bytes(b"wrong")
    with pytest.raises(DataError, match=f"damaged or another version: .* expected {MD5}; remove"):
        fetch("http://127.0.0.1:9/set.bin", "set.bin", MD5)
    assert file.read_bytes() == b"wrong"
