"""The export tool on a run, what it refuses, and reading its directories back."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import torch
import transformers

import frozen_jax
from frozen_jax.build import resolve_path
from frozen_jax.errors import UserError
from frozen_jax.export import check
from frozen_jax.export.check import compare_with_torch, import_modeling, sample_prompts
from frozen_jax.export.layout import DIGESTS, PREPROCESSOR, VERIFIED, WEIGHTS, describe_vision
from frozen_jax.export.write import CLASS, PROGRAM, widen, write_digests
from frozen_jax.lora import draw_lora
from frozen_jax.models.vision import build_vision
from frozen_jax.pretrained_vision import load_vision
from frozen_jax.quantise import dequantise_lm, quantise_lm
from frozen_jax.restore import load_run, read_run
from frozen_jax.state import flatten, map_with_path
from frozen_jax.tools import export as tool
from tests.export.cases import ENCODERS, SIDE, describe, same, save_run


@pytest.fixture(scope="module")
def run(tiny_lm, tmp_path_factory):
    """A workdir with an untrained CLIP tower, and the export of it."""
    directory = tmp_path_factory.mktemp("run")
    save_run(describe(tiny_lm), directory / "w")
    (directory / "w" / "report.json").write_text('{"vqa": {"seeing": 93.25}}')
    line = tool.export(directory / "w", directory / "out")
    return directory, line


def test_success_is_reported_after_both_comparisons(run):
    directory, line = run
    assert line.startswith(
        f"{directory / 'out'}: read back by frozen_jax, every parameter bit for bit; in PyTorch 5 of 5"
    )
    written = {path.name for path in (directory / "out").iterdir()}
    assert written == {*VERIFIED, DIGESTS, "modeling_frozen.py", "README.md"}
    assert {path.name for path in directory.iterdir()} == {"w", "out"}, "nothing is left beside it"
    card = (directory / "out" / "README.md").read_text()
    assert "93.25" in card and "fake:8" in card and "Licence" in card


def test_an_export_loads_as_the_run_does(run):
    directory, _ = run
    read, trained = frozen_jax.load(directory / "out"), frozen_jax.load(directory / "w")
    assert same(read.params, trained.params)
    assert read.network == trained.network and read.images == trained.images and read.bos == trained.bos
    prompts = sample_prompts(read)
    assert read.generate(prompts, max_new_tokens=4) == trained.generate(prompts, max_new_tokens=4)
    with pytest.raises(UserError, match=r"holds an exported model, which frozen_jax\.load reads"):
        read_run(directory / "out")


def test_a_run_starts_from_an_exported_encoder(run, tmp_path):
    """The encoder of a finished run, as `vision.path`: the same numbers, of the same network, undamaged."""
    directory, _ = run
    trained = frozen_jax.load(directory / "w")
    assert same(load_vision(str(directory / "out"), trained.network.vision), trained.params["vision"])
    name, options = ENCODERS["clip_projected"]
    other = build_vision(name, **{**options, "mlp_width": 20})
    with pytest.raises(UserError, match=r"vision encoder .*vision_config\.mlp_width = \d+, and this encoder 20; set"):
        load_vision(str(directory / "out"), other)
    damaged = shutil.copytree(directory / "out", tmp_path / "damaged")
    (damaged / WEIGHTS).write_bytes((damaged / WEIGHTS).read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=rf"{WEIGHTS} is damaged"):
        load_vision(str(damaged), trained.network.vision)


def test_a_head_for_retrieval_is_left_out(run):
    """The rest is compared bit for bit after writing, and this would be missing there."""
    model = frozen_jax.load(run[0] / "w")
    params = {**model.params, "retrieval": {"token": np.zeros(4, np.float32)}}
    assert set(widen(dataclasses.replace(model, params=params)).params) == {"lm", "vision", "prefix"}


def test_what_was_learnt_beside_bfloat16_kernels_is_not_rounded(run):
    """Small beside the kernels, as after training."""
    model = frozen_jax.load(run[0] / "w")
    own = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), model.params["lm"])
    lm = map_with_path(
        lambda path, leaf: np.full_like(leaf, 1e-3) if path.endswith("lora_up") else np.asarray(leaf),
        draw_lora(jax.random.key(0), own, rank=2),
    )
    wide = flatten(widen(dataclasses.replace(model, params={**model.params, "lm": lm})).params["lm"])
    adapted = flatten(lm)
    for place in ("qkv", "up", "down"):
        down, up = (adapted[f"blocks/{place}/lora_{way}"] for way in ("down", "up"))
        change = np.stack([np.tensordot(down[layer], up[layer], 1) for layer in range(len(down))])
        exact = adapted[f"blocks/{place}/kernel"].astype(np.float32) + change
        np.testing.assert_allclose(wide[f"blocks/{place}/kernel"], exact, rtol=1e-6, atol=1e-7)
    assert {leaf.dtype for leaf in wide.values()} == {np.dtype(np.float32)}


def test_a_prefix_that_pytorch_does_not_have_is_refused(run):
    model = frozen_jax.load(run[0] / "w")
    network = dataclasses.replace(model.network, prefix=model.network.prefix.clone(kind="transformer"))
    with pytest.raises(UserError, match=r"prefix\.kind='transformer', and --format=pytorch knows linear and mlp alone"):
        widen(dataclasses.replace(model, network=network))


@pytest.mark.parametrize("name", VERIFIED)
def test_a_damaged_file_is_refused_by_name(run, tmp_path, name):
    shutil.copytree(run[0] / "out", tmp_path / "copy")
    path = tmp_path / "copy" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: not valid JSON|{name} is damaged"):
        frozen_jax.load(tmp_path / "copy")
    path.unlink()
    with pytest.raises(UserError, match=rf"{name} is missing|no config\.json"):
        frozen_jax.load(tmp_path / "copy")


def test_a_list_of_digests_that_leaves_a_file_out_is_refused(run, tmp_path):
    shutil.copytree(run[0] / "out", tmp_path / "copy")
    listed = json.loads((tmp_path / "copy" / DIGESTS).read_text())
    del listed["sha256"][WEIGHTS]
    (tmp_path / "copy" / DIGESTS).write_text(json.dumps(listed))
    with pytest.raises(UserError, match=rf"does not list {WEIGHTS}"):
        frozen_jax.load(tmp_path / "copy")


def test_what_ends_texts_is_verified_where_there_is_such_a_file(run, tmp_path):
    copy = shutil.copytree(run[0] / "out", tmp_path / "copy")
    path = copy / "generation_config.json"
    ends = json.loads(path.read_text())
    path.write_text(json.dumps({**ends, "eos_token_id": [0, 5, 6]}))
    with pytest.raises(UserError, match=r"generation_config\.json is damaged or was changed"):
        frozen_jax.load(copy)
    listed = json.loads((copy / DIGESTS).read_text())
    del listed["sha256"]["generation_config.json"]
    (copy / DIGESTS).write_text(json.dumps(listed))
    with pytest.raises(UserError, match=r"does not list generation_config\.json"):
        frozen_jax.load(copy)
    path.unlink()
    assert frozen_jax.load(copy).tokenizer.end_ids == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config": {"name": "vgg"}}, "vision_config.name is 'vgg'"),
        ({"vision_config": {"name": "vit", "wdith": 3}}, "wdith is not an option"),
        ({"prefix_config": None}, "lacks a field"),
        ({"language_model": {"path": "x", "sha256": ""}}, "belongs to no part of this model"),
        ({"text_config": {"model_type": "t5"}}, "'t5' is not supported"),
        ({"lm_dtype": "float64"}, r"lm_dtype is 'float64'; it must be one of auto, float32, bfloat16"),
    ],
)
def test_settings_that_do_not_fit_are_refused(run, tmp_path, change, message):
    shutil.copytree(run[0] / "out", tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    write_digests(tmp_path / "copy")
    with pytest.raises(UserError, match=message):
        frozen_jax.load(tmp_path / "copy")


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("prefix_config", "length", -2, "prefix_config.length is -2; .* at least 1"),
        ("prefix_config", "length", True, "prefix_config.length is True"),
        ("prefix_config", "length", "2", "prefix_config.length is '2'"),
        ("prefix_config", "length", 2**40, "has shape .* config.json asks for"),
        ("vision_config", "layers", 10**12, "too few for the 1000000000000 layers"),
    ],
)
def test_damaged_sizes_of_an_unverified_export_are_refused(run, tmp_path, section, field, value, message):
    shutil.copytree(run[0] / "out", tmp_path / "copy")
    (tmp_path / "copy" / DIGESTS).unlink()
    path = tmp_path / "copy" / "config.json"
    content = json.loads(path.read_text())
    content[section][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        frozen_jax.load(tmp_path / "copy")


def test_a_packaged_name_cannot_leave_the_package():
    for name in ("package:../convert", "package:scene_gpt2/../scene_gpt2", "package:/etc", "package:pytorch"):
        with pytest.raises(UserError, match=r"no such model in the package; there: scene_gpt2$"):
            resolve_path(name)


def test_without_the_language_model_it_is_named_and_checked(run, tiny_lm, tmp_path):
    line = tool.export(run[0] / "w", tmp_path / "out", with_lm=False)
    assert "5 of 5 greedy texts equal" in line
    whole, part = frozen_jax.load(run[0] / "out"), frozen_jax.load(tmp_path / "out")
    assert same(whole.params, part.params) and whole.network == part.network
    assert (tmp_path / "out" / WEIGHTS).stat().st_size < (run[0] / "out" / WEIGHTS).stat().st_size / 2

    other = transformers.AutoModelForCausalLM.from_pretrained(tiny_lm)
    compare_with_torch(part, tmp_path / "out", language_model=other)
    with torch.no_grad():
        other.transformer.ln_f.bias[0] += 1
    with pytest.raises(ValueError, match="its weights differ"):
        getattr(import_modeling(), CLASS).from_pretrained(tmp_path / "out", language_model=other)
    loaded = getattr(import_modeling(), CLASS).from_pretrained(tmp_path / "out")
    with torch.no_grad():
        loaded.language_model.transformer.ln_f.bias[0] += 1
    loaded.save_pretrained(tmp_path / "trained")
    for file in (PREPROCESSOR, "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "out" / file, tmp_path / "trained")
    again = getattr(import_modeling(), CLASS).from_pretrained(tmp_path / "trained")
    assert torch.equal(again.language_model.transformer.ln_f.bias, loaded.language_model.transformer.ln_f.bias)
    back = flatten(frozen_jax.load(tmp_path / "trained").params)
    moved = {name for name, leaf in flatten(whole.params).items() if not np.array_equal(leaf, back[name])}
    assert moved == {"lm/final_norm/bias"}

    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    other.save_pretrained(tmp_path / "other")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_lm / file, tmp_path / "other")
    config["language_model"]["path"] = str(tmp_path / "other")
    path.write_text(json.dumps(config))
    write_digests(tmp_path / "out")
    with pytest.raises(UserError, match=r"this model was trained with .* put that model there"):
        frozen_jax.load(tmp_path / "out")


@pytest.mark.parametrize("path", ["package:scene_gpt2", "a/model-q8.gguf", "folder"])
def test_what_pytorch_cannot_open_by_name_is_not_left_out(run, tmp_path, path):
    shutil.copytree(run[0] / "w", tmp_path / "w")
    if path == "folder":  # of one file, as `tools.fetch_data` leaves a language model
        path = str(tmp_path / "smollm2")
        (tmp_path / "smollm2").mkdir()
        (tmp_path / "smollm2" / "SmolLM2.gguf").touch()
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    config["lm"]["path"] = path
    (tmp_path / "w" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"reads directories and hub ids; the run's is '{path}': export without"):
        tool.export(tmp_path / "w", tmp_path / "out", with_lm=False)
    assert not (tmp_path / "out").exists()


def test_a_language_model_that_pytorch_does_not_find_is_named(run, tmp_path):
    tool.export(run[0] / "w", tmp_path / "out", with_lm=False)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["language_model"]["path"] = str(tmp_path / "absent")
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"PyTorch cannot load the language model of this run \(.*absent.*; export it"):
        compare_with_torch(frozen_jax.load(run[0] / "out"), tmp_path / "out")


def test_without_torch_it_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "has_torch", lambda: False)
    line = tool.export(run[0] / "w", tmp_path / "out")
    assert "NOT compared with PyTorch, because torch and transformers are not installed" in line
    assert same(frozen_jax.load(tmp_path / "out").params, frozen_jax.load(run[0] / "out").params)


def test_what_disagrees_is_not_exported(run, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "TOLERANCE", 1e-12)
    with pytest.raises(UserError, match="PyTorch disagrees: logits differ by"):
        tool.export(run[0] / "w", tmp_path / "out")
    monkeypatch.setattr(check, "_same_bits", lambda one, other: False)
    with pytest.raises(RuntimeError, match="parameters differ, such as"):
        tool.export(run[0] / "w", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": "."}, "exists and is not empty"),
        ({"workdir": "."}, "holds no run"),
        ({"layout": "torchvision"}, r"--format=torchvision is for a ResNet"),
        ({"layout": "clip", "with_lm": False}, "--no_lm leaves out"),
    ],
)
def test_what_cannot_be_exported(run, tmp_path, arguments, message, capsys):
    directory, _ = run
    given = {"workdir": directory / "w", "out": tmp_path / "out", **arguments}
    given = {name: directory if value == "." else value for name, value in given.items()}
    before = sorted(directory.iterdir())
    with pytest.raises(UserError, match=message):
        tool.export(**given)
    assert not list(tmp_path.iterdir()) and sorted(directory.iterdir()) == before
    if "layout" not in arguments:
        with pytest.raises(SystemExit, match="1"):
            tool.main([f"--workdir={given['workdir']}", f"--out={given['out']}"])
        assert capsys.readouterr().err.startswith("error: ")


def test_a_clip_tower_alone_loads_in_transformers(run, tmp_path):
    tool.export(run[0] / "w", tmp_path / "out", layout="clip")
    model = load_run(run[0] / "w")
    tower = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "out")
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)
    with torch.no_grad():
        expected = tower(**processor(list(images), return_tensors="pt")).image_embeds.numpy()
    encode = jax.jit(model.network.vision.apply)
    ours = encode({"params": model.params["vision"]}, images).pooled
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert same(load_vision(str(tmp_path / "out"), model.network.vision), model.params["vision"])


def test_an_encoder_without_a_pytorch_side_is_named():
    with pytest.raises(UserError, match="EfficientNetLite has no PyTorch side in exports; --format=stablehlo"):
        describe_vision(build_vision("efficientnet_lite0"))
    with pytest.raises(UserError, match="SigLIP has no PyTorch side"):
        describe_vision(build_vision("vit", family="siglip"))


def test_stablehlo_gives_the_vectors_of_any_number_of_pictures(run, tmp_path):
    tool.export(run[0] / "w", tmp_path / "out", layout="stablehlo")
    program = jax.export.deserialize(bytearray((tmp_path / "out" / PROGRAM).read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    expected = load_run(run[0] / "w").embed_image(images)
    for count in (1, 3):
        np.testing.assert_allclose(program.call(images[:count]), expected[:count], atol=1e-5)


def test_to_a_blind_runs_program_every_picture_is_black(tiny_lm, tmp_path):
    config = describe(tiny_lm)
    config.blind = True
    save_run(config, tmp_path / "w")
    tool.export(tmp_path / "w", tmp_path / "out", layout="stablehlo")
    program = jax.export.deserialize(bytearray((tmp_path / "out" / PROGRAM).read_bytes()))
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_allclose(program.call(images), load_run(tmp_path / "w").embed_image(images), atol=1e-5)


@pytest.mark.parametrize("kind", ["transformer", "attention_pool", "patches"])
def test_encoders_and_programs_are_of_every_run_that_looks(kind, tiny_lm, tmp_path):
    """Whatever is beside the language model, and whatever makes the prefix: neither is in the encoder alone."""
    config = describe(tiny_lm)
    config.prefix.update({"kind": kind, "length": 5, "hidden": 8, "layers": 1, "heads": 2})  # patches has five
    config.adaptation.update({"adapter_width": 2, "prompt_length": 2})
    save_run(config, tmp_path / "w")
    model = load_run(tmp_path / "w")
    tool.export(tmp_path / "w", tmp_path / "clip", layout="clip")
    assert same(load_vision(str(tmp_path / "clip"), model.network.vision), model.params["vision"])
    tool.export(tmp_path / "w", tmp_path / "program", layout="stablehlo")
    program = jax.export.deserialize(bytearray((tmp_path / "program" / PROGRAM).read_bytes()))
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_allclose(program.call(images), model.embed_image(images), atol=1e-5)
    with pytest.raises(UserError, match=r"--format=pytorch knows linear and mlp alone; .*--format=stablehlo"):
        tool.export(tmp_path / "w", tmp_path / "out")


def test_int8_kernels_are_multiplied_out():
    rng = np.random.default_rng(0)
    kernels = {"up": rng.normal(size=(2, 3, 5)), "out": rng.normal(size=(2, 2, 2, 3))}
    blocks = {name: {"kernel": kernel.astype(np.float32)} for name, kernel in kernels.items()}
    params = {"blocks": {**blocks, "attention_norm": {"scale": np.ones((2, 3), np.float32)}}}
    stored = quantise_lm(params)
    wide = dequantise_lm(stored)
    assert flatten(wide).keys() == flatten(params).keys()
    for name, kernel in kernels.items():
        scale = np.asarray(stored["blocks"][name]["scale"])
        expanded = scale[:, None] if name == "up" else scale[:, None, None]
        difference = np.abs(wide["blocks"][name]["kernel"] - kernel)
        assert (difference <= expanded * 0.5001).all() and difference.max() > 0
    assert dequantise_lm(params) == params


DOCUMENT = Path(__file__).parents[2] / "docs/export.md"


def test_the_documents_commands_and_examples_run(run, tiny_config, tmp_path, monkeypatch):
    """On the small run in place of the quickstart's, whose export is there already, and on a small generator's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "modules"), *sys.path])
    shutil.copytree(run[0] / "w", "runs/quickstart")
    shutil.copytree(run[0] / "out", "runs/quickstart_pytorch")
    tiny_config.vision.name, tiny_config.vision.options = "", {}
    tiny_config.generator.update({"name": "unet", "width": 16, "channels": (16, 32)})
    save_run(tiny_config, tmp_path / "runs" / "generate")
    PIL.Image.new("RGB", (20, 30), "red").save("a.png")
    text = DOCUMENT.read_text().replace("64, 64, 3", f"{SIDE}, {SIDE}, 3")
    commands = re.findall(r"^    python -m frozen_jax\.tools\.export (.*)$", text, re.MULTILINE)
    assert commands[0].split() == ["--workdir=runs/quickstart", "--out=runs/quickstart_pytorch"]
    for command in commands[1:]:
        tool.main(command.split())
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 5
    made = {}
    for number, code in enumerate(examples):
        for module in ("modeling_frozen", "modeling_generator"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        exec(compile(code, f"docs/export.md example {number}", "exec"), made)
    assert made["vectors"].shape == (2, 2, 16) and made["pictures"].shape == (1, SIDE, SIDE, 3)
