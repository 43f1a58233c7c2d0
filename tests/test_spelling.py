"""Text that an encoding does not have: escapes, never a traceback."""

import io

import pytest

from frozen_jax.spelling import spell
from frozen_jax.tools import caption


def test_what_an_encoding_does_not_have_is_an_escape():
    assert spell("\udcff.png été") == r"\udcff.png été"
    assert spell("été", "ascii") == r"\xe9t\xe9"


@pytest.mark.parametrize(("encoding", "line"), [("utf-8", r"\udcff.png: été"), ("ascii", r"\udcff.png: \xe9t\xe9")])
def test_captions_are_printed_on_any_terminal(monkeypatch, encoding, line):
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", shown)
    monkeypatch.setattr(caption, "caption", lambda *_, **__: ["été"])
    caption.main(["--workdir=w", "\udcff.png"])
    assert shown.buffer.getvalue().decode(encoding) == f"{line}\n"
