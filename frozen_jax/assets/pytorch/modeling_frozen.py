"""Frozen in PyTorch: pictures become vectors of a frozen language model's own width and stand among its words.

This one file, beside config.json and model.safetensors, is the whole model; it needs torch, transformers, numpy and
Pillow. Read it from the top: words and pictures to ids and pixels, three vision encoders, the prefix, the model.

    from pathlib import Path
    from modeling_frozen import FrozenForConditionalGeneration, FrozenProcessor

    model = FrozenForConditionalGeneration.from_pretrained(DIR)
    processor = FrozenProcessor.from_pretrained(DIR)
    inputs = processor([[Path("a.png"), " Question: what shape is present? Answer:"]])
    print(processor.decode(model.generate(**inputs, max_new_tokens=20)))

A prompt is a list of text and pictures in any order and number:

    [Path("a.png"), " a cat.", Path("b.png"), " a"]       with 2 slots for each picture
    input_ids   SLOT SLOT  a  cat  .  SLOT SLOT  a

Source: Tsimpoukelli et al., "Multimodal Few-Shot Learning with Frozen Language Models", arXiv 2106.13884.
"""

import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer
from transformers.activations import ACT2FN

SLOT = -1
"""Stands in `input_ids` where a picture's vector goes: no word of any vocabulary."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # picture files that are opened, whatever their names say

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation of the pixels that an encoder was trained on, on the scale 0..1."""


