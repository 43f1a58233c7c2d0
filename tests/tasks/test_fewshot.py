"""Episodes made, written, read and scored, with pictures of one shade of red per class."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Pillow

from frozen_jax.config import Config
from frozen_jax.errors import UserError
from frozen_jax.evaluate_settings import EvaluateSettings, FewShotSettings
from frozen_jax.stopping import Completion
from frozen_jax.tasks import fewshot
from frozen_jax.tasks.controls import Models
from frozen_jax.tasks.episodes import Episode, read_episodes
from frozen_jax.tools.make_episodes import main
from tests.tasks.seers import Seer, paint, red_of

REDS = {"crimson": 50, "dark": 10, "rose": 190, "scarlet": 120}
STEM = "open_ended_mi_shots_2_ways_3"


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A folder of class folders with four pictures each."""
    root = tmp_path_factory.mktemp("classes")
    for name, red in REDS.items():
        (root / name).mkdir()
        for number in range(4):
            Pillow.fromarray(paint(red)).save(root / name / f"{number}.png")
    return f"classes:{root}"


def make(classes, out, *more, ways=3, shots=2, count=12):
    main([f"--source={classes}", f"--out={out}", f"--ways={ways}", f"--shots={shots}", f"--count={count}", *more])
    return out


@pytest.fixture(scope="module")
def episodes(classes, tmp_path_factory):
    """Open-ended, 3 ways and 2 shots, and 2 ways and 1 shot, in one folder."""
    out = make(classes, tmp_path_factory.mktemp("episodes") / "set", "--size=16")
    return make(classes, out, "--size=16", ways=2, shots=1)


def test_the_released_format(episodes):
    names = {file.name for file in episodes.iterdir() if file.name.startswith(STEM)}
    assert len(names) == 12 * 7 + 2
    rows = json.loads((episodes / f"{STEM}_all_questions.json").read_text())
    assert isinstance(rows, list) and len(rows) == 12
    described = json.loads((episodes / f"{STEM}_descriptions.json").read_text())  # beside the released file
    numbers = range(1, 7)
    keys = (
        {f"image_{n}" for n in numbers} | {f"caption_{n}" for n in numbers} | {"question", "question_image", "answer"}
    )
    for index, row in enumerate(rows):
        assert set(row) == keys
        assert [row[f"image_{n}"] for n in numbers] == [f"{STEM}_id_{index}_image_{n}.jpg" for n in numbers]
        assert row["question_image"] == f"{STEM}_id_{index}_question.jpg"
        assert row["question"] == "Q: What is this? A: This is a"
        captions = sorted(row[f"caption_{n}"] for n in numbers)
        assert captions == [f"This is a {name}." for name in ("blicket", "blicket", "dax", "dax", "slation", "slation")]
        shades = {row[f"caption_{n}"]: red_of(episodes / row[f"image_{n}"]) for n in numbers}
        assert shades[f"This is a {row['answer']}."] == red_of(episodes / row["question_image"])
        assert len(set(shades.values())) == 3
        pictures = [row["question_image"], *(row[f"image_{n}"] for n in numbers)]
        assert [REDS[described[picture]] for picture in pictures] == [red_of(episodes / file) for file in pictures]
    assert {row["answer"] for row in rows} == {"dax", "blicket", "slation"}
    with Pillow.open(episodes / f"{STEM}_id_0_question.jpg") as picture:
        assert picture.format == "JPEG" and picture.size == (16, 16)


def test_no_picture_occurs_twice_in_an_episode(classes, tmp_path):
    """With distinct pictures: four of a class, of which an episode takes three and a fourth as its question."""
    root = tmp_path / "distinct"
    for name, red in REDS.items():
        (root / name).mkdir(parents=True)
        for number in range(4):
            Pillow.fromarray(paint(red) + np.uint8([[[0, 60 * number, 0]]])).save(root / name / f"{number}.png")
    out = make(f"classes:{root}", tmp_path / "set", "--size=8", shots=3, count=6)
    for index in range(6):
        pictures = sorted(out.glob(f"*_id_{index}_*.jpg"))
        assert len({picture.read_bytes() for picture in pictures}) == len(pictures) == 10


