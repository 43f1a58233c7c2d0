"""A config file and its overrides from a command line, for the tools; `main.py` has the same two as its flags."""

from __future__ import annotations

import re
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from frozen_jax.config import Config, from_config_dict
from frozen_jax.errors import UserError


def read_config(words: Sequence[str]) -> Config:
    """Reads `--config=FILE[:VARIANT]` and `--config.section.name=VALUE`.

    Args:
        words: these and nothing else.

    Raises:
        UserError: another word, no file, or a file or value that does not fit.
    """
    values = flags.FlagValues()
    argv = ["frozen_jax", *words]
    holder = config_flags.DEFINE_config_file(
        "config", None, "configuration file", flag_values=values, lock_config=True, sys_argv=argv
    )
    try:
        rest = values(argv)[1:]
        config = holder.value
        if config is not None:
            config.to_dict()  # a file that failed to load raises when it is first used
    except Exception as error:  # a config file is the user's own code: it can raise anything
        reason = name_unknown(error, words) or " ".join(str(error).split())
        raise UserError(f"the flags or the config file: {reason}") from error
    if rest:
        raise UserError(f"unknown argument {rest[0]!r}; settings are given as --config.section.name=value")
    if config is None:
        raise UserError("--config is missing; for example --config=configs/quickstart.py")
    return from_config_dict(config)


def name_unknown(error: Exception, words: Sequence[str]) -> str:
    """Says which of the words of a command line sets what its config file does not hold; "" for another error."""
    cause = error.args[0] if isinstance(error, AttributeError) and error.args else error
    if not isinstance(cause, KeyError) or not cause.args:  # ml_collections' own, often within an AttributeError
        return ""
    found = " ".join(str(cause.args[0]).split())  # "'setps' Did you mean …"
    for word in words:
        name = word.partition("=")[0]
        if name.lstrip("-").startswith("config.") and found.split()[0].strip("'") in re.split(r"[.\[\]]", name):
            return f"{word} sets what the config does not hold: {found}; mend the name, or set it in the file"
    return ""
