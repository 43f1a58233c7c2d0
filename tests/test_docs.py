"""Every command in README.md and docs/ names a module, flags, settings and files that exist; links lead somewhere.

Extracted are code blocks and `inline code` that begin with a command of this project, or with a setting to add to one.
A module's or script's flags are those of its `--help`; `--config.section.name` must be a setting and its value one that
it takes; a config file must be there, with its variant. Also: what `--help` and `python -m frozen_jax` say.
"""

import dataclasses
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
import typing

import pytest

from frozen_jax.config import Config, from_config_dict
from tests.command_server import ROOT, CommandServer

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(
    r"(?:PYTHONPATH=\S+ )?"
    r"(?:python -m (?:frozen_jax|tests|benchmarks|pip|pytest)\b|python benchmarks/|launch/\w+\.sh |--config[.=])"
)
STANDS_FOR = re.compile(r"[A-Z_]+|.*[<…$*\[].*")
"""A word of the reader's own: CONFIG, DIR, $lm, …"""


def list_commands():
    """Yields (document, line number, command), continued lines joined."""
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        joined = re.sub(r"\\\n\s*", " ", text)
        for number, line in enumerate(joined.splitlines(), 1):
            spans = re.findall(r"`([^`]+)`", line) or [line.strip()]
            for span in spans:
                for command in re.split(r"\s*(?:&&|;| -- )\s*", span.removeprefix("$ ")):
                    if COMMAND.match(command):
                        yield f"{document.name}:{number}", command


COMMANDS = sorted({command: place for place, command in list_commands()}.items())


@pytest.fixture(scope="module")
def flags_of():
    """Function from a module or script to the flags that its help lists; its attribute `texts` gives the help."""
    with CommandServer() as server:

        @functools.cache
        def read_help(target, *action):
            done = server.run(target, *action, "--help")
            assert done.returncode in (0, 1) and "Traceback" not in done.stderr, (target, done.stderr[-500:])
            return done.stdout + done.stderr

        def look(target):
            """Flags, of its actions too, but for those of the examples, which are themselves tried."""
            found = re.search(r"^positional arguments:\n  \{([\w,]+)\}", read_help(target), flags=re.MULTILINE)
            actions = [[], *([action] for action in (found[1].split(",") if found else ()))]
            texts = [re.sub(r"example: .*", "", read_help(target, *action), flags=re.DOTALL) for action in actions]
            described = "\n".join(line for text in texts for line in text.splitlines() if "python -m " not in line)
            return set(re.findall(r"(?<![\w-])--(?:\[no\])?(\w+)", described))

        look.texts = read_help
        yield look


