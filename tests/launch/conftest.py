"""Fakes of the programs that the launchers call."""

import os
import shutil
from pathlib import Path

import pytest

PROGRAMS = ("gcloud", "xpk", "kubectl", "docker", "git", "sleep")


@pytest.fixture
def fakes(tmp_path):
    """An environment in which the programs are fakes that keep a record; returns it and a reader of the record."""
    for name in PROGRAMS:
        shutil.copy(Path(__file__).parent / "fake_program", tmp_path / name)
    record, states = tmp_path / "record", tmp_path / "states"
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "RECORD": str(record),
        "FAIL_ON": "never",
        "STATE": "PREEMPTED",
        "INSTANCES": "my-run-a\nmy-run-b\n",
        "STATES": str(states),
    }
    states.write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n" * 2)

    def read():
        words = record.read_text().split("\0")[:-1] if record.exists() else []
        record.unlink(missing_ok=True)
        commands = [[]]
        for word in words:
            if word == "\n":
                commands.append([])
            else:
                commands[-1].append(word)
        return commands[:-1]

    return environment, read
