"""The workdir: who may use it, what is refused and how, atomic JSON, what versions.json records."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from frozen_jax import workdir
from frozen_jax.errors import UserError
from frozen_jax.workdir import (
    Workdir,
    collect_versions,
    compare_configs,
    digest_config,
    read_json,
    write_bytes_atomic,
    write_json_atomic,
)

CONFIG = {"train": {"steps": 10, "lr": 3e-4}, "data": {"size": (32, 32), "blind": False}, "extra": {}}


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_new_run_and_its_resumption(tmp_path):
    with Workdir(tmp_path / "a" / "b", CONFIG) as run:
        assert not run.resuming
        assert run.path == tmp_path / "a" / "b"
        assert names(run.path) == ["config.json", "lock", "versions.json"]
        assert read_json(run.path / "config.json") == json.loads(json.dumps(CONFIG))
    with Workdir(tmp_path / "a" / "b", CONFIG) as run:
        assert run.resuming


def test_what_a_kill_left_before_config_json_is_an_empty_workdir(tmp_path):
    (tmp_path / "lock").touch()
    (tmp_path / ".config.json.tmp-123").write_text("{")
    with Workdir(tmp_path, CONFIG) as run:
        assert not run.resuming


def test_a_start_that_ended_before_its_first_step_does_not_hold_the_workdir(tmp_path):
    Workdir(tmp_path, CONFIG).close()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker-1.log").write_text("error: batch")
    mended = CONFIG | {"extra": 1}
    with Workdir(tmp_path, mended) as run:
        assert not run.resuming and read_json(tmp_path / "config.json")["extra"] == 1


def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path):
    Workdir(tmp_path, CONFIG).close()
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    other = {"train": {"steps": 20, "lr": 3e-4}, "data": {"size": (32, 64), "blind": False}, "new": 1}
    with pytest.raises(UserError) as caught:
        Workdir(tmp_path, other)
    message = str(caught.value)
    assert "train.steps = 10 there, 20 here" in message and "data.size = [32, 32] there, [32, 64] here" in message
    assert "new = (absent) there, 1 here" in message and "extra = {} there, (absent) here" in message
    assert "train.lr" not in message and "\n" not in message and "--workdir" in message
    Workdir(tmp_path, CONFIG).close()  # the refusal gave the lock back


def test_a_setting_that_came_later_may_be_missing_and_may_not_differ(tmp_path):
    Workdir(tmp_path, CONFIG).close()
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    later = CONFIG | {"train": {"steps": 10, "lr": 3e-4, "scale": 1.0}}
    with pytest.raises(UserError, match=r"train\.scale = \(absent\) there, 1\.0 here"):
        Workdir(tmp_path, later)
    with Workdir(tmp_path, later, free=("train.scale",)) as run:
        assert run.resuming
    write_json_atomic(tmp_path / "config.json", CONFIG | {"train": {"steps": 10, "lr": 3e-4, "scale": 2.0}})
    with pytest.raises(UserError, match=r"train\.scale = 2\.0 there, 1\.0 here"):
        Workdir(tmp_path, later, free=("train.scale",))


@pytest.mark.parametrize(("there", "here"), [(1, 1.0), (1, True), (0, False), (None, "null"), ([], {})])
def test_values_of_other_types_differ(there, here):
    assert len(compare_configs({"a": there}, {"a": here})) == 1
    assert compare_configs({"a": there}, {"a": there}) == []


def test_digest_follows_the_values_and_not_the_order():
    assert digest_config({"a": 1, "b": (2, 3)}) == digest_config({"b": [2, 3], "a": 1})
    assert digest_config({"a": 1}) != digest_config({"a": 1.0})


def test_a_long_difference_is_cut(tmp_path):
    Workdir(tmp_path, {f"k{i}": i for i in range(20)}).close()
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="and 15 more"):
        Workdir(tmp_path, {f"k{i}": -1 for i in range(20)})


def test_foreign_files_a_file_and_no_name(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\) and no config.json"):
        Workdir(tmp_path, CONFIG)
    assert "config.json" not in names(tmp_path)
    for path in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "run"):
        with pytest.raises(UserError, match="is a file, or lies below one"):
            Workdir(path, CONFIG)
    for empty in ("", "  "):
        with pytest.raises(UserError, match="--workdir is empty"):
            Workdir(empty, CONFIG)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\ufeff{}", '{"a": 1'])
def test_a_damaged_config_json_is_refused(tmp_path, content):
    Workdir(tmp_path, CONFIG).close()
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json: "):
        Workdir(tmp_path, CONFIG)


# The lock

HOLDER = """
import fcntl, sys, time
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
print("process 4 on elsewhere since yesterday", file=lock, flush=True)
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_process_is_refused_and_a_dead_owners_lock_is_taken_over(tmp_path):
    Workdir(tmp_path, CONFIG).close()
    (tmp_path / "lock").unlink()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "lock"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"in use by another process \(process 4 on elsewhere since yesterday\)"):
            Workdir(tmp_path, CONFIG)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with Workdir(tmp_path, CONFIG) as run:
        assert run.resuming
        assert re.fullmatch(rf"process {os.getpid()} on \S+ since 20.*\n", (tmp_path / "lock").read_text())


