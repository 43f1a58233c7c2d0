"""A picture generator in PyTorch: a frozen language model reads a text, a transformer draws a picture of it.

This one file, beside config.json, model.safetensors and language_model/, is the whole model; it needs torch,
transformers, safetensors and numpy.

    from modeling_generator import PictureGenerator

    pictures = PictureGenerator.from_pretrained(DIR).draw([" a red circle"], seed=0)    # uint8 [1, side, side, 3]

The language model reads the words with a few learnt vectors behind them; its last hidden states there are what the
picture follows. The picture begins as noise z(0) and moves by z' = (x - z) / (1 - t), where x is the clean picture that
the transformer names, until t = 1. Sources: Liu et al., arXiv 2209.03003; Peebles and Xie, arXiv 2212.09748.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers import PreTrainedTokenizerFast as Tokenizer

EPSILON = 1e-6


def steer(x, shift, scale):
    """Normalises tokens [B, M, E], then scales and shifts them as time and text want it."""
    return functional.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """Attention over condition and patches, then an MLP, each steered and gated."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.steer, self.qkv, self.out = (
            nn.Linear(width, 6 * width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, steering):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.steer(steering).chunk(6, dim=-1)
        query, key, value = self.qkv(steer(x, shift1, scale1)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + gate1[:, None] * self.out(mixed.transpose(1, 2).flatten(2))
        inner = functional.gelu(self.up(steer(x, shift2, scale2)), approximate="tanh")
        return x + gate2[:, None] * self.down(inner)


class PictureGenerator(nn.Module):
    """The transformer and the language model that it listens to."""

    def __init__(self, config, language_model, tokenizer):
        super().__init__()
        self.config, self.language_model, self.tokenizer = config, language_model, tokenizer
        self.side, self.patch, width = config["image_size"], config["patch_size"], config["width"]
        count, values = config["queries"], self.patch**2 * 3
        self.queries = nn.Parameter(torch.zeros(count, config["embed_width"]))
        self.no_text = nn.Parameter(torch.zeros(count, width))
        self.positions = nn.Parameter(torch.zeros((self.side // self.patch) ** 2, width))
        self.condition_norm = nn.LayerNorm(config["lm_width"], eps=EPSILON)
        self.condition = nn.Linear(config["lm_width"], width)
        self.patches = nn.Linear(values, width)
        self.time_in, self.time_out = nn.Linear(64, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, config["heads"]) for _ in range(config["layers"]))
        self.final_steer, self.pixels = nn.Linear(width, 2 * width), nn.Linear(width, values)

    @classmethod
    def from_pretrained(cls, directory):
        """Loads an exported directory."""
        directory = Path(directory)
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        language_model = AutoModelForCausalLM.from_pretrained(directory / "language_model", dtype=torch.float32)
        model = cls(config, language_model, Tokenizer.from_pretrained(directory / "language_model"))
        missing, unexpected = model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
        if unexpected or any(not name.startswith("language_model.") for name in missing):
            raise ValueError(f"{directory}: the weights do not fit config.json: {[*missing, *unexpected][:3]}")
        return model.eval()

    @torch.no_grad()
    def read(self, texts):
        """Returns the conditions [B, Q, E] of texts worded as in training; None is no text."""
        return torch.stack([self.no_text if text is None else self._read_one(text) for text in texts])

    def _read_one(self, text):
        tokenizer = self.tokenizer
        ids = tokenizer.encode(text, add_special_tokens=False)
        before = [tokenizer.bos_token_id] if self.config["add_bos"] else []
        after = [tokenizer.eos_token_id] if self.config["add_eos"] else []
        words = self.language_model.get_input_embeddings()(torch.tensor([[*before, *ids, *after]]))
        hidden = self.language_model.base_model(inputs_embeds=torch.cat([words, self.queries[None]], dim=1))
        return self.condition(self.condition_norm(hidden.last_hidden_state[0, -len(self.queries) :]))

    def forward(self, noisy, times, condition):
        """Names the clean pictures [B, side, side, 3] behind noisy ones at times [B], for conditions [B, Q, E]."""
        patch, across = self.patch, self.side // self.patch
        cut = noisy.unflatten(1, (across, patch)).unflatten(3, (across, patch)).transpose(2, 3).flatten(3).flatten(1, 2)
        turns = torch.exp(torch.linspace(math.log(0.5), math.log(500.0), 32))
        angles = 2 * math.pi * times[:, None] * turns
        time = self.time_out(functional.silu(self.time_in(torch.cat([angles.sin(), angles.cos()], dim=1))))
        steering = functional.silu(time + condition.mean(dim=1))
        x = torch.cat([condition, self.patches(cut) + self.positions], dim=1)
        for block in self.blocks:
            x = block(x, steering)
        shift, scale = self.final_steer(steering).chunk(2, dim=-1)
        named = self.pixels(steer(x[:, len(self.queries) :], shift, scale))
        named = named.unflatten(1, (across, across)).unflatten(3, (patch, patch, 3))
        return named.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    @torch.no_grad()
    def velocity(self, noisy, time, condition, *, guidance=1.0):
        """Returns where noisy pictures move at a time (a number below 1)."""
        rows = len(noisy)
        both = torch.cat([condition, self.no_text.expand(rows, -1, -1)])
        named = self(torch.cat([noisy, noisy]), torch.full((2 * rows,), time), both)
        told, untold = named.chunk(2)
        return (untold + guidance * (told - untold) - noisy) / (1 - time)

    @torch.no_grad()
    def draw(self, texts, *, steps=20, guidance=2.0, seed=0, noise=None):
        """Draws a picture of each text.

        Args:
            texts: worded as in training; `config.json` has the wording as `caption_format`. None draws without a text.
            steps: from noise to picture.
            guidance: 1 follows the text alone, more exaggerates it.
            seed: of the noise, where `noise` is None.
            noise: standard normal, float32 [B, side, side, 3].

        Returns:
            uint8 [B, side, side, 3].
        """
        if noise is None:
            shape = (len(texts), self.side, self.side, 3)
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        condition, noisy, length = self.read(texts), noise, 1 / steps
        for number in range(steps - 1):
            first = self.velocity(noisy, number * length, condition, guidance=guidance)
            ahead = noisy + length * first
            second = self.velocity(ahead, (number + 1) * length, condition, guidance=guidance)
            noisy = noisy + length * (first + second) / 2
        noisy = noisy + length * self.velocity(noisy, 1 - length, condition, guidance=guidance)
        return ((noisy + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
