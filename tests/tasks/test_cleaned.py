"""Tasks that look for, draw or fuse captions take them as training has them: cleaned."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from PIL import Image as Pillow

from frozen_jax.config import Config
from frozen_jax.fusion_settings import FusionSettings
from frozen_jax.tasks import fusion, generate, retrieval
from frozen_jax.tasks.controls import Models
from tests.tasks.seers import Seer, paint


class Asked(Exception):
    """Ends a task where its model is asked, and holds the captions."""


def write_dirty(folder, name, *, lighter):
    rows = []
    for red in (10, 240):
        Pillow.fromarray(paint(red + lighter)).save(folder / f"{name}{red}.png")
        caption = f"a  red\u200b\nsquare &amp; {red}"
        rows.append({"image": f"{name}{red}.png", "caption": caption, "tags": [f"of {red}"]})
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{folder}/{name}.jsonl"


@pytest.fixture
def config(tmp_path):
    train, validation = write_dirty(tmp_path, "train", lighter=5), write_dirty(tmp_path, "dirty", lighter=0)
    default = Config()
    return dataclasses.replace(
        default,
        data=dataclasses.replace(default.data, train=train, validation=validation, caption_format=" {caption}"),
        fusion=FusionSettings(kind="concat", item="caption", classes=("of 10", "of 240")),
    )


def ask(words):
    raise Asked(words)


class Drawer(Seer):
    """Draws nothing."""

    def draw(self, texts, **options):
        ask(texts)


@pytest.mark.parametrize(("task", "form"), [(retrieval, " {}"), (generate, " {}"), (fusion, "{}")])
def test_a_task_asks_with_captions_as_training_reads_them(task, form, config, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "score_texts", lambda model, table, texts, prompts: ask(texts))
    monkeypatch.setattr(fusion, "fuse", lambda model, items: ask([text for _, text in items]))
    model = Drawer()
    model.network.fusion = SimpleNamespace(classes=config.fusion.classes)
    with pytest.raises(Asked) as asked:
        task.evaluate(config, Models(model), tmp_path)
    assert asked.value.args[0] == [form.format(f"a red square & {red}") for red in (10, 240)]
