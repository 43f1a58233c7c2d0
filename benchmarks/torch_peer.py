"""The same models in PyTorch, as people write them there: what the benchmarks and the parity tests compare with.

NF-ResNet and prefix are written here from the papers' equations; the language model is that of transformers, with its
parameters' `requires_grad` off. Weights are copied from ours, so that losses and tokens can be compared.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import torch
import transformers
from torch.nn import functional

from frozen_jax.convert.lm_weights import export_lm
from frozen_jax.models.lm import LMConfig
from frozen_jax.models.nf_resnet import VARIANCE_FLOOR, NFResNet
from frozen_jax.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from frozen_jax.state import flatten

GAMMA = {"relu": 1 / math.sqrt(0.5 * (1 - 1 / math.pi)), "gelu": 1.7015043497085571}
STRIDES = {"resnet": 2, "conv": 2, "patch": 4}


class TorchConv(torch.nn.Module):
    """Convolution with standardised weights, computed in f32 once per call, and a gain per filter."""

    def __init__(self, kernel: np.ndarray, stride: int, dtype: torch.dtype) -> None:
        super().__init__()
        size, _, _, width = kernel.shape
        self.stride, self.padding, self.dtype = stride, 0 if size == stride else size // 2, dtype
        self.kernel = torch.nn.Parameter(torch.empty(kernel.shape).permute(3, 2, 0, 1).contiguous())
        self.gain, self.bias = torch.nn.Parameter(torch.ones(width)), torch.nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolves [B, C, height, width]."""
        variance, mean = torch.var_mean(self.kernel, dim=(1, 2, 3), unbiased=False, keepdim=True)
        variance = torch.clamp(variance * self.kernel[0].numel(), min=VARIANCE_FLOOR)
        scale = self.gain[:, None, None, None] * torch.rsqrt(variance)
        weight = ((self.kernel - mean) * scale).to(self.dtype)
        return functional.conv2d(x, weight, self.bias.to(self.dtype), self.stride, self.padding)


