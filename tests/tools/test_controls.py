"""The table of controls: what each row changes, what is run and what is reused, what stands in its lines."""

import dataclasses
import json

import pytest

from frozen_jax.config import default_config, from_config_dict, identify
from frozen_jax.errors import UserError
from frozen_jax.report import digest_measured
from frozen_jax.tools import controls
from frozen_jax.tools.controls import MIXED, ROWS, compare, main, plan_rows


def make_config(lm_path):
    """A run that is evaluated by classes."""
    config = default_config()
    config.telemetry.captions = 0  # a program more to compile
    config.lm.path = str(lm_path)
    config.vision.name, config.vision.options = "nf_resnet_small", {"widths": (8,), "depths": (1,), "stem_width": 8}
    config.data.train = config.data.validation = "fake:12"
    config.data.image.size, config.data.max_tokens = 16, 40
    config.train.batch_size = 4
    config.optim.learning_rate = 3e-2
    config.evaluate.task = "classify"
    return config


def differences(one, other):
    """What makes one run another one, by section and setting."""
    here, there = identify(one), identify(other)
    return {
        f"{section}.{name}": value
        for section, settings in there.items()
        for name, value in (settings.items() if isinstance(settings, dict) else [("", settings)])
        if value != (here.get(section, {}).get(name) if isinstance(settings, dict) else here[section])
    }


def test_each_row_changes_what_its_name_says():
    config = make_config("lm")
    config.data.buckets, config.data.pack, config.lm.weights = (20, 40), 2, "int8"
    config = from_config_dict(config)
    rows = plan_rows(config, [*ROWS, MIXED], lm_rate=None)
    assert list(rows) == [*ROWS, MIXED]
    assert rows["seeing"] == rows["prefix_2"] and rows["blind"] == rows["seeing"]._replace(view="blind")
    assert identify(rows["seeing"].config) == identify(config) and rows["seeing"].config.evaluate.blind_control
    changed = {name: differences(config, row.config) for name, row in rows.items() if row.folder}
    assert changed == {
        "finetuned": {"lm.mode": "finetuned", "lm.weights": "float", "optim.learning_rate": pytest.approx(1e-3)},
        "scratch": {"lm.mode": "scratch", "lm.weights": "float", "optim.learning_rate": pytest.approx(1e-3)},
        "lora": {"lm.lora_rank": 8},
        "adapter": {"adaptation.adapter_width": 32, "adaptation.prompt_length": 0},
        "prompt": {
            "adaptation.adapter_width": 0,
            "adaptation.prompt_length": 8,
            "data.max_tokens": 56,
            "data.buckets": (36, 56),
        },
        "prefix_1": {"prefix.length": 1, "data.max_tokens": 38, "data.buckets": (18, 38)},
        "prefix_4": {"prefix.length": 4, "data.max_tokens": 44, "data.buckets": (24, 44)},
        "mixed": {"data.question_fraction": 0.5},
    }
    assert {name: row.folder for name, row in rows.items() if row.folder} == {name: name for name in changed}
    assert not any(row.config.evaluate.blind_control for row in rows.values() if row.folder)
    given = plan_rows(config, ["scratch"], lm_rate=2e-5)
    assert list(given) == ["seeing", "scratch"] and given["scratch"].config.optim.learning_rate == 2e-5
    assert not given["seeing"].config.evaluate.blind_control


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["seeing", "prefix_3"], {}, r"no row 'prefix_3'; choose among seeing, blind"),
        (["seeing"], {"blind": True}, r"config\.blind is True"),
        (["seeing"], {"lm": {"mode": "finetuned"}}, r"config\.lm\.mode is 'finetuned'"),
        (["seeing"], {"evaluate": {"task": "none"}}, r"config\.evaluate\.task is 'none'"),
        ([MIXED], {"data": {"train": "classes:{}"}}, r"has no questions to train on"),
    ],
)
def test_what_has_no_controls_is_refused(names, changes, message, tmp_path):
    from PIL import Image

    (tmp_path / "red").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "red" / "0.png")
    given = make_config("lm").to_dict()
    for section, change in changes.items():
        if isinstance(change, dict):
            given[section] |= {key: value.format(tmp_path) for key, value in change.items()}
        else:
            given[section] = change
    with pytest.raises(UserError, match=message):
        plan_rows(from_config_dict(given), names, lm_rate=None)


