"""A set of `packages.py` as a folder: made of its packages once, verified afterwards, found where it is needed.

`tools/fetch_data.py` makes sets on request; `locate` finds one, or a file of one, for a released model (`released.py`),
and fetches it into this user's cache where it is not here.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from frozen_jax.errors import UserError
from frozen_jax.fetch import emoji, stamps
from frozen_jax.fetch.archives import read_members
from frozen_jax.fetch.download import DEBIAN, INDEX, download, list_urls
from frozen_jax.fetch.emoji import write_emoji
from frozen_jax.fetch.packages import MEMBERS, SETS, Package
from frozen_jax.fetch.split import write_splits
from frozen_jax.fetch.stamps import write_stamps
from frozen_jax.sums import SUMS, digest_file, format_sums
from frozen_jax.workdir import write_bytes_atomic, write_text_atomic

LICENCE = "LICENCE.txt"
FETCHED = Path("data/fetched")
"""Where `tools.fetch_data` puts sets, below the current directory."""


def fetch(name: str, out: Path, *, index: str = INDEX, debian: Sequence[str] = DEBIAN) -> str:
    """Makes one set, unless it is there, and returns a line about it.

    Args:
        name: key of `SETS`.
        out: gets the set as `NAME/`, and the packages' files as `packages/`.
        index: address of a package index like PyPI's.
        debian: addresses of copies of Debian's archive.

    Raises:
        UserError: a package cannot be had, or is not what it should be; or the set that is there has changed.
    """
    target = out / name
    if target.exists():
        count = verify(target)
        return f"{name}: already there and whole, {count} files in {target}"
    packages = SETS[name]
    for package in packages:
        print(f"{package.name} {package.version}, {package.size / 1e6:.0f} MB, licence {package.licence}", flush=True)
    files = [download(p, out / "packages", list_urls(p, index=index, debian=debian)) for p in packages]
    made = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=out))
    try:
        about = _make(name, files, made)
        write_text_atomic(made / LICENCE, "\n\n".join(map(read_licence, packages, files)))
        names = sorted(str(path.relative_to(made).as_posix()) for path in made.rglob("*") if path.is_file())
        write_text_atomic(made / SUMS, format_sums((path, made / path) for path in names))
        made.chmod(0o755)
        os.replace(made, target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return f"{name}: {about} in {target}; licence in {target / LICENCE}"


def _make(name: str, files: Sequence[Path], folder: Path) -> str:
    """Writes a set's files and says what there is."""
    if name in MEMBERS:
        members = MEMBERS[name]
        found = dict(read_members(files[0], members.__contains__))
        for member, short in members.items():
            if member not in found:
                raise UserError(f"fetch: {files[0]} has no {member}; it is not the package that is expected")
            write_bytes_atomic(folder / short, found[member])
        return f"{len(members)} files"
    if name == "stamps":
        entries, question = write_stamps(files[0], folder), stamps.QUESTION
    else:
        font, cldr, unicode_data = files
        entries, question = write_emoji(font, cldr, unicode_data, folder), emoji.QUESTION
    counts = write_splits(folder, entries, question=question)
    captions, categories = len({entry.caption for entry in entries}), len({entry.tags[0] for entry in entries})
    return (
        f"{len(entries)} pictures, {captions} captions, {categories} categories: {counts['train']} in train.jsonl, "
        f"{counts['heldout']} in heldout.jsonl"
    )


def read_licence(package: Package, file: Path) -> str:
    """Returns where a package is from and its licence's text, which it brings.

    Raises:
        UserError: it brings none.
    """

    def is_licence(name: str) -> bool:
        if package.pool:
            return name == f"usr/share/doc/{package.name}/copyright"
        folder, _, rest = name.partition("/")
        return folder.endswith(".dist-info") and rest.rpartition("/")[2].upper() in ("LICENSE", "LICENCE")

    texts = [content.decode("utf-8") for _, content in read_members(file, is_licence)]
    if not texts:
        raise UserError(f"fetch: {file} has no licence; it is not the package that is expected")
    origin = "Debian" if package.pool else "PyPI"
    head = (
        f"{package.name} {package.version} of {origin}: {package.file}\nSHA-256 {package.sha256}\n{package.licence}\n"
    )
    return "\n".join([head, *texts])


def verify(folder: Path) -> int:
    """Returns the number of files of a set.

    Raises:
        UserError: one of them is missing or has changed.
    """
    try:
        lines = [line.split("  ", 1) for line in (folder / SUMS).read_text("utf-8").splitlines()]
        changed = [name for digest, name in lines if digest_file(folder / name) != digest]
    except (OSError, ValueError) as error:
        raise UserError(f"fetch: {folder} is not whole ({error}); remove it and run the command again") from error
    if changed:
        raise UserError(f"fetch: {folder / changed[0]} has changed; remove {folder} and run the command again")
    return len(lines)


def find_index() -> str:
    """Returns the package index that pip was told to use, or PyPI's."""
    return os.environ.get("PIP_INDEX_URL", INDEX)


def find_cache() -> Path:
    """Returns this user's folder of sets that were fetched because something needed them."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frozen_jax"


def is_member(path: str) -> bool:
    """Whether others can get what lies at a path: a set that has files as its package has them, or one of these files.

    A file is known by its end, such as smollm2/NAME.gguf. A whole set, such as fetched/minilm, is known only where
    `tools.fetch_data` and `locate` put sets: elsewhere a model of one's own may well be called minilm.
    """
    given = Path(path)
    whole = given.name in MEMBERS and given.parent.name in (FETCHED.name, find_cache().name)
    return whole or given.name in MEMBERS.get(given.parent.name, {}).values()


def locate(path: str) -> Path:
    """Returns where a set or a file of one is: there, or in the cache, into which the set is fetched if need be.

    What is fetched, how far it is and its licence is told on stderr: what a program prints are its answers.

    Args:
        path: as `tools.fetch_data` lays it out, "data/fetched/SET" or "data/fetched/SET/FILE"; see `is_member`.

    Raises:
        UserError: it is nowhere, and cannot be fetched; or what is in the cache was changed.
    """
    if Path(path).exists():
        return Path(path)
    given, cache = Path(path), find_cache()
    name = given.name if given.name in MEMBERS else given.parent.name
    cached = cache / name if given.name == name else cache / name / given.name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr if not cached.exists() else io.StringIO()):
            print(fetch(name, cache, index=find_index()))
    except (UserError, OSError) as error:
        raise UserError(
            f"{path} is not here, and {cached} cannot be made ({error}); where there is a network run "
            f"python -m frozen_jax.tools.fetch_data {name}, here or with --out={cache}"
        ) from error
    return cached
