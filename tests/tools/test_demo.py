"""The command line of the page: what it says when it cannot start; none of these needs Gradio."""

import os
import socket
import sys
from pathlib import Path

import pytest

from frozen_jax.errors import UserError
from frozen_jax.tools import demo


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        demo.main(list(arguments))
    assert caught.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_a_port_in_use_and_a_foreign_host_are_one_line_each(tmp_path, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = run(capsys, f"--workdir={tmp_path}", f"--port={port}")
        assert f"127.0.0.1:{port} (Address already in use)" in line and "--port" in line
    assert "192.0.2.1" in run(capsys, f"--workdir={tmp_path}", "--host=192.0.2.1")
    assert "1..65535" in run(capsys, f"--workdir={tmp_path}", "--port=0")


def test_without_gradio_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(os, "environ", {**os.environ, "GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": "/"})
    with pytest.raises(UserError, match=r"pip install 'frozen_jax\[demo\]'"):
        demo.import_gradio(tmp_path)
    told = {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")}
    assert told == {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(tmp_path)}


def test_it_listens_to_this_machine_unless_told_otherwise(monkeypatch, tmp_path):
    asked = {}

    def serve(path, **options):
        asked.update(options, path=path)
        raise UserError("enough")

    monkeypatch.setattr(demo, "serve", serve)
    with pytest.raises(SystemExit):
        demo.main([f"--workdir={tmp_path}"])
    assert asked == {"path": tmp_path, "gallery": None, "host": "127.0.0.1", "port": 7860}
    with pytest.raises(SystemExit):
        demo.main([f"--workdir={tmp_path}", "--host=0.0.0.0", "--port=80", "--gallery=x"])
    assert asked == {"path": tmp_path, "gallery": Path("x"), "host": "0.0.0.0", "port": 80}
