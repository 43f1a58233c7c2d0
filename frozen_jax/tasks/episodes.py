"""Few-shot episodes in the format in which the paper's four evaluation sets were released: reading and writing.

A set is a folder, or a tar.gz of one, with `{task}_shots_{n}_ways_{m}_all_questions.json`, a list of objects with keys
image_1 …, caption_1 …, question, question_image and answer, and the pictures that it names:
`{task}_shots_{n}_ways_{m}_id_{x}_image_{i}.jpg` and `…_id_{x}_question.jpg`. Scoring is in `fewshot.py`.

Sets made here have a file more, `…_descriptions.json`, an object from a picture's file name to what it shows in words.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from frozen_jax.api import Picture
from frozen_jax.errors import UserError

SUFFIX = "_all_questions.json"
DESCRIPTIONS = "_descriptions.json"


class Episode(NamedTuple):
    """One question with its support set.

    Attributes:
        images, captions: the support set, in order.
        question: text after the question's picture.
        question_image: its picture.
        answer: the only right one.
        descriptions: what the pictures show, in words: those of the support set, then the question's; () if unknown.
    """

    images: tuple[Picture, ...]
    captions: tuple[str, ...]
    question: str
    question_image: Picture
    answer: str
    descriptions: tuple[str, ...] = ()


class EpisodeSet(NamedTuple):
    """The episodes of one file.

    Attributes:
        task: what the file's name begins with, "open_ended_mi" and so on.
        ways, shots: as in the name.
        episodes: in the file's order.
    """

    task: str
    ways: int
    shots: int
    episodes: list[Episode]


def read_episodes(path: str | Path, *, ways: int, shots: int, most: int = 0) -> EpisodeSet:
    """Reads the episodes of one setting.

    Pictures of a folder are opened when they are needed. Those of a tar.gz are kept in memory, encoded, since it cannot
    be read at random places: unpack a set of gigabytes first.

    Args:
        path: folder or tar archive.
        ways: classes per episode.
        shots: inner-shots: pictures per class.
        most: at most so many episodes, the first; 0 is all.

    Raises:
        UserError: no or several such files, one that is damaged, or a picture that is missing.
    """
    root = Path(path).expanduser()
    ending = f"_shots_{shots}_ways_{ways}{SUFFIX}"
    name, text, archived = _find_in_folder(root, ending) if root.is_dir() else _find_in_archive(root, ending)
    rows = _parse(text, name, pictures=shots * ways)[: most or None]
    wanted = {file for row in rows for key, file in row.items() if _is_picture(key)}
    words = name.removesuffix(SUFFIX) + DESCRIPTIONS
    found: Mapping[str, Picture]
    if archived:
        found = _read_members(root, wanted | {words})
    else:
        found = {file: root / file for file in wanted | {words} if (root / file).is_file()}
    for file in sorted(wanted - set(found)):
        raise UserError(f"{root}: has no {file}, which {name} names; unpack or fetch the set again")
    described = _parse_descriptions(found[words], words, wanted) if words in found else {}
    numbers = range(1, shots * ways + 1)
    pictures = [*(f"image_{number}" for number in numbers), "question_image"]
    episodes = [
        Episode(
            images=tuple(found[row[f"image_{number}"]] for number in numbers),
            captions=tuple(row[f"caption_{number}"] for number in numbers),
            question=row["question"],
            question_image=found[row["question_image"]],
            answer=row["answer"],
            descriptions=tuple(described[row[key]] for key in pictures) if described else (),
        )
        for row in rows
    ]
    return EpisodeSet(name.removesuffix(ending), ways, shots, episodes)


def write_episodes(out: str | Path, *, task: str, ways: int, shots: int, episodes: Sequence[Episode]) -> None:
    """Writes episodes, whose pictures are JPEG files' bytes, into a folder, or a tar.gz if the name ends so.

    The same episodes give the same bytes: no times, names of users or orders of a file system are in an archive.

    Raises:
        UserError: the place exists, or cannot be written.
    """
    out = Path(out)
    stem = f"{task}_shots_{shots}_ways_{ways}"
    files: dict[str, bytes] = {}
    described: dict[str, str] = {}
    rows = []
    for index, episode in enumerate(episodes):
        row: dict[str, str] = {}
        for number, (image, caption) in enumerate(zip(episode.images, episode.captions, strict=True), start=1):
            row[f"image_{number}"], row[f"caption_{number}"] = f"{stem}_id_{index}_image_{number}.jpg", caption
            files[row[f"image_{number}"]] = _as_bytes(image)
        row |= {"question": episode.question, "question_image": f"{stem}_id_{index}_question.jpg"}
        files[row["question_image"]] = _as_bytes(episode.question_image)
        if episode.descriptions:
            pictures = [file for key, file in row.items() if _is_picture(key)]
            described |= dict(zip(pictures, episode.descriptions, strict=True))
        rows.append(row | {"answer": episode.answer})
    files[f"{stem}{SUFFIX}"] = _as_json(rows)
    if described:
        files[f"{stem}{DESCRIPTIONS}"] = _as_json(described)
    archived = out.name.endswith((".tar.gz", ".tgz"))
    taken = [out] if archived else [out / name for name in files]
    try:
        if any(file.exists() for file in taken):
            raise UserError(f"--out={out}: holds such episodes already; name another place, or remove them")
        if archived:
            out.parent.mkdir(parents=True, exist_ok=True)
            _write_archive(out, files)
        else:
            out.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (out / name).write_bytes(content)
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written ({error.strerror}); name another place") from error


def _as_json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _as_bytes(picture: Picture) -> bytes:
    assert isinstance(picture, bytes)
    return picture


def _write_archive(out: Path, files: Mapping[str, bytes]) -> None:
    folder = out.name.removesuffix(".tgz").removesuffix(".tar.gz")
    with (
        out.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name in sorted(files):
            member = tarfile.TarInfo(f"{folder}/{name}")  # times and owners are 0 by default
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))


def _find_in_folder(root: Path, ending: str) -> tuple[str, bytes, bool]:
    names = [file.name for file in root.iterdir()]
    name = _choose(names, ending, root)
    return name, (root / name).read_bytes(), False


def _find_in_archive(root: Path, ending: str) -> tuple[str, bytes, bool]:
    if not root.is_file():
        raise UserError(
            f"evaluate.fewshot.episodes={str(root)!r}: no such folder or file; tools.make_episodes writes one"
        )
    texts: dict[str, bytes] = {}
    names = []
    with _open_archive(root) as archive:
        for member in archive:
            names.append(PurePosixPath(member.name).name)
            if member.isfile() and names[-1].endswith(ending):
                texts[names[-1]] = _content(archive, member)
    name = _choose(names, ending, root)
    return name, texts[name], True


def _choose(names: Sequence[str], ending: str, root: Path) -> str:
    fitting = sorted(name for name in names if name.endswith(ending) and not name.startswith("."))
    if len(fitting) != 1:
        there = sorted(name for name in names if name.endswith(SUFFIX))
        raise UserError(
            f"{root}: needs exactly one file *{ending}, has {fitting or 'none'}; there are {there or 'no episodes'}: "
            "change evaluate.fewshot.ways or inner_shots, or keep each task in a folder of its own"
        )
    return fitting[0]


@contextlib.contextmanager
def _open_archive(root: Path) -> Any:
    try:
        with tarfile.open(root, mode="r|*") as archive:
            yield archive
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, OSError) as error:
        raise UserError(f"{root}: cannot be read as a tar archive ({error}); fetch it again") from error


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _read_members(root: Path, wanted: set[str]) -> dict[str, Picture]:
    """Contents by file name; where in the archive a file stands does not matter, and nothing is written to disk."""
    found: dict[str, Picture] = {}
    with _open_archive(root) as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if member.isfile() and name in wanted:
                found[name] = _content(archive, member)
    return found


def _is_picture(key: str) -> bool:
    return key == "question_image" or key.startswith("image_")


def _parse_descriptions(file: Picture, name: str, pictures: set[str]) -> dict[str, str]:
    text = file.read_bytes() if isinstance(file, Path) else _as_bytes(file)
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not JSON ({error}); remove it or make the set again") from error
    for picture in sorted(pictures):
        if not isinstance(described, dict) or not isinstance(described.get(picture), str):
            raise UserError(f"{name}: has no words about {picture}; remove it or make the set again")
    return {picture: described[picture] for picture in pictures}


def _parse(text: bytes, name: str, *, pictures: int) -> list[dict[str, str]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not JSON ({error}); is it cut? fetch it again") from error
    keys = {f"{kind}_{number}" for kind in ("image", "caption") for number in range(1, pictures + 1)}
    keys |= {"question", "question_image", "answer"}
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{name}: must hold a list of episodes, holds {type(rows).__name__}; fetch it again")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
            lacking = sorted(key for key in keys if not isinstance(row, dict) or not isinstance(row.get(key), str))
            raise UserError(f"{name}: episode {number} has no text under {', '.join(lacking[:3])}; fetch it again")
        if f"image_{pictures + 1}" in row:
            raise UserError(f"{name}: episode {number} has more than {pictures} pictures; its name says otherwise")
        for key, value in row.items():
            if _is_picture(key) and PurePosixPath(value).name != value:
                raise UserError(f"{name}: episode {number} has {key}={value!r}; a picture lies beside the file")
    return [{key: row[key] for key in keys} for row in rows]
