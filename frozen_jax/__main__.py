"""`python -m frozen_jax`: says what can be run, with an example of each. Imports nothing of what it lists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

MAIN = """frozen_jax: images as prefixes of a frozen language model. Each command below has --help.

train, resume, or find a run finished, and evaluate it:
    python -m frozen_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
evaluate what was trained:
    python -m frozen_jax.main --mode=eval --config=configs/quickstart.py --workdir=runs/quickstart
change a setting, here or in a config file (all of them: frozen_jax/config.py and its neighbours *_settings.py):
    python -m frozen_jax.main --config=configs/quickstart.py --workdir=runs/short --config.train.steps=100
in Python:
    frozen_jax.load("runs/quickstart").generate([[pathlib.Path("PICTURE.png")]])

tools:"""


def describe_tools() -> str:
    """Returns a command and a line for each tool, as the first lines of their docstrings have them.

    Most begin with "`python -m frozen_jax.tools.NAME …`: what it does."
    """
    lines = []
    for path in sorted((Path(__file__).parent / "tools").glob("[!_]*.py")):
        first = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
        found = re.match(r"`(.+?)`: (.*)", first)
        command, does = found.groups() if found else (f"python -m frozen_jax.tools.{path.stem}", first)
        lines += [f"    {command}", f"        {does}"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(MAIN, describe_tools(), "", "documentation: README.md, docs/", sep="\n")