class FrozenProcessor:
    """Turns prompts into what the model takes, and its answers into text."""

    def __init__(self, tokenizer, *, size, fit, background, max_pixels, image_seq_length, add_bos):
        self.tokenizer, self.size, self.fit, self.background = tokenizer, size, fit, tuple(background)
        self.max_pixels, self.image_seq_length, self.add_bos = max_pixels, image_seq_length, add_bos

    @classmethod
    def from_pretrained(cls, directory):
        """Reads the tokenizer and `preprocessor_config.json` of an exported directory."""
        settings = json.loads((Path(directory) / "preprocessor_config.json").read_text(encoding="utf-8"))
        names = ("size", "fit", "background", "max_pixels", "image_seq_length", "add_bos")
        tokenizer = Tokenizer.from_pretrained(directory)
        return cls(tokenizer, **{name: settings[name] for name in names})

    def __call__(self, prompts):
        """Lays prompts out for one batch, padded on the left.

        Args:
            prompts: lists of text (`str`) and pictures (`pathlib.Path`, Pillow image or uint8 array).

        Returns:
            input_ids [B, S], attention_mask [B, S] and, where there are pictures, pixel_values uint8 [N, size, size, 3]
            of all of them in reading order.
        """
        rows, pictures = [], []
        for prompt in prompts:
            row = [self.tokenizer.bos_token_id] if self.add_bos else []
            for part in prompt:
                if isinstance(part, str):
                    row += self.tokenizer.encode(part, add_special_tokens=False)
                else:
                    row += [SLOT] * self.image_seq_length
                    pictures.append(self.prepare_picture(part))
            rows.append(row)
        longest = max(map(len, rows))
        inputs = {
            "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        }
        return {**inputs, "pixel_values": torch.tensor(np.stack(pictures))} if pictures else inputs

    def decode(self, tokens):
        """Returns the texts of generated tokens [B, T], without special tokens."""
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in tokens.tolist()]

    def prepare_picture(self, source):
        """Opens a picture and resizes it as in training; returns uint8 [size, size, 3]."""
        if isinstance(source, os.PathLike):
            image = Image.open(source, formats=FORMATS)
        elif isinstance(source, Image.Image):
            image = source.copy()
        else:
            image = Image.fromarray(source[:, :, 0] if source.shape[2:] == (1,) else source)
        with image:
            if image.width * image.height > self.max_pixels:
                raise ValueError(f"{source}: {image.size} pixels are over the limit of {self.max_pixels}")
            turned = "exif" in image.info and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            width, height = (image.height, image.width) if turned else image.size
            left, top, right, bottom = 0.0, 0.0, 1.0, 1.0
            if self.fit == "crop":  # the centre square, as fractions of the upright picture
                x, y = min(width, height) / 2 / width, min(width, height) / 2 / height
                left, top, right, bottom = 0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y
            across, down = (right - left) * width, (bottom - top) * height
            longer = max(across, down)
            target = max(1, round(across * self.size / longer)), max(1, round(down * self.size / longer))
            whole = max(1, int(target[0] / (right - left))), max(1, int(target[1] / (bottom - top)))
            image.draft("RGB", whole[::-1] if turned else whole)  # a JPEG is decoded at a fraction of its scale
            image.load()
            upright = self._to_rgb(ImageOps.exif_transpose(image) if "exif" in image.info else image)
            scale = next(s for s in (1, 2, 4, 8) if upright.size == (-(-width // s), -(-height // s)))
            box = (left * width / scale, top * height / scale, right * width / scale, bottom * height / scale)
            if (upright.size, box) != (target, (0, 0, *target)):
                upright = upright.resize(target, Image.Resampling.BILINEAR, box=box)
        square = np.zeros((self.size, self.size, 3), np.uint8)
        row, column = (self.size - target[1]) // 2, (self.size - target[0]) // 2
        square[row : row + target[1], column : column + target[0]] = np.asarray(upright)
        return square

    def _to_rgb(self, image):
        """Converts any pixels to RGB: 16 bits keep their upper 8, transparency shows the background."""
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        if image.mode == "F":
            raise ValueError("floating-point pixels have no stated range; save the picture with 8 or 16 bits")
        if image.mode.startswith("I"):
            image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            canvas = Image.new("RGBA", image.size, (*self.background, 255))
            return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
        return image.convert("RGB")


def normalise(pixels, constants, dtype):
    """Turns uint8 [N, height, width, 3] into the numbers that an encoder takes, [N, 3, height, width]."""
    mean, std = torch.tensor(constants, device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).to(dtype)


def activate(x, name):
    """Activation that keeps variance 1 for standard normal inputs."""
    if name == "relu":
        return torch.relu(x) * math.sqrt(2 / (1 - 1 / math.pi))
    return functional.gelu(x, approximate="tanh") * 1.7015043497085571


class StandardisedConv(nn.Module):
    """Convolution whose filters have mean 0 and variance gain^2 / fan-in."""

    def __init__(self, inputs, width, size, stride=1):
        super().__init__()
        self.stride, self.padding = stride, 0 if size == stride else (size - 1) // 2
        self.weight = nn.Parameter(torch.empty(width, inputs, size, size).normal_(0, 0.02))
        self.gain, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x, factor=1.0):
        weight = self.weight.float()
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        scale = (self.gain * factor)[:, None, None, None] * torch.rsqrt((variance * weight[0].numel()).clamp(min=1e-4))
        weight = ((weight - mean) * scale).to(x.dtype)
        return functional.conv2d(x, weight, (self.bias * factor).to(x.dtype), self.stride, self.padding)


class NFBlock(nn.Module):
    """x + 0.2 * skip_gain * branch(x / beta), where beta is the predicted standard deviation of x."""

    def __init__(self, config, inputs, width, stride, beta, transition):
        super().__init__()
        self.activation, self.beta = config["activation"], beta
        inner = width // 4
        plan = [(inner, 1, 1), (inner, 3, stride), (width, 1, 1)] if config["bottleneck"] else []
        self.convolutions = nn.ModuleList()
        before = inputs
        for outputs, size, step in plan or [(width, 3, stride), (width, 3, 1)]:
            self.convolutions.append(StandardisedConv(before, outputs, size, step))
            before = outputs
        self.pool = transition and stride == 2 and config["pooled_shortcut"]
        self.shortcut = StandardisedConv(inputs, width, 1, 1 if self.pool else stride) if transition else None
        self.skip_gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        branch = scaled = activate(x, self.activation) / self.beta
        for convolution in self.convolutions[:-1]:
            branch = activate(convolution(branch), self.activation)
        branch = self.convolutions[-1](branch, 0.2 * self.skip_gain)
        if self.pool:
            scaled = functional.avg_pool2d(scaled, 2, ceil_mode=True, count_include_pad=False)
        return (x if self.shortcut is None else self.shortcut(scaled)) + branch


class NFResNet(nn.Module):
    """Normaliser-free ResNet. Source: Brock, De and Smith, arXiv 2101.08692; skip gains from arXiv 2002.10444."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        size, stride = {"resnet": (7, 2), "conv": (3, 2), "patch": (4, 4)}[config["stem"]]
        self.stem = StandardisedConv(3, config["stem_width"], size, stride)
        self.blocks = nn.ModuleDict()
        before, variance = config["stem_width"], 1.0
        for stage, (width, depth) in enumerate(zip(config["widths"], config["depths"], strict=True), start=1):
            for index in range(1, depth + 1):
                stride = 2 if index == 1 and stage > 1 else 1
                block = NFBlock(config, before, width, stride, math.sqrt(variance), transition=index == 1)
                self.blocks[f"stage_{stage}_block_{index}"] = block
                variance = 0.2**2 + (1.0 if index == 1 else variance)
                before = width
        self.width = before

    def forward(self, pixels):
        x = self.stem(normalise(pixels, IMAGENET, self.stem.weight.dtype))
        if self.config["stem"] == "resnet":
            x = functional.max_pool2d(x, 3, 2, 1)
        for block in self.blocks.values():
            x = block(x)
        return activate(x, self.config["activation"]).mean((2, 3))


class FixedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation that always uses its stored statistics, in training too, and counts no batches."""

    def __init__(self, width):
        super().__init__(width)
        self.num_batches_tracked = None

    def train(self, mode=True):
        return super().train(False)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    def __init__(self, inputs, width, stride, transition):
        super().__init__()
        inner = width // 4
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), FixedBatchNorm(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), FixedBatchNorm(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, width, 1, bias=False), FixedBatchNorm(width)
        self.downsample = None
        if transition:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), FixedBatchNorm(width))

    def forward(self, x):
        branch = torch.relu(self.bn1(self.conv1(x)))
        branch = torch.relu(self.bn2(self.conv2(branch)))
        return torch.relu((x if self.downsample is None else self.downsample(x)) + self.bn3(self.conv3(branch)))


