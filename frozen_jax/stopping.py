"""Where a generated text ends: stop strings and the end-of-text token. Used by `api.py`; the loop is in `decode.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax

from frozen_jax.decode import Generated
from frozen_jax.errors import UserError
from frozen_jax.prompt import EOS
from frozen_jax.tokenizer import Tokenizer


class Completion(NamedTuple):
    """What the model wrote after a prompt.

    Attributes:
        text: the new text, cut before the first stop string, without special tokens.
        stopped: a stop string or the end-of-text token ended it, not the limit of tokens.
        new_tokens: tokens made, a stop token included.
    """

    text: str
    stopped: bool
    new_tokens: int


@dataclass(frozen=True)
class StopRule:
    """Stop strings as the loop and the reading of its result need them.

    Attributes:
        strings: a text ends before the first of these.
        ids: tokens that end the loop: each that holds a stop string, or is one. A string that only several tokens
            together spell does not end the loop; the text is cut all the same.
        whole: those of `ids` that are nothing but a stop.
    """

    strings: tuple[str, ...]
    ids: tuple[int, ...]
    whole: frozenset[int]

    @classmethod
    def from_strings(cls, stop: Sequence[str], tokenizer: Tokenizer) -> StopRule:
        """Reads what a user gives: strings, among them `"[eos]"` for all end-of-text tokens.

        Raises:
            UserError: an empty string, a bare string in place of a list, or "[eos]" where the tokenizer has none.
        """
        if isinstance(stop, str) or "" in stop:
            raise UserError(f"stop is {stop!r}; give a list of strings that are not empty, such as ['{EOS}', '\\n']")
        whole: set[int] = set()
        ids: set[int] = set()
        if EOS in stop:
            if tokenizer.eos_id is None:
                raise UserError(f"stop has {EOS}, and this tokenizer has no end-of-text token; give strings alone")
            whole.update(tokenizer.end_ids)
        strings = tuple(text for text in stop if text != EOS)
        for text in strings:
            ids.update(tokenizer.find_ids(text))
            own = tokenizer.encode(text)
            whole.update(own if len(own) == 1 else ())
        return cls(strings, tuple(sorted(ids | whole)), frozenset(whole))

    def read(self, made: Generated, tokenizer: Tokenizer) -> list[Completion]:
        """Turns generated ids into texts."""
        tokens, lengths = jax.device_get((made.tokens, made.lengths))
        completions = []
        for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
            words = row[:length]
            stopped = bool(words) and words[-1] in self.ids
            text = tokenizer.decode(words[:-1] if words and words[-1] in self.whole else words)
            ends = [place for place in map(text.find, self.strings) if place >= 0]
            completions.append(Completion(text[: min(ends)] if ends else text, stopped or bool(ends), length))
        return completions