class Runs:
    """In place of `run.run`: reports with figures by which run they are of, and which runs were started.

    A real one, its blind control included, is tabulated in `tests/test_evaluate.py`.
    """

    def __init__(self, *, interrupted=""):
        self.started, self.interrupted = [], interrupted

    def __call__(self, config, directory, *, mode, stop):
        assert mode == "train"
        self.started.append(directory.name)
        if directory.name == self.interrupted:
            self.interrupted = ""
            raise KeyboardInterrupt
        number = float(10 * len(self.started))
        training = {"best_step": 2, "best_validation_loss": number, "finished": True}
        changed = "b" if config.lm.mode != "frozen" else "a"
        report = {
            "config_digest": digest_measured(config),
            "train": training,
            "frozen": {"lm_sha256_before": "a", "lm_sha256_after": changed},
            "vqa": {
                "majority": {"answer": "red", "accuracy": 5.0},
                "shots_0": {"seeing": {"accuracy": number}, "shuffled": {"accuracy": number + 1}},
            },
            "classify": {"seeing": {"top_1": number + 2}, "chance": 25.0},
        }
        if config.evaluate.blind_control:
            report |= {"train_blind": training | {"best_validation_loss": 99.0}, "frozen_blind": report["frozen"]}
            report["vqa"]["shots_0"]["blind"], report["classify"]["blind"] = {"accuracy": 3.0}, {"top_1": 4.0}
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{config.evaluate.report}.json").write_text(json.dumps(report))
        return report


def read_lines(workdir):
    return json.loads((workdir / "controls.json").read_text())["lines"]


def test_a_table_interrupted_and_finished(tmp_path, monkeypatch):
    """Killed at a row and begun again: nothing runs twice."""
    config, runs = from_config_dict(make_config("lm")), Runs(interrupted="scratch")
    monkeypatch.setattr(controls, "run", runs)
    names = ["blind", "finetuned", "scratch", "prefix_2", "lora"]
    with pytest.raises(KeyboardInterrupt):
        compare(config, tmp_path / "w", names)
    first = ["seeing", "blind", "finetuned", "prefix_2"]
    assert [line["row"] for line in read_lines(tmp_path / "w")] == [*first, "majority", *first, "chance"]
    table = compare(config, tmp_path / "w", names)
    assert runs.started == ["w", "finetuned", "scratch", "scratch", "lora"]
    assert compare(config, tmp_path / "w", names) == table and len(runs.started) == 5
    kept = ("measure", "row", "score", "shuffled", "language model", "best step", "validation loss")
    assert [tuple(line.get(name) for name in kept) for line in read_lines(tmp_path / "w")] == [
        ("vqa.shots_0 accuracy", "seeing", 10.0, 11.0, "unchanged", 2, 10.0),
        ("vqa.shots_0 accuracy", "blind", 3.0, None, "unchanged", 2, 99.0),
        ("vqa.shots_0 accuracy", "finetuned", 20.0, 21.0, "trained", 2, 20.0),
        ("vqa.shots_0 accuracy", "scratch", 40.0, 41.0, "trained", 2, 40.0),
        ("vqa.shots_0 accuracy", "prefix_2", 10.0, 11.0, "unchanged", 2, 10.0),
        ("vqa.shots_0 accuracy", "lora", 50.0, 51.0, "unchanged, adapters of rank 8", 2, 50.0),
        ("vqa.shots_0 accuracy", "majority", 5.0, None, None, None, None),
        ("classify top_1", "seeing", 12.0, None, "unchanged", 2, 10.0),
        ("classify top_1", "blind", 4.0, None, "unchanged", 2, 99.0),
        ("classify top_1", "finetuned", 22.0, None, "trained", 2, 20.0),
        ("classify top_1", "scratch", 42.0, None, "trained", 2, 40.0),
        ("classify top_1", "prefix_2", 12.0, None, "unchanged", 2, 10.0),
        ("classify top_1", "lora", 52.0, None, "unchanged, adapters of rank 8", 2, 50.0),
        ("classify top_1", "chance", 25.0, None, None, None, None),
    ]
    written = (tmp_path / "w" / "controls.md").read_text()
    assert table in written and "`report.json`, `finetuned/report.json`, `scratch/report.json`" in written


def test_a_report_is_taken_as_it_is_only_if_finished_and_of_the_same_settings(tmp_path, monkeypatch):
    config, runs = from_config_dict(make_config("lm")), Runs()
    monkeypatch.setattr(controls, "run", runs)
    compare(config, tmp_path / "w", ["seeing"])
    compare(dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, data=1)), tmp_path / "w", ["seeing"])
    assert len(runs.started) == 1
    fewer = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, examples=5))
    compare(fewer, tmp_path / "w", ["seeing"])
    compare(fewer, tmp_path / "w", ["seeing", "blind"])  # without a blind model there is no such row
    assert len(runs.started) == 3
    path = tmp_path / "w" / "report.json"
    path.write_text(path.read_text().replace('"finished": true', '"finished": false'))
    compare(fewer, tmp_path / "w", ["seeing", "blind"])
    assert len(runs.started) == 4


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main([f"--workdir={tmp_path}/w", "--config=configs/debug_tiny.py", "--config.train.step=3"])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "step" in error and error.count("\n") == 1
