"""`python -m frozen_jax.tools.compile_check --config=FILE --slice=v5e-8`: does a run fit, and what can be expected?

Compiles the real training step and the decoding for the slice, on any machine and without a TPU, and prints memory,
operations, collectives and a roofline. Exit status 1 if it does not fit; `--suggest` then searches for what would.
Settings are changed as in training, by `--config.section.name=value`. The compiler comes with `frozen_jax[tpu]`.

The images per second are simulated: the two-phase roofline of `flops.py`, which knows of no communication and which no
step can be expected to exceed. The work is done in `aot.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from frozen_jax.aot import list_changes, report
from frozen_jax.chips import GIB, Slice, find_slice
from frozen_jax.config import Config
from frozen_jax.config_file import read_config
from frozen_jax.errors import UserError, exit_in_one_line
from frozen_jax.run import resolve_classes

EXAMPLE = "python -m frozen_jax.tools.compile_check --config=configs/cc3m_gpt2_nfrn50.py --slice=v5e-8"


def suggest(config: Config, target: Slice, *, steps: dict[str, bool]) -> str:
    """Returns the cheapest change, or combination of changes, after which the run fits; "" if none was found.

    Args:
        config: one that does not fit.
        target: slice.
        steps: which of `train` and `decode` have to fit.
    """

    def fits(changed: Config) -> bool:
        return bool(report(changed, target, **steps)["fits"])

    for change in list_changes(config, target):
        print(f"trying {change.flags}", file=sys.stderr)
        if fits(change.config):
            return change.flags
    # No single one is enough: add them up in the same order, the last of each kind alone.
    taken: list[str] = []
    while changes := list_changes(config, target):
        taken.append(changes[0].flags)
        config = changes[0].config
        print(f"trying {' '.join(taken)}", file=sys.stderr)
        if fits(config):
            return " ".join(taken)
    return ""


def format_report(found: dict[str, Any]) -> str:
    """Returns the report as lines of text."""
    lines = [f"{found['config']} on {found['slice']}: {found['devices']} devices, batch {found['batch_size']}"]
    for name in ("train", "decode"):
        if name not in found:
            continue
        part = found[name]
        verdict = "fits" if part["fits"] else "DOES NOT FIT"
        inputs = f", {part['argument_bytes'] / GIB:.2f} of it parameters and inputs" if part["fits"] else ""
        memory = f"{part['peak_bytes'] / GIB:.2f} of {found['hbm_bytes'] / GIB:.2f} GiB a device"
        lines.append(f"  {name:6} {verdict}: {memory}{inputs}")
        if part["message"]:
            lines.append(f"         {part['message']}")
    analytic = found["flops_per_example_analytic"]
    lines.append(
        f"  needed {analytic / 1e9:.2f} GFLOP and {found['bytes_per_example_analytic'] / 1e6:.0f} MB an example"
    )
    if found["flops_per_example"]:
        ratio = found["flops_per_example"] / analytic
        lines.append(
            f"  compiled {found['flops_per_example'] / 1e9:.2f} GFLOP an example, {ratio:.2f} of what is needed"
        )
    for kind, entry in found["collectives"].items():
        lines.append(f"  {kind}: {entry['count']}, run {entry['runs']} times, {entry['bytes'] / 1e6:.1f} MB a step")
    lines.append(
        f"  simulated (roofline, no communication): {found['simulated_examples_per_s']:.0f} examples/s at most"
    )
    return "\n".join(lines)


def require_writable(path: Path) -> None:
    """Finds out before the work whether a file can be written; leaves what is there as it is.

    Raises:
        UserError: it cannot.
    """
    try:
        is_new = not path.exists()
        path.open("a").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise UserError(
            f"--json={path}: cannot be written ({error.strerror}); name a file in a folder that is there"
        ) from error


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and prints the report; exit status 1 if the run does not fit or cannot be built."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.compile_check",
        description="Compiles a run for a TPU slice that need not be there, and says whether it fits.",
        epilog=f"example: {EXAMPLE}",
        allow_abbrev=False,
    )
    parser.add_argument("--slice", required=True, help="v5e-1, v5e-8, v5litepod-8, v4-8, v5p-8, v6e-8, v5e-256, …")
    parser.add_argument("--step", choices=("both", "train", "decode"), default="both", help="what is compiled")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--suggest", action="store_true", help="search for what would make it fit")
    given, rest = parser.parse_known_args(arguments)
    with exit_in_one_line():
        target, config = find_slice(given.slice), resolve_classes(read_config(rest))
        if given.json:
            require_writable(given.json)
        steps = {name: given.step in ("both", name) for name in ("train", "decode")}
        found = {"config": next(part for part in rest if part.startswith("--config=")).removeprefix("--config=")}
        found |= report(config, target, **steps)
        if given.suggest and not found["fits"]:
            found["suggestion"] = suggest(config, target, steps=steps)
    print(format_report(found))
    if "suggestion" in found:
        print(f"  to make it fit: {found['suggestion'] or 'nothing was found; take a larger slice'}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if found["fits"] else 1)


if __name__ == "__main__":
    main()
