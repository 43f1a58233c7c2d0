"""What the page refuses, request by request, without Gradio and without a browser."""

import asyncio
import json
import os
import threading
import time

import pytest

from frozen_jax.demo import limits
from frozen_jax.demo.limits import JOIN, UPLOAD, Guard, Limits, Rates, measure_folder


async def page(scope, receive, send):
    """An application that reads what it is sent and says how much that was."""
    size, more = 0, True
    while more and scope["method"] == "POST":
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


FORM = ((b"content-type", b"multipart/form-data; boundary=----WebKitFormBoundaryx7"),)


def ask(guard, method="GET", path="/", *, chunks=(b"",), length=None, client="10.0.0.1", headers=FORM):
    """Returns status, body and headers of a request."""
    waiting = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, 1)
    ]
    sent = []

    async def receive():
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    said = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": [*headers, *said], "client": (client, 1234)}
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"])


@pytest.fixture
def guard(tmp_path):
    return Guard(page, limits=Limits(), uploads=tmp_path)


def test_only_what_the_page_needs_is_there(guard):
    for path in ("/", "/theme.css", "/assets/index-1.js", "/gradio_api/queue/data", "/gradio_api/heartbeat/abc"):
        status, _, headers = ask(guard, path=path)
        assert status == 200 and b"default-src 'self'" in headers[b"content-security-policy"], path
    for method, path in (
        ("GET", "/gradio_api/proxy=http://example.com/"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/openapi.json"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/call/caption"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/login"),
        ("PUT", "/"),
        ("GET", UPLOAD),
        ("GET", "/assets/../../etc/passwd\n"),
    ):
        status, body, headers = ask(guard, method, path)
        assert (status, json.loads(body)) == (404, {"detail": "There is nothing here."}), path
        assert headers[b"x-content-type-options"] == b"nosniff"


def test_files_are_those_of_the_page_alone(guard, tmp_path):
    (tmp_path / "picture.png").touch()
    (tmp_path / "link.png").symlink_to("/etc/passwd")
    assert ask(guard, path=f"/gradio_api/file={tmp_path}/picture.png")[0] == 200
    for name in (
        "/etc/passwd",
        f"{tmp_path}/../x",
        "README.md",
        "http://example.com/a.png",
        f"{tmp_path}/link.png",
        "\0",
    ):
        assert ask(guard, path=f"/gradio_api/file={name}")[0] == 404, name


def test_a_request_names_uploaded_files_alone(guard, tmp_path):
    def join(path):
        data = {"data": ["words", [{"deep": {"path": path, "meta": {"_type": "gradio.FileData"}}}]], "fn_index": 0}
        return ask(guard, "POST", JOIN, chunks=[json.dumps(data).encode()])

    status, body, _ = join(f"{tmp_path}/abc/picture.png")
    assert status == 200 and int(body) > 100  # all of it arrives
    assert join(None)[0] == 200
    for path in ("/etc/passwd", "http://127.0.0.1:22/", f"{tmp_path}/../x", "README.md", 7, ["/etc/passwd"]):
        assert join(path)[:2] == (400, b'{"detail": "That file was not uploaded here."}'), path
    for body in (b"{", b"\xff", b"[" * 60_000):
        assert ask(guard, "POST", JOIN, chunks=[body])[0] == 400


def test_sizes_are_limited_said_or_not(guard):
    limit = guard.limits.upload_bytes
    half = b"x" * (limit // 2)
    assert ask(guard, "POST", UPLOAD, chunks=[half, half])[:2] == (200, str(limit).encode())
    assert ask(guard, "POST", UPLOAD, chunks=[half, half, half])[0] == 413
    status, body, _ = ask(guard, "POST", UPLOAD, length=limit + 2**17)
    assert status == 413 and b"At most 10 MB" in body
    for length in ("x", "-1", "9" * 5000):
        assert ask(guard, "POST", UPLOAD, length=length)[0] == 413
    text = json.dumps("x" * 40_000).encode()
    assert ask(guard, "POST", JOIN, chunks=[text])[0] == 200
    assert ask(guard, "POST", JOIN, chunks=[text, text])[0] == 413


def test_a_client_has_a_rate_and_others_have_theirs(guard):
    statuses = [ask(guard, "POST", UPLOAD)[0] for _ in range(guard.limits.burst + 3)]
    assert statuses == [200] * guard.limits.burst + [429] * 3
    assert b"Please wait 1 s" in ask(guard, "POST", JOIN, chunks=[b"{}"])[1]
    assert ask(guard, "POST", UPLOAD, client="10.0.0.2")[0] == 200
    assert ask(guard)[0] == 200  # looking costs nothing


def test_rates_fill_up_again_and_forget():
    now = 0.0
    rates = Rates(per_minute=30.0, burst=2, clock=lambda: now)
    assert [rates.take("a"), rates.take("a"), rates.take("a")] == [0, 0, 2]
    now = 1.0
    assert rates.take("a") == 1.0
    now = 2.0
    assert [rates.take("a"), rates.take("a")] == [0, 2]
    for number in range(9_999):
        rates.take(str(number))
    now = 100.0
    rates.take("b")
    assert len(rates._buckets) == 1


def test_the_disk_is_not_filled(tmp_path):
    """What counts are blocks: a file of a byte takes a whole one, and so does the folder that it lies in."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "picture").write_bytes(bytes(100_000))
    stored = measure_folder(tmp_path)
    assert 100_000 < stored < 200_000
    guard = Guard(page, limits=Limits(stored_bytes=stored), uploads=tmp_path)
    assert ask(guard, "POST", UPLOAD)[0] == 200
    (tmp_path / "another").write_bytes(b"x")
    assert measure_folder(tmp_path) - stored == 512 * os.stat(tmp_path / "another").st_blocks >= 512
    assert ask(guard, "POST", UPLOAD)[0] == 507
    assert ask(guard, "POST", JOIN, chunks=[b"{}"])[0] == 200


def test_what_gradio_leaves_is_deleted_in_time(tmp_path):
    """What came of a refused upload, and folders of files that it deleted; the page's own examples stay."""
    examples, one, other = (tmp_path / name for name in ("examples", "one", "other"))
    examples.mkdir()
    (examples / "0.png").write_bytes(b"x")
    long_ago = time.time() - 10_000
    os.utime(examples / "0.png", (long_ago, long_ago))
    os.utime(examples, (long_ago, long_ago))
    guard = Guard(page, limits=Limits(stored_bytes=measure_folder(tmp_path) + 10_000), uploads=tmp_path)
    one.mkdir()
    other.mkdir()
    (tmp_path / "tmp1x").write_bytes(bytes(100_000))
    (other / "new.png").write_bytes(b"x")
    assert ask(guard, "POST", UPLOAD)[0] == 507
    for path in (tmp_path / "tmp1x", one, other):
        os.utime(path, (long_ago, long_ago))
    assert ask(guard, "POST", UPLOAD)[0] == 200
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0.png", "examples", "new.png", "other"]


def test_other_requests_do_not_wait_while_uploads_are_measured(guard, monkeypatch):
    threads = []
    monkeypatch.setattr(limits, "measure_folder", lambda folder: threads.append(threading.current_thread()) or 0)
    assert ask(guard, "POST", UPLOAD)[0] == 200
    assert len(threads) == 1 and threads[0] is not threading.main_thread()


def write_form(*files):
    """What a browser sends for these files."""
    line = b"------WebKitFormBoundaryx7"
    said = b'Content-Disposition: form-data; name="files"; filename="a.png"'
    parts = [b"\r\n".join((line, said, b"", content, b"")) for content in files]
    return b"".join(parts) + line + b"--\r\n"


def test_an_upload_is_one_file(guard):
    """Each file of a form would get a folder of its own: a request made a thousand of each."""
    one, two = write_form(b'\x89PNG filename="a" --'), write_form(b"a", b"b")
    for size in (7, 64, 10_000):  # a boundary may lie across messages
        for form, status in ((one, 200), (two, 400)):
            chunks = [form[start : start + size] for start in range(0, len(form), size)]
            assert ask(guard, "POST", UPLOAD, chunks=chunks)[0] == status, (size, form)
    assert b"One picture at a time" in ask(guard, "POST", UPLOAD, chunks=[two])[1]


def test_a_form_is_told_as_a_browser_tells_it(guard):
    """What could be read in two ways is refused: the parser behind might find more files in it."""
    kind = b"content-type"
    for headers in (
        (),
        ((kind, b"text/plain"),),
        ((kind, b"multipart/form-data"),),
        ((kind, b"multipart/form-data; boundary=a; boundary=b"),),
        ((kind, b'multipart/form-data; boundary="a"'),),
        ((kind, b"multipart/form-data; boundary=a"), (kind, b"multipart/form-data; boundary=b")),
    ):
        assert ask(guard, "POST", UPLOAD, headers=headers)[0] == 400, headers
    gecko = ((kind, b"multipart/form-data; boundary=----geckoformboundary3fe1c2"),)
    assert ask(guard, "POST", UPLOAD, headers=gecko)[0] == 200


def test_requests_that_stay_open_are_counted(tmp_path):
    """Three streams of one client, two of another, on a server for four."""

    async def run():
        end = asyncio.Event()

        async def stream(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await end.wait()
            await send({"type": "http.response.body", "body": b""})

        guard = Guard(stream, limits=Limits(open_per_client=2, open_in_all=3), uploads=tmp_path)
        statuses = []

        async def connect(client):
            async def send(message):
                if message["type"] == "http.response.start":
                    statuses.append((client, message["status"]))

            scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": (client, 1)}
            await guard(scope, None, send)

        tasks = []
        for client in "aaabb":
            tasks.append(asyncio.create_task(connect(client)))
            await asyncio.sleep(0)
        end.set()
        await asyncio.gather(*tasks)
        assert guard._open == {}
        return statuses

    assert asyncio.run(run()) == [("a", 200), ("a", 200), ("a", 503), ("b", 200), ("b", 503)]