def test_the_same_arguments_give_the_same_bytes(classes, tmp_path, monkeypatch):
    for name, now in (("one", 1e9), ("two", 2e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        make(classes, tmp_path / name, "--size=8")
        make(classes, tmp_path / f"{name}/set.tar.gz", "--size=8")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
    text = f"{STEM}_all_questions.json"
    other = make(classes, tmp_path / "other", "--size=8", "--seed=1")
    assert (other / text).read_bytes() != (tmp_path / "one" / text).read_bytes()


def test_an_archive_reads_as_its_folder(classes, tmp_path):
    folder = read_episodes(make(classes, tmp_path / "set", "--size=8"), ways=3, shots=2, most=5)
    archive = read_episodes(make(classes, tmp_path / "set.tar.gz", "--size=8"), ways=3, shots=2, most=5)
    assert [one.descriptions for one in folder.episodes] == [one.descriptions for one in archive.episodes]
    assert folder.task == archive.task == "open_ended_mi" and len(archive.episodes) == 5
    for one, other in zip(folder.episodes, archive.episodes, strict=True):
        assert [path.read_bytes() for path in one.images] == list(other.images)
        assert one.captions == other.captions and one.answer == other.answer
        assert one.question_image.read_bytes() == other.question_image


def bind(parts):
    """Answers with the name of the support picture that looks like the question's, and a full stop."""
    numbers = [place for place, part in enumerate(parts) if not isinstance(part, str)]
    like = [place for place in numbers[:-1] if parts[place] == parts[numbers[-1]]]
    return parts[like[0] + 1].removeprefix(" This is a ").removesuffix(".") if like else "nothing"


def bind_words(parts):
    """Binds as `bind` does, by the words that stand where the pictures would."""
    places = [place for place, part in enumerate(parts) if part.startswith(" ") and part.strip() in REDS]
    (name,) = {parts[place + 1] for place in places[:-1] if parts[place] == parts[places[-1]]}
    return name.removeprefix(" This is a ").removesuffix(".")


def test_the_text_oracle_reads_words_in_the_pictures_places(episodes, tmp_path):
    """It is asked the same prompts with each picture's own words, also of a text-only model; without words, it is not
    asked."""
    config = make_config(episodes, ways=(3,), inner_shots=(2,), repeats=(1,), induction=(True,))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, caption_format=" {caption}"))
    oracle = Seer(lambda parts: bind(parts) if any(isinstance(part, float) for part in parts) else bind_words(parts))
    figures = fewshot.evaluate(config, Models(oracle), tmp_path).figures["fewshot"][
        "ways_3_shots_2_repeats_1_induction"
    ]
    assert figures["text_oracle"] == {"strict": 100.0, "lenient": 100.0}
    seen, told = oracle.asked[0], oracle.asked[-1]
    for one, other in zip(seen, told, strict=True):
        words = [REDS[word.strip()] if isinstance(part, float) else word for part, word in zip(one, other, strict=True)]
        assert words == list(one)
    bare = tmp_path / "bare"
    shutil.copytree(episodes, bare)
    (bare / f"{STEM}_descriptions.json").unlink()
    config = make_config(bare, ways=(3,), inner_shots=(2,))
    assert (
        "text_oracle"
        not in fewshot.evaluate(config, Models(Seer(bind)), tmp_path).figures["fewshot"]["ways_3_shots_2_repeats_0"]
    )


def test_a_model_that_nobody_can_ask_is_refused(episodes, tmp_path):
    """It sees no pictures, and nothing says in words what they show: a report would hold no figure."""
    bare = tmp_path / "bare"
    shutil.copytree(episodes, bare)
    (bare / f"{STEM}_descriptions.json").unlink()
    reader = Seer(bind)
    object.__setattr__(reader, "network", SimpleNamespace(vision=None))
    with pytest.raises(UserError, match="do not say in words what their pictures show"):
        fewshot.evaluate(make_config(bare, ways=(3,), inner_shots=(2,)), Models(reader), tmp_path)


