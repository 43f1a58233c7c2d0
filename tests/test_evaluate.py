"""Every task by the real `run` on one short run: `--mode=eval` with other settings of the same workdir."""

import dataclasses
import json
import typing

import jax
import numpy as np
import pytest

from frozen_jax import api
from frozen_jax.config import Config, default_config, from_config_dict
from frozen_jax.data.records import Question, Record
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.evaluate import TASKS
from frozen_jax.evaluate_settings import TaskName
from frozen_jax.prompt import Image
from frozen_jax.restore import load
from frozen_jax.run import run
from frozen_jax.tasks.controls import Models
from frozen_jax.tasks.retrieval import tell_dialogues
from frozen_jax.tools import controls, make_episodes


@pytest.fixture(scope="module")
def trained(tiny_lm, tmp_path_factory):
    """Config, workdir and report of one step of training, with its blind control."""
    config = default_config()
    config.telemetry.captions = 0  # a program more to compile
    config.lm.path = str(tiny_lm)
    config.vision.name = "nf_resnet_small"
    config.vision.options = {"widths": (8,), "depths": (1,), "stem_width": 8}
    config.data.train = config.data.validation = "fake:12"
    config.data.image.size, config.data.max_tokens = 16, 40
    config.train.steps, config.train.batch_size = 1, 8
    config.retrieval.weight, config.retrieval.width = 0.5, 4
    config.evaluate.max_new_tokens, config.evaluate.batch_size = 3, 16
    config.evaluate.task, config.evaluate.blind_control = "caption", True
    directory = tmp_path_factory.mktemp("run") / "w"
    return config.to_dict(), directory, run(from_config_dict(config), directory, mode="train")


def change(config, **changes):
    """A config with other settings of evaluation."""
    evaluate = config["evaluate"]
    merged = {name: evaluate[name] | value if isinstance(value, dict) else value for name, value in changes.items()}
    return from_config_dict({**config, "evaluate": evaluate | merged})


def test_every_task_has_a_name_and_every_name_a_task():
    assert {*TASKS, "none"} == set(typing.get_args(TaskName))


def test_training_ends_with_its_report(trained):
    _, directory, report = trained
    assert json.loads((directory / "report.json").read_text()) == report
    assert set(report["caption"]) >= {"seeing", "shuffled", "blind", "majority"} and report["caption"]["n"] == 12
    asked = 12 * 2 * 2  # captions and their references' losses, by the seeing model and again on shuffled pictures
    assert report["evaluation"]["examples"] == asked and report["versions"]["jax"] == jax.__version__
    assert all(report["evaluation"][name] > 0 for name in ("examples_per_s", "tokens_per_s", "flops_per_example"))
    page = (directory / "report.html").read_text()
    assert page.count("<article") == 12 and page.count('src="data:image/webp') == 12 and "://" not in page
    assert "evaluation.flops_per_example" in page


def test_the_table_of_controls_takes_a_finished_run_as_it_is(trained, monkeypatch):
    config, directory, report = trained
    monkeypatch.setattr(controls, "run", lambda *_, **__: pytest.fail("it is finished"))
    table = controls.compare(from_config_dict(config), directory, ["seeing", "blind", "prefix_2"])
    rows = {row[1]: row[2:] for line in table.splitlines() if (row := [cell.strip() for cell in line.split("|")[1:-1]])}
    scores = {name: f"{report['caption'][name]['cider_d']:.2f}" for name in ("seeing", "shuffled", "blind", "majority")}
    training = ["unchanged", "1", f"{report['train']['best_validation_loss']:.2f}"]
    assert rows["seeing"] == rows["prefix_2"] == [scores["seeing"], scores["shuffled"], *training]
    assert rows["blind"] == [scores["blind"], "", *training[:2], f"{report['train_blind']['best_validation_loss']:.2f}"]
    assert rows["majority"] == [scores["majority"], "", "", "", ""]
    assert report["train_blind"]["best_validation_loss"] != report["train"]["best_validation_loss"]


def test_another_evaluation_of_the_same_run(trained):
    """The evaluate section is free: another task, without the control, under another name."""
    config, directory, before = trained
    short = {
        "shots": (0, 1),
        "induction": "",
        "query_format": "[img]{question}",
        "shot_format": "[img]{question}{answer}",
    }
    other = change(config, task="vqa", report="vqa_shots", blind_control=False, seeds=2, vqa=short)
    report = run(other, directory, mode="eval")
    assert set(report["vqa"]["shots_1"]) >= {"seeing", "shuffled", "example"}
    assert len(report["vqa"]["shots_1"]["seeing"]["by_seed"]) == 2
    assert report["train"]["best_step"] == before["train"]["best_step"]
    assert json.loads((directory / "vqa_shots.json").read_text()) == report
    table = (directory / "vqa_shots.md").read_text()
    assert "vqa.shots_1.seeing.accuracy" in table and "[eos], \\n, Question:, 3 tokens" in table
    assert json.loads((directory / "report.json").read_text()) == before


