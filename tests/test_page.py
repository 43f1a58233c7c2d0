"""The picture page: complete in one file, closed to hostile text, with right and wrong told apart in words."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image as Pillow

from frozen_jax.charts import Chart, list_charts
from frozen_jax.data.images import ImageOptions
from frozen_jax.page import PARTS, render_page
from frozen_jax.prompt import Image
from frozen_jax.tasks.samples import Sample, choose_samples, collect_samples

VOID = {"meta", "img"}
HOSTILE = '</dd><script src="https://evil.example/x.js">1</script><img src=x onerror=alert(1)>&lt;" \u202e\x00\ud800'
FIGURES = {
    "train": {"steps": 3},
    "vqa": {
        "source": "https://evil.example/?<b>",
        "majority": {"answer": "yes", "accuracy": 40.0},
        "shots_0": {"seeing": {"accuracy": 75.0}, "shuffled": {"accuracy": 50.0}, "blind": {"accuracy": 45.0}},
        "shots_4": {"seeing": {"accuracy": 80.0, "spread": 1.0}, "chance": 25.0},
    },
    "caption": {"seeing": {"bleu_1": 3.0, "cider_d": 150.0, "exact_match": 1.0}, "majority": {"cider_d": 20.0}},
    "evaluation": {"examples_per_s": 12.0, "tokens_per_s": 12345.6, "flops_per_example": 2_500_000},
}


class Reader(html.parser.HTMLParser):
    """Elements, attributes and text of a page; an element that is not closed in its place is an error."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def render(samples=(), *, title="vqa of w", figures=FIGURES, rows=(("vqa.source", HOSTILE),)):
    return render_page(title, "step 3", figures=figures, rows=rows, samples=samples, images=ImageOptions(8))


def picture(red):
    return np.full((8, 8, 3), (red, 0, 0), np.uint8)


def sample(score, *, answer=" red", prompt=None, group="shots_0"):
    return Sample(group, prompt or (picture(200), " Question: what color?"), answer, ("red", "dark red"), score)


@pytest.fixture(scope="module")
def page():
    hostile = Sample("<i>", (HOSTILE, picture(10), HOSTILE), HOSTILE, (HOSTILE,), 0.0)
    return render([sample(1.0), sample(0.0, answer="blue"), sample(0.3), hostile], title=HOSTILE)


