"""Members of a wheel or a Debian package, read by the standard library; nothing is unpacked to where a name says."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from frozen_jax.errors import UserError

_AR = b"!<arch>\n"
_HEADER = 60


def read_members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of the regular files whose names are wanted, in the archive's order.

    Args:
        archive: a `.whl` or a `.deb`.
        wanted: of a name such as "usr/share/wordnet/data.noun".

    Raises:
        UserError: damaged, compressed in a way that Python cannot read, or a name that leads out of a folder.
    """
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                for entry in wheel.infolist():
                    if not entry.is_dir() and wanted(_check(entry.filename, archive)):
                        yield entry.filename, wheel.read(entry)
            return
        with (
            archive.open("rb") as file,
            _open_data(file, archive) as data,
            tarfile.open(fileobj=data, mode="r|") as tar,
        ):
            for member in tar:
                name = _check(member.name.removeprefix("./"), archive)
                if member.isfile() and wanted(name):
                    content = tar.extractfile(member)
                    assert content is not None  # a regular file has one
                    yield name, content.read()
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError) as error:
        raise UserError(f"fetch: {archive} cannot be read ({error}); remove it and fetch it again") from error


def read_one(archive: Path, name: str) -> bytes:
    """Returns the content of one member.

    Raises:
        UserError: it is not there, or as `read_members`.
    """
    for _, content in read_members(archive, name.__eq__):
        return content
    raise UserError(f"fetch: {archive} has no {name}; it is not the package that is expected")


def _check(name: str, archive: Path) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name.partition("/")[0]:
        raise UserError(f"fetch: {archive} has a member {name!r}, which leads out of its folder; it is not used")
    return name


def _open_data(file: BinaryIO, archive: Path) -> lzma.LZMAFile:
    """Finds data.tar in the ar archive that a .deb is, and opens it as a stream."""
    if file.read(len(_AR)) != _AR:
        raise UserError(f"fetch: {archive} is no Debian package; remove it and fetch it again")
    while len(header := file.read(_HEADER)) == _HEADER:
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), header[48:58].strip()
        if not size.isdigit():
            break
        if name == "data.tar.xz":
            return lzma.open(file)
        if name.startswith("data.tar"):
            raise UserError(
                f"fetch: {archive} holds {name}, which Python's standard library cannot read; take the package built "
                "with xz, or unpack it with dpkg-deb"
            )
        file.seek(int(size) + int(size) % 2, 1)
    raise UserError(f"fetch: {archive} has no data.tar.xz; remove it and fetch it again")
