"""Is an exported model the same in PyTorch, on a thousand prompts with several pictures each?

    python -m benchmarks.export_parity --workdir=runs/quickstart --export=runs/quickstart_pytorch

Prompts are made of records of a source with questions: 0 to 2 solved pictures, then a picture and its question.
Printed: the largest difference between logits, and how many prompts both continue with the same greedy tokens.
"""

import argparse
from pathlib import Path

from frozen_jax.data.sources import open_source
from frozen_jax.export.check import NEW_TOKENS, compare, import_modeling
from frozen_jax.restore import load, read_run

BATCH = 50


def make_prompts(source: str, count: int, *, question_format: str, answer_format: str) -> list[list[object]]:
    """Returns prompts of 1, 2 and 3 pictures in turn; the pictures of one prompt are those of neighbouring records."""
    records = open_source(source)
    prompts = []
    for number in range(count):
        prompt: list[object] = []
        shots = number % 3
        for place in range(shots + 1):
            record = records.record((number + place) % len(records))
            asked = record.questions[number % len(record.questions)]
            prompt += [record.image, question_format.format(question=asked.text)]
            if place < shots:
                prompt[-1] += answer_format.format(answer=asked.answers[0]) + "."
        prompts.append(prompt)
    return prompts


def main() -> None:
    """Compares and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of the run that was exported")
    parser.add_argument("--export", type=Path, required=True, help="what tools.export wrote")
    parser.add_argument("--source", default="easy_vqa:test?pictures=all", help="records with questions")
    parser.add_argument("--prompts", type=int, default=1000)
    given = parser.parse_args()
    data = read_run(given.workdir).data
    formats = {"question_format": data.question_format, "answer_format": data.answer_format}
    prompts = make_prompts(given.source, given.prompts, **formats)
    model = load(given.export)
    modeling = import_modeling(given.export / "modeling_frozen.py")
    torch_model = modeling.FrozenForConditionalGeneration.from_pretrained(given.export)
    processor = modeling.FrozenProcessor.from_pretrained(given.export)
    longest = max(len(processor([prompt])["input_ids"][0]) for prompt in prompts)
    equal, difference = 0, 0.0
    for start in range(0, len(prompts), BATCH):
        result = compare(model, torch_model, processor, prompts[start : start + BATCH], length=longest)
        equal += result.equal_texts
        difference = max(difference, result.logit_difference)
    print(
        f"{equal} of {len(prompts)} prompts of up to {longest} positions have the same {NEW_TOKENS} greedy tokens; "
        f"logits differ by at most {difference:.1e}"
    )


if __name__ == "__main__":
    main()
