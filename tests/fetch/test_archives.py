"""Members of packages: what is wanted and nothing else, and no name that leads out of a folder."""

import pytest

from frozen_jax.errors import UserError
from frozen_jax.fetch.archives import read_members, read_one
from tests.fetch.archives import make_deb, make_wheel


def read(path, content):
    path.write_bytes(content)
    return dict(read_members(path, lambda name: name.startswith("a/")))


@pytest.mark.parametrize(("name", "make"), [("x.deb", make_deb), ("x.whl", make_wheel)])
def test_wanted_members_are_read_and_traversal_is_refused(tmp_path, name, make):
    files = {"a/one": b"1", "b/two": b"2", "a/three": b""}
    prefix = "./" if make is make_deb else ""
    assert read(tmp_path / name, make({prefix + key: value for key, value in files.items()})) == {
        "a/one": b"1", "a/three": b"",
    }  # fmt: skip
    assert read_one(tmp_path / name, "b/two") == b"2"
    with pytest.raises(UserError, match="has no a/four"):
        read_one(tmp_path / name, "a/four")
    for member in ("../out", "/etc/passwd", "a/../../out", "a\\..\\out", "C:/x"):
        with pytest.raises(UserError, match="leads out of its folder"):
            read(tmp_path / name, make({member: b""}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no Debian package"),
        (make_deb({"a/one": b"1"}, data="data.tar.zst"), "data.tar.zst.*built with xz"),
        (make_deb({"a/one": b"1"}, data="other"), "has no data.tar.xz"),
        (make_deb({"a/one": bytes(2000)})[:-40], "cannot be read"),
    ],
)
def test_what_is_no_whole_package_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x.deb", content)


def test_what_is_no_whole_wheel_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "x.whl", make_wheel({"a/one": b"1"})[:-30])
