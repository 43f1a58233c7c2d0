"""Feeds damaged files to every reader of files that others made: each must end in a result or in one clear error.

    python -m tests.fuzz_readers --cases=100000          # all readers; --reader=gguf for one

Case n of a reader is a pure function of (reader, n). A failure is any other exception, a native abort, more than
`SECONDS`, or more than `MEMORY` beyond what the reader had at its start. `tests/test_fuzz.py` runs a few hundred.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
from safetensors.numpy import save_file

from frozen_jax.convert.gguf_reader import read_gguf
from frozen_jax.convert.safetensors_reader import SafetensorsDirectory
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.data.records import Source
from frozen_jax.data.sources import open_source
from frozen_jax.data.tar import TarShards
from frozen_jax.errors import UserError
from frozen_jax.language_model import read_lm_config
from frozen_jax.tasks.episodes import Episode, read_episodes, write_episodes
from frozen_jax.tokenizer import Tokenizer
from tests.convert.test_gguf import GGUFFile

SECONDS, MEMORY = 10, 1 << 30
SHIPPED = Path(__file__).parent.parent / "frozen_jax" / "assets" / "scene_gpt2"
PIECES = (
    b"\xff" * 8, b"\x00" * 8, b"\x7f\xff\xff\xff\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b'"', b"}", b"]", b"[" * 3000,
    b'{"a":' * 3000, b"9" * 400, b"-1", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b'""', b"../../../etc/passwd",
    b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\r\n", b"%s{0}",
)  # fmt: skip
"""What has broken readers: largest and smallest numbers, depth, other types, surrogates, paths that climb."""
VALUES: tuple[object, ...] = (
    None, True, 0, -1, 1, 2, 0.5, 2**62, 10**400, 1e308, 1e-320, float("nan"), float("inf"), "", "64", "yarn", "linear",
    "llama3", "abc", [], ["yarn"], [1], {}, {"rope_type": "default"}, {"rope_type": "linear", "factor": 2},
)  # fmt: skip
"""The same as values of JSON."""


class Reader(NamedTuple):
    """One format.

    Attributes:
        prepare: writes the sound files into a folder and returns those that are damaged, by name.
        read: reads the folder to the end.
        values: the files are JSON objects, and damaged by values: of damaged bytes hardly any are JSON.
    """

    prepare: Callable[[Path], list[str]]
    read: Callable[[Path], object]
    values: bool = False


def picture(kind: str) -> bytes:
    """A small picture file with some content."""
    file = io.BytesIO()
    pixels = np.random.default_rng(3).integers(0, 255, (12, 9, 3)).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _safetensors(folder: Path) -> list[str]:
    first, second = np.arange(12, dtype=np.float32).reshape(3, 4), np.ones((5,), np.float16)
    save_file({"a": first}, folder / "one.safetensors")
    save_file({"b": second}, folder / "two.safetensors")
    listed = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    return ["one.safetensors", "two.safetensors", "model.safetensors.index.json"]


def _read_safetensors(folder: Path) -> object:
    tensors = SafetensorsDirectory(folder)
    return [tensors[name].sum() for name in tensors]


def _gguf(folder: Path) -> list[str]:
    GGUFFile().write(folder / "model.gguf")
    return ["model.gguf"]


def _read_gguf(folder: Path) -> object:
    _, tensors, tokenizer = read_gguf(folder / "model.gguf")
    return [tensors[name].sum() for name in tensors], tokenizer.encode("hello 12")


def _lm_config(folder: Path) -> list[str]:
    (folder / "config.json").write_bytes((SHIPPED / "config.json").read_bytes())
    return ["config.json"]


def _rope_config(folder: Path) -> list[str]:
    scaling = {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "attention_factor": 1.1,
        "beta_fast": 32, "beta_slow": 1, "truncate": False,
    }  # fmt: skip
    config = {
        "model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": scaling, "rope_parameters": None,
        "eos_token_id": [2, 3],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return ["config.json"]


def _read_rope_config(folder: Path) -> object:
    rope = getattr(read_lm_config(folder), "rope", None)  # none where the damage names another family
    return rope and rope.frequencies(8)


def _tokenizer(folder: Path) -> list[str]:
    names = [path.name for path in SHIPPED.glob("tokenizer*.json")]
    for name in names:
        (folder / name).write_bytes((SHIPPED / name).read_bytes())
    return names


def _read_tokenizer(folder: Path) -> object:
    tokenizer = Tokenizer.from_directory(folder)
    return tokenizer.decode(tokenizer.encode("a red circle ünd 漢字"))


def _tables(folder: Path) -> list[str]:
    (folder / "x.org").mkdir()
    for name in ("a.png", "1.png", "x.org/b.png"):
        (folder / name).write_bytes(picture("PNG"))
    rows = [{"image": "a.png", "caption": "one"}, {"image": "a.png", "captions": ["two"], "tags": ["x"]}]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "t.csv").write_text('image,caption\na.png,"one, two"\na.png,three\n')
    (folder / "t.tsv").write_text("a caption\ta.png\nanother\thttp://x.org/b.png\n")
    captions = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "id": 7, "caption": "c"}]}
    (folder / "coco.json").write_text(json.dumps(captions))
    split = {"images": [{"filename": "a.png", "imgid": 3, "split": "test", "sentences": [{"raw": "one"}]}]}
    (folder / "karpathy.json").write_text(json.dumps(split))
    questions = {"questions": [{"image_id": 1, "question": "what?", "question_id": 9}]}
    answers = {"annotations": [{"question_id": 9, "answer_type": "other", "answers": [{"answer": "it"}]}]}
    (folder / "questions.json").write_text(json.dumps(questions))
    (folder / "answers.json").write_text(json.dumps(answers))
    return ["t.jsonl", "t.csv", "t.tsv", "coco.json", "karpathy.json", "questions.json", "answers.json"]


def _read_tables(folder: Path) -> object:
    lines = (
        "jsonl:{}/t.jsonl", "csv:{}/t.csv", "tsv:{}/t.tsv", "coco:{}/coco.json?root={}",
        "karpathy:{}/karpathy.json?root={}&split=test",
        "vqa:{}/questions.json?annotations={}/answers.json&root={}&pattern={{image_id}}.png",
    )  # fmt: skip
    return [_read_source(line.format(*[folder] * line.count("{}"))) for line in lines]


def _read_source(line: str) -> object:
    """Reads every record; a refusal of the source or of a record is a clean end of that one alone."""
    try:
        source = open_source(line)
    except UserError as error:
        check_message(error)
        return None
    return [_read_record(source, index) for index in range(min(len(source), 50))]


def _read_record(source: Source, index: int) -> object:
    try:
        record = source.record(index)
        return None if record.image is None else load_image(record.image, options=ImageOptions(16))
    except UserError as error:
        check_message(error)
        return None


def _tar(folder: Path) -> list[str]:
    with tarfile.open(folder / "s.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
        for key in ("000", "001"):
            parts = {"jpg": picture("JPEG"), "txt": b"a caption", "json": b'{"caption": "x"}'}
            for suffix, content in parts.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return ["s.tar"]


def _read_tar(folder: Path) -> object:
    (folder / ".s.tar.index").unlink(missing_ok=True)
    source = TarShards(str(folder / "s.tar"))
    return [_read_record(source, index) for index in range(min(len(source), 50))]


def _tfrecord(folder: Path) -> list[str]:
    from tests.data.test_tfrecord import example, write_tfrecord

    write_tfrecord(folder / "r.tfrecord", [example(image=[picture("PNG")], caption=[b"one"])] * 2)
    return ["r.tfrecord"]


def _pictures(folder: Path) -> list[str]:
    kinds = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
    for kind in kinds:
        (folder / kind).write_bytes(picture(kind))
    return list(kinds)


def _read_pictures(folder: Path) -> object:
    shapes = []
    for path in sorted(folder.iterdir()):
        try:
            shapes.append(load_image(path, options=ImageOptions(16)).shape)
        except UserError as error:
            check_message(error)
    return shapes


def _episodes(folder: Path) -> list[str]:
    picked = picture("JPEG")
    episode = Episode((picked, picked), ("This is a dax.", "This is a blicket."), "Q: What?", picked, "dax")
    write_episodes(str(folder / "e.tar.gz"), task="open_ended_mi", ways=2, shots=1, episodes=[episode])
    # Damage to the compressed bytes would be found by their checksum alone: the reader is to see it.
    plain = zlib.decompress((folder / "e.tar.gz").read_bytes(), wbits=31)
    (folder / "e.tar").write_bytes(plain)
    (folder / "e.tar.gz").unlink()
    return ["e.tar"]


def _read_episodes(folder: Path) -> object:
    packer = zlib.compressobj(level=0, wbits=31)
    packed = packer.compress((folder / "e.tar").read_bytes()) + packer.flush()
    (folder / "e.tar.gz").write_bytes(packed)
    return read_episodes(folder / "e.tar.gz", ways=2, shots=1)


READERS: dict[str, Reader] = {
    "safetensors": Reader(_safetensors, _read_safetensors),
    "gguf": Reader(_gguf, _read_gguf),
    "lm_config": Reader(_lm_config, read_lm_config),
    "rope_config": Reader(_rope_config, _read_rope_config, values=True),
    "tokenizer": Reader(_tokenizer, _read_tokenizer),
    "tables": Reader(_tables, _read_tables),
    "tar": Reader(_tar, _read_tar),
    "tfrecord": Reader(_tfrecord, lambda folder: _read_source(f"tfrecord:{folder}/*.tfrecord")),
    "pictures": Reader(_pictures, _read_pictures),
    "episodes": Reader(_episodes, _read_episodes),
}


def check_message(error: UserError) -> None:
    """A message is one line of bounded length: what is printed must not be the damaged file itself."""
    text = str(error)
    if "\n" in text or len(text) > 2000:
        raise AssertionError(f"not one line of at most 2000 characters: {text[:200]!r}…")


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Damages a file in one to four places."""
    made = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        size = max(len(made), 1)
        place, length = int(rng.integers(size)), int(rng.integers(1, 1 + min(64, size)))
        piece = PIECES[int(rng.integers(len(PIECES)))]
        kind = int(rng.integers(9))
        if kind == 0 and made:
            made[place] ^= 1 << int(rng.integers(8))
        elif kind == 1 and made:
            made[place] = int(rng.integers(256))
        elif kind == 2:
            del made[place:]
        elif kind == 3:
            made[place : place + length] = bytes(len(made[place : place + length]))
        elif kind == 4:
            del made[place : place + length]
        elif kind == 5:
            made[place:place] = made[place : place + length]
        elif kind == 6:
            made[place:place] = piece
        elif kind == 7:
            made[place : place + len(piece)] = piece
        else:
            made[place : place + 8] = struct.pack("<q", int(rng.integers(-(2**62), 2**62)) >> int(rng.integers(60)))
    return bytes(made)


