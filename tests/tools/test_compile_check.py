"""The tool as a user runs it; with the TPU compiler where that is installed (`pip install 'frozen_jax[tpu]'`)."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from frozen_jax.aot import Change
from frozen_jax.chips import find_slice
from frozen_jax.config import from_config_dict
from frozen_jax.tools import compile_check

ROOT = Path(__file__).parent.parent.parent
FOUND = {
    "config": "configs/a.py",
    "slice": "v5e-8",
    "devices": 8,
    "batch_size": 128,
    "fits": False,
    "hbm_bytes": int(15.75 * 2**30),
    "flops_per_example": 41e9,
    "flops_per_example_analytic": 40e9,
    "bytes_per_example_analytic": 225e6,
    "collectives": {"all-reduce": {"count": 1, "runs": 1, "bytes": 94_000_000}},
    "simulated_examples_per_s": 27_000.4,
    "train": {"fits": True, "peak_bytes": 8 * 2**30, "argument_bytes": 2**29, "message": ""},
    "decode": {"fits": False, "peak_bytes": 20 * 2**30, "argument_bytes": 0, "message": "RESOURCE_EXHAUSTED: much"},
}


def run(*arguments, **environment):
    command = [sys.executable, "-m", "frozen_jax.tools.compile_check", *arguments]
    # Without the suite's cache of programs: it is of what runs here.
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_report_in_words():
    assert compile_check.format_report(FOUND).splitlines() == [
        "configs/a.py on v5e-8: 8 devices, batch 128",
        "  train  fits: 8.00 of 15.75 GiB a device, 0.50 of it parameters and inputs",
        "  decode DOES NOT FIT: 20.00 of 15.75 GiB a device",
        "         RESOURCE_EXHAUSTED: much",
        "  needed 40.00 GFLOP and 225 MB an example",
        "  compiled 41.00 GFLOP an example, 1.02 of what is needed",
        "  all-reduce: 1, run 1 times, 94.0 MB a step",
        "  simulated (roofline, no communication): 27000 examples/s at most",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slice=v5e-1"], "--config is missing; for example"),
        (["--slice=v5e-9", "--config=configs/debug_tiny.py"], "--slice=v5e-9 is not a TPU slice known here; near it"),
        (["--slice=v5e-1", "--config=nowhere.py"], "nowhere.py"),
        (["--slice=v5e-1", "--config=configs/debug_tiny.py", "--config.train.stps=3"], "stps"),
        (["--slice=v5e-1", "--config=configs/debug_tiny.py", "--sugest"], "sugest"),
    ],
)
def test_what_a_user_can_mend_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as raised:
        compile_check.main(arguments)
    error = capsys.readouterr().err
    assert raised.value.code == 1 and error.startswith("error: ") and message in error
    assert error.count("\n") == 1


def test_classes_are_read_from_the_data_and_the_file_is_tried_before_the_work(monkeypatch, tmp_path, capsys):
    seen = []
    monkeypatch.setattr(compile_check, "report", lambda config, *_, **__: seen.append(config) or FOUND)
    words = ["--slice=v5e-8", "--config=configs/easy_vqa_fusion.py"]
    for path in (tmp_path / "none" / "x.json", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(SystemExit, match="1"):
            compile_check.main([*words, f"--json={path}"])
        assert f"--json={path}: cannot be written" in capsys.readouterr().err
    assert not seen and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        compile_check.main([*words, f"--json={tmp_path / 'x.json'}"])
    assert len(seen[0].fusion.classes) == 13 and json.loads((tmp_path / "x.json").read_text())["slice"] == "v5e-8"


@pytest.mark.parametrize(
    ("enough", "expected"),
    [({"b"}, "b"), ({"a", "b"}, "a b"), ({"a", "b", "c"}, "a b c"), ({"nothing"}, "")],
)
def test_the_cheapest_change_is_found(tiny_config, monkeypatch, enough, expected):
    """A run is a set of changes here, and fits once it holds all that are needed."""
    config = from_config_dict(tiny_config)

    def changes(config, target):
        taken = config.vision.options.get("taken", ())
        left = [name for name in "abc" if name not in taken]
        return [Change(name, with_taken(config, (*taken, name))) for name in left]

    def with_taken(config, taken):
        return dataclasses.replace(config, vision=dataclasses.replace(config.vision, options={"taken": taken}))

    monkeypatch.setattr(compile_check, "list_changes", changes)
    monkeypatch.setattr(
        compile_check,
        "report",
        lambda config, target, **steps: {"fits": enough <= set(config.vision.options["taken"])},
    )
    found = compile_check.suggest(config, find_slice("v5e-1"), steps={"train": True, "decode": False})
    assert found == expected


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler, extra tpu")
@pytest.mark.parametrize("name", ["v5e-1", "v5e-8"])
def test_the_smallest_config_compiles_for_a_slice(name, tmp_path):
    """The whole tool with the real compiler, about 10 CPU-seconds."""
    done = run("--config=configs/debug_tiny.py", f"--slice={name}", f"--json={tmp_path / 'found.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["fits"] and 0 < found["peak_bytes"] < found["hbm_bytes"]
    assert found["flops_per_example"] == pytest.approx(found["flops_per_example_analytic"], rel=0.01)
    assert found["simulated_examples_per_s"] > 0
    reductions = found["collectives"].get("all-reduce", {"count": 0})["count"]
    assert reductions == (0 if name == "v5e-1" else 2)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler, extra tpu")
def test_what_the_notebook_trains_fits_the_free_tpu_of_colab(tmp_path):
    """Training and decoding; the notebook's other choice is the smallest config, above."""
    settings = json.loads((ROOT / "notebooks" / "frozen_colab.ipynb").read_text("utf-8"))["cells"][1]["source"]
    configs = set(re.findall(r"configs/\w+\.py", "".join(settings))) - {"configs/debug_tiny.py"}
    assert configs == {"configs/quickstart.py"}
    done = run("--config=configs/quickstart.py", "--slice=v5e-1", f"--json={tmp_path / 'found.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["train"]["fits"] and found["decode"]["fits"] and found["peak_bytes"] < 2**30


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler, extra tpu")
def test_what_does_not_fit_exits_1_and_says_how_much(tmp_path):
    """A picture of 16 million pixels, 1024 times."""
    big = ("--config.data.image.size=4096", "--config.train.batch_size=1024", "--step=train")
    done = run("--config=configs/debug_tiny.py", "--slice=v5e-1", f"--json={tmp_path / 'found.json'}", *big)
    assert done.returncode == 1 and "DOES NOT FIT" in done.stdout, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert not found["fits"] and found["peak_bytes"] > found["hbm_bytes"]
    assert found["flops_per_example"] is None
