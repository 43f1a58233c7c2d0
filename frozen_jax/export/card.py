"""README.md of an exported model: what it is, what it was trained on, its figures, how to run it, its licence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frozen_jax.adaptation_settings import describe_added
from frozen_jax.api import Model
from frozen_jax.config import Config
from frozen_jax.report import flatten_figures, show_figure
from frozen_jax.state import flatten
from frozen_jax.telemetry import format_table
from frozen_jax.workdir import read_json

_HEADER = """---
library_name: transformers
pipeline_tag: image-text-to-text
---
"""

_USE = """```python
import sys
from pathlib import Path

sys.path.insert(0, DIR)  # this directory
from modeling_frozen import FrozenForConditionalGeneration, FrozenProcessor

model = FrozenForConditionalGeneration.from_pretrained(DIR)
processor = FrozenProcessor.from_pretrained(DIR)
inputs = processor([[Path("picture.png"), "PROMPT"]])  # text and pictures in any order and number
print(processor.decode(model.generate(**inputs, max_new_tokens=20, num_beams=1)))
```

`transformers.AutoModelForImageTextToText.from_pretrained(DIR, trust_remote_code=True)` runs the same code; read
`modeling_frozen.py` first. In JAX: `frozen_jax.load(DIR).generate([[Path("picture.png"), "PROMPT"]])`.
"""


def write_card(model: Model, config: Config, workdir: Path, *, lm_path: str | None) -> str:
    """Returns the text of README.md.

    Args:
        model: that is exported.
        config: of its run.
        workdir: of its run; the figures are those of its `report.json`, if it has one.
        lm_path: of a language model that is not in the export.
    """
    counts = {part: sum(leaf.size for leaf in flatten(tree).values()) for part, tree in model.params.items()}
    question = config.data.question_format.format(question="what is in the picture?")
    language_model = config.lm.path or f"made from scratch, {model.network.lm.config.to_hf()['model_type']}"
    adapted = describe_added(config.adaptation, lora_rank=config.lm.lora_rank)
    facts = [
        ("language model", f"{language_model}, {config.lm.mode}{adapted}, {counts['lm']:,} parameters"),
        ("vision encoder", f"{config.vision.name}, {counts['vision']:,} parameters"),
        ("prefix", f"{config.prefix.length} vectors for each picture, {counts['prefix']:,} parameters"),
        ("trained on", config.data.train),
        ("validated on", config.data.validation or "records held out from it"),
        ("pictures", f"{model.images.size} x {model.images.size} pixels, {model.images.fit}"),
        ("blind control", "yes: pictures are black to this model" if model.blind else "no"),
    ]
    report = workdir / "report.json"
    figures = _list_figures(read_json(report)) if report.is_file() else "The run has no report."
    missing = (
        f"\nThe language model is not in here: `{lm_path}` is loaded beside it, and its SHA-256 checked.\n"
        if lm_path
        else ""
    )
    return (
        f"{_HEADER}\n# A picture-reading language model\n\nA vision encoder turns a picture into "
        f"{config.prefix.length} vectors that stand among the words of a language model (*Frozen*, Tsimpoukelli et al. "
        f"2021, arXiv 2106.13884).\n{missing}\n{format_table(('what', 'which'), facts)}\n\n## Use\n\n"
        f"{_USE.replace('PROMPT', question.replace(chr(34), chr(39)))}\n"
        "Needs torch, transformers, numpy and Pillow. Begin text after a picture as in training: with "
        f"`{config.data.caption_format.format(caption='…')!r}` for captions, `{config.data.question_format!r}` for "
        f"questions.\n\n## Figures\n\nPercentages are 0..100.\n\n{figures}\n\n## Licence\n\n"
        "`modeling_frozen.py` is part of frozen_jax, Apache-2.0. Weights inherit the terms of the language model, of a "
        "pre-trained vision encoder and of the data named above: look them up before passing the weights on.\n"
    )


def _list_figures(report: Mapping[str, Any]) -> str:
    return format_table(("figure", "value"), [(name, show_figure(value)) for name, value in flatten_figures(report)])