def make_config(episodes, **settings):
    fewshot_settings = FewShotSettings(episodes=str(episodes), **settings)
    return Config(evaluate=EvaluateSettings(task="fewshot", fewshot=fewshot_settings))


def test_the_whole_grid_with_controls(episodes, tmp_path):
    models = Models(Seer(bind), Seer(bind, blind=True))
    config = make_config(episodes, ways=(2,), inner_shots=(1,), repeats=(0, 2))
    figures, samples = fewshot.evaluate(config, models, tmp_path)
    figures = figures["fewshot"]
    points = [f"ways_2_shots_1_repeats_{n}{i}" for n in (0, 2) for i in ("", "_induction")]
    assert set(points) == {name for name in figures if name.startswith("ways_")}
    assert figures["task"] == "open_ended_mi" and figures["stop"] == ["[eos]", ".", "\n", "Q:", "20 tokens"]
    first, second = json.loads((episodes / "open_ended_mi_shots_1_ways_2_all_questions.json").read_text())[0:2]
    support = f"[img] {first['caption_1']}[img] {first['caption_2']}"
    query = "[img] Q: What is this? A: This is a"
    assert figures[points[0]]["prompt"] == support + query
    assert figures[points[2]]["prompt"] == support * 3 + query
    names = [first[f"caption_{n}"].removeprefix("This is a ").removesuffix(".") for n in (1, 2)]
    assert figures[points[1]]["prompt"] == f"Answer with {names[0]} or {names[1]}." + support + query
    for point in points:
        assert figures[point]["n"] == 12 and figures[point]["chance"] == 50.0
        assert figures[point]["seeing"] == {"strict": 100.0, "lenient": 100.0}
        # Blind, all pictures look alike, and the rule answers with the first name.
        assert 0 < figures[point]["blind"]["strict"] < 100
        assert figures[point]["shuffled"]["strict"] < 100
    assert {sample.group for sample in samples} == set(points) and {sample.score for sample in samples} == {1.0}
    assert sum(not isinstance(part, str) for part in samples[0].prompt) == 3
    shades = models.seeing.asked[0][1][::2]  # rows of the second episode are its own pictures
    assert shades == tuple(red_of(episodes / second[key]) for key in ("image_1", "image_2", "question_image"))


def test_more_ways_and_real_names(classes, tmp_path):
    out = make(classes, tmp_path / "set", "--size=8", "--real_names", ways=4, shots=1)
    config = make_config(out, ways=(4,), induction=(True,))
    figures = fewshot.evaluate(config, Models(Seer(bind)), tmp_path).figures["fewshot"]
    point = figures["ways_4_shots_1_repeats_0_induction"]
    assert figures["task"] == "real_name_mi" and point["chance"] == 25.0
    assert point["seeing"]["strict"] == 100.0
    words = point["prompt"].split("[img]")[0].removeprefix("Answer with ").removesuffix(".").replace(" or ", ", ")
    assert sorted(words.split(", ")) == sorted(REDS)


@pytest.mark.parametrize(
    ("text", "stopped", "strict", "lenient"),
    [
        (" dax", True, True, True),
        (" Dax", True, True, True),
        (" dax", False, False, True),
        (" dax toy", True, False, True),
        (" the dax", True, True, True),
        (" daxes", True, False, False),
        ("", True, False, False),
        (" blicket, not dax", True, False, True),
    ],
)
def test_strict_and_lenient(text, stopped, strict, lenient):
    completion = Completion(text, stopped, 3)
    assert fewshot.is_strict(completion, "dax") is strict
    assert fewshot.is_lenient(completion, "dax") is lenient


@pytest.mark.parametrize(
    ("text", "strict", "lenient"), [(" a", True, True), (" A", True, True), (" b", False, False), (" nothing", 0, 0)]
)
def test_an_answer_that_is_an_article_is_compared_as_written(text, strict, lenient):
    """Classes may be letters: normalised, "a" is nothing, and occurs in whatever is said."""
    completion = Completion(text, True, 3)
    assert (fewshot.is_strict(completion, "a"), fewshot.is_lenient(completion, "a")) == (strict, lenient)
    assert not fewshot.is_strict(Completion("", True, 0), "a")
    captions = ("This is a a.", "This is a the.")
    assert fewshot.chance_of(Episode((b"", b""), captions, "Q", b"", "the"), FewShotSettings()) == 0.5


