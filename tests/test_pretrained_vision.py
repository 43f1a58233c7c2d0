"""Encoders with published weights: loaded into a run, frozen or not, and what does not fit is refused."""

import copy
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.nn import functional

from frozen_jax.build import build_towers
from frozen_jax.config import from_config_dict
from frozen_jax.convert.nf_resnet import nf_resnet_table
from frozen_jax.convert.resnet import resnet_table
from frozen_jax.convert.tables import export_tensors
from frozen_jax.convert.torch_reader import read_torch_file
from frozen_jax.convert.vit import vit_table
from frozen_jax.errors import UserError
from frozen_jax.models.nf_resnet import GAMMAS
from frozen_jax.models.pixels import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from frozen_jax.models.vision import build_vision
from frozen_jax.pretrained_vision import load_vision
from frozen_jax.state import flatten

VIT = {"image_size": 16, "patch_size": 8, "width": 8, "layers": 2, "heads": 2, "mlp_width": 12}
RESNET = {"widths": (8, 16), "depths": (1, 1), "stem_width": 4}


def save(directory, name, options, *, layout="torchvision", seed=0):
    """Writes random weights under their published names; returns them as ours."""
    module = build_vision(name, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3), jnp.uint8))["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    table = vit_table(module.config) if name == "vit" else resnet_table(module, layout=layout)
    save_file(export_tensors(table, params), directory / "model.safetensors")
    return params


@pytest.mark.parametrize("freeze", [True, False])
def test_a_run_takes_the_weights_and_freezes_them_on_request(tiny_config, tmp_path, freeze):
    expected = save(tmp_path, "vit", VIT)
    tiny_config.vision.name, tiny_config.vision.options = "vit", VIT
    tiny_config.vision.path, tiny_config.vision.freeze = str(tmp_path), freeze
    towers = build_towers(from_config_dict(tiny_config))
    side, other = (towers.frozen, towers.trainable) if freeze else (towers.trainable, towers.frozen)
    assert set(towers.trainable) == ({"prefix"} if freeze else {"prefix", "vision"})
    assert "vision" not in other
    for path, leaf in flatten(expected).items():
        np.testing.assert_array_equal(flatten(side["vision"])[path], leaf, err_msg=path)


@pytest.mark.parametrize("layout", ["torchvision", "transformers"])
def test_a_resnets_layout_is_recognised(tmp_path, layout):
    expected = save(tmp_path, "resnet50", RESNET, layout=layout)
    loaded = load_vision(str(tmp_path), build_vision("resnet50", **RESNET))
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_what_does_not_fit_is_refused(tmp_path):
    save(tmp_path, "vit", VIT)
    with pytest.raises(UserError, match=rf"vision encoder {tmp_path}: .*belong"):
        load_vision(str(tmp_path), build_vision("vit", **{**VIT, "mlp_width": 16}))
    with pytest.raises(UserError, match=r"timm's NF-ResNets have vision\.options bottleneck=True"):
        load_vision(str(tmp_path), build_vision("nf_resnet_small"))


# As old files have it: every field of every model, most of them about texts.
TOWER = {
    **{"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "intermediate_size": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-05},
    **{"_name_or_path": "", "add_cross_attention": False, "architectures": None, "attention_dropout": 0.0},
    **{"bad_words_ids": None, "bos_token_id": None, "chunk_size_feed_forward": 0, "decoder_start_token_id": None},
    **{"diversity_penalty": 0.0, "do_sample": False, "dropout": 0.0, "encoder_no_repeat_ngram_size": 0},
    **{"eos_token_id": None, "forced_bos_token_id": None, "id2label": {"0": "LABEL_0"}, "initializer_factor": 1.0},
    **{"initializer_range": 0.02, "is_decoder": False, "no_repeat_ngram_size": 0, "num_beam_groups": 1},
    **{
        "num_return_sequences": 1,
        "output_scores": False,
        "pad_token_id": None,
        "pruned_heads": {},
        "torch_dtype": None,
    },
    **{"remove_invalid_values": False, "return_dict_in_generate": False, "tie_word_embeddings": True, "top_k": 50},
    **{"torchscript": False, "transformers_version": "4.16.0", "use_bfloat16": False, "tokenizer_class": None},
}


def describe(directory, fields=None, *, pixels=None):
    (directory / "config.json").write_text(json.dumps(fields or {}))
    (directory / "preprocessor_config.json").write_text(json.dumps(pixels or {}))


def test_weights_are_read_by_their_own_description(tmp_path):
    save(tmp_path, "vit", VIT)
    module = build_vision("vit", **VIT)
    pixels = {"do_normalize": True, "image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD), "size": 16}
    for fields in (TOWER, {"model_type": "clip", "vision_config": TOWER, "projection_dim": 4}, {"model_type": "other"}):
        describe(tmp_path, fields, pixels=pixels)
        load_vision(str(tmp_path), module)


def test_a_file_in_such_a_directory_is_compared_too_and_so_are_newer_descriptions(tmp_path):
    save(tmp_path, "vit", VIT)
    module = build_vision("vit", **VIT)
    describe(tmp_path, {**TOWER, "num_attention_heads": 4, "padding": "max_length"})
    with pytest.raises(UserError, match="describes heads = 4"):
        load_vision(str(tmp_path / "model.safetensors"), module)
    describe(tmp_path, TOWER)
    (tmp_path / "preprocessor_config.json").unlink()
    for said, message in (
        ({"image_std": [0.5] * 3}, r"processor_config.json says image_std"),
        ([1], "must be an object"),
    ):
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": said}))
        with pytest.raises(UserError, match=message):
            load_vision(str(tmp_path), module)
    (tmp_path / "model.safetensors").rename(tmp_path / "vit.safetensors")  # whose directory may be of anything
    load_vision(str(tmp_path / "vit.safetensors"), module)


@pytest.mark.parametrize(
    ("fields", "pixels", "message"),
    [
        ({"num_attention_heads": 4}, {}, r"config.json describes heads = 4, and vision.options make it heads = 2; set"),
        (
            {"hidden_act": "gelu", "layer_norm_eps": 1e-6},
            {},
            "describes activation = 'gelu', norm_epsilon = 1e-06, and",
        ),
        ({"model_type": "vit"}, {}, "describes family = 'plain', and vision.options make it family = 'clip'"),
        ({"hidden_act": "tanh"}, {}, "hidden_act = 'tanh' is not supported"),
        (
            {},
            {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)},
            r"says image_std = \[0.229, .*, and this encoder normalises pixels by",
        ),
        ({}, {"image_mean": [0.5] * 3}, r"says image_mean = \[0.5, 0.5, 0.5\], and this encoder"),
        ({}, {"image_std": [0.5] * 3}, r"says image_std = \[0.5, 0.5, 0.5\], and this encoder"),
        ({}, {"image_mean": [0, 0, 0]}, r"says image_mean = \[0, 0, 0\], and this encoder"),
        ({}, {"image_mean": [0.5]}, "image_mean is .* must be three numbers"),
        ({}, {"image_mean": [math.nan] * 3}, "image_mean is .* must be three numbers"),
        ({}, {"image_mean": "0.5"}, "image_mean is '0.5'; it must be three numbers"),
        ({}, {"do_normalize": False}, "pixels are not normalised"),
    ],
)
def test_weights_that_describe_another_encoder_are_refused(tmp_path, fields, pixels, message):
    """Heads, activations and pixels are no shapes: the features would be wrong and nothing would say so."""
    save(tmp_path, "vit", VIT)
    describe(tmp_path, {**TOWER, **fields}, pixels=pixels)
    with pytest.raises(UserError, match=rf"vision encoder {tmp_path}: .*{message}"):
        load_vision(str(tmp_path), build_vision("vit", **VIT))


def test_a_resnet_is_compared_with_its_description(tmp_path):
    save(tmp_path, "resnet50", RESNET, layout="transformers")
    fields = {"model_type": "resnet", "hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 4}
    describe(tmp_path, fields, pixels={"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)})
    load_vision(str(tmp_path), build_vision("resnet50", **RESNET))
    describe(tmp_path, {**fields, "downsample_in_bottleneck": True})
    with pytest.raises(UserError, match="downsample_in_bottleneck = True"):
        load_vision(str(tmp_path), build_vision("resnet50", **RESNET))
    near = [127 / 255 - 0.5 + value for value in IMAGENET_MEAN]  # such differences are of rounding
    describe(tmp_path, fields, pixels={"image_mean": near})
    load_vision(str(tmp_path), build_vision("resnet50", **RESNET))
    describe(tmp_path, fields, pixels={"image_std": [0.5] * 3})
    with pytest.raises(UserError, match="says image_std"):
        load_vision(str(tmp_path), build_vision("resnet50", **RESNET))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_of_torch_is_read_with_its_strides(tmp_path, legacy):
    expected = save(tmp_path, "resnet50", RESNET)
    state = {f"module.{name}": torch.tensor(array) for name, array in load_file(tmp_path / "model.safetensors").items()}
    state["module.conv1.weight"] = state["module.conv1.weight"].contiguous(memory_format=torch.channels_last)
    assert not state["module.conv1.weight"].is_contiguous()
    state["module.bn1.num_batches_tracked"] = torch.tensor(3)
    path = tmp_path / "alone" / "weights.pth"
    path.parent.mkdir()
    torch.save({"epoch": 3, "state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
    module = build_vision("resnet50", **RESNET)
    for given in (path, path.parent):
        jax.tree.map(np.testing.assert_array_equal, load_vision(str(given), module), expected)
    single = tmp_path / "any name.safetensors"
    (tmp_path / "model.safetensors").rename(single)
    jax.tree.map(np.testing.assert_array_equal, load_vision(str(single), module), expected)


class Prepared:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Prepared, "cannot be read as plain tensors"),
        ({"conv1.weight": 3}, "'conv1.weight' is no tensor"),
        ([torch.zeros(1)], "holds list, must hold a state dict"),
        (b"\x80\x02 cut", "cannot be read as plain tensors"),
    ],
    ids=["prepared", "number", "list", "damaged"],
)
def test_a_file_of_anything_else_is_refused_and_never_run(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"state_dict": Prepared(tmp_path / "ran")} if content is Prepared else content, path)
    with pytest.raises(UserError, match=message):
        load_vision(str(path), build_vision("resnet50", **RESNET))
    assert not (tmp_path / "ran").exists()


def test_no_tensor_reaches_out_of_its_numbers(tmp_path):
    """Views, empty and scalar ones included; a storage cut short, as a prepared file could say, is refused."""
    whole = torch.arange(24, dtype=torch.bfloat16).reshape(2, 3, 4)
    state = {"turned": whole.permute(2, 0, 1), "part": whole[1:, :, 2], "none": whole[:0], "one": torch.tensor(-2.5)}
    state |= {"half": torch.ones(3).half(), "flag": torch.tensor([True, False]), "grown": torch.nn.Parameter(whole)}
    for legacy in (False, True):
        torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        found = read_torch_file(tmp_path / "a.pt")
        assert {*found} == {*state}
        for name, tensor in state.items():
            expected = tensor.detach().float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
            assert found[name].dtype == expected.dtype and found[name].shape == expected.shape
            np.testing.assert_array_equal(found[name], expected)
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[:-8])
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        read_torch_file(tmp_path / "a.pt")
    assert content.count(b"K\x02K\x03K\x04\x87") >= 1  # the shape (2, 3, 4) in the program
    (tmp_path / "a.pt").write_bytes(content.replace(b"K\x02K\x03K\x04\x87", b"K\x02K\x03K\x05\x87"))
    with pytest.raises(UserError, match=r"a tensor of shape \(2, 3, 5\) lies outside its 24 numbers"):
        read_torch_file(tmp_path / "a.pt")


@pytest.mark.parametrize("count", [2**40, 2**60])
def test_a_length_that_the_file_does_not_have_takes_no_memory(tmp_path, count):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    place = content.rindex(struct.pack("<q", 4))
    path.write_bytes(content[:place] + struct.pack("<q", count) + content[place + 8 :])
    with pytest.raises(UserError, match=r"cannot be read as plain tensors"):
        read_torch_file(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be read as plain tensors"):
        read_torch_file(path)
    path.write_bytes(b"\x80\x04\x8d" + struct.pack("<Q", count) + b"abc")
    with pytest.raises(UserError, match=r"expected \d+ bytes in a unicodestring8"):
        read_torch_file(path)


SHARED = b")" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(60))
"""A program that makes a tuple of twice the same tuple, sixty times over: 2**60 places to hash or to print."""


@pytest.mark.parametrize(
    "program",
    [
        b"}" + SHARED + b"Ns",  # a name in a dict
        b"}(" + SHARED + b"Nu",
        b"ccollections\nOrderedDict\n](" + SHARED + b"N\x86e\x85R",  # an ordered dict's, as Python 2 wrote them
        b"(K\x00ctorch\nFloatStorage\n" + SHARED + b"K\x00K\x01tQ",  # the key of a storage
        b"(K\x00" + SHARED + b"X\x01\x00\x00\x000K\x00K\x01tQ",  # the kind of one
        b"}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(" + SHARED + b"K\x00))tRs",  # a tensor's storage
    ],
    ids=["setitem", "setitems", "ordered", "key", "kind", "storage"],
)
def test_what_grows_with_every_level_is_never_walked(tmp_path, program):
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(1)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(tmp_path / "a.pt", "w") as made:
        for name in source.namelist():
            made.writestr(name, b"\x80\x02" + program + b"." if name.endswith("data.pkl") else source.read(name))
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        read_torch_file(tmp_path / "a.pt")


def test_sizes_of_a_tensor_are_whole_numbers(tmp_path):
    torch.save({"w": torch.zeros(2, 3)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(tmp_path / "a.pt", "w") as made:
        for name in source.namelist():
            # The shape (2, 3) becomes (2**40, (3,)): their product would be a tuple of 2**40 numbers.
            huge = b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"K\x03\x85\x86"
            made.writestr(name, source.read(name).replace(b"K\x02K\x03\x86", huge))
    with pytest.raises(UserError, match="sizes are no whole numbers"):
        read_torch_file(tmp_path / "a.pt")


def test_what_stands_beside_the_weights_may_have_other_names(tmp_path):
    beside = {None: 3, 0.5: 1, True: 2, 7: 4}
    torch.save({"state_dict": {"w": torch.ones(2)}, "history": beside}, tmp_path / "a.pt")
    np.testing.assert_array_equal(read_torch_file(tmp_path / "a.pt")["w"], [1, 1])


def test_parts_longer_than_their_file_take_no_memory(tmp_path):
    """Parts of a zip that lie over each other: each is read anew."""
    torch.save({"w": torch.zeros(1000)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as made:
        (stored,) = (member for member in made.infolist() if member.filename.endswith("data/0"))
        for number in range(1, 9):
            again = copy.copy(stored)
            again.filename = stored.filename[:-1] + str(number)
            made.filelist.append(again)
        made._didModify = True  # so that the list of parts is written
    with pytest.raises(UserError, match="its parts are longer than the file"):
        read_torch_file(tmp_path / "a.pt")


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    torch.save({"module.w": torch.zeros(2), "w": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"holds both 'module.w' and 'w'"):
        read_torch_file(tmp_path / "a.pt")


def test_a_compressed_or_locked_file_is_refused(tmp_path):
    torch.save({"a": torch.zeros(9)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    with pytest.raises(UserError, match="it is compressed"):
        read_torch_file(tmp_path / "b.pt")
    locked = bytearray((tmp_path / "a.pt").read_bytes())
    for place in (found.start() for found in re.finditer(rb"PK\x01\x02", locked)):
        locked[place + 8] |= 1  # every member is said to be encrypted
    (tmp_path / "c.pt").write_bytes(locked)
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        read_torch_file(tmp_path / "c.pt")


def test_pytorch_is_not_imported_to_read_its_files(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    code = (
        "import sys; from pathlib import Path; from frozen_jax.convert.torch_reader import read_torch_file\n"
        f"read_torch_file(Path({str(tmp_path / 'a.pt')!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_hub_that_cannot_be_reached_says_what_to_download():
    with pytest.raises(UserError, match=r"'timm/nf_resnet50\.ra2_in1k'.*download .*\.safetensors.* into a directory"):
        load_vision("timm/nf_resnet50.ra2_in1k", build_vision("nf_resnet50"))


def test_timms_nf_resnet_has_the_features_of_its_own_formula(tmp_path):
    """Standardisation and order of operations written out here as timm has them; our features are gamma times its."""
    options = {"widths": (32, 64), "depths": (1, 2), "stem_width": 8, "pooled_shortcut": True}
    rng = np.random.default_rng(0)
    module = build_vision("nf_resnet50", **options)
    shapes = {rule.name: rule.torch_shape for rule in nf_resnet_table(module, layout="timm").rules}
    state = {
        name: torch.tensor(rng.normal(1.0 if "gain" in name else 0.0, 0.02 if "weight" in name else 0.2, shape))
        for name, shape in shapes.items()
    }
    state["stages.1.1.conv2.weight"][3] *= 0.02  # below the floor of our variance
    gamma = 1.7139588594436646

    def convolve(x, name, stride=1):
        weight, gain = state[f"{name}.weight"], state[f"{name}.gain"]
        flat = weight.flatten(1)
        scaled = (flat - flat.mean(1, True)) / (flat.var(1, False, keepdim=True) + 1e-5).sqrt()
        weight = scaled.view_as(weight) * gain * gamma * flat.shape[1] ** -0.5
        return functional.conv2d(x, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)

    images = rng.integers(0, 256, (2, 36, 36, 3), np.uint8)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    x = (torch.tensor(images).permute(0, 3, 1, 2) / 255.0 - mean) / std
    x = functional.max_pool2d(convolve(x, "stem.conv", 2), 3, 2, 1)
    for block, stride, variance in (("stages.0.0", 1, 1.0), ("stages.1.0", 2, 1.04), ("stages.1.1", 1, 1.04)):
        out = torch.relu(x) * variance**-0.5
        if f"{block}.downsample.conv.weight" in state:
            pooled = functional.avg_pool2d(out, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else out
            x = convolve(pooled, f"{block}.downsample.conv")
        out = convolve(torch.relu(convolve(out, f"{block}.conv1")), f"{block}.conv2", stride)
        x = x + 0.2 * convolve(torch.relu(out), f"{block}.conv3")
    expected = torch.relu(x).mean((2, 3)).numpy()

    save_file({**{name: tensor.float().numpy() for name, tensor in state.items()}}, tmp_path / "model.safetensors")
    params = jax.device_put(load_vision(str(tmp_path), module))
    pooled = jax.jit(module.apply)({"params": params}, images).pooled
    np.testing.assert_allclose(pooled, GAMMAS["relu"] * expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vit", {"freeze": True}, r"config\.vision\.freeze is True; an encoder drawn at random would stay so"),
        ("", {"freeze": True}, r"config\.vision\.freeze is True; there is no encoder"),
        ("", {"path": "clip"}, r"config\.vision\.path is 'clip'; there is no encoder"),
    ],
)
def test_contradictions_are_refused(tiny_config, name, settings, message):
    given = tiny_config.to_dict()
    given["lm"]["mode"] = "frozen" if name else "finetuned"
    given["vision"] = {"name": name, **settings}
    with pytest.raises(UserError, match=message):
        from_config_dict(given)