def test_the_page_is_complete_in_one_file(page):
    reader = Reader(page)
    for tag, attrs in reader.elements:
        assert tag not in ("script", "link", "iframe", "object", "base", "a")
        assert not {"href", "srcset", "onerror"} & set(attrs)
        assert attrs.get("src", "data:image/webp;").startswith("data:image/webp;")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    policies = [
        attrs["content"] for tag, attrs in reader.elements if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_hostile_text_is_shown_as_it_is(page):
    words = "".join(Reader(page).words)
    assert words.count('<script src="https://evil.example/x.js">1</script><img src=x onerror=alert(1)>&lt;"') >= 5
    assert "\x00" not in page and "␀" in page
    page.encode("utf-8")  # a lone half of a surrogate pair would not go into any file
    for text in re.findall("\u202e", page):  # turns the direction of what follows, up to the end of its own element
        assert text and all(piece.startswith("<bdi>") for piece in re.findall(r"<bdi>[^<]*\u202e", page))


def test_right_and_wrong_are_told_in_words(page):
    words = Reader(page).words
    assert [word for word in words if word[:1] in "✓✗"] == ["✓ right", "✗ partly right (0.30)", "✗ wrong", "✗ wrong"]
    assert [attrs["class"] for tag, attrs in Reader(page).elements if tag == "article"] == [
        "card sample",
        *["card sample wrong"] * 3,
    ]


def test_pictures_stand_in_their_places():
    prompt = ("Look: ", picture(200), " and ", picture(10), " which?")
    page = render([sample(1.0, prompt=prompt)])
    shown = re.search(r'<div class="prompt">(.*?)</div>', page, re.DOTALL)[1]
    pieces = re.split(r'<img [^>]*base64,([^"]*)">', shown)
    assert [re.sub("</?bdi>", "", piece) for piece in pieces[::2]] == ["Look: ", " and ", " which?"]
    for data, red in zip(pieces[1::2], (200, 10), strict=True):
        pixels = np.asarray(Pillow.open(io.BytesIO(base64.b64decode(data))))
        assert pixels.shape == (8, 8, 3) and abs(float(pixels[..., 0].mean()) - red) < 8


def test_long_prompts_and_texts_are_cut_in_the_middle():
    page = render([sample(1.0, prompt=tuple(f"<{n}>" for n in range(PARTS + 7)), answer="x" * 5000)])
    words = "".join(Reader(page).words)
    assert "… 7 more …" in words and f"<{PARTS + 6}>" in words and f"<{PARTS // 2}>" not in words
    assert "(5000 characters)" in words and len(page) < 20_000


def test_a_picture_that_cannot_be_opened_is_named_so(tmp_path):
    page = render([sample(0.0, prompt=(tmp_path / "gone.png", " what?"))])
    assert "[a picture that cannot be opened]" in "".join(Reader(page).words)


def test_charts_find_every_measure_with_its_baselines():
    assert list_charts(FIGURES) == [
        Chart("vqa.shots_0", "accuracy", {"seeing": 75.0, "shuffled": 50.0, "blind": 45.0, "majority": 40.0}),
        Chart("vqa.shots_4", "accuracy", {"seeing": 80.0, "majority": 40.0}, 25.0),
        Chart("caption", "cider_d", {"seeing": 150.0, "majority": 20.0}),
    ]
    flat = {"vqa": {"blind": {"accuracy": 1.0}, "majority": 2.0, "question_only": 3.0, "text_oracle": 4.0}}
    bars = {"blind": 1.0, "majority": 2.0, "question_only": 3.0, "text_oracle": 4.0}
    assert [chart.bars for chart in list_charts(flat)] == [bars]
    assert list_charts({"train": {"steps": 3}, "vqa": {"text_oracle": 5.0}}) == []


def test_headline_figures_and_bars():
    page = render()
    words = "".join(Reader(page).words)
    assert "75seeing, vqa, shots 0: accuracy (shuffled pictures 50, blind 45, commonest answer 40)" in words
    assert "12,346tokens a second" in words and "2.5 MFLOP an example" in words and "chance: 25.00" in words
    shares = [float(share) for share in re.findall(r'class="bar [a-z_]*" style="--share: ([\d.]*)"', page)]
    assert shares == [75, 50, 45, 40, 80, 40, 100, 13.33]  # CIDEr-D goes beyond 100


def test_half_of_the_chosen_are_right():
    scores = [1.0] * 90 + [0.0] * 8 + [0.5] * 2
    chosen = choose_samples(scores, seed=0, most=12)
    assert len(chosen) == len(set(chosen)) == 12 and sum(scores[index] == 1 for index in chosen) == 6
    assert choose_samples(scores, seed=0, most=12) == chosen != choose_samples(scores, seed=1, most=12)
    assert sum(choose_samples([1.0] * 20 + [0.0], seed=0, most=12).count(index) for index in range(20)) == 11
    assert choose_samples([0.0] * 3, seed=0) == [0, 1, 2]


def test_collected_samples_hold_their_own_pictures():
    pictures = [picture(red) for red in (0, 100, 200)]
    made = collect_samples(
        "g",
        [(Image(2), " a", Image(0)), (Image(1),)],
        ["x", "y"],
        [["t"], ["u", "v"]],
        [True, False],
        pictures=pictures,
        seed=0,
    )
    assert made[0].prompt[0] is pictures[2] and made[0].prompt[2] is pictures[0] and made[1].prompt[0] is pictures[1]
    assert [(one.answer, one.truths, one.score) for one in made] == [("x", ("t",), 1.0), ("y", ("u", "v"), 0.0)]