def test_fast_vqa_has_no_names_to_draw_from():
    """Questions about bound words: the answer is none of the names, so a drawn name is never right."""
    settings = FewShotSettings()
    captions = ("This is a dax.", "This is a blicket.")
    episode = Episode((b"", b""), captions, "Q: What is the dax made of? A: ", b"", "wood")
    assert fewshot.chance_of(episode, settings) == 0.0
    assert fewshot.chance_of(episode._replace(answer="dax"), settings) == 0.5
    assert fewshot.list_names(episode, settings) == ["dax", "blicket"]
    assert fewshot.join_names(["a", "b", "c"]) == "a, b or c"
    odd = episode._replace(captions=("a dax", "This is a blicket."))
    with pytest.raises(UserError, match=r"does not fit the support caption 'a dax'"):
        fewshot.list_names(odd, settings)
    plain = dataclasses.replace(settings, induction_format="Answer the question.")
    prompt = fewshot.make_prompt(odd, plain, first_row=0, repeats=0, induced=True)
    assert prompt[0] == "Answer the question." and len(prompt) == 7


def damage(folder, change):
    text = folder / f"{STEM}_all_questions.json"
    rows = json.loads(text.read_text())
    change(rows)
    text.write_text(json.dumps(rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[3].pop("caption_2"), r"episode 3 has no text under caption_2"),
        (lambda rows: rows[0].update(image_7="x.jpg"), r"episode 0 has more than 6 pictures"),
        (lambda rows: rows[1].update(image_1="../x.jpg"), r"episode 1 has image_1='\.\./x\.jpg'"),
        (lambda rows: rows[1].update(question_image="x.jpg"), r"has no x\.jpg, which open_ended_mi"),
        (lambda rows: rows.clear(), r"must hold a list of episodes"),
        (lambda rows: rows[0].update(image_1=f"{STEM}_descriptions.json"), r"has no words about"),
    ],
)
def test_damaged_sets_are_named(episodes, tmp_path, change, message):
    folder = tmp_path / "set"
    shutil.copytree(episodes, folder)
    damage(folder, change)
    with pytest.raises(UserError, match=message):
        read_episodes(folder, ways=3, shots=2)


def test_sets_that_are_not_there_are_named(episodes, classes, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_episodes(tmp_path / "nowhere.tar.gz", ways=2, shots=1)
    with pytest.raises(UserError, match=r"has none; there are \['open_ended_mi_shots_1_ways_2_all"):
        read_episodes(episodes, ways=5, shots=1)
    both = make(classes, tmp_path / "both", "--size=8", ways=2, shots=1)
    make(classes, both, "--size=8", "--real_names", ways=2, shots=1)
    with pytest.raises(UserError, match="keep each task in a folder of its own"):
        read_episodes(both, ways=2, shots=1)
    archive = make(classes, tmp_path / "set.tar.gz", "--size=8")
    archive.write_bytes(archive.read_bytes()[:-4000])
    with pytest.raises(UserError, match="cannot be read as a tar archive"):
        read_episodes(archive, ways=3, shots=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ways=6"], "there are 5 new names"),
        (["--ways=5", "--real_names"], "has 4 classes with the 2 pictures"),
        (["--shots=4"], "has 0 classes with the 5 pictures"),
        (["--ways=1"], "at least 2, 1 and 1"),
        (["--tag=1"], "none at place 1"),
        (["--source=fake:x"], "fake:x"),
    ],
)
def test_what_cannot_be_made_is_one_line(classes, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as status:
        main([f"--source={classes}", f"--out={tmp_path / 'set'}", "--count=3", *arguments])
    error = capsys.readouterr().err
    assert status.value.code == 1 and message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "set").exists()


def test_a_set_is_not_overwritten(episodes, classes, capsys):
    with pytest.raises(SystemExit):
        make(classes, episodes)
    assert "holds such episodes already" in capsys.readouterr().err
