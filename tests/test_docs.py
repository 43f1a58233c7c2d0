"""Every command in README.md and docs/ names a module, flags, settings and files that exist.

Extracted are code blocks and `inline code` that begin with a command of this project. A module's or script's flags are
those of its `--help`; `--config.section.name` must be a setting; a config file must be there, with its variant.
"""

import dataclasses
import importlib.util
import re
import shlex

import pytest

from frozen_jax.config import Config, from_config_dict
from tests.command_server import ROOT, CommandServer

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(
    r"(?:PYTHONPATH=\S+ )?(?:python -m (?:frozen_jax|tests|pip|pytest)\b|python benchmarks/|launch/\w+\.sh )"
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
    """Function from a module or script to the flags that its help lists."""
    found = {}
    with CommandServer() as server:

        def look(target):
            if target not in found:
                done = server.run(target, "--help")
                assert done.returncode in (0, 1) and "Traceback" not in done.stderr, (target, done.stderr[-500:])
                found[target] = set(re.findall(r"(?<![\w-])--(?:\[no\])?(\w+)", done.stdout + done.stderr))
            return found[target]

        yield look


def check_config_file(name):
    path, _, variant = name.partition(":")
    if STANDS_FOR.fullmatch(path) or path == "FILE":
        return
    specification = importlib.util.spec_from_file_location("a_config", ROOT / path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    from_config_dict(module.get_config(variant) if variant else module.get_config())


def check_setting(name):
    kind = Config
    for part in name.split("."):
        fields = (
            {field.name: field.type for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
        )
        assert part in fields, f"config.{name} is no setting"
        kind = type(getattr(kind(), part))


@pytest.mark.parametrize(("command", "place"), COMMANDS)
def test_a_command_in_the_documents_can_be_typed(command, place, flags_of):
    words = [word for word in shlex.split(command, comments=True) if not re.match(r"[A-Z_]+=", word)]
    if words[0] != "python":
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
            check_setting(name.removeprefix("config."))
        else:
            assert name in known | {"config"}, f"{place}: {words[1:3]} has no --{name}"


def test_commands_were_found():
    """In a good number, and of each kind: else the pattern above finds nothing and proves nothing."""
    found = [command for command, _ in COMMANDS]
    assert len(found) > 30
    for start in ("python -m frozen_jax.main", "python -m frozen_jax.tools", "python benchmarks/", "launch/"):
        assert any(command.startswith(start) for command in found), start


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}, which is not there"


def test_a_false_flag_setting_and_file_are_noticed(flags_of):
    with pytest.raises(AssertionError, match="no setting"):
        check_setting("train.setps")
    with pytest.raises(FileNotFoundError):
        check_config_file("configs/nowhere.py")
    assert "questoin" not in flags_of("frozen_jax.tools.caption") and "question" in flags_of("frozen_jax.tools.caption")