class TorchBlock(torch.nn.Module):
    """Residual block: x + 0.2 * gain * f(x / beta)."""

    def __init__(self, params: Any, module: NFResNet, stride: int, variance: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.pooled = module.pooled_shortcut and stride == 2
        self.activation, self.beta, self.dtype = module.activation, math.sqrt(variance), dtype
        strides = [1, stride, 1] if module.bottleneck else [stride, 1]
        self.convolutions = len(strides)
        for index, step in enumerate(strides, start=1):
            self.add_module(f"conv_{index}", TorchConv(params[f"conv_{index}"]["kernel"], step, dtype))
        self.shortcut = None
        if "shortcut" in params:
            self.shortcut = TorchConv(params["shortcut"]["kernel"], 1 if self.pooled else stride, dtype)
        self.skip_gain = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds the branch to the shortcut."""
        out = scaled = activate(x, self.activation, 1 / self.beta)
        for index in range(1, self.convolutions + 1):
            out = self.get_submodule(f"conv_{index}")(out if index == 1 else activate(out, self.activation))
        if self.shortcut is not None:
            if self.pooled:
                scaled = functional.avg_pool2d(scaled, 2, ceil_mode=True, count_include_pad=False)
            x = self.shortcut(scaled)
        return x + out * (0.2 * self.skip_gain).to(self.dtype)


def activate(x: torch.Tensor, name: str, factor: float = 1.0) -> torch.Tensor:
    """Activation scaled to unit variance, times `factor`."""
    y = torch.relu(x) if name == "relu" else functional.gelu(x, approximate="tanh")
    return y * (GAMMA[name] * factor)


class TorchNFResNet(torch.nn.Module):
    """NF-ResNet; its parameters have the names of ours, with "." for "/", and kernels as [out, in, rows, columns].

    Args of the constructor: our parameters, our module, the compute dtype. Parameters stay in the dtype of `params`.
    """

    def __init__(self, params: Any, module: NFResNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype
        self.stem = TorchConv(params["stem"]["kernel"], STRIDES[module.stem], dtype)
        blocks: list[TorchBlock] = []
        variance = 1.0
        for stage, depth in enumerate(module.depths, start=1):
            for index in range(1, depth + 1):
                stride = 2 if index == 1 and stage > 1 else 1
                name = f"stage_{stage}_block_{index}"
                blocks.append(TorchBlock(params[name], module, stride, variance, dtype))
                self.add_module(name, blocks[-1])
                variance = (1.0 if index == 1 else variance) + 0.2**2
        self.blocks = blocks  # in a plain list, which registers no second name
        mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD])
        self.register_buffer("mean", mean[:, None, None] * 255, persistent=False)
        self.register_buffer("std", std[:, None, None] * 255, persistent=False)
        load_parameters(self, params)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encodes uint8 [B, height, width, 3] to [B, places, channels]."""
        x = images.permute(0, 3, 1, 2).to(self.stem.kernel.dtype)
        x = self.stem(((x - self.mean) / self.std).to(self.dtype))
        if self.module.stem == "resnet":
            x = functional.max_pool2d(x, 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return activate(x, self.module.activation).flatten(2).transpose(1, 2)


def load_parameters(model: torch.nn.Module, params: Any) -> None:
    """Copies our parameters into a module that has all of their names, in our dtype."""
    ours = {path.replace("/", "."): np.asarray(leaf) for path, leaf in flatten(params).items()}
    theirs = dict(model.named_parameters())
    if theirs.keys() != ours.keys():
        raise ValueError(f"parameters differ: {theirs.keys() ^ ours.keys()}")
    for name, leaf in ours.items():
        tensor = torch.tensor(leaf.transpose(3, 2, 0, 1) if name.endswith("kernel") and leaf.ndim == 4 else leaf)
        theirs[name].data = tensor.contiguous()


def torch_lm(config: LMConfig, params: Any, *, dtype: torch.dtype) -> Any:
    """The transformers model with our weights, frozen, in `dtype`, without dropout."""
    raw = transformers.AutoConfig.for_model(**config.to_hf())
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(raw)
    model = model.to_empty(device="cpu").to(dtype)
    host = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    tensors = {name: torch.tensor(array).to(dtype) for name, array in export_lm(config, host).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"the peer's parameters differ: missing {missing}, unexpected {unexpected}")
    return model.eval().requires_grad_(False)


class TorchFrozen(torch.nn.Module):
    """Images in front of captions, read by the frozen language model: mean loss of the captions' words.

    Like ours it computes logits only where there is loss.
    """

    def __init__(self, vision: TorchNFResNet, projection: Any, lm: Any, *, slots: int) -> None:
        super().__init__()
        self.vision, self.lm, self.slots = vision, lm, slots
        self.kernel = torch.nn.Parameter(torch.tensor(np.asarray(projection["kernel"])))
        self.bias = torch.nn.Parameter(torch.tensor(np.asarray(projection["bias"])))

    def forward(self, images: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Loss of uint8 images [B, height, width, 3] and captions [B, words]."""
        dtype = self.vision.dtype
        pooled = self.vision(images).mean(1, dtype=torch.float32)
        prefix = (pooled.to(dtype) @ self.kernel.to(dtype) + self.bias.to(dtype)).unflatten(1, (self.slots, -1))
        embeddings = torch.cat([prefix, self.lm.get_input_embeddings()(words)], dim=1)
        hidden = self.lm.base_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        logits = self.lm.get_output_embeddings()(hidden[:, self.slots - 1 : -1])
        return functional.cross_entropy(logits.flatten(0, 1).float(), words.flatten())


def decode_greedily(lm: Any, embeddings: torch.Tensor, mask: torch.Tensor, *, words: int) -> np.ndarray:
    """Returns the `words` tokens that transformers' `generate` makes after prompts given as embeddings.

    Args:
        lm: of `torch_lm`.
        embeddings: [rows, S, D], on its device and of its dtype.
        mask: i64[rows, S], 0 on padding, which is on the left.
        words: new tokens.
    """
    with torch.inference_mode():
        tokens = lm.generate(
            inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=words, do_sample=False, pad_token_id=0
        )
    found: np.ndarray = tokens.cpu().numpy()
    return found
