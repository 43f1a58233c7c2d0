"""A picture generator in PyTorch: a frozen language model reads a text, a U-Net draws a picture of it.

This one file, beside config.json, model.safetensors and language_model/, is the whole model; it needs torch,
transformers, safetensors and numpy.

    from modeling_generator import PictureGenerator

    pictures = PictureGenerator.from_pretrained(DIR).draw([" a red circle"], seed=0)    # uint8 [1, side, side, 3]

The language model reads the words with a few learnt vectors behind them; its last hidden states there are what the
picture follows. The picture begins as noise z(0) and moves by z' = (x - z) / (1 - t), where x is the clean picture that
the network names, until t = 1. Sources: Liu et al., arXiv 2209.03003; Ronneberger et al., arXiv 1505.04597; Dhariwal
and Nichol, arXiv 2105.05233.
"""

import itertools
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
GROUP = 16


def cut(grid, size):
    """Cuts grids [B, C, side, side] into patches of size x size places: [B, size size C, side, side]."""
    patches = grid.unflatten(2, (-1, size)).unflatten(4, (-1, size))
    return patches.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


def join(patches, size):
    """Inverse of `cut`."""
    grid = patches.unflatten(1, (size, size, -1)).permute(0, 3, 4, 1, 5, 2)
    return grid.flatten(4, 5).flatten(2, 3)


def mix(layer, grid):
    """Maps the channels of every place."""
    return layer(grid.movedim(1, -1)).movedim(-1, 1)


def convolve(layer, grid):
    """Convolves with a linear map of 3 x 3 places."""
    return functional.conv2d(grid, layer.weight.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2), layer.bias, padding=1)


def normalise(grid):
    """Gives each group of channels mean 0 and variance 1."""
    return functional.group_norm(grid, grid.shape[1] // GROUP, eps=EPSILON)


class Block(nn.Module):
    """Two convolutions beside a shortcut, steered between them."""

    def __init__(self, width, channels):
        super().__init__()
        self.steer = nn.Linear(width, 2 * channels)
        self.first, self.second = nn.Linear(9 * channels, channels), nn.Linear(9 * channels, channels)

    def forward(self, grid, steering):
        scale, shift = self.steer(steering)[:, :, None, None].chunk(2, dim=1)
        inner = convolve(self.first, functional.silu(normalise(grid)))
        inner = functional.silu(normalise(inner) * (1 + scale) + shift)
        return grid + convolve(self.second, inner)


class PictureGenerator(nn.Module):
    """The U-Net and the language model that it listens to."""

    def __init__(self, config, language_model, tokenizer):
        super().__init__()
        self.config, self.language_model, self.tokenizer = config, language_model, tokenizer
        self.side, self.patch, width = config["image_size"], config["patch_size"], config["width"]
        count, values, channels = config["queries"], self.patch**2 * 3, config["channels"]
        self.queries = nn.Parameter(torch.zeros(count, config["embed_width"]))
        self.no_text = nn.Parameter(torch.zeros(count, width))
        self.condition_norm = nn.LayerNorm(config["lm_width"], eps=EPSILON)
        self.condition, self.text = nn.Linear(config["lm_width"], width), nn.Linear(count * width, width)
        self.time_in, self.time_out = nn.Linear(64, width), nn.Linear(width, width)
        self.patches, self.pixels = nn.Linear(values, channels[0]), nn.Linear(channels[0], values)
        pairs = list(itertools.pairwise(channels))
        self.down = nn.ModuleList(Block(width, fine) for fine in channels[1:-1])
        self.merge = nn.ModuleList(nn.Linear(4 * fine, coarse) for fine, coarse in pairs)
        self.middle = nn.ModuleList(Block(width, channels[-1]) for _ in range(2))
        self.split = nn.ModuleList(nn.Linear(coarse, 4 * fine) for fine, coarse in pairs)
        self.up = nn.ModuleList(Block(width, fine) for fine in channels[:-1])

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
        tokens = torch.tensor([[*before, *ids, *after]], device=self.queries.device)
        words = self.language_model.get_input_embeddings()(tokens)
        hidden = self.language_model.base_model(inputs_embeds=torch.cat([words, self.queries[None]], dim=1))
        return self.condition(self.condition_norm(hidden.last_hidden_state[0, -len(self.queries) :]))

    def forward(self, noisy, times, condition):
        """Names the clean pictures [B, side, side, 3] behind noisy ones at times [B], for conditions [B, Q, E]."""
        turns = torch.exp(torch.linspace(math.log(0.5), math.log(16.0), 32, device="cpu")).to(times)
        angles = 2 * math.pi * times[:, None] * turns
        time = self.time_out(functional.silu(self.time_in(torch.cat([angles.sin(), angles.cos()], dim=1))))
        steering = functional.silu(time + self.text(condition.flatten(1)))
        grid = mix(self.patches, cut(noisy.movedim(-1, 1), self.patch))
        kept = []
        for number, merge in enumerate(self.merge):
            if number:
                grid = self.down[number - 1](grid, steering)
            kept.append(grid)
            grid = mix(merge, cut(grid, 2))
        for block in self.middle:
            grid = block(grid, steering)
        for number in reversed(range(len(kept))):
            grid = self.up[number](kept[number] + join(mix(self.split[number], grid), 2), steering)
        return join(mix(self.pixels, grid), self.patch).movedim(1, -1)

    @torch.no_grad()
    def velocity(self, noisy, time, condition, *, guidance=1.0):
        """Returns where noisy pictures move at a time (a number below 1)."""
        rows = len(noisy)
        both = torch.cat([condition, self.no_text.expand(rows, -1, -1)])
        named = self(torch.cat([noisy, noisy]), noisy.new_full((2 * rows,), time), both)
        told, untold = named.chunk(2)
        return (untold + guidance * (told - untold) - noisy) / (1 - time)

    @torch.no_grad()
    def draw(self, texts, *, steps=None, guidance=None, seed=0, noise=None):
        """Draws a picture of each text.

        Args:
            texts: worded as in training; `config.json` has the wording as `caption_format`. None draws without a text.
            steps: from noise to picture; None takes those of `config.json`, by which the run was evaluated.
            guidance: 1 follows the text alone, more exaggerates it; None likewise.
            seed: of the noise, where `noise` is None; the same noise on every device.
            noise: standard normal, float32 [B, side, side, 3].

        Returns:
            uint8 [B, side, side, 3], on the device of the weights.
        """
        steps = self.config["steps"] if steps is None else steps
        guidance = self.config["guidance"] if guidance is None else guidance
        if noise is None:
            shape = (len(texts), self.side, self.side, 3)
            noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
        even = torch.arange(steps + 1, device="cpu") / steps
        odds = math.exp(self.config["time_mean"])
        times = (odds * even / (odds * even + 1 - even)).tolist()
        condition, noisy = self.read(texts), noise.to(self.queries)
        for time, later in itertools.pairwise(times[:-1]):
            first = self.velocity(noisy, time, condition, guidance=guidance)
            second = self.velocity(noisy + (later - time) * first, later, condition, guidance=guidance)
            noisy = noisy + (later - time) * (first + second) / 2
        noisy = noisy + (1 - times[-2]) * self.velocity(noisy, times[-2], condition, guidance=guidance)
        return ((noisy + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
