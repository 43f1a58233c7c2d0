"""The blocks of docs/api.md, run from top to bottom on the quickstart's model before its training; outputs compared."""

import ast
import contextlib
import inspect
import io
import itertools
import re
import typing

import pytest

import frozen_jax
from frozen_jax.export.write import widen, write_pytorch
from frozen_jax.restore import load_run
from tests.export.cases import save_run
from tests.test_docs import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(python|text)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
TRAINED = "trained: "


def run_block(source, names):
    """Runs a block; returns what it prints and (line, value, comment) of each expression with a comment behind it."""
    lines = source.splitlines()
    values = []
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for statement in ast.parse(source).body:
            _, _, comment = lines[statement.end_lineno - 1][statement.end_col_offset :].partition("  # ")
            if isinstance(statement, ast.Expr) and comment:
                value = eval(compile(ast.Expression(statement.value), "api.md", "eval"), names)
                values.append((lines[statement.lineno - 1], repr(value), comment))
            else:
                exec(compile(ast.Module([statement], []), "api.md", "exec"), names)
    return printed.getvalue(), values


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each block gave, in a directory with an untrained quickstart and an export of it."""
    import configs.quickstart

    directory = tmp_path_factory.mktemp("api")
    (directory / "runs").mkdir()
    save_run(configs.quickstart.get_config(), directory / "runs" / "quickstart")
    export = directory / "runs" / "quickstart_pytorch"
    export.mkdir()
    write_pytorch(widen(load_run(directory / "runs" / "quickstart")), export, card="", lm_path=None)
    names = {}
    with contextlib.chdir(directory):
        done = [(kind, source, run_block(source, names) if kind == "python" else None) for kind, source in BLOCKS]
    return done


def test_values_are_taken_beside_what_is_stated():
    found = run_block("x = [2]\nprint(x)\nx[0] + 1  # 4\nx * 2\nlen(\n    x\n)  # 1", {})
    assert found == ("[2]\n", [("x[0] + 1  # 4", "3", "4"), ("len(", "1", "1")])


def test_every_stated_output_is_what_comes_out(results):
    checked = 0
    for _, _, found in results:
        for line, value, comment in found[1] if found else ():
            if comment.startswith(TRAINED):
                form, stated = (re.sub(r"'[^']*'|\d+", "_", text) for text in (value, comment.removeprefix(TRAINED)))
                assert form == stated, line
            else:
                assert value == comment, line
                checked += 1
    assert checked >= 10


def test_the_errors_shown_are_the_errors(results):
    shown = [(found, text) for (_, _, found), (kind, text, _) in itertools.pairwise(results) if kind == "text"]
    assert len(shown) == 1
    for (printed, _), text in shown:
        assert printed == text


def test_what_the_page_lists_is_what_the_package_offers():
    """Every public name is on the page, and every public function of it is annotated throughout."""
    for name in frozen_jax.__all__:
        assert re.search(rf"\b{name}\b", PAGE), f"docs/api.md does not name {name}"
    methods = {name: value for name, value in vars(frozen_jax.Model).items() if inspect.isfunction(value)}
    public = {name for name in methods if not name.startswith("_")}
    assert public == set(re.findall(r"^\| `model\.(\w+)\(", PAGE, flags=re.MULTILINE))
    for function in (frozen_jax.load, frozen_jax.load_lm, *(methods[name] for name in public)):
        hints = typing.get_type_hints(inspect.unwrap(function))
        assert {*inspect.signature(function).parameters, "return"} - {"self"} == {*hints}, function
