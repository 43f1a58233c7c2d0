"""What hurried users type, each by the real command: one line with the way out, exit status 1, nothing written.

A row is (name, module, arguments, what the line must say). `{…}` in arguments are files that `prepare` makes; OUT is a
fresh path that must hold nothing afterwards but what marks a workdir, in which the mended command then starts.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command_server import CommandServer

MAIN, TOOLS = "frozen_jax.main", "frozen_jax.tools."
TINY = ("--config=configs/debug_tiny.py", "--workdir={OUT}")
MARKS = {"config.json", "lock", "versions.json"}


def main(name, *arguments, says):
    """A mistake in an otherwise right training command."""
    return pytest.param(MAIN, (*TINY, *arguments), says, id=name)


def start(name, config, workdir, *, says):
    """A training command with these two flags."""
    return pytest.param(MAIN, (f"--config={config}", f"--workdir={workdir}"), says, id=name)


def tool(name, module, *arguments, says):
    return pytest.param(TOOLS + module, arguments, says, id=name)


MISTAKES = [
    # The command line.
    pytest.param(MAIN, ("--workdir={OUT}",), ("--config is missing", "for example"), id="no config"),
    pytest.param(MAIN, TINY[:1], ("--workdir is missing", "for example"), id="no workdir"),
    start("empty workdir", "configs/debug_tiny.py", "", says=("--workdir is missing", "for example")),
    start("no such config", "configs/debug_tyni.py", "{OUT}", says=("debug_tyni.py",)),
    start("config without function", "{no_function}", "{OUT}", says=("get_config",)),
    start("config that is no Python", "{syntax_error}", "{OUT}", says=("syntax_error.py, line 1",)),
    start("config that is a string", "{not_a_config}", "{OUT}", says=("config",)),
    start("config that raises", "{raises}", "{OUT}", says=("nowhere_to_be_found",)),
    start("no such variant", "configs/quickstart.py:mxied", "{OUT}", says=("no variant 'mxied'", "mixed")),
    main("misspelt flag", "--wokrdir=x", says=("wokrdir", "workdir")),
    main("misspelt section", "--config.trian.steps=3", says=("trian",)),
    main("no such section", "--config.nope.x=3", says=("--config.nope.x=3 sets what", "mend the name")),
    main("misspelt key", "--config.train.setps=3", says=("setps", "steps")),
    main("a word for a number", "--config.train.steps=many", says=("--config.train.steps=many",)),
    main("not in the options", "--config.vision.options.foo=1", says=("options.foo=1 sets what", "'foo'")),
    main("a fraction for a count", "--config.train.steps=1.5", says=("steps",)),
    main("no such mode", "--mode=predict", says=("predict", "train", "eval")),
    main("a stray word", "steps=3", says=("unknown argument 'steps=3'", "--config.section.name=value")),
    # Numbers out of range.
    main("no steps", "--config.train.steps=0", says=("config.train.steps is 0", "at least 1")),
    main("negative rate", "--config.optim.learning_rate=-1.0", says=("learning_rate is -1.0", "negative")),
    main("a seed beyond 32 bits", f"--config.seed={10**20}", says=(f"config.seed is {10**20}", "2**32")),
    main("dropout of everything", "--config.prefix.dropout=1.0", says=("prefix.dropout", "less than 1")),
    main("a share above one", "--config.data.question_fraction=1.5", says=("question_fraction", "0..1")),
    main("no prefix", "--config.prefix.length=0", says=("prefix.length", "at least 1")),
    main("no room for words", "--config.data.max_tokens=3", says=("max_tokens", "leave room for words")),
    main("longer than the LM", "--config.data.max_tokens=5000", says=("5000", "positions")),
    main("accumulate does not divide", "--config.optim.accumulate=3", says=("batch_size", "multiple")),
    main("falling buckets", "--config.data.buckets=(40,20)", says=("data.buckets", "rise")),
    main("a template without blank", "--config.data.caption_format=x", says=("caption_format", "{caption}")),
    # Names.
    main("no such LM mode", "--config.lm.mode=frosen", says=("lm.mode is 'frosen'", "'frozen'")),
    main("no such encoder", "--config.vision.name=resnet5", says=("resnet5", "resnet50")),
    main("no such evaluation", "--config.evaluate.task=captions", says=("evaluate.task is 'captions'", "'caption'")),
    main("no such prefix dtype", "--config.lm.dtype=float17", says=("lm.dtype", "float17")),
    # Contradictions.
    main("int8 that trains", "--config.lm.weights=int8", "--config.lm.mode=finetuned", says=("lm.weights", "frozen")),
    main("a frozen random encoder", "--config.vision.freeze=True", says=("vision.freeze", "vision.path")),
    main("nothing to train", "--config.vision.name=", says=("lm.mode", "nothing would be trained")),
    main("episodes forgotten", "--config.evaluate.task=fewshot", says=("fewshot.episodes", "make_episodes")),
    main("twice the rest", "--config.mesh.data=-1", "--config.mesh.fsdp=-1", says=("mesh", "only one axis")),
    # The devices.
    main("more devices than there are", "--config.mesh.data=16", says=("16", "8")),
    main("a batch that does not divide", "--config.train.batch_size=12", says=("12", "8 devices", "multiple of 8")),
    main("heads that do not divide", "--config.mesh.data=1", "--config.mesh.tensor=8", says=("tensor", "8")),
    # The data.
    main("no such kind of data", "--config.data.train=foldr:/data", says=("'foldr'", "folder")),
    main("no data", "--config.data.train=", says=("data.train", "easy_vqa:train")),
    main("no such folder", "--config.data.train=folder:{OUT}/x", says=("is not a folder", "check the path")),
    main("no pictures in it", "--config.data.train=folder:{empty}", says=("{empty}",)),
    main("no such table", "--config.data.train=csv:{OUT}.csv", says=("is not a file", "check the path")),
    main("no such column", "--config.data.train=csv:{table}?caption=text", says=("no column 'text'", "caption")),
    main("no delimiter", "--config.data.train=csv:{table}?delimiter=", says=("delimiter is ''", "one character")),
    main("no such option", "--config.data.train=csv:{table}?captoin=text", says=("no option 'captoin'", "caption")),
    main("JSON cut short", "--config.data.train=coco:{cut_json}?root={pictures}", says=("not JSON", "fetch it again")),
    main("the file of another task", "--config.data.train=coco:{vqa_json}?root={pictures}", says=("another set or",)),
    main("captions of other pictures", "--config.data.train=jsonl:{other_set}", says=("COCO_1.jpg", "root=")),
    # The language model.
    main("no such LM", "--config.lm.path={OUT}/lm", says=("/lm", "give that directory")),
    main("no such package", "--config.lm.path=package:gpt5", says=("package:gpt5", "scene_gpt2")),
    main("an id, and no hub", "--config.lm.path=openai-community/gpt2", says=("openai-community/gpt2",)),
    main("a folder that holds no LM", "--config.lm.path={empty}", says=("config.json", "{empty}")),
    main("weights cut short", "--config.lm.path={cut_lm}", says=("model.safetensors",)),
    main("another LM's tokenizer", "--config.lm.path={mixed_lm}", says=("tokenizer of another model", "877", "512")),
    main("a LM of no known family", "--config.lm.path={t5}", says=("t5", "gpt2")),
    # The workdir.
    start("workdir is a file", "configs/debug_tiny.py", "{a_file}", says=("is a file",)),
    start("not a run", "configs/debug_tiny.py", "{pictures}", says=("holds other files", "new")),
    start("unwritable workdir", "configs/debug_tiny.py", "/proc/runs", says=("cannot be written",)),
    main("nothing trained yet", "--mode=eval", says=("holds no checkpoints", "--mode=train")),
    main("a cache that others can write", "--compilation_cache={open_cache}", says=("others can write", "chmod go-w")),
    # The tools.
    tool("caption: no run", "caption", "--workdir={empty}", "{a_picture}", says=("holds no run",)),
    tool("inspect: no devices", "inspect", TINY[0], "--devices=0", says=("--devices is 0", "at least 1")),
    tool("inspect: misspelt key", "inspect", TINY[0], "--config.mesh.dat=1", says=("dat",)),
    tool("data_check: nothing named", "data_check", "--output={OUT}", says=("--config=FILE", "--source")),
    tool("inspect: not in the options", "inspect", TINY[0], "--config.vision.options.foo=1", says=("foo=1 sets",)),
    tool("data_check: no folder", "data_check", "--source=folder:/nowhere", "--output={OUT}", says=("not a folder",)),
    tool("data_check: into a file", "data_check", "--source=fake:4", "--output={a_file}", says=("--output={a_file}",)),
    tool("data_check: below a file", "data_check", "--source=fake:4", "--output={a_file}/x", says=("{a_file}/x",)),
    tool("data_check: into /proc", "data_check", "--source=fake:4", "--output=/proc/x", says=("--output=/proc/x",)),
    tool("data_check: a huge size", "data_check", "--source=fake:4", "--size=1000000", says=("size 1000000", "8000")),
    tool("data_check: a long name", "data_check", f"--source=folder:{'x' * 300}", says=("not a folder",)),
    tool("data_check: a long file", "data_check", f"--source=jsonl:{'x' * 300}", says=("not a file",)),
    tool("fetch_data: a long name", "fetch_data", "emoji", f"--out={'x' * 300}", says=("too long", "shorter path")),
    main("data with a long name", f"--config.data.train=folder:{'x' * 300}", says=("not a folder",)),
    start("a long workdir", "configs/debug_tiny.py", "x" * 300, says=("too long",)),
    tool("compile_check: no such slice", "compile_check", TINY[0], "--slice=v9-8", says=("v9", "v5e")),
    tool(
        "compile_check: figures into no folder",
        "compile_check",
        *(TINY[0], "--slice=v5e-1", "--json={OUT}/x/y.json"),
        says=("--json={OUT}/x/y.json", "cannot be written", "a folder that is there"),
    ),
    tool("fetch_data: into a file", "fetch_data", "emoji", "--out={a_file}", says=("{a_file}/packages", "--out")),
    tool("export: a long name", "export", "--workdir={empty}", f"--out={'x' * 300}", says=("cannot be written",)),
    tool(
        "make_episodes: a long name",
        "make_episodes",
        *("--source=easy_vqa:test", "--tag=1", "--count=1", f"--out={'x' * 300}"),
        says=("cannot be written", "--out"),
    ),
    tool(
        "make_episodes: no such tag",
        "make_episodes",
        *("--source=easy_vqa:test", "--tag=-5", "--out={OUT}"),
        says=("none at place -5", "-1 all of them joined"),
    ),
    tool(
        "make_episodes: too many ways",
        "make_episodes",
        *("--source=easy_vqa:test", "--ways=9", "--out={OUT}"),
        says=("--ways=9", "--real_names"),
    ),
    tool(
        "make_episodes: no tags",
        "make_episodes",
        *("--source=folder:{pictures}", "--out={OUT}"),
        says=("tag",),
    ),
]


@pytest.fixture(scope="module")
def server():
    with CommandServer() as started:
        yield started


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Files that are wrong in one way each, by name."""
    folder = tmp_path_factory.mktemp("mistakes")
    shipped = Path(__file__).parent.parent / "frozen_jax" / "assets" / "scene_gpt2"

    def write(name: str, text: str) -> Path:
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    def copy_lm(name: str) -> Path:
        return Path(shutil.copytree(shipped, folder / name))

    pictures, empty, open_cache = folder / "pictures", folder / "empty", folder / "cache"
    for made in (pictures, empty, open_cache):
        made.mkdir()
    open_cache.chmod(0o777)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(pictures / "a.png")
    (pictures / "a.txt").write_text("a black picture")
    cut_lm, mixed_lm, t5 = copy_lm("cut_lm"), copy_lm("mixed_lm"), copy_lm("t5")
    for directory in (mixed_lm, t5):  # put together by hand, not damaged: without a list of digests
        (directory / "SHA256SUMS").unlink()
    weights = (cut_lm / "model.safetensors").read_bytes()
    (cut_lm / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    tokenizer = json.loads((mixed_lm / "tokenizer.json").read_text("utf-8"))
    first = max(tokenizer["model"]["vocab"].values()) + 1
    tokenizer["model"]["vocab"] |= {f"new{number}": first + number for number in range(500)}
    (mixed_lm / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    architecture = json.loads((t5 / "config.json").read_text("utf-8")) | {"model_type": "t5"}
    (t5 / "config.json").write_text(json.dumps(architecture), "utf-8")
    return {
        "pictures": pictures,
        "empty": empty,
        "open_cache": open_cache,
        "a_picture": pictures / "a.png",
        "a_file": write("file", ""),
        "no_function": write("no_function.py", "steps = 3\n"),
        "syntax_error": write("syntax_error.py", "def get_config(:\n    return (\n"),
        "not_a_config": write("not_a_config.py", "def get_config():\n    return 'config'\n"),
        "raises": write("raises.py", "import nowhere_to_be_found\n"),
        "table": write("table.csv", "image,caption\npictures/a.png,a black picture\n"),
        "cut_json": write("cut.json", '{"images": [{"id": 1, "file_na'),
        "vqa_json": write("vqa.json", '{"questions": []}'),
        "other_set": write("other.jsonl", '{"image": "COCO_1.jpg", "caption": "a dog"}\n' * 40),
        "cut_lm": cut_lm,
        "mixed_lm": mixed_lm,
        "t5": t5,
    }


def test_the_mended_command_starts_in_the_same_workdir(server, tmp_path):
    words = ("--config=configs/debug_tiny.py", f"--workdir={tmp_path / 'w'}", "--config.mesh.data=1")
    assert server.run(MAIN, *words, "--config.data.train=folder:/nowhere").returncode == 1
    done = server.run(MAIN, *words, "--config.train.steps=1")
    assert done.returncode == 0 and (tmp_path / "w" / "report.json").exists(), done.stderr


def test_the_table_is_long_and_names_no_mistake_twice():
    names = [mistake.id for mistake in MISTAKES]
    assert len(names) >= 50 and len(set(names)) == len(names)


def list_times(root):
    """When each file below was written; but for Python's own copies of the config files that it has read."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(("module", "arguments", "says"), MISTAKES)
def test_a_mistake_is_one_line_with_the_way_out(server, prepared, tmp_path, module, arguments, says):
    out = tmp_path / "out"

    def fill(text: str) -> str:
        for name, path in {**prepared, "OUT": out}.items():
            text = text.replace(f"{{{name}}}", str(path))
        return text

    before = list_times(prepared["pictures"].parent)
    done = server.run(module, *map(fill, arguments))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 1, done
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert all(fill(part) in lines[0] for part in says), lines[0]
    written = {path.name for path in out.rglob("*") if path.is_file() and path.stat().st_size}
    assert {name for name in written if not name.startswith("events.out.")} <= MARKS
    assert list_times(prepared["pictures"].parent) == before
