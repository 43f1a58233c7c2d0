"""What is declared is what is used: dependencies, package data, licence, version; warnings of ours are errors."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASSETS = ROOT / "frozen_jax" / "assets"  # PyTorch code there is copied into exports, never imported as part of us
SOURCES = sorted({*(ROOT / "frozen_jax").rglob("*.py")} - {*ASSETS.rglob("*.py")})
MODULES = {
    "ml_collections": "ml_collections",
    "PIL": "pillow",
    "absl": "absl-py",
    "orbax": "orbax-checkpoint",
    "faiss": "faiss-cpu",
}


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    return {normalise(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in requirements}


def imported_modules(source: str) -> set[str]:
    """First names of all absolute imports, also of those inside functions and by `importlib` with a literal name."""
    names: set = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("import_module", "find_spec"):
            names |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"frozen_jax"}


def find_distributions(modules: set[str]) -> set[str]:
    providers = importlib.metadata.packages_distributions()
    return {normalise(MODULES.get(module) or min(providers.get(module, [module]), key=len)) for module in modules}


def test_the_core_declares_what_it_imports_and_nothing_else():
    imported = find_distributions(set().union(*(imported_modules(path.read_text()) for path in SOURCES)))
    core = declared(PROJECT["dependencies"])
    core.discard("tensorflow-cpu")  # the same module as tensorflow, on another platform
    imported = {name.replace("tensorflow-cpu", "tensorflow") for name in imported}
    imported.discard("array-record")  # of tensorflow-datasets, where it exists; without it an error says so
    imported -= {"torch", "transformers"}  # an export is compared in them where they are installed
    imported -= declared(PROJECT["optional-dependencies"]["wandb"])  # imported where the config names a project
    imported -= declared(PROJECT["optional-dependencies"]["demo"])  # imported by the page alone
    imported -= declared(PROJECT["optional-dependencies"]["retrieve"])  # without it a search is exact
    imported -= declared(PROJECT["optional-dependencies"]["fetch"])  # by tools.fetch_data alone
    imported.discard("libtpu")  # comes with jax[tpu]; asked for, never imported
    assert imported - core == set(), "imported by the package, not in [project] dependencies"
    assert core - imported == set(), "in [project] dependencies, not imported by the package"


def test_tests_declare_what_they_import():
    files = [path for folder in ("tests", "configs", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    own = {"tests", "configs", "benchmarks", "libtpu"}  # libtpu comes with jax[tpu]; asked for, never imported
    modules = set().union(*(imported_modules(path.read_text()) for path in files)) - own
    optional = PROJECT["optional-dependencies"]
    extras = declared(PROJECT["dependencies"] + optional["test"] + optional["browser"] + optional["fetch"])
    assert find_distributions(modules) - extras == set()


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import os, numpy.linalg", {"numpy"}),
        ("def f():\n  from PIL import Image", {"PIL"}),
        ("importlib.import_module('tensorflow.io')", {"tensorflow"}),
        ("from frozen_jax.x import y\nfrom . import z", set()),
    ],
)
def test_imports_are_found(source, modules):
    assert imported_modules(source) == modules


def test_importing_the_package_imports_no_tensorflow_and_no_torch():
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES]
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
    code += (
        "print(*sorted({'tensorflow', 'torch', 'transformers', 'matplotlib', 'tensorflow_datasets'} & {*sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_every_file_of_the_package_is_shipped():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {path for pattern in patterns["frozen_jax"] for path in (ROOT / "frozen_jax").glob(pattern)}
    files = {path for path in (ROOT / "frozen_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in files - shipped if path.suffix != ".py" and path.name not in patterns["*"]} == set()
    assert (ROOT / "frozen_jax" / "py.typed") in files
    without_init = {path.parent for path in SOURCES if not (path.parent / "__init__.py").exists()}
    assert without_init == set(), "setuptools finds packages by their __init__.py"


def test_metadata_is_said_once():
    assert "setup()" in (ROOT / "setup.py").read_text()
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text()
    licence = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0" and "END OF TERMS AND CONDITIONS" in licence and len(licence) > 11_000
    assert not [line for line in PROJECT["dependencies"] if "<" in line or "==" in line.split(";")[0]]


def test_the_first_screen_of_the_readme_holds_the_two_commands():
    first_screen = (ROOT / "README.md").read_text().split("\n## ")[0]
    main, tests = re.findall(r"^```\w*\n(.*?)\n```$", first_screen, flags=re.MULTILINE | re.DOTALL)
    assert main.startswith("python -m pip install -e . && python -m frozen_jax.main --config=configs/quickstart.py ")
    assert tests.startswith("python -m pip install -e '.[test]' && python -m pytest")
    assert len(first_screen.splitlines()) <= 40 and "\n" not in main + tests


def test_our_own_warnings_are_errors():
    for module, kind in (("frozen_jax.models.gpt2", DeprecationWarning), ("frozen_jax", UserWarning)):
        with pytest.raises(kind):
            warnings.warn_explicit("old", kind, "file.py", 1, module=module)
    with warnings.catch_warnings(record=True) as others:
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module="somebody.elses")
    assert len(others) == 1


def test_the_ci_script_is_valid_bash():
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