def test_episodes_and_classes_by_a_loaded_model(trained, tmp_path):
    config, directory, _ = trained
    models = Models(load(directory), load(directory / "blind"))
    assert models.seeing.images.size == 16 and models.blind.blind and not models.seeing.blind
    make_episodes.main(["--source=fake:40", "--tag=0", f"--out={tmp_path}/set", "--count=5", "--size=16"])
    short = {"episodes": f"{tmp_path}/set", "induction": (False,)}
    short |= {"query_format": "[img]{question}", "support_format": "[img]{caption}"}
    for rows in (tmp_path / "set").glob("*.json"):
        rows.write_text(rows.read_text().replace("Q: What is this? A: This is a", "This is a"))
    fewshot = change(config, task="fewshot", fewshot=short)
    point = TASKS["fewshot"](fewshot, models, tmp_path).figures["fewshot"]["ways_2_shots_1_repeats_0"]
    assert point["n"] == 5 and point["chance"] == 50.0 and set(point["blind"]) == {"strict", "lenient"}
    classes = TASKS["classify"](change(config, task="classify", classify={"tag": 0}), models, tmp_path).figures[
        "classify"
    ]
    assert classes["chance"] == 25.0 and set(classes["seeing"]) == {"top_1", "ece", "less_prior_top_1"}


def test_retrieval_by_every_method_and_control(trained, tmp_path):
    """R@1 counted again from the model's own vectors; pictures that share a caption are all right."""
    config, directory, _ = trained
    models = Models(load(directory), load(directory / "blind"))
    asked = change(config, task="retrieval", retrieval={"turns": (1,)})
    figures = TASKS["retrieval"](asked, models, tmp_path).figures["retrieval"]
    records = [open_source("fake:12").record(row) for row in range(12)]
    captions = list(dict.fromkeys(record.captions[0] for record in records))
    assert figures["gallery"] == {"pictures": 12, "captions": len(captions), "without_caption": 0}
    relevant = np.array([[record.captions[0] == caption for caption in captions] for record in records])
    model, pictures = models.seeing, [record.image for record in records]
    likelihood = model.score([[picture] for picture in pictures], captions, normalise=True)
    black = model.score([[Image(0)]], captions, normalise=True, prefixes=model.embed_image(pictures).mean(0)[None])
    ret = model.map_image(pictures) @ model.embed_prompts([(text,) for text in captions], retrieval=True).T
    for method, similarity in {"likelihood": likelihood, "likelihood_prior": likelihood - black, "ret": ret}.items():
        assert set(figures[method]) == {"seeing", "shuffled", "blind", "chance", "chances"}
        found = {"text_to_image": relevant[similarity.argmax(0), range(len(captions))]}
        found["image_to_text"] = relevant[range(12), similarity.argmax(1)]
        for direction, hits in found.items():
            assert figures[method]["seeing"][f"{direction}_r_1"] == round(100 * hits.mean(), 2), (method, direction)
        # Among pictures that look the same none can be preferred, and ties count against the query.
        assert figures[method]["blind"]["text_to_image_r_1"] == 0.0
    assert figures["ret"]["chances"]["image_to_text_r_1"] == round(100 / len(captions), 2)
    assert figures["ret"]["chance"] == round(100 * relevant.sum(0).mean() / 12, 2)
    among = figures["image_to_image"]
    partners = relevant @ relevant.T & ~np.eye(12, dtype=bool)
    assert among["queries"] == partners.any(1).sum() and {"prefix", "states", "ret", "ret_prompt"} < set(among)
    near = model.map_image(pictures) @ model.map_image(pictures).T
    np.fill_diagonal(near, -9)
    hits = partners[range(12), near.argmax(1)][partners.any(1)]
    assert among["ret"]["seeing"]["image_to_image_r_1"] == round(100 * hits.mean(), 2)
    told = [(f"Question: {r.questions[0].text} Answer: {r.questions[0].answers[0]}",) for r in records]
    best = (model.embed_prompts(told, retrieval=True) @ model.map_image(pictures).T).argmax(axis=1)
    hits = (relevant @ relevant.T)[range(12), best]
    assert figures["dialogue_added"] == figures["dialogue"], "one turn has nothing to be added to"
    dialogue = figures["dialogue"]["turns_1"]
    assert dialogue["queries"] == 12 and set(dialogue) == {"queries", "chance", "seeing", "shuffled", "blind"}
    assert dialogue["seeing"]["text_to_image_r_1"] == round(100 * hits.mean(), 2) and dialogue["chance"] < 50
    with pytest.raises(UserError, match=r"evaluate\.retrieval\.turns has 3, and no picture has so many"):
        tell_dialogues(records, change(config, retrieval={"turns": (1, 3)}))