def test_one_process_does_not_open_a_workdir_twice(tmp_path):
    with Workdir(tmp_path, CONFIG), pytest.raises(UserError, match="in use"):
        Workdir(tmp_path, CONFIG)
    Workdir(tmp_path, CONFIG).close()


def test_other_processes_of_a_run_neither_lock_nor_write(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Workdir(tmp_path, CONFIG):
        assert names(tmp_path) == []


# Atomic JSON


def test_json_round_trip_and_strictness(tmp_path):
    write_json_atomic(tmp_path / "r.json", {"ä": (1, 2.5), "n": None})
    assert read_json(tmp_path / "r.json") == {"ä": [1, 2.5], "n": None}
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json_atomic(tmp_path / "r.json", {"a": bad})
    with pytest.raises(TypeError):
        write_json_atomic(tmp_path / "r.json", {"a": object()})
    assert read_json(tmp_path / "r.json") == {"ä": [1, 2.5], "n": None}
    assert names(tmp_path) == ["r.json"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, failing):
    write_json_atomic(tmp_path / "r.json", {"old": 1})

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync", fail), "replace": (Path, "replace", fail)}[failing])
    with pytest.raises(UserError, match=r"r.json: could not be written \(No space left on device\)"):
        write_json_atomic(tmp_path / "r.json", {"new": 2})
    assert read_json(tmp_path / "r.json") == {"old": 1}
    assert names(tmp_path) == ["r.json"]


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_takes_no_name_that_is_taken(tmp_path, monkeypatch, links):
    """With hard links and where the file system has none."""

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    write_bytes_atomic(tmp_path / "a", b"one", overwrite=False)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("a", "link"):
        with pytest.raises(UserError, match=f"{name}: is there already and is not replaced; name another file"):
            write_bytes_atomic(tmp_path / name, b"two", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"one" and names(tmp_path) == ["a", "link"]
    with pytest.raises(UserError, match=r"could not be written \(No such file"):
        write_bytes_atomic(tmp_path / "absent" / "a", b"two", overwrite=False)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"none.json: cannot be read \(No such file or directory\)"):
        read_json(tmp_path / "none.json")


def test_read_only_workdir(tmp_path):
    """A directory in which nothing can be made even by root: a mount point of the kernel's own."""
    place = Path("/proc/sys")
    if not place.is_dir():
        pytest.skip("no /proc")
    with pytest.raises(UserError, match=r"--workdir=/proc/sys/run: cannot be written \(.+\); name a directory"):
        Workdir(place / "run", CONFIG)


# versions.json


def test_versions_name_packages_python_and_device():
    versions = collect_versions()
    assert versions["packages"]["jaxlib"].count(".") >= 2
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["device"] == {"platform": "cpu", "kind": "cpu", "count": jax.device_count()}
    json.dumps(versions, allow_nan=False)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_revision_and_whether_it_was_modified(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert workdir._git_revision(tmp_path) == {"revision": head, "modified": False}
    (tmp_path / "new").touch()
    assert workdir._git_revision(tmp_path) == {"revision": head, "modified": True}
    assert workdir._git_revision(tmp_path / "elsewhere") is None
