"""The Colab notebook: its form, its commands, and its cells run on a CPU with the small configuration."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = json.loads((ROOT / "notebooks/quickstart_tpu.ipynb").read_text(encoding="utf-8"))
CODE = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"}
MAGIC = re.compile(r"^[!%]", flags=re.MULTILINE)


def list_commands():
    """All commands of the notebook, as words."""
    lines = [line for source in CODE.values() for line in source.splitlines() if MAGIC.match(line)]
    return [shlex.split(line[1:]) for line in lines]


def test_the_notebook_has_the_form_of_nbformat_4_5_without_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK["metadata"]["accelerator"] == "TPU"
    identifiers = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len({*identifiers}) == len(identifiers) and all(re.fullmatch("[a-zA-Z0-9_-]{1,64}", i) for i in identifiers)
    for cell in NOTEBOOK["cells"]:
        required = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            required |= {"execution_count", "outputs"}
            assert cell["execution_count"] is None and cell["outputs"] == []
        assert {*cell} == required
        assert all(line.endswith("\n") for line in cell["source"][:-1])


@pytest.mark.parametrize("name", CODE)
def test_the_python_of_a_cell_compiles(name):
    ast.parse("\n".join(line for line in CODE[name].splitlines() if not MAGIC.match(line)))


def test_the_commands_name_what_exists():
    modules = 0
    for words in list_commands():
        if words[:2] == ["python", "-m"]:
            modules += 1
            assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file(), words
        for word in words:
            if word.startswith("--config="):
                assert (ROOT / word.removeprefix("--config=")).is_file(), word
            if word.startswith("--workdir="):
                assert word == "--workdir=runs/quickstart"
    assert modules >= 3
    assert ["pip", "install", "--quiet", "--editable", ".[tpu]"] in list_commands()
    assert not any("import jax" in source for source in CODE.values() if not source.startswith("!"))


def test_the_training_cell_and_the_report_run(tmp_path, monkeypatch):
    """With debug_tiny in place of the quickstart, which has no picture of samples."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    (words,) = [shlex.split(line[1:]) for line in CODE["train"].splitlines()]
    assert words[:3] == ["python", "-m", "frozen_jax.main"]
    config, workdir = "--config=configs/debug_tiny.py", f"--workdir={tmp_path / 'runs/quickstart'}"
    assert words[3:] == ["--config=configs/quickstart.py", "--workdir=runs/quickstart"]
    command = [sys.executable, *words[1:3], config, workdir, "--config.train.steps=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr

    shown = []
    replaced = CODE["report"].replace("from IPython.display import Image, Markdown, display", "")
    assert replaced != CODE["report"]
    monkeypatch.chdir(tmp_path)
    names = {"Image": lambda path: ("picture", path), "Markdown": lambda text: text, "display": shown.append}
    exec(compile(replaced, "report", "exec"), names)
    assert "loss" in shown[0] and shown[1] == ("picture", "runs/quickstart/samples.png")
