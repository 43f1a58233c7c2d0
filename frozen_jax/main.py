"""Trains a model and evaluates it; the same command again resumes it, or evaluates it if it is finished.

    python -m frozen_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
    python -m frozen_jax.main --mode=eval --config=configs/quickstart.py --workdir=runs/quickstart
    python -m frozen_jax.main --config=configs/quickstart.py --workdir=runs/short --config.train.steps=100

Every setting is described in frozen_jax/config.py and the files *_settings.py beside it. `python -m frozen_jax` lists
the tools.
"""

# Flags, start-up, one call; no logic here. What --help shows is the docstring above. The run itself is run.py.

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from frozen_jax.errors import UserError, exit_in_one_line
from frozen_jax.startup import keep_freed_memory, use_compilation_cache

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Configuration file; single values change by --config.section.name=value.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for everything that the run writes; it is made if missing.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "train, or evaluate what was trained in --workdir.")
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "",
    "Directory of your own that keeps compiled programs for the next start, e.g. ~/.cache/frozen_jax; none by default.",
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Join the processes of this same command on the other machines, which JAX finds by itself on Cloud TPU and GKE.",
)
flags.DEFINE_bool("traceback", False, "Show where in the code an error was found, for reports of defects.")


def _parse(arguments: list[str]) -> list[str]:
    """Parses the flags and loads the config file; whatever is wrong with them becomes one line."""
    try:
        rest: list[str] = flags.FLAGS(arguments, known_only=False)
        if _CONFIG.value is not None:
            _CONFIG.value.to_dict()  # a file that failed to load raises when it is first used
    except Exception as error:  # a config file is the user's own code: it can raise anything
        lines = [line.strip() for line in str(error).replace("\\n", " ").splitlines() if line.strip()]
        raised = [line for line in lines if re.match(r"\w+(Error|Exception): ", line)]
        from frozen_jax.config_file import name_unknown

        reason = name_unknown(error, arguments) or (raised[-1] if raised else " ".join(lines))
        raise UserError(f"the flags or the config file: {reason} (see --help)") from error
    return rest


def _main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise UserError(f"unknown argument {arguments[1]!r}; settings are given as --config.section.name=value")
    workdir = _WORKDIR.value
    for name, value in (("config", _CONFIG.value), ("workdir", workdir)):
        if value is None or value == "":
            raise UserError(
                f"--{name} is missing; for example: python -m frozen_jax.main --config=configs/quickstart.py "
                "--workdir=runs/quickstart"
            )
    logging.set_verbosity(logging.WARNING)  # Orbax reports each of its steps
    from frozen_jax.processes import join_processes, leaving_on_error

    join_processes(wanted=_DISTRIBUTED.value)
    if _CACHE.value:
        use_compilation_cache(Path(_CACHE.value))
    from frozen_jax.config import from_config_dict
    from frozen_jax.preemption import StopRequest
    from frozen_jax.run import run

    stop = StopRequest()
    stop.listen()
    with leaving_on_error():
        run(from_config_dict(_CONFIG.value), Path(str(workdir)), mode=_MODE.value, stop=stop)


def main() -> None:
    """Runs, and turns every error that a user can mend into one line and exit status 1."""
    keep_freed_memory()
    asked = "--traceback" in sys.argv  # the flags themselves may be what is wrong
    with contextlib.nullcontext() if asked else exit_in_one_line():
        app.run(_main, flags_parser=_parse)


if __name__ == "__main__":
    main()
