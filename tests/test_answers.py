"""The file of answers: what is found again, what is not, and what a kill or another model does to it."""

import json

import numpy as np

from frozen_jax.answers import Answers, answer_batches, digest_batch
from frozen_jax.prompt import Image
from frozen_jax.prompt_batches import Encoded, make_batches

BATCHES = list(make_batches([Encoded((Image(n), f"{n}"), [-1, n]) for n in range(6)], batch_size=2, devices=1))
TABLE = np.arange(12, dtype=np.float32).reshape(6, 1, 2)


def answer(path, *, model="m", table=TABLE, settings=("complete", 3), until=3, batches=BATCHES):
    """All answers, and the numbers of the batches that were computed; the evaluation dies at batch `until`."""
    computed = []

    def compute(number):
        if number == until:
            raise KeyboardInterrupt
        computed.append(number)
        return [[f"è{number}\n", True, row] for row in range(2)]

    try:
        kept = Answers(path, model=model)
        answers = answer_batches(batches, compute, kept=kept, table=table, settings=settings)
    except KeyboardInterrupt:
        return None, computed
    return answers, computed


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path):
    whole, computed = answer(tmp_path / "whole" / "a.jsonl")
    assert computed == [0, 1, 2] and whole[2] == [["è2\n", True, 0], ["è2\n", True, 1]]
    path = tmp_path / "b.jsonl"
    assert answer(path, until=2) == (None, [0, 1])
    assert answer(path) == (whole, [2])
    assert answer(path) == (whole, [])
    assert path.read_bytes() == (tmp_path / "whole" / "a.jsonl").read_bytes()
    assert len(path.read_text().splitlines()) == 4


def test_a_torn_line_does_not_count(tmp_path):
    path = tmp_path / "a.jsonl"
    whole, _ = answer(path)
    complete = path.read_bytes()
    for torn in (complete[:-1], complete[:-20], complete[:-20] + b"\n", complete + b'{"batch": "x'):
        path.write_bytes(torn)
        assert answer(path) == (whole, [2] if len(torn) < len(complete) + 1 else [])
    path.write_bytes(complete[:-20] + b"x" * 400)
    assert answer(path) == (whole, [2]) and path.read_bytes() == complete
    path.write_bytes(complete[:10])
    assert answer(path) == (whole, [0, 1, 2]) and path.read_bytes() == complete


def test_no_answer_is_taken_for_another(tmp_path):
    path = tmp_path / "a.jsonl"
    answer(path)
    other = TABLE.copy()
    other[3, 0, 1] += 1e-6
    assert answer(path, table=other)[1] == [1]  # the batch whose picture it is
    assert answer(path, settings=("complete", 4))[1] == [0, 1, 2]
    prompts = [Encoded((Image(n), f"{n}"), [-1, n if n else 7]) for n in range(6)]
    assert answer(path, batches=list(make_batches(prompts, batch_size=2, devices=1)))[1] == [0]
    assert answer(path)[1] == []
    assert answer(path, model="n")[1] == [0, 1, 2]  # and the other model's are gone
    assert [json.loads(line).get("model") for line in path.read_text().splitlines()] == ["n", None, None, None]
    assert answer(path)[1] == [0, 1, 2]


def test_equal_batches_are_not_taken_for_each_other(tmp_path):
    """Where texts are sampled, the second of two equal batches has other answers than the first."""
    assert answer(tmp_path / "a.jsonl", batches=BATCHES[:1] * 2, until=1) == (None, [0])
    assert answer(tmp_path / "a.jsonl", batches=BATCHES[:1] * 2)[1] == [1]


def test_the_beginning_is_a_part_of_the_prompt():
    def digests(first):
        prompts = [Encoded((Image(first), "shot", Image(n), "q"), [-1, 5, 5, 5, -1, 6], 2, 4) for n in range(1, 4)]
        (batch,) = make_batches(prompts, batch_size=4, devices=1)
        assert batch.beginnings is not None
        return digest_batch(batch, TABLE, ["complete"])

    assert digests(0) == digests(0) != digests(4)
