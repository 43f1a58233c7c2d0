"""What a process sets up before it computes: memory that it keeps, and a cache of compiled programs. Next: `run.py`.

Imports nothing that starts threads: `keep_freed_memory` has to come first.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import stat
from pathlib import Path

from frozen_jax.errors import UserError

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # names of glibc's mallopt, from <malloc.h>


def has_accelerator() -> bool:
    """Whether JAX may find an accelerator here: asked before JAX is, which would start its threads."""
    if os.environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        return False
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees; a step on a CPU then finds its memory where the last one left it.

    Otherwise glibc hands back each step's buffers and asks for them again, and the kernel fills every page with zeros:
    a sixth of the CPU time of a training step. The price: memory once used stays with the process. Does nothing where
    JAX may have an accelerator, whose steps do not compute in such memory, nor without glibc.

    Returns:
        Whether it is so now. Call it before anything starts threads: they would have their own stores already.
    """
    if has_accelerator():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # Only the one main store can grow without limit and without mmap.
    return all(mallopt(option, value) for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)))


def use_compilation_cache(directory: Path) -> None:
    """Keeps compiled programs in a directory that belongs to this user alone, and makes it where it is missing.

    What lies there is run, so nobody else may be able to put something in or to exchange the directory.

    Raises:
        UserError: it, or a directory above it, can be written by others, or it is not a directory of this user.
    """
    directory = Path(os.path.abspath(directory.expanduser()))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(directory)
    except OSError as error:
        raise UserError(f"--compilation_cache={directory} cannot be made or read: {error.strerror}") from error
    import jax
    from jax._src import compilation_cache

    jax.config.update("jax_compilation_cache_dir", str(directory))
    # What zlib packs has a checksum, and a damaged program is compiled anew; what JAX packs with zstd has none, and a
    # flipped bit in it would be run.
    compilation_cache.zstd = compilation_cache.zstandard = None
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _check_private(directory: Path) -> None:
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise UserError(
            f"--compilation_cache={directory} is not a directory that belongs to you; what it holds is run as code, so "
            "name one of your own"
        )
    for place in (directory, *directory.resolve().parents):
        found = place.stat()
        sticky = place != directory and found.st_mode & stat.S_ISVTX  # as /tmp: others cannot rename what is yours
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            raise UserError(
                f"--compilation_cache={directory}: others can write to {place} (mode {stat.S_IMODE(found.st_mode):o}), "
                f"and what the cache holds is run as code; chmod go-w {place}, or name another directory"
            )
        if found.st_uid not in (0, os.geteuid()):
            raise UserError(
                f"--compilation_cache={directory}: {place} belongs to another user, who could exchange the cache; name "
                "a directory of your own"
            )
