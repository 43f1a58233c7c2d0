"""The Colab notebook: its form, and its cells run from top to bottom in one process, on a CPU with the small config."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATH = ROOT / "notebooks" / "frozen_colab.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"}
SETTINGS = {"DEVICE": "cpu", "CONFIG": "configs/debug_tiny.py"}

# What a notebook does: every cell in one namespace, the last expression of a cell shown.
RUNNER = """
import ast, json, sys

cells, names = json.load(sys.stdin), {}
for name, source in cells.items():
    print(f"== {name}", flush=True)
    body = ast.parse(source, name).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), name, "eval"), names)
        if value is not None:
            print("shown:", repr(value), flush=True)
"""


def change_settings(source):
    """Sets the form fields of the first cell, as a user does in Colab."""
    for name, value in SETTINGS.items():
        source, count = re.subn(rf'^{name} = ".*?"(?=  # @param)', f'{name} = "{value}"', source, flags=re.MULTILINE)
        assert count == 1, name
    return source


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


def test_no_address_stands_in_it_and_every_choice_exists():
    assert not re.findall(r"https?://\w", PATH.read_text("utf-8")), "nobody's address is hard-coded"
    choices = dict(re.findall(r"^(\w+) = .*# @param (\[.*\])$", CODE["settings"], flags=re.MULTILINE))
    assert json.loads(choices["DEVICE"]) == ["tpu", "gpu", "cpu"]
    assert all((ROOT / name).is_file() for name in json.loads(choices["CONFIG"]))
    for name, value in SETTINGS.items():
        assert value in json.loads(choices[name])


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What each cell prints. The folder is a clone as far as the cells look at it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "frozen_jax"):
        (folder / name).symlink_to(ROOT / name)
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    cells = {**CODE, "settings": change_settings(CODE["settings"])}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    parts = re.split(r"^== (\w+)$", done.stdout, flags=re.MULTILINE)[1:]
    return folder, dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_notebook_trains_captions_and_answers(outputs):
    folder, printed = outputs
    assert [*printed] == [*CODE]
    assert "CpuDevice" in printed["devices"] or "cpu" in printed["devices"].lower()
    assert "finished: " in printed["train"] and "stands at step 20; best validation loss" in printed["train"]
    assert (folder / "runs" / "debug_tiny" / "report.json").is_file() and "| train.steps" in printed["report"]
    assert re.search(r"^caption: +\S", printed["caption"], flags=re.MULTILINE) and "size=192x192" in printed["caption"]
    assert re.search(r"^answer: ", printed["few_shot"], flags=re.MULTILINE)
    scores = re.findall(r"' (\w+)': (-?\d)", printed["few_shot"])
    assert {name for name, _ in scores} == {"circle", "rectangle", "triangle"}


def test_the_notebook_exports_and_pytorch_says_the_same(outputs):
    _, printed = outputs
    assert "every parameter bit for bit; in PyTorch 5 of 5 greedy texts equal" in printed["export"]
    said = dict(re.findall(r"^in (PyTorch|JAX): *(.*)$", printed["pytorch"], flags=re.MULTILINE))
    assert said["PyTorch"] == said["JAX"] != ""


def test_without_a_clone_and_an_address_the_notebook_says_what_to_set(tmp_path):
    cells = {"settings": change_settings(CODE["settings"]), "install": CODE["install"]}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps(cells), capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1 and done.stderr.strip().startswith("set REPOSITORY in the first cell"), done.stderr
