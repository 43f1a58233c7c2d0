"""Writes docs/fits.md: does each large config fit each TPU slice, by the TPU compiler and without a TPU.

    python benchmarks/fits_table.py --cache=runs/fits --output=docs/fits.md

Every cell is one run of `frozen_jax.tools.compile_check` with the compiler at its least effort (`EFFORT`), a minute or
two of a core; its JSON stays in `--cache`, so that an interrupted table is continued. `--limit=0` compiles nothing more
and writes what is there. `--full=DIR` names such a folder made with `--effort=0`, to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from frozen_jax.chips import GIB, SLICES

COLUMNS = ("v5e-1", "v5e-8", "v4-8", "v5p-8", "v6e-8", "v5e-256")
INT8 = "--config.lm.weights=int8 --config.mesh.data=-1 --config.mesh.fsdp=1"
"""The frozen weights in a byte each, whole on every device, so that none has to be gathered in every step."""

ROWS = (
    ("cc3m_gpt2_nfrn50", ""),
    ("cc3m_opt125m_nfrn50", ""),
    ("cc3m_llama", ""),
    ("coco_gpt2_clipvit", ""),
    ("cc3m_opt1b3", ""),
    ("cc3m_gpt2xl_nfrn50", ""),
    ("cc3m_opt6b7", ""),
    ("cc3m_opt6b7", INT8),
)
DECODED = (("cc3m_gpt2_nfrn50", "", "v5e-1"), ("cc3m_opt6b7", "", "v5e-1"), ("cc3m_opt6b7", INT8, "v5e-1"))
"""What is compiled for decoding: the unrolled layers of a large model take long."""

EFFORT = "-1.0"
"""`jax_exec_time_optimization_effort`: a fifth of the compile time; `--full` says what it does to the memory."""

BATCH = 128
"""Of all these configs; a slice of more devices gets one picture each."""


def cell_path(cache: Path, config: str, change: str, name: str, step: str) -> Path:
    """Returns the file of one cell."""
    return cache / f"{config}{'-int8' if change else ''}-{name}-{step}.json"


def compile_cell(path: Path, config: str, change: str, name: str, step: str, *, effort: str) -> None:
    """Runs the tool for one cell; a failure other than too little memory is shown and leaves no file."""
    command = [sys.executable, "-m", "frozen_jax.tools.compile_check", f"--config=configs/{config}.py"]
    command += [f"--slice={name}", f"--json={path}", f"--step={step}", *change.split()]
    if SLICES[name].devices > BATCH:
        command.append(f"--config.train.batch_size={SLICES[name].devices}")
    if step == "decode":
        command.append("--config.evaluate.batch_size=32")
    print(" ".join(command[1:]), flush=True)
    environment = {**os.environ, "PYTHONPATH": ".", "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": effort}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if not path.exists():
        print(done.stderr[-2000:], flush=True)


def describe_cell(found: dict[str, Any] | None, step: str) -> str:
    """Returns the text of one cell."""
    if found is None:
        return "not compiled"
    part = found[step]
    memory = f"{part['peak_bytes'] / GIB:.1f}"
    if not part["fits"]:
        return f"**no**, {memory}"
    return f"{memory}" + (f", {found['simulated_examples_per_s']:,.0f}/s" if step == "train" else "")


def read(path: Path) -> dict[str, Any] | None:
    """Returns a cell's figures, if it was compiled."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def compare_peaks(cache: Path, full: Path) -> str:
    """Returns a sentence on the cells that both folders have: the greatest difference in peak memory, in percent."""
    differences = []
    for path in sorted(full.glob("*.json")):
        step = path.stem.rpartition("-")[2]
        found = [(read(folder / path.name) or {}).get(step) for folder in (cache, full)]
        if all(part and part["fits"] for part in found):
            fast, thorough = (part["peak_bytes"] for part in found if part)
            differences.append(100 * (fast / thorough - 1))
    if not differences:
        return ""
    spread = f"{min(differences):+.1f} to {max(differences):+.1f} %"
    return f"Compiled with the compiler's least effort; {len(differences)} cells at full effort too: peaks {spread}."


def write_table(cache: Path, full: Path | None) -> str:
    """Returns the document."""
    memory = " | ".join(f"{name}, {SLICES[name].chip.hbm_bytes / GIB:.2f}" for name in COLUMNS)
    lines = [
        "# What fits where",
        "",
        "Written by `python benchmarks/fits_table.py` with `frozen_jax.tools.compile_check`: the TPU compiler (libtpu)",
        "ran, a TPU did not. Peak memory of a device in GiB, as the compiler allots it; what it grants is in the head.",
        "**no** where it refused, with its own number, which may leave out what it had not come to. Images per second",
        "are *simulated*: the two-phase roofline of `frozen_jax/flops.py` at the maker's peaks, without communication;",
        "no step can be expected to exceed it, and nobody has measured them. The batch is 128 over the slice, 256 on",
        "v5e-256.",
        "",
        "## Training",
        "",
        f"| config | {memory} |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for config, change in ROWS:
        cells = [describe_cell(read(cell_path(cache, config, change, name, "train")), "train") for name in COLUMNS]
        lines.append(f"| `{config}`{', int8' if change else ''} | {' | '.join(cells)} |")
    lines += ["", "## Decoding", "", "Prompts of one picture and a row of words, 32 at once, 20 new tokens.", ""]
    lines += ["| config | slice | peak, GiB |", "|---|---|---|"]
    for config, change, name in DECODED:
        cell = describe_cell(read(cell_path(cache, config, change, name, "decode")), "decode")
        lines.append(f"| `{config}`{', int8' if change else ''} | {name} | {cell} |")
    ratios = []
    for config, change in ROWS:
        for name in COLUMNS:
            found = read(cell_path(cache, config, change, name, "train"))
            if found and found["flops_per_example"]:
                ratios.append(found["flops_per_example"] / found["flops_per_example_analytic"])
    if ratios:
        lines += [
            "",
            "Compiled operations per image against the analytic count: "
            f"{min(ratios):.2f} to {max(ratios):.2f} times (above 1 where `lm.remat` computes the forward pass again).",
        ]
    if full is not None and (sentence := compare_peaks(cache, full)):
        lines += ["", sentence]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compiles what is missing, then writes the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("runs/fits"))
    parser.add_argument("--output", type=Path, default=Path("docs/fits.md"))
    parser.add_argument("--limit", type=int, default=10**6, help="compile at most so many cells")
    parser.add_argument("--effort", default=EFFORT, help="of the compiler, -1 to 1; 0 is what a run uses")
    parser.add_argument("--full", type=Path, help="cache of cells that were compiled with --effort=0")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    # Small models, and the slices that tell most, first.
    wanted = [(*cell, "decode") for cell in DECODED[1:]]
    wanted += [(*row, name, "train") for name in COLUMNS for row in ROWS]
    wanted += [(*cell, "decode") for cell in DECODED[:1]]
    missing = [cell for cell in wanted if not cell_path(given.cache, *cell).exists()]
    for cell in missing[: given.limit]:
        compile_cell(cell_path(given.cache, *cell), *cell, effort=given.effort)
        given.output.write_text(write_table(given.cache, given.full), encoding="utf-8")
    given.output.write_text(write_table(given.cache, given.full), encoding="utf-8")


if __name__ == "__main__":
    main()