def test_a_dialogue_goes_on_where_it_was():
    """Two turns begin with the one turn, in an order of the seed's; each picture says what was answered about it."""
    questions = tuple(Question(f"q{number}?", ("no", "yes", "yes")) for number in range(4))
    records = [Record(str(row), None, questions=questions[: 4 - row]) for row in range(3)]
    config = from_config_dict(
        {
            "lm": {"path": "x"},
            "vision": {"name": "vit"},
            "data": {"train": "-"},
            "evaluate": {"retrieval": {"turns": (1, 3)}},
        }
    )
    told = tell_dialogues(records, config)
    assert {count: list(rows) for count, rows in told.items()} == {1: [0, 1, 2], 3: [0, 1]}
    assert all(told[3][row][:1] == told[1][row] for row in (0, 1)) and len(set(told[3][0])) == 3
    assert all(turn.startswith("Question: q") and turn.endswith("? Answer: yes") for turn in told[3][0])


def test_an_interrupted_evaluation_goes_on_and_reports_the_same(trained, monkeypatch):
    """3 batches of captions each for the seeing model and its shuffled pictures, one for the blind one; it dies at the
    fifth. The losses of references are batches too, which `generate` does not make."""
    config, directory, _ = trained
    calls = []

    def generate_until(limit):
        def counted(*given, **options):
            calls.append(len(given[2]))
            if len(calls) == limit:
                raise KeyboardInterrupt
            return generate(*given, **options)

        calls.clear()
        monkeypatch.setattr(api, "generate", counted)

    generate = api.generate
    generate_until(0)
    whole = run(change(config, report="whole", batch_size=4), directory, mode="eval")
    assert calls == [8] * 7  # rows for each of eight devices
    again = change(config, report="again", batch_size=4)
    generate_until(5)
    with pytest.raises(KeyboardInterrupt):
        run(again, directory, mode="eval")
    generate_until(0)
    report = run(again, directory, mode="eval")
    assert len(calls) == 3 and report["caption"] == whole["caption"]
    assert report["evaluation"]["answers_of_before"] == 12 + 12 + 4 and "answers_of_before" not in whole["evaluation"]
    for folder in (directory, directory / "blind"):
        assert (folder / "answers" / "again.jsonl").read_bytes() == (folder / "answers" / "whole.jsonl").read_bytes()


def test_eight_devices_answer_as_one_does(trained):
    _, directory, _ = trained
    lines = (directory / "answers" / "report.jsonl").read_text().splitlines()[1:]
    seeing, shuffled = ([text for text, *_ in json.loads(line)["answers"]] for line in lines[::2])
    model = load(directory)
    assert len(model.params["lm"]["embed"]["embedding"].devices()) == 1
    pictures = [record.image for record in map(open_source("fake:12").record, range(12))]
    options = {"max_new_tokens": 3, "stop": ("[eos]", "\n")}
    assert seeing == model.generate([[picture] for picture in pictures], **options)
    assert len(shuffled) == 12 and set(shuffled) == set(seeing)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seeds", 0, r"evaluate\.seeds is 0; it must be at least 1"),
        ("report", "../x", r"evaluate\.report .* part of a file name"),
        ("examples", -1, r"evaluate\.examples"),
        ("task", "vqav2", r"evaluate\.task is 'vqav2'"),
        ("task", "fewshot", r"evaluate\.fewshot\.episodes is ''; give the folder"),
        ("vqa.shots", (), r"evaluate\.vqa\.shots is \(\); give one or more"),
        ("vqa.shots", (4, 4), r"evaluate\.vqa\.shots"),
        ("vqa.shots", ("4",), r"evaluate\.vqa\.shots\[0\] is '4', a str; it must be a int"),
        ("vqa.query_format", "Question: {question}", r"vqa\.query_format .* exactly one \[img\], and \{question\}"),
        ("vqa.shot_format", "[img] {question} {answer} {id}", r"vqa\.shot_format"),
        ("vqa.shot_format", "[img] {question} {answer", r"vqa\.shot_format"),
        ("vqa.induction", "Look: [img]", r"vqa\.induction .* no \[img\], and nothing to be filled in"),
        ("fewshot.ways", (1,), r"fewshot\.ways .* at least 2"),
        ("fewshot.induction", (), r"fewshot\.induction"),
        ("fewshot.induction_format", "Answer with {name}.", r"only \{names\}"),
        ("classify.tag", -2, r"classify\.tag"),
        ("classify.prompts", (), r"classify\.prompts .* at least one template"),
        ("classify.prompts", ("This is a",), r"classify\.prompts .* exactly one \[img\]"),
        ("classify.shots", (-1,), r"classify\.shots"),
    ],
)
def test_each_wrong_setting_is_named(name, value, message):
    given = dataclasses.asdict(Config(lm=dataclasses.replace(Config().lm, path="x")))
    given["data"]["train"], given["vision"]["name"] = "fake:4", "resnet50"
    section, _, key = name.rpartition(".")
    (given["evaluate"][section] if section else given["evaluate"])[key] = value
    with pytest.raises(UserError, match=message):
        from_config_dict(given)


def test_settings_survive_json():
    given = json.loads(json.dumps(dataclasses.asdict(Config(lm=dataclasses.replace(Config().lm, path="x")))))
    given["data"]["train"], given["vision"]["name"] = "fake:4", "resnet50"
    assert from_config_dict(given).evaluate == Config().evaluate
