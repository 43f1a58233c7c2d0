"""Exports in PyTorch against the models here: every family and encoder, greedy tokens, pictures, both loaders."""

import ast
import dataclasses
import sys

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

import frozen_jax
from frozen_jax.convert.safetensors_reader import SafetensorsDirectory
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.export.check import check_round_trip, compare, import_modeling, sample_prompts
from frozen_jax.export.write import CLASS, MODELING, widen, write_pytorch
from tests.export.cases import LMS, build_model

PAIRS = [
    *((lm, encoder) for lm in LMS for encoder in ("nf_resnet", "resnet", "clip")),
    *(("gpt2", encoder) for encoder in ("clip_projected", "plain")),
]


@pytest.fixture(scope="module")
def modeling():
    return import_modeling()


def export(model, directory):
    directory.mkdir(exist_ok=True)
    model = widen(model)
    write_pytorch(model, directory, card="")
    return model


def load_torch(modeling, directory):
    return getattr(modeling, CLASS).from_pretrained(directory), modeling.FrozenProcessor.from_pretrained(directory)


@pytest.mark.parametrize(("lm", "encoder"), PAIRS, ids=lambda name: name)
def test_logits_greedy_tokens_and_every_bit(lm, encoder, tiny_lm, tmp_path, modeling):
    model = export(build_model(lm, encoder, tiny_lm), tmp_path)
    check_round_trip(model, tmp_path)
    torch_model, processor = load_torch(modeling, tmp_path)
    without = {*torch_model.state_dict()} - {*SafetensorsDirectory(tmp_path)}
    assert without <= {"language_model.lm_head.weight"}, "drawn at random instead of loaded"
    prompts = sample_prompts(model)
    result = compare(model, torch_model, processor, prompts)
    assert result.logit_difference <= 1e-4 and result.deviation > 0.2
    assert result.equal_texts == result.prompts == len(prompts)
    inputs = processor(prompts)
    moved = {**inputs, "pixel_values": 255 - inputs["pixel_values"]}
    with torch.no_grad():
        change = (torch_model(**inputs).logits - torch_model(**moved).logits).abs()[: len(prompts) - 1].amax((1, 2))
    assert (change > 1e-2).all(), "pictures that change nothing would hide a wrong encoder"