class ResNet(nn.Module):
    """ResNet with bottleneck blocks. Source: He et al., arXiv 1512.03385, with the stride in the 3x3 convolution."""

    def __init__(self, config):
        super().__init__()
        before = config["stem_width"]
        self.conv1, self.bn1 = nn.Conv2d(3, before, 7, 2, 3, bias=False), FixedBatchNorm(before)
        self.stages = len(config["widths"])
        for stage, (width, depth) in enumerate(zip(config["widths"], config["depths"], strict=True), start=1):
            blocks = [Bottleneck(before, width, 2 if stage > 1 else 1, transition=True)]
            blocks += [Bottleneck(width, width, 1, transition=False) for _ in range(1, depth)]
            before = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.width = before

    def forward(self, pixels):
        x = torch.relu(self.bn1(self.conv1(normalise(pixels, IMAGENET, self.conv1.weight.dtype))))
        x = functional.max_pool2d(x, 3, 2, 1)
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return x.mean((2, 3))


class ViTBlock(nn.Module):
    """Attention and MLP, each on a normalised copy of the residual stream."""

    def __init__(self, config):
        super().__init__()
        width, self.heads = config["width"], config["heads"]
        self.attention_norm = nn.LayerNorm(width, config["norm_epsilon"])
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp_norm = nn.LayerNorm(width, config["norm_epsilon"])
        self.up, self.down = nn.Linear(width, config["mlp_width"]), nn.Linear(config["mlp_width"], width)
        self.activation = ACT2FN[config["activation"]]

    def forward(self, x):
        normed = self.attention_norm(x)
        projected = (layer(normed) for layer in (self.query, self.key, self.value))
        heads = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)
        x = x + self.out(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.down(self.activation(self.up(self.mlp_norm(x))))


class ViT(nn.Module):
    """Vision transformer; the pooled feature is the class token's. Source: arXiv 2010.11929 and 2103.00020 (CLIP)."""

    def __init__(self, config):
        super().__init__()
        self.clip = config["family"] == "clip"
        width, patch = config["width"], config["patch_size"]
        self.patches = nn.Conv2d(3, width, patch, patch, bias=not self.clip)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros((config["image_size"] // patch) ** 2 + 1, width))
        self.embed_norm = nn.LayerNorm(width, config["norm_epsilon"]) if self.clip else nn.Identity()
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config["layers"]))
        self.final_norm = nn.LayerNorm(width, config["norm_epsilon"])
        self.width = config["projection_width"] or width
        self.projection = nn.Linear(width, self.width, bias=False) if config["projection_width"] else nn.Identity()

    def forward(self, pixels):
        x = self.patches(normalise(pixels, CLIP if self.clip else HALF, self.patches.weight.dtype))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = self.embed_norm(x + self.positions)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.final_norm(x[:, 0]))


ENCODERS = {"nf_resnet": NFResNet, "resnet": ResNet, "vit": ViT}


class Prefix(nn.Module):
    """One pooled feature becomes the vectors that stand for the picture among the words."""

    def __init__(self, config, inputs, width):
        super().__init__()
        self.length, self.rms = config["length"], config["embedding_rms"]
        self.feature_norm = nn.LayerNorm(inputs, 1e-5) if config["feature_norm"] else nn.Identity()
        self.hidden = nn.Linear(inputs, config["hidden"]) if config["kind"] == "mlp" else None
        self.projection = nn.Linear(inputs if self.hidden is None else config["hidden"], self.length * width)
        self.gain = nn.Parameter(torch.ones(1)) if config["layer_norm"] else None

    def forward(self, pooled):
        x = self.feature_norm(pooled)
        x = x if self.hidden is None else functional.gelu(self.hidden(x), approximate="tanh")
        x = self.projection(x).unflatten(-1, (self.length, -1))
        if self.gain is not None:  # vectors of the size of the language model's own embeddings, times a learnt gain
            x = functional.layer_norm(x.float(), x.shape[-1:], eps=1e-5) * (self.rms * self.gain)
        return x


