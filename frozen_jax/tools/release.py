"""`python -m frozen_jax.tools.release --workdir=DIR --card=FILE --out=DIR`: a small directory to pass on to others.

    python -m frozen_jax.tools.release --workdir=runs/emoji --card=CARD.md --out=runs/released

Holds what the run trained and names what stayed frozen; `frozen_jax.load` reads it. See docs/export.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np

from frozen_jax.errors import UserError, exit_in_one_line
from frozen_jax.export.write import new_directory
from frozen_jax.released import CARD, read_trained, round_half, write_release
from frozen_jax.restore import read_run, restore_run
from frozen_jax.state import flatten


def release(workdir: Path, card: Path, out: Path) -> str:
    """Writes the best parameters of a run, reads them back and compares.

    Args:
        workdir: of a finished or interrupted run.
        card: Markdown that says what the model is, what it was trained on, how good it is and under which licences.
        out: a new or empty directory.

    Returns:
        One line that says what was written.

    Raises:
        UserError: no run in `workdir`, no card, `out` is in use, or a run through files that others cannot get.
    """
    try:
        text = card.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"--card={card} cannot be read ({error}); write one, nobody can judge a model without"
        ) from error
    with new_directory(out) as directory:
        config = read_run(workdir)
        towers, _, trained = restore_run(config, workdir)
        host = jax.device_get(trained)
        write_release(directory, config, towers, host, card=text)
        back = flatten(read_trained(directory, towers))
        wrong, largest = [], 0.0
        for name, leaf in flatten(host).items():
            wrong += [] if np.array_equal(back[name], round_half(leaf)) else [name]
            largest = max(largest, float(np.abs(back[name] - leaf).max()) / float(np.abs(leaf).max() or 1))
        if wrong:
            raise UserError(f"--out={out}: {wrong[0]} was read back otherwise than written; name another disk")
        size = sum(path.stat().st_size for path in directory.iterdir())
    count = sum(leaf.size for leaf in back.values())
    return (
        f"{out}: {count:,} parameters in float16 (rounded by at most {largest:.1e} of a tensor's largest number), "
        f"{size / 1e6:.1f} MB, with {CARD}; read back as written"
    )


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line; exit status 1 with one line for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.release",
        description="Writes what a run trained as a small directory for others.",
        epilog="example: python -m frozen_jax.tools.release --workdir=runs/emoji --card=CARD.md --out=runs/released",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run")
    parser.add_argument("--card", type=Path, required=True, help="Markdown file about the model, its README.md")
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    given = parser.parse_args(arguments)
    with exit_in_one_line():
        line = release(given.workdir, given.card, given.out)
    print(line)


if __name__ == "__main__":
    main()
