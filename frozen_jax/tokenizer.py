"""Text to token ids and back: one thin class over the `tokenizers` library.

Lives here: reading a tokenizer from a Hugging Face directory or from vocabulary tables, its special ids, saving it, and
training a small byte-level BPE. Not here: image slots and prompts (they are token ids already: see `batch.py`), and the
tables inside a GGUF file (`convert/gguf_reader.py`). Next in the data flow: `data/`, which turns text into batches.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsInt

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from frozen_jax.errors import UserError
from frozen_jax.workdir import write_text_atomic

CONVENTIONAL_SPECIALS = ("<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>")
"""Special tokens by convention of GPT-2 and OPT, whose vocab.json does not mark them; used where they are entries."""


SAVED_FILES = ("tokenizer.json", "tokenizer_config.json")
"""What a saved tokenizer consists of: its tables, and which of its tokens begin and end a text."""

GENERATION = "generation_config.json"
"""Where a model's directory names all tokens that end a text: `tokenizer_config.json` has place for one."""


class Tokenizer:
    """A tokenizer with its begin and end ids; never adds special tokens by itself.

    Attributes:
        bos_id: id that starts a text, or None where the model has none.
        eos_id: id that ends a text, or None where the model has none.
        end_ids: all ids that end what the model writes: `eos_id` and, of some models, more.
        vocab_size: one more than the highest id, added tokens included.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, *, bos_id: int | None, eos_id: int | None, end_ids: Sequence[int] = ()
    ) -> None:
        ids = backend.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise UserError("tokenizer: the vocabulary has no entries; is the tokenizer file complete?")
        self.vocab_size: int = max(ids) + 1
        for name, value in (("bos", bos_id), ("eos", eos_id)):
            if value is not None and not 0 <= value < self.vocab_size:
                raise UserError(
                    f"tokenizer: {name} id {value} lies outside its vocabulary of {self.vocab_size}; "
                    f"the tokenizer or the config belongs to another model"
                )
        # A tokenizer.json may carry the settings of a training run, which would cut or pad every text silently.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.end_ids: tuple[int, ...] = () if eos_id is None else tuple({eos_id: None} | dict.fromkeys(end_ids))

    @classmethod
    def from_directory(cls, directory: str | Path) -> Tokenizer:
        """Reads a tokenizer from a Hugging Face model directory.

        The tables come from `tokenizer.json`, else from `vocab.json` with `merges.txt` (GPT-2's and OPT's byte-level
        BPE). Each special id is taken from the first of these files that has its key, a null there meaning none:
        `tokenizer_config.json`, `special_tokens_map.json` (tokens as text), `generation_config.json`, `config.json`
        (ids; the first of a list, all of which end what the model writes). A BERT's [CLS] and [SEP] stand for the two
        where no file has them.

        Raises:
            UserError: no tokenizer in the directory, a file that cannot be parsed, or a special token that is not in
                the vocabulary.
        """
        directory = Path(directory)
        complete, vocab_file, merges_file = (directory / f for f in ("tokenizer.json", "vocab.json", "merges.txt"))
        stated = _read_json(directory / "tokenizer_config.json")
        if complete.is_file():
            backend = _parse_tokenizer_json(complete)
        elif vocab_file.is_file() and merges_file.is_file():
            vocab = _read_json(vocab_file)
            specials = [token for token in CONVENTIONAL_SPECIALS if token in vocab]
            backend = build_byte_level_bpe(
                vocab,
                _read_merges(merges_file),
                special_tokens=specials,
                add_prefix_space=stated.get("add_prefix_space") is True,
                origin=str(vocab_file),
            )
        else:
            hint = " (tokenizer.model alone cannot be read)" if (directory / "tokenizer.model").is_file() else ""
            raise UserError(
                f"{directory}: has neither tokenizer.json nor vocab.json with merges.txt{hint}; "
                f"save it once with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        try:
            return cls(
                backend,
                bos_id=_find_special_id(backend, directory, "bos", "cls"),
                eos_id=_find_special_id(backend, directory, "eos", "sep"),
                end_ids=_read_ids(directory, "eos") or (),
            )
        except UserError as error:
            raise UserError(f"{directory}: {error}") from None

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; a special token written out in the text becomes its id, and none is added.

        Raises:
            UserError: it is no text, or one with halves of characters, as a command line makes of bytes out of place.
        """
        try:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        except TypeError:
            raise UserError(f"{text!r:.60} is no text in Unicode; give a string that UTF-8 can hold") from None

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Text of `ids` (a list or an integer array); special tokens, slots and padding (negative ids) are left out."""
        words = [int(value) for value in ids]
        return str(self._backend.decode([word for word in words if word >= 0], skip_special_tokens=True))

    def find_ids(self, text: str) -> tuple[int, ...]:
        """Ids of all tokens whose own text contains `text`, and of the one token, also a special one, that it is."""
        own = self.encode(text)
        found = {number for number, token in enumerate(self._texts) if text in token}
        return tuple(sorted(found.union(own if len(own) == 1 else ())))

    @functools.cached_property
    def _texts(self) -> list[str]:
        """Each id's own text; special tokens and incomplete characters have none."""
        return [self.decode([number]).replace("\ufffd", "") for number in range(self.vocab_size)]

    def to_files(self) -> dict[str, str]:
        """Returns the text of each of `SAVED_FILES`, which this class and transformers read back."""
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        for name, value in (("bos_token", self.bos_id), ("eos_token", self.eos_id)):
            config[name] = None if value is None else self._backend.id_to_token(value)
        texts = self._backend.to_str(pretty=True), json.dumps(config, indent=2) + "\n"
        return dict(zip(SAVED_FILES, texts, strict=True))

    def save(self, directory: str | Path) -> None:
        """Writes `SAVED_FILES`, each beside its place and then moved there.

        Raises:
            UserError: the disk is full, read-only or failing.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in self.to_files().items():
            write_text_atomic(directory / name, text)


def train_bpe(texts: Iterable[str], *, vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
    """Trains a byte-level BPE tokenizer; the same texts in the same order give the same tokenizer.

    Args:
        texts: the corpus.
        vocab_size: upper limit of entries; a small corpus may run out of pairs to merge before it.
        special_tokens: get the ids 0, 1, … in this order; the first begins and the last ends a text, so that a single
            one does both, as in GPT-2. May be empty.

    Raises:
        UserError: `vocab_size` has no room for the 256 bytes and the special tokens.
    """
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size={vocab_size} is below {smallest}: every byte and every special token needs an entry; raise it"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    _set_byte_level(backend, split_digits=False, add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    ends = len(special_tokens) - 1
    return Tokenizer(backend, bos_id=0 if special_tokens else None, eos_id=ends if special_tokens else None)


def build_byte_level_bpe(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    special_tokens: Sequence[str],
    split_digits: bool = False,
    add_prefix_space: bool = False,
    origin: str,
) -> tokenizers.Tokenizer:
    """Builds GPT-2's kind of tokenizer from its tables.

    Args:
        vocab: token, in GPT-2's printable spelling of bytes, → id; the ids are 0 … len - 1.
        merges: pairs of tokens, most frequent first.
        special_tokens: entries of `vocab` that are matched whole in a text and left out of decoded text.
        split_digits: each digit is a token of its own.
        add_prefix_space: a text is read as if a space stood before it.
        origin: where the tables came from, for error messages.

    Raises:
        UserError: the tables contradict each other or cannot spell every text.
    """
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise UserError(f"{origin}: the {len(vocab)} token ids must be 0, 1, 2, … without gaps; the file is damaged")
    # Published vocabularies lack bytes that their corpus never had (SmolLM2: 21), so only ASCII text is insisted on.
    missing = [symbol for symbol in ("Ġ", *map(chr, range(ord("!"), ord("~") + 1))) if symbol not in vocab]
    if missing:
        raise UserError(
            f"{origin}: {len(missing)} printable ASCII characters have no entry (first: {missing[0]!r}), so text would "
            f"be lost silently; this is not a byte-level BPE vocabulary"
        )
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges)))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{origin}: vocabulary and merges do not fit each other: {_first_line(error)}") from None
    _set_byte_level(backend, split_digits=split_digits, add_prefix_space=add_prefix_space)
    backend.add_special_tokens(list(special_tokens))
    size = backend.get_vocab_size(with_added_tokens=True)
    if size != len(vocab):
        raise UserError(f"{origin}: built {size} tokens from {len(vocab)} entries; a special token is not an entry")
    return backend


def _set_byte_level(backend: tokenizers.Tokenizer, *, split_digits: bool, add_prefix_space: bool) -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)
    if split_digits:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    else:
        backend.pre_tokenizer = byte_level
    backend.decoder = decoders.ByteLevel()


def _find_special_id(backend: tokenizers.Tokenizer, directory: Path, *names: str) -> int | None:
    """Looks a special token up by the first of its names that a file has, as `Tokenizer.from_directory` documents."""
    for name in names:
        found, stated = _find_stated(backend, directory, name)
        if stated:
            return found
    return None


def _find_stated(backend: tokenizers.Tokenizer, directory: Path, name: str) -> tuple[int | None, bool]:
    """Returns the id that the first file with this name gives, and whether there is such a file."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        stated = _read_json(directory / file)
        if f"{name}_token" in stated:
            token = stated[f"{name}_token"]
            token = token.get("content") if isinstance(token, dict) else token
            # JSON can spell halves of characters, which no vocabulary has and the library cannot take.
            found = None if token is None else backend.token_to_id(str(token).encode(errors="replace").decode())
            if token is not None and found is None:
                raise UserError(
                    f"{file} names {name}_token {token!r}, which the vocabulary lacks; are these files of two models?"
                )
            return found, True
    ids = _read_ids(directory, name)
    return (ids[0] if ids else None), ids is not None


def _read_ids(directory: Path, name: str) -> list[int] | None:
    """Returns the ids that the first file with this name gives, none for a null; None where there is no such file."""
    for file in (GENERATION, "config.json"):
        stated = _read_json(directory / file)
        if f"{name}_token_id" in stated:
            value = stated[f"{name}_token_id"]
            ids = [] if value is None else value if isinstance(value, list) and value else [value]
            if any(type(one) is not int for one in ids):
                raise UserError(f"{file} has {name}_token_id {value!r}; it must be an integer, a list of them, or null")
            return ids
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({_first_line(error)}); fetch the file again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object, holds a {type(content).__name__}; fetch the file again")
    return content


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as text ({_first_line(error)}); fetch the file again") from None
    merges = []
    for number, line in enumerate(lines, start=1):
        if (number == 1 and line.startswith("#version")) or not line.strip():
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise UserError(f"{path}: line {number} must be two tokens with one space between; fetch the file again")
        merges.append((pair[0], pair[1]))
    return merges


def _parse_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    _read_json(path)  # a damaged file is reported with its line and column, which the library does not give
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"{path}: not a tokenizer that the `tokenizers` library knows ({_first_line(error)}); "
            f"fetch the file again or update the library"
        ) from None


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