class FrozenConfig(PreTrainedConfig):
    """Settings of the three parts.

    Attributes:
        text_config: of the language model, as transformers knows it.
        vision_config: `name` is a key of `ENCODERS`, the rest are that encoder's sizes.
        prefix_config: length, layer_norm, feature_norm, embedding_rms, kind (linear or mlp), hidden (of an mlp).
        language_model: None where model.safetensors holds it; else {"path", "sha256"} of the one to load.
        blind: trained on black pictures: every picture is black to it.
    """

    model_type = "frozen"

    def __init__(
        self, text_config=None, vision_config=None, prefix_config=None, language_model=None, blind=False, **others
    ):
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config, self.vision_config, self.prefix_config = text_config, vision_config, prefix_config
        self.language_model, self.blind = language_model, blind
        super().__init__(**others)


class FrozenForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Vision encoder, prefix and language model."""

    config_class = FrozenConfig

    def __init__(self, config):
        super().__init__(config)
        self.vision = ENCODERS[config.vision_config["name"]](config.vision_config)
        text = config.text_config
        self.language_model = AutoModelForCausalLM.from_config(text) if config.language_model is None else None
        width = getattr(text, "word_embed_proj_dim", None) or text.hidden_size  # OPT's words may be narrower
        self.prefix = Prefix(config.prefix_config, self.vision.width, width)
        self.post_init()

    @classmethod
    def from_pretrained(cls, directory, *arguments, language_model=None, **options):
        """Loads an exported directory.

        Args:
            directory: where it is.
            language_model: for an export without one: the loaded model, or where it is, in place of the path in
                config.json.
        """
        model = super().from_pretrained(directory, *arguments, **options)
        wanted = model.config.language_model
        if wanted is not None:
            given = wanted["path"] if language_model is None else language_model
            if isinstance(given, str | os.PathLike):
                given = AutoModelForCausalLM.from_pretrained(given, dtype=torch.float32)
            if fingerprint(given) != wanted["sha256"]:
                raise ValueError(f"this is not {wanted['path']} as this model was trained with; its weights differ")
            model.language_model = given.to(model.device, model.dtype).eval()
            model.config.language_model = None  # what is saved from here on holds it, for it may be trained
        return model

    def get_input_embeddings(self):
        """Returns the language model's table of words."""
        return self.language_model.get_input_embeddings()

    def embed_pictures(self, pixel_values):
        """Returns the vectors [N, P, D] of pictures uint8 [N, size, size, 3]."""
        pixels = torch.zeros_like(pixel_values) if self.config.blind else pixel_values
        return self.prefix(self.vision(pixels))

    def embed(self, input_ids, pixel_values=None):
        """Returns words' embeddings [B, S, D] with the pictures' vectors in the slots."""
        embeddings = self.get_input_embeddings()(input_ids.clamp(min=0))
        slots = input_ids == SLOT
        vectors = embeddings[:0, 0] if pixel_values is None else self.embed_pictures(pixel_values).flatten(0, 1)
        if int(slots.sum()) != len(vectors):
            raise ValueError(f"{int(slots.sum())} slots, {len(vectors)} vectors of pictures; use FrozenProcessor")
        return embeddings.masked_scatter(slots[:, :, None], vectors.to(embeddings.dtype))

    def forward(self, input_ids, pixel_values=None, attention_mask=None, labels=None, **options):
        """Returns logits [B, S, V] of the next word, and the loss where `labels` [B, S] (-100: none) are given."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.language_model(
            inputs_embeds=self.embed(input_ids, pixel_values),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            labels=labels,
            **options,
        )

    @torch.no_grad()
    def generate(self, input_ids, pixel_values=None, attention_mask=None, **options):
        """Continues prompts; returns the new tokens [B, T]. `options` are transformers': num_beams, do_sample…"""
        self.language_model.generation_config = self.generation_config
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        words = self.embed(input_ids, pixel_values)
        return self.language_model.generate(inputs_embeds=words, attention_mask=mask, **options)


def fingerprint(language_model):
    """Returns the SHA-256 over names, shapes and float32 values of all parameters in the order of their names."""
    digest = hashlib.sha256()
    for name, parameter in sorted(language_model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
