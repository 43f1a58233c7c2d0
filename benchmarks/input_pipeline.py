"""Speed of the input: `python benchmarks/input_pipeline.py`. Prints images per CPU-second, one line per contestant.

All contestants decode the same JPEG pictures (500 x 375, made here, or `--folder`) to 224 x 224 uint8, zero-padded to
square, in one process group each, and take turns, so that a busy machine slows all alike; the median round counts. CPU
time of child processes is included. Contestants:

    bare              decode + resize alone in one loop, with the calls of `data/images.py` (the ceiling)
    folder / tar / tfds   `Pipeline` over sources of that kind, with texts, order and batches; tfds reads TFRecord files
    processes         `Pipeline` over the folder with 2 decoding processes
    torch             DataLoader, 2 workers: full decode, pad and resize by Pillow, as is usual
    torch_draft       the same with Pillow's reduced-scale decoding turned on, as `data/images.py` does

`--memory` prints the resident memory after each of three epochs instead. `--json FILE` writes the figures with machine
and versions.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from frozen_jax.data.images import ImageOptions, fitted_size
from frozen_jax.data.order import Position
from frozen_jax.data.pipeline import Pipeline, PipelineOptions
from frozen_jax.data.sources import open_source
from frozen_jax.data.text import RowLayout
from frozen_jax.data.tfds_source import import_tfds
from frozen_jax.workdir import collect_versions, write_json_atomic

SIZE = 224
BATCH = 32


def make_pictures(folder: Path, count: int) -> None:
    """Writes JPEG pictures with the spectrum of photographs, about 60 to 100 kB each, with captions beside them."""
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = (375, 500) if number % 3 else (500, 375)
        rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
        strength = np.maximum(np.hypot(rows, columns), 1 / 500) ** -1.15
        fields = [
            np.fft.irfft2(strength * np.exp(2j * np.pi * rng.random(strength.shape)), s=(height, width)) for _ in "rgb"
        ]
        light, red, blue = (field / field.std() for field in fields)
        pixels = np.stack([light + 0.35 * red, light - 0.2 * red + 0.2 * blue, light - 0.4 * blue], -1) * 50 + 120
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number:04}.jpg", quality=88)
        (folder / f"{number:04}.txt").write_text(f"picture number {number}")


def make_sets(folder: Path, pictures: list[Path]) -> None:
    """Writes the pictures as a tar shard and as a prepared TFDS set."""
    with tarfile.open(folder / "all.tar", "w") as tar:
        for picture in pictures:
            for path in (picture, picture.with_suffix(".txt")):
                tar.add(path, path.name)
    tfds = import_tfds()

    class Captioned(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc, name-defined]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
            features = tfds.features.FeaturesDict({"image": image, "caption": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for picture in pictures:
                yield picture.name, {"image": str(picture), "caption": picture.with_suffix(".txt").read_text()}

    Captioned(data_dir=str(folder)).download_and_prepare()


def bare(pictures: list[Path]) -> int:
    """Decodes and resizes with nothing around it."""
    for picture in pictures:
        with Image.open(picture) as image:
            target = fitted_size(*image.size, size=SIZE)
            image.draft("RGB", target)
            np.asarray(image.convert("RGB").resize(target, Image.Resampling.BILINEAR))
    return len(pictures)


def pipeline(source: str, *, processes: int = 0, cache_bytes: int = 0) -> Callable[[int], int]:
    """Returns a function that makes that many batches and counts the pictures."""
    made = Pipeline(
        open_source(source),
        text=lambda record, rng: record.captions[0],
        encode=lambda text: [ord(letter) for letter in text],
        layout=RowLayout(32, 2, 1, 2),
        options=PipelineOptions(BATCH, images=ImageOptions(SIZE), cache_bytes=cache_bytes, processes=processes),
    )
    state = {"position": Position(0, 0)}

    def run(batches: int) -> int:
        for _ in range(batches):
            made.batch(state["position"])
            state["position"] = made.next_position(state["position"])
        return batches * BATCH

    return run


def torch_loader(pictures: list[Path], *, draft: bool) -> Callable[[int], int]:
    """Returns a function that passes once over the pictures with a DataLoader of two workers, which stay alive."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Pictures(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
            with open(pictures[index], "rb") as file:
                image = Image.open(io.BytesIO(file.read()))
            target = fitted_size(*image.size, size=SIZE)
            if draft:
                image.draft("RGB", target)
            resized = image.convert("RGB").resize(target, Image.Resampling.BILINEAR)
            square = Image.new("RGB", (SIZE, SIZE))
            square.paste(resized, ((SIZE - target[0]) // 2, (SIZE - target[1]) // 2))
            return torch.from_numpy(np.array(square)), pictures[index].with_suffix(".txt").read_text()

    loader = DataLoader(
        Pictures(), batch_size=BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
    )

    def run(batches: int) -> int:
        done = 0
        for images, _ in loader:  # one pass: `pictures` are as many as a round needs
            done += len(images)
        return done

    return run


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def children_cpu_seconds() -> float:
    """Returns the CPU time of children that still run (decoding processes), from /proc."""
    ticks = 0
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rsplit(") ", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def compare(folder: Path, *, rounds: int, batches: int) -> dict[str, float]:
    """Runs all contestants in turn, prints the median of each and returns them, in images per CPU-second."""
    pictures = sorted(folder.glob("*.jpg"))
    with tempfile.TemporaryDirectory() as shards:
        make_sets(Path(shards), pictures)
        whole = (pictures * (1 + batches * BATCH // len(pictures)))[: batches * BATCH]
        contestants: dict[str, Callable[[int], int]] = {
            "bare": lambda _: bare(whole),
            "folder": pipeline(f"folder:{folder}"),
            "tar": pipeline(f"tar:{shards}/all.tar"),
            "tfds": pipeline(f"tfds:{shards}/captioned/1.0.0"),
            "processes": pipeline(f"folder:{folder}", processes=2),
            "torch": torch_loader(whole, draft=False),
            "torch_draft": torch_loader(whole, draft=True),
        }
        for run in contestants.values():
            run(1)
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, run in contestants.items():
                begin = cpu_seconds() + children_cpu_seconds()
                images = run(batches)
                speeds[name].append(images / (cpu_seconds() + children_cpu_seconds() - begin))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, speed in medians.items():
        relative = ", ".join(f"{speed / medians[other]:.2f} x {other}" for other in ("bare", "torch", "torch_draft"))
        print(f"{name:12} {speed:6.0f} images per CPU-second   {relative}")
    return medians


def show_memory(folder: Path) -> None:
    """Prints this process's resident memory after each of three epochs."""
    run, count = pipeline(f"folder:{folder}"), len(list(folder.glob("*.jpg")))
    for epoch in range(3):
        run(max(1, count // BATCH))
        status = Path("/proc/self/status").read_text()
        print(f"epoch {epoch}: {int(status.split('VmRSS:')[1].split()[0]) / 1024:.0f} MiB")


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="Speed of the input pipeline.")
    parser.add_argument("--folder", type=Path, help="JPEG pictures with .txt captions; made if not given")
    parser.add_argument("--pictures", type=int, default=64, help="how many to make")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=4, help="per contestant and round")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--memory", action="store_true", help="show memory over three epochs instead")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made)
        if not given.folder:
            make_pictures(folder, given.pictures)
        if given.memory:
            show_memory(folder)
        else:
            medians = compare(folder, rounds=given.rounds, batches=given.batches)
            if given.json:
                told = {"images_per_cpu_s": medians, "command": sys.argv, "versions": collect_versions()}
                write_json_atomic(given.json, told)


if __name__ == "__main__":
    main()
