"""One file of the table from a local server: whole, resumed, from the next mirror, or refused."""

import dataclasses
import hashlib
import http.server
import json
import threading

import pytest

from frozen_jax.errors import UserError
from frozen_jax.fetch.download import download, list_urls
from frozen_jax.fetch.packages import Package

CONTENT = bytes(range(256)) * 300
FILE = "thing-1.0-py3-none-any.whl"
PACKAGE = Package("thing", "1.0", FILE, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "MIT")


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; with `server.cut` a connection ends after so many bytes, with `ranges` parts are given."""

    protocol_version = "HTTP/1.0"

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        begin = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if self.server.ranges else 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin:][: self.server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked, server.cut, server.ranges = {"/f": CONTENT}, [], None, True
        server.at = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_is_fetched_once_and_a_damaged_one_again(server, tmp_path):
    folder = tmp_path / "packages"
    assert download(PACKAGE, folder, [f"{server.at}/f"]).read_bytes() == CONTENT
    assert download(PACKAGE, folder, [f"{server.at}/f"]) == folder / FILE
    assert server.asked == [("/f", None)] and names(folder) == [FILE]
    (folder / FILE).write_bytes(CONTENT[:-1] + b"!")
    assert download(PACKAGE, folder, [f"{server.at}/f"]).read_bytes() == CONTENT and len(server.asked) == 2


def test_a_broken_connection_is_gone_on_with_and_so_is_the_next_call(server, tmp_path):
    server.cut = 20_000
    assert download(PACKAGE, tmp_path, [f"{server.at}/f"]).read_bytes() == CONTENT
    assert [begin for _, begin in server.asked] == [None, "bytes=20000-", "bytes=40000-", "bytes=60000-"]
    (tmp_path / FILE).unlink()
    server.cut, server.asked = 10_000, []
    with pytest.raises(UserError, match=f"40000 of {len(CONTENT)} bytes.*again to go on"):
        download(PACKAGE, tmp_path, [f"{server.at}/f"])
    assert names(tmp_path) == [f"{FILE}.part"]
    assert download(PACKAGE, tmp_path, [f"{server.at}/f"]).read_bytes() == CONTENT
    assert server.asked[4] == ("/f", "bytes=40000-") and names(tmp_path) == [FILE]


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.ranges = False
    (tmp_path / f"{FILE}.part").write_bytes(b"other bytes")
    assert download(PACKAGE, tmp_path, [f"{server.at}/f"]).read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_begun_anew(server, tmp_path):
    (tmp_path / f"{FILE}.part").write_bytes(CONTENT + b"more")
    assert download(PACKAGE, tmp_path, [f"{server.at}/f"]).read_bytes() == CONTENT


def test_the_next_mirror_serves_what_the_first_one_lacks(server, tmp_path):
    urls = ["http://127.0.0.1:9/nobody", f"{server.at}/absent", f"{server.at}/f"]
    assert download(PACKAGE, tmp_path, urls).read_bytes() == CONTENT
    with pytest.raises(UserError, match="0 of .* bytes .*absent.*404"):
        download(dataclasses.replace(PACKAGE, file="other.whl"), tmp_path, urls[:2])


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"!", CONTENT[::-1] + b"longer"])
def test_wrong_bytes_are_refused_and_leave_nothing(server, tmp_path, content):
    server.files["/f"] = content
    with pytest.raises(UserError, match="has the SHA-256 .* is not kept"):
        download(PACKAGE, tmp_path, [f"{server.at}/f"])
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/packages cannot be made .*; name another folder with --out"):
        download(PACKAGE, tmp_path / "file" / "packages", [])


def test_addresses_come_from_the_index_or_from_debians_pool(server):
    server.files["/simple/thing/"] = json.dumps(
        {"files": [{"filename": "thing-0.9.whl", "url": "x"}, {"filename": FILE, "url": "../../files/a"}]}
    ).encode()
    index = f"{server.at}/simple"
    assert list_urls(PACKAGE, index=index, debian=()) == [f"{server.at}/files/a"]
    with pytest.raises(UserError, match=r"does not have none\.whl"):
        list_urls(dataclasses.replace(PACKAGE, file="none.whl"), index=index, debian=())
    server.files["/simple/thing/"] = b"<html>"
    with pytest.raises(UserError, match="cannot be read.*--index"):
        list_urls(PACKAGE, index=index, debian=())
    debian = dataclasses.replace(PACKAGE, pool="pool/main/t/thing", file="a b+c.deb")
    assert list_urls(debian, index="", debian=["http://a/", "http://b"]) == [
        "http://a/pool/main/t/thing/a%20b%2Bc.deb", "http://b/pool/main/t/thing/a%20b%2Bc.deb",
    ]  # fmt: skip


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "https://me:secret@host/simple"])
def test_other_schemes_and_passwords_are_refused_without_being_shown(url, tmp_path):
    with pytest.raises(UserError, match="only http and https") as caught:
        list_urls(PACKAGE, index=url, debian=())
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="only http and https"):
        download(PACKAGE, tmp_path, [url])