def replace_values(data: bytes, rng: np.random.Generator) -> bytes:
    """Replaces one to three values of a JSON object, at any depth."""
    made = json.loads(data)
    for _ in range(int(rng.integers(1, 4))):
        node = made
        while True:
            key = sorted(node)[int(rng.integers(len(node)))]
            if not isinstance(node[key], dict) or not node[key] or rng.integers(4) == 0:
                break
            node = node[key]
        node[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])  # may itself be damaged next
    return json.dumps(made).encode()


def list_cases(name: str, folder: Path, *, first: int, cases: int) -> Iterator[int]:
    """Damages one of a reader's files in turn and puts it right again; yields the number of the case."""
    names = READERS[name].prepare(folder)
    damage = replace_values if READERS[name].values else mutate
    sound = {file: (folder / file).read_bytes() for file in names}
    for case in range(first, first + cases):
        rng = np.random.default_rng([zlib.crc32(name.encode()), case])
        file = names[case % len(names)]
        (folder / file).write_bytes(damage(sound[file], rng))
        yield case
        (folder / file).write_bytes(sound[file])


def _refuses(read: Callable[[Path], object], folder: Path) -> bool:
    try:
        read(folder)
    except UserError as error:
        check_message(error)
        return True
    return False


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def fuzz(name: str, *, first: int = 0, cases: int, read: Callable[[Path], object] | None = None) -> Counter[str]:
    """Runs cases of a reader in this process and counts "read", "refused" and, by case, "FAILED …"."""
    read = read or READERS[name].read
    counts: Counter[str] = Counter()
    previous = signal.signal(signal.SIGALRM, _too_slow)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        try:
            for case in list_cases(name, Path(folder), first=first, cases=cases):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                signal.alarm(SECONDS)
                try:
                    counts["refused" if _refuses(read, Path(folder)) else "read"] += 1
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # a panic of the tokenizers is no Exception
                    kind = f"FAILED {type(error).__name__} {str(error)[:100]!r}"
                    if not counts[kind]:
                        print(f"case {case}: {kind}", file=sys.stderr)
                    counts[kind] += 1
                finally:
                    signal.alarm(0)
                grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
                if grown > MEMORY:
                    counts["FAILED by memory"] += 1
                    print(f"case {case}: {grown} bytes more", file=sys.stderr)
        finally:
            signal.signal(signal.SIGALRM, previous)
    return counts


def main() -> None:
    """Fuzzes each reader and prints its counts; exit status 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000, help="of each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--reader", choices=tuple(READERS), action="append", help="this one alone; may be repeated")
    given = parser.parse_args()
    failed = False
    for name in given.reader or READERS:
        start = time.process_time()
        counts = fuzz(name, first=given.first, cases=given.cases)
        print(f"{name}: {given.cases} cases in {time.process_time() - start:.0f} CPU-s", flush=True)
        for kind, count in counts.most_common():
            print(f"  {count:7} {kind}", flush=True)
        failed |= any(kind.startswith("FAILED") for kind in counts)
    sys.exit(failed)


if __name__ == "__main__":
    main()