@pytest.fixture(scope="module")
def exported(tiny_lm, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported")
    return export(build_model("gpt2", "nf_resnet_small", tiny_lm), directory), directory


def test_beams_are_ours_and_sampling_runs(exported, modeling):
    model, directory = exported
    torch_model, processor = load_torch(modeling, directory)
    prompts = sample_prompts(model)
    inputs = processor(prompts)
    made = torch_model.generate(**inputs, max_new_tokens=6, num_beams=3)
    texts = processor.decode(made)
    assert texts == model.generate(prompts, max_new_tokens=6, num_beams=3)
    torch.manual_seed(0)
    sampled = torch_model.generate(**inputs, max_new_tokens=6, do_sample=True, temperature=2.0)
    assert sampled.shape[0] == len(prompts) and processor.decode(sampled) != texts


def test_greedy_texts_end_where_ours_do(exported, modeling):
    model, directory = exported
    torch_model, processor = load_torch(modeling, directory)
    prompts = sample_prompts(model)
    made = torch_model.generate(**processor(prompts))  # 20 tokens, as generation_config.json says
    assert processor.decode(made) == model.generate(prompts, max_new_tokens=20)


def test_labels_give_the_loss_of_the_next_words(exported, modeling):
    _, directory = exported
    torch_model, processor = load_torch(modeling, directory)
    inputs = processor([[np.zeros((8, 8, 3), np.uint8), " a red patch"]])
    ids = inputs["input_ids"]
    output = torch_model(**inputs, labels=torch.where(ids < 0, -100, ids))
    scores = torch.log_softmax(output.logits[0, 2:-1], dim=-1)
    expected = -scores.gather(1, ids[0, 3:, None]).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    output.loss.backward()
    assert torch_model.vision.stem.weight.grad.abs().max() > 0


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForImageTextToText"])
def test_loads_through_transformers_for_those_who_trust_it(exported, auto, tmp_path, monkeypatch):
    model, directory = exported
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    loaded = getattr(transformers, auto).from_pretrained(directory, trust_remote_code=True)
    processor = sys.modules[type(loaded).__module__].FrozenProcessor.from_pretrained(directory)
    prompts = sample_prompts(model)
    assert type(loaded).__module__.startswith("transformers_modules")
    assert compare(model, loaded, processor, prompts).equal_texts == len(prompts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert tokenizer.encode(" a red patch", add_special_tokens=False) == model.tokenizer.encode(" a red patch")


def test_what_transformers_saves_comes_back(exported, modeling, tmp_path):
    """Trained on in PyTorch, saved there, and read here: unverified, since the weights were meant to change."""
    model, directory = exported
    torch_model, _ = load_torch(modeling, directory)
    with torch.no_grad():
        torch_model.prefix.gain += 1
    torch_model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    read = frozen_jax.load(tmp_path)
    assert read.params["prefix"]["gain"] == model.params["prefix"]["gain"] + 1
    np.testing.assert_array_equal(
        read.params["lm"]["blocks"]["up"]["kernel"], model.params["lm"]["blocks"]["up"]["kernel"]
    )


def test_a_blind_model_sees_black(exported, tmp_path, modeling):
    model = export(dataclasses.replace(exported[0], blind=True), tmp_path)
    torch_model, processor = load_torch(modeling, tmp_path)
    assert compare(model, torch_model, processor, sample_prompts(model)).equal_texts == 5
    vectors = torch_model.embed_pictures(processor(sample_prompts(model))["pixel_values"])
    assert torch.equal(vectors[0], vectors[1])


def test_too_few_pictures_are_refused(exported, modeling):
    torch_model, processor = load_torch(modeling, exported[1])
    inputs = processor([[np.zeros((8, 8, 3), np.uint8)]])
    with pytest.raises(ValueError, match="2 slots, 0 vectors of pictures"):
        torch_model(inputs["input_ids"])


def test_the_file_stands_alone():
    names = set()
    for node in ast.walk(ast.parse(MODELING.read_text())):
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
    roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert roots == {"numpy", "torch", "PIL", "transformers"}


def make_pictures(directory):
    """Files that take every path of the preparation."""
    rng = np.random.default_rng(0)
    smooth = PIL.Image.fromarray(rng.integers(0, 256, (9, 13, 3), np.uint8)).resize((301, 203))
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    files = {
        "large.jpg": (smooth, {}),
        "turned.jpg": (smooth, {"exif": turned}),
        "tall.png": (smooth.crop((0, 0, 20, 190)), {}),
        "exact.png": (smooth.resize((16, 16)), {}),
        "grey.png": (smooth.convert("L"), {}),
        "clear.png": (PIL.Image.fromarray(rng.integers(0, 256, (40, 30, 4), np.uint8)), {}),
        "palette.png": (smooth.convert("P"), {"transparency": 3}),
        "wide.png": (PIL.Image.fromarray(rng.integers(0, 65536, (21, 34)).astype(np.uint16)), {}),
        "one.bmp": (smooth.crop((0, 0, 1, 1)), {}),
    }
    for name, (image, options) in files.items():
        image.save(directory / name, **options)
    return [directory / name for name in files]


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_pictures_are_prepared_bit_for_bit_alike(fit, tmp_path, modeling):
    options = ImageOptions(size=16, fit=fit, background=(10, 200, 30))
    processor = modeling.FrozenProcessor(
        None, size=16, fit=fit, background=[10, 200, 30], max_pixels=10**6, image_seq_length=2, add_bos=False
    )
    for path in make_pictures(tmp_path):
        ours, theirs = load_image(path, options=options), processor.prepare_picture(path)
        np.testing.assert_array_equal(theirs, ours, err_msg=path.name)
        with PIL.Image.open(path) as opened:
            np.testing.assert_array_equal(
                processor.prepare_picture(opened), load_image(opened, options=options), err_msg=path.name
            )
    rng = np.random.default_rng(1)
    for shape in ((40, 30), (40, 30, 1), (40, 30, 4), (1, 40, 3), (40, 1, 3), (1, 1, 3), (1, 40, 4), (1, 30, 1)):
        pixels = rng.integers(0, 256, shape, np.uint8)
        ours = load_image(pixels, options=options)
        np.testing.assert_array_equal(processor.prepare_picture(pixels), ours, err_msg=str(shape))
    processor.max_pixels = 100
    with pytest.raises(ValueError, match="over the limit of 100"):
        processor.prepare_picture(tmp_path / "large.jpg")
