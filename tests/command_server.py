"""Runs command lines of the project in forks of one process that has the libraries loaded: 0.1 s each and not 5.

A program of its own, started by `CommandServer`, because a process in which JAX computes cannot be forked.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LOADED = ("flax.linen", "optax", "orbax.checkpoint", "ml_collections.config_flags", "tokenizers", "PIL.Image", "tqdm")
"""What the commands import and take longest for; nothing of the project itself."""


class Done(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


class CommandServer:
    """Runs `python -m MODULE ARGUMENTS` in a child each; a context manager."""

    def __init__(self) -> None:
        environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> CommandServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def run(self, module: str, *arguments: str) -> Done:
        """Runs a module, or a script by its path, from the project's root and waits for it."""
        self._process.stdin.write(json.dumps([module, *arguments]) + "\n")
        self._process.stdin.flush()
        return Done(*json.loads(self._process.stdout.readline()))


def _run_in_fork(module: str, arguments: list[str]) -> Done:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = [module, *arguments]
            status = 0
            try:
                if module.endswith(".py"):
                    runpy.run_path(module, run_name="__main__")
                else:
                    runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else int(error.code is not None)
                if isinstance(error.code, str):
                    print(error.code, file=sys.stderr)
            except BaseException:
                import traceback

                traceback.print_exc()
                status = 70
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Done(os.waitstatus_to_exitcode(status), *texts)


def _serve() -> None:
    import importlib

    answers = os.fdopen(os.dup(1), "w")
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for name in LOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        module, *arguments = json.loads(line)
        answers.write(json.dumps(_run_in_fork(module, arguments)) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
