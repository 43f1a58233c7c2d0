"""The table of a run's parameters: bytes by hand, machines that are not here, full sizes without their weights."""

import json
import re

import pytest

from frozen_jax.tools.inspect import main

OPT_6_7B = {
    "model_type": "opt",
    "hidden_size": 4096,
    "ffn_dim": 16384,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 50272,
}


@pytest.fixture
def config_file(tmp_path):
    """A run through a language model of which there is a config and nothing else."""
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "config.json").write_text(json.dumps(OPT_6_7B))
    path = tmp_path / "opt.py"
    path.write_text(
        "from frozen_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    config.lm.path = {str(tmp_path / 'lm')!r}\n"
        "    config.vision.name, config.data.train = 'nf_resnet50', 'fake:8'\n"
        "    return config\n"
    )
    return str(path)


def test_a_large_model_on_a_pod_that_is_not_here(config_file, capsys):
    main([f"--config={config_file}", "--devices=128", "--platform=tpu", "--config.mesh.fsdp=8"])
    shown = capsys.readouterr().out
    rows = {row[0]: row[1:] for line in shown.splitlines() if len(row := re.split(r" *\| *", line.strip("| "))) == 6}
    up = ["32 x 4096 x 16384", "bfloat16", "frozen", "-, fsdp, -", str(32 * 4096 * 16384 * 2 // 8)]
    assert rows["lm/blocks/up/kernel"] == up
    projection = ["2048 x 8192", "float32", "trainable", "fsdp, -", str(2048 * 8192 * 4 // 8)]
    assert rows["prefix/projection/kernel"] == projection
    assert rows["lm/final_norm/bias"] == ["4096", "bfloat16", "frozen", "whole", "8192"]
    assert "mesh       data 16 x fsdp 8 x tensor 1 = 128 devices" in shown
    assert "frozen     1.66" in shown and "13.3" in shown and "the frozen side is cut along fsdp" in shown
    whole = float(re.search(r"whole +([\d.]+) % of the bytes", shown)[1])
    assert 0 < whole <= 2


def test_what_does_not_fit_is_one_line(config_file, capsys):
    for words, message in (
        (["--config.mesh.tensor=3", "--devices=3"], "config.mesh.tensor is 3, which does not divide"),
        (["--config.mesh.fsdp=16", "--devices=8"], "fsdp 16"),
        (["--devices=0"], "--devices is 0"),
        (["--config.mesh.data=nine"], "the flags or the config file"),
        (["surplus"], "unknown argument 'surplus'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([f"--config={config_file}", *words])
        error = capsys.readouterr().err
        assert ended.value.code == 1 and message in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        main([])
    assert "--config is missing" in capsys.readouterr().err


def test_a_hub_id_that_cannot_be_reached_needs_its_config_alone(config_file, capsys):
    with pytest.raises(SystemExit):
        main([f"--config={config_file}", "--config.lm.path=nobody/unpublished-7b"])
    assert "download config.json of the model by hand" in capsys.readouterr().err


def test_classes_that_are_read_from_the_data(capsys):
    """easy-VQA has 13 answers; a config without data there says so."""
    main(["--config=configs/easy_vqa_fusion.py"])
    assert re.search(r"\| fusion/\S+ +\| +128 x 13 +\| float32 ", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main(["--config=configs/easy_vqa_fusion.py", "--config.data.train=folder:/nowhere"])
    assert "/nowhere" in capsys.readouterr().err


def test_the_frozen_side_is_named_only_where_there_is_one(capsys):
    main(["--config=configs/text_pretrain.py", "--config.mesh.fsdp=8"])
    shown = capsys.readouterr().out
    assert "| frozen" not in shown and "the frozen side" not in shown and "fsdp 8" in shown
