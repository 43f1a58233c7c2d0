"""No file that somebody else made can run code: what could do that is not called anywhere, and a pickle is refused."""

import ast
import pickle
from pathlib import Path

import pytest

from frozen_jax.errors import UserError
from frozen_jax.language_model import load_lm

PACKAGE = Path(__file__).parent.parent / "frozen_jax"
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
NEEDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
"""Functions that unpickle unless told not to, and what has to be said."""


def find_dangers(tree):
    """Yields (line, what) for whatever could run code from a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            names = []
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS or called.endswith("unsafe_load"):
                yield node.lineno, called
            if called in NEEDS:
                name, value = NEEDS[called]
                said = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if said.get(name) != str(value):
                    yield node.lineno, f"{called} without {name}={value}"
            for word in node.keywords:
                if word.arg in ("trust_remote_code", "allow_pickle") and ast.unparse(word.value) != "False":
                    yield node.lineno, word.arg
        else:
            continue
        for name in names:
            if name.split(".")[0] in FORBIDDEN_MODULES:
                yield node.lineno, f"import {name}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_calls_nothing_that_runs_what_it_reads(path):
    assert list(find_dangers(ast.parse(path.read_text("utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from pickle import load", "eval(x)", "torch.load(f)", "torch.load(f, weights_only=False)",
     "np.load(f)", "np.load(f, allow_pickle=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)"],
)  # fmt: skip
def test_each_danger_is_seen(code):
    assert list(find_dangers(ast.parse(code)))


def test_a_pickled_language_model_is_refused_unread(tmp_path, tiny_lm):
    """The pickle would leave a mark if it were read."""
    mark = tmp_path / "mark"

    class Trap:
        def __reduce__(self):
            return Path.touch, (mark,)

    (tmp_path / "config.json").write_bytes((tiny_lm / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="a pickle, which can run any code"):
        load_lm(tmp_path)
    assert not mark.exists()
    pickle.loads((tmp_path / "pytorch_model.bin").read_bytes())
    assert mark.exists()  # the trap works