def check_config_file(name):
    path, _, variant = name.partition(":")
    if STANDS_FOR.fullmatch(path) or path == "FILE":
        return
    specification = importlib.util.spec_from_file_location("a_config", ROOT / path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    from_config_dict(module.get_config(variant) if variant else module.get_config())


def check_setting(name, value=None):
    """Walks to a setting and, if a value is given that is no word of the reader's own, tries whether it takes that."""
    if name == "section.name":
        return
    kind, hint = Config, None
    for part in name.split("."):
        fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
        assert part in fields, f"config.{name} is no setting"
        hint = typing.get_type_hints(kind)[part]
        kind = hint
        if typing.get_origin(hint) is dict:
            return  # what is below is checked by who reads it
    if value is None or STANDS_FOR.fullmatch(value):
        return
    if typing.get_origin(hint) is typing.Literal:
        assert value in typing.get_args(hint), f"config.{name} cannot be {value!r}"
    elif hint is bool:
        assert value in ("True", "False"), f"config.{name} is True or False, not {value!r}"
    elif hint in (int, float):
        hint(value)


@pytest.mark.parametrize(("command", "place"), COMMANDS)
def test_a_command_in_the_documents_can_be_typed(command, place, flags_of):
    words = [word for word in shlex.split(command, comments=True) if not re.match(r"[A-Z_]+=", word)]
    if words[0].startswith("--config"):
        known = set()
    elif words[0] != "python":
        script = (ROOT / words[0]).read_text("utf-8") + (ROOT / "launch" / "common.sh").read_text("utf-8")
        known = set(re.findall(r"--(\w+)", script)) | {"help", "config", "workdir"}
    elif words[1] == "-m" and words[2] in ("pip", "pytest"):
        return  # the first screen's two: `.ci/run` runs them
    elif words[1] == "-m":
        assert importlib.util.find_spec(words[2]), f"{place}: no module {words[2]}"
        known = flags_of(words[2])
    else:
        known = flags_of(words[1])
    for word in words:
        if not word.startswith("--") or word == "--":
            continue
        name, _, value = word[2:].partition("=")
        if name == "config" and value:
            check_config_file(value)
        elif name.startswith("config."):
            check_setting(name.removeprefix("config."), value if "=" in word else None)
        else:
            assert name in known | {"config"}, f"{place}: {words[1:3]} has no --{name}"


def test_commands_were_found():
    """In a good number, and of each kind: else the pattern above finds nothing and proves nothing."""
    found = [command for command, _ in COMMANDS]
    assert len(found) > 30
    for start in ("python -m frozen_jax.main", "python -m frozen_jax.tools", "python benchmarks/", "launch/"):
        assert any(command.startswith(start) for command in found), start


def find_dead_links(document, text):
    """Yields the links of a document to files that are not there, and to headings that their file does not have."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = document.parent / path if path else document
        if file.exists():
            known = list_anchors(text if file == document else file.read_text("utf-8")) if anchor else set()
        if not file.exists() or (anchor and anchor not in known):
            yield target


def list_anchors(text):
    """The anchors of a document's headings, made as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(document):
    text = document.read_text("utf-8")
    assert [*find_dead_links(document, text)] == []
    for name in re.findall(r"`((?:[\w.]+/)+[\w.]+\.(?:py|sh|md|ipynb|png))`", text):
        folders = (ROOT, ROOT / "frozen_jax", ROOT / "docs")
        assert any((folder / name).exists() for folder in folders), f"{document.name} names {name}, which is not there"


def test_what_is_wrong_in_a_document_is_noticed(flags_of):
    for command, error, message in (
        ("python -m frozen_jax.tools.caption --questoin=x", AssertionError, "has no --questoin"),
        ("python -m frozen_jax.main --workdri=DIR", AssertionError, "has no --workdri"),
        ("python -m frozen_jax.tools.captoin --workdir=DIR", AssertionError, "no module"),
        ("launch/tpu_vm.sh create my-run --zoen=x", AssertionError, "has no --zoen"),
        ("python -m frozen_jax.main --config=configs/nowhere.py", FileNotFoundError, "nowhere"),
        ("python -m frozen_jax.main --config=configs/quickstart.py:mixd", ValueError, "no variant"),
        ("python -m frozen_jax.main --config=FILE --config.train.setps=3", AssertionError, "train.setps is no setting"),
        ("--config.train.steps=many", ValueError, "many"),
        ("--config.lm.mode=frozne", AssertionError, "cannot be 'frozne'"),
        ("--config.blind=yes", AssertionError, "True or False"),
    ):
        assert COMMAND.match(command), command
        with pytest.raises(error, match=message):
            test_a_command_in_the_documents_can_be_typed(command, "a.md:1", flags_of)
    page = "# A page: of *two*\n[a](nowhere.md) [b](#a-page-of-two) [c](#a-page) [d](docs/faq.md#no) [e](LICENSE)\n"
    assert [*find_dead_links(ROOT / "README.md", page)] == ["nowhere.md", "#a-page", "docs/faq.md#no"]


# What the commands say of themselves

TOOLS = sorted(path.stem for path in (ROOT / "frozen_jax" / "tools").glob("[!_]*.py"))


def test_the_overview_lists_every_tool_and_its_commands_can_be_typed(flags_of):
    done = subprocess.run([sys.executable, "-m", "frozen_jax"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr
    commands = [line.strip() for line in done.stdout.splitlines() if COMMAND.match(line.strip())]
    assert [name for name in TOOLS if not any(f"frozen_jax.tools.{name}" in line for line in commands)] == []
    assert sum("frozen_jax.main" in line for line in commands) >= 3
    for command in commands:
        test_a_command_in_the_documents_can_be_typed(command, "overview", flags_of)


@pytest.mark.parametrize("name", ["main", *(f"tools.{tool}" for tool in TOOLS)])
def test_help_has_an_example_that_can_be_typed(name, flags_of):
    help_text = " ".join(flags_of.texts(f"frozen_jax.{name}").split())
    examples = re.findall(rf"(?<!usage: )python -m frozen_jax\.{name}(?: (?:[\w.]+|\"[^\"]*\"|--\S+))+", help_text)
    assert examples, f"python -m frozen_jax.{name} --help shows no example"
    for example in examples:
        test_a_command_in_the_documents_can_be_typed(example.rstrip("."), "help", flags_of)
