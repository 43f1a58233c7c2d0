"""Annotation files with a published schema: COCO captions, Karpathy's splits, VQA questions and answers.

Next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from frozen_jax.data.records import MemorySource, Question, Record
from frozen_jax.data.tables import existing_file
from frozen_jax.errors import UserError

_Reader = TypeVar("_Reader", bound=Callable[..., MemorySource])


def _names_the_file(read: _Reader) -> _Reader:
    """Makes a `UserError` that names the file of what a reader meets in entries of another form."""

    @functools.wraps(read)
    def reading(path: str | Path, **options: Any) -> MemorySource:
        try:
            return read(path, **options)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"data: an entry of {path} is not as this kind of file has them ({type(error).__name__}: {error}); is "
                "it the file of another set or task, or damaged? fetch it again"
            ) from error

    return cast(_Reader, reading)


def read_json(path: str | Path, *keys: str) -> dict[str, Any]:
    """Reads a JSON object that must have the given keys.

    Raises:
        UserError: no such file, not JSON, or a key is missing.
    """
    file = existing_file(path)
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"data: {file} is not JSON ({error}); is it cut? fetch it again") from error
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise UserError(f"data: {file} has no {key!r}; is it the file of another set or task?")
    return dict(content)


@_names_the_file
def coco_captions(path: str | Path, *, root: str | Path) -> MemorySource:
    """Reads COCO's `captions_*.json` (also NoCaps, with domains, and others of that schema): one record per picture.

    Args:
        path: the file.
        root: folder of the pictures.
    """
    content = read_json(path, "images", "annotations")
    captions: dict[Any, list[str]] = {}
    for row in content["annotations"]:
        captions.setdefault(row["image_id"], []).append(row["caption"])
    folder = Path(root).expanduser()
    return MemorySource(
        [
            Record(
                id=str(row["id"]),
                image=folder / row["file_name"],
                captions=tuple(captions.get(row["id"], ())),
                domain=str(row.get("domain", "")),
            )
            for row in content["images"]
        ]
    )


@_names_the_file
def karpathy_split(path: str | Path, *, root: str | Path, split: str) -> MemorySource:
    """Reads one split of Karpathy's `dataset_coco.json` (or flickr8k, flickr30k).

    Args:
        path: the file.
        root: folder of the pictures ("train2014/…" below it for COCO).
        split: "train" (with COCO's "restval", as is usual), "val" or "test"; "train-only" leaves "restval" out.

    Raises:
        UserError: no picture is in that split.
    """
    content = read_json(path, "images")
    wanted = {"train": ("train", "restval"), "train-only": ("train",)}.get(split, (split,))
    folder = Path(root).expanduser()
    records = [
        Record(
            id=str(row.get("cocoid", row["filename"])),
            image=folder / row.get("filepath", "") / row["filename"],
            captions=tuple(sentence["raw"] for sentence in row["sentences"]),
        )
        for row in content["images"]
        if row["split"] in wanted
    ]
    if not records:
        known = sorted({str(row["split"]) for row in content["images"]})
        raise UserError(f"data: {path} has no pictures in split {split!r}; it has {known}")
    return MemorySource(records)


@_names_the_file
def vqa_pairs(
    path: str | Path, *, root: str | Path, annotations: str | Path = "", pattern: str = "{image_id}.jpg"
) -> MemorySource:
    """Reads questions and answers in the format of VQAv2 and OKVQA: one record per picture with all its questions.

    Args:
        path: the questions' file.
        root: folder of the pictures.
        annotations: the answers' file; without it there are no answers (a hidden test set).
        pattern: a picture's file name, such as "COCO_val2014_{image_id:012d}.jpg".

    Raises:
        UserError: a question without its annotation, or a pattern that does not fit.
    """
    questions = read_json(path, "questions")["questions"]
    answers: dict[Any, dict[str, Any]] = {}
    if annotations:
        answers = {row["question_id"]: row for row in read_json(annotations, "annotations")["annotations"]}
    grouped: dict[Any, list[Question]] = {}
    for row in questions:
        found = answers.get(row["question_id"], {})
        if answers and not found:
            raise UserError(f"data: {annotations} has no answers for question {row['question_id']}; use the right file")
        given = found.get("answers", ())
        texts = tuple(answer["answer"] for answer in given)
        raw = tuple(answer["raw_answer"] for answer in given) if all("raw_answer" in answer for answer in given) else ()
        asked = Question(row["question"], texts, str(row["question_id"]), str(found.get("answer_type", "")), raw)
        grouped.setdefault(row["image_id"], []).append(asked)
    folder = Path(root).expanduser()
    records = []
    for image_id, asked_here in grouped.items():
        try:
            name = pattern.format(image_id=image_id)
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(f"data: pattern {pattern!r} does not fit image id {image_id!r} ({error})") from error
        records.append(Record(id=str(image_id), image=folder / name, questions=tuple(asked_here)))
    return MemorySource(records)
