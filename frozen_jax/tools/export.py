"""`python -m frozen_jax.tools.export --workdir=DIR --out=DIR`: a trained model for PyTorch, transformers and others.

Written, read back and compared before success is reported; see docs/export.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from frozen_jax.config import Config
from frozen_jax.errors import UserError, exit_in_one_line
from frozen_jax.export.card import write_card
from frozen_jax.export.check import check_round_trip, compare_with_torch, has_torch
from frozen_jax.export.generator import (
    check_generator_round_trip,
    compare_generators,
    widen_generator,
    write_generator,
)
from frozen_jax.export.write import (
    PROGRAM,
    new_directory,
    widen,
    widen_vision,
    write_encoder,
    write_pytorch,
    write_stablehlo,
)
from frozen_jax.language_model import find_gguf
from frozen_jax.restore import load_run, read_run

FORMATS = ("pytorch", "torchvision", "clip", "stablehlo")


def export(workdir: Path, out: Path, *, layout: str = "pytorch", with_lm: bool = True) -> str:
    """Exports the best parameters of a run.

    Args:
        workdir: of a finished or interrupted run.
        out: a new or empty directory.
        layout: one of `FORMATS`: the whole model, the encoder alone under its publisher's names, or encoder and prefix
            as a StableHLO program.
        with_lm: write the language model too; otherwise the export names it, with a SHA-256.

    Returns:
        One line that says what was written and what was compared.

    Raises:
        UserError: no run in `workdir`, `out` is in use, a format that does not fit the model, or PyTorch disagrees.
    """
    with new_directory(out) as directory:
        config = read_run(workdir)
        if not with_lm and (not config.lm.path or config.lm.mode != "frozen" or layout != "pytorch"):
            raise UserError(
                f"--no_lm leaves out a pre-trained language model that stayed as it was; this is --format={layout} of "
                f"a run with lm.path={config.lm.path!r} and lm.mode={config.lm.mode!r}: export without --no_lm"
            )
        if not with_lm and (config.lm.path.startswith("package:") or _is_gguf(config.lm.path)):
            raise UserError(
                f"--no_lm names the language model for PyTorch to load, which reads directories and hub ids; the run's "
                f"is {config.lm.path!r}: export without --no_lm"
            )
        changed = "int8 kernels" if config.lm.weights == "int8" else "adapted kernels" if config.adapts_lm else ""
        if not with_lm and changed:
            raise UserError(f"--no_lm: the run computed with {changed}, not with the published ones; export them too")
        if config.generator.name:
            return _export_generator(config, workdir, directory, out, layout=layout, with_lm=with_lm)
        run = load_run(workdir)
        if layout in ("torchvision", "clip"):
            write_encoder(widen_vision(run), directory, layout=layout)
            return f"{out}: the vision encoder, in the layout of {layout}"
        if layout == "stablehlo":
            write_stablehlo(widen_vision(run), directory)
            return f"{out}: {PROGRAM}, vision encoder and prefix for CPU, GPU and TPU"
        lm_path = None if with_lm else config.lm.path
        model = widen(run, lm_path=lm_path)
        card = write_card(model, config, workdir, lm_path=lm_path)
        # What was learnt into or beside kernels may be less than bfloat16 tells apart.
        published = config.lm.mode == "frozen" and not changed
        write_pytorch(
            model, directory, card=card, lm_path=lm_path, lm_dtype=config.lm.dtype if published else "float32"
        )
        check_round_trip(model, directory)
        if not has_torch():
            return (
                f"{out}: read back by frozen_jax, every parameter bit for bit; NOT compared with PyTorch, because "
                "torch and transformers are not installed here"
            )
        result = compare_with_torch(model, directory)
        return (
            f"{out}: read back by frozen_jax, every parameter bit for bit; in PyTorch {result.equal_texts} of "
            f"{result.prompts} greedy texts equal, logits differ by at most {result.logit_difference:.1e}"
        )


def _is_gguf(path: str) -> bool:
    return path.endswith(".gguf") or (Path(path).is_dir() and find_gguf(Path(path)) is not None)


def _export_generator(config: Config, workdir: Path, directory: Path, out: Path, *, layout: str, with_lm: bool) -> str:
    if layout != "pytorch" or not with_lm:
        wrong = "--no_lm" if layout == "pytorch" else f"--format={layout}"
        raise UserError(f"{workdir} holds a picture generator, which --format=pytorch exports as a whole; drop {wrong}")
    model = widen_generator(load_run(workdir))
    write_generator(model, config, directory)
    check_generator_round_trip(model, directory)
    if not has_torch():
        return f"{out}: read back, every parameter bit for bit; NOT compared with PyTorch, which is not installed here"
    result = compare_generators(model, config, directory)
    return (
        f"{out}: read back, every parameter bit for bit; in PyTorch velocities differ by at most "
        f"{result.velocity:.1e}, pictures from the same noise by at most {result.pixels} of 255 grey levels"
    )


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line; exit status 1 with one line for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.export",
        description="Exports a trained model to PyTorch and others.",
        epilog="example: python -m frozen_jax.tools.export --workdir=runs/quickstart --out=runs/quickstart_pytorch",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run")
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--format", choices=FORMATS, default="pytorch", help="what to write; pytorch by default")
    parser.add_argument("--no_lm", action="store_true", help="name the language model in place of writing it")
    given = parser.parse_args(arguments)
    with exit_in_one_line():
        line = export(given.workdir, given.out, layout=given.format, with_lm=not given.no_lm)
    print(line)


if __name__ == "__main__":
    main()
