"""Transformer encoders of real sizes, exported with torch when they are first asked for.

    python -m examples.encoders minilm-l6      # prints the path of the ONNX file

`minilm-l6` is all-MiniLM-L6-v2 with its real weights. `deit-tiny` has the shape of DeiT-tiny (Touvron et al., Training
data-efficient image transformers, 2021, table 1) and random weights, drawn with a fixed seed: it is for measuring
speed. Files are kept in the cache of `examples.fetch`, under the version of torch and the SHA-256 of this file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from examples.fetch import FetchError, cache, fetch

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    raise FetchError("torch is needed to export this model: pip install 'lowerkit[train]'") from None

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OPSET = 17
SEED = 1


class Attention(nn.Module):
    """Self-attention, [batch, tokens, size] to the same, with an optional mask that is added to the scores."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See the class; `mask` is [batch, 1, 1, tokens]."""
        batch, tokens, size = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, tokens, self.heads, size // self.heads).permute(0, 2, 1, 3)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(size // self.heads)
        if mask is not None:
            scores = scores + mask
        mixed = torch.matmul(torch.softmax(scores, -1), v)
        joined: Tensor = self.out(mixed.permute(0, 2, 1, 3).contiguous().view(batch, tokens, size))
        return joined


class Layer(nn.Module):
    """Attention and a feed-forward part of four times the width, normalised before each (ViT) or after (BERT)."""

    def __init__(self, size: int, heads: int, epsilon: float, before: bool) -> None:
        super().__init__()
        self.before = before
        self.attention = Attention(size, heads)
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
        self.norm1, self.norm2 = nn.LayerNorm(size, epsilon), nn.LayerNorm(size, epsilon)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[batch, tokens, size] to the same."""
        if self.before:
            x = x + self.attention(self.norm1(x), mask)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(self.attention(x, mask) + x)
        normal: Tensor = self.norm2(self._feed_forward(x) + x)
        return normal

    def _feed_forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(nn.functional.gelu(self.up(x)))
        return y


class Bert(nn.Module):
    """Token ids and mask, int64 [batch, tokens], to token embeddings [batch, tokens, size]."""

    def __init__(
        self, vocabulary: int = 30522, positions: int = 512, size: int = 384, depth: int = 6
    ) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, size), nn.Embedding(positions, size)
        self.types = nn.Embedding(2, size)
        self.norm = nn.LayerNorm(size, 1e-12)
        self.layers = nn.ModuleList(Layer(size, size // 32, 1e-12, before=False) for _ in range(depth))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See the class."""
        positions = torch.arange(input_ids.shape[1])[None]
        x = self.words(input_ids) + self.types(torch.zeros_like(input_ids)) + self.positions(positions)
        x = self.norm(x)
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Deit(nn.Module):
    """[batch, 3, 224, 224] to [batch, 1000] logits: 196 patches and a class token."""

    def __init__(self, size: int = 192, heads: int = 3, depth: int = 12, classes: int = 1000) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, size, 16, stride=16)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, size))
        self.position = nn.Parameter(0.02 * torch.randn(1, 197, size))
        self.layers = nn.ModuleList(Layer(size, heads, 1e-6, before=True) for _ in range(depth))
        self.norm = nn.LayerNorm(size, 1e-6)
        self.head = nn.Linear(size, classes)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


#: Name in `Bert` -> name in the published weights, layer by layer.
_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}
_EMBEDDINGS = {
    "words": "word_embeddings",
    "positions": "position_embeddings",
    "types": "token_type_embeddings",
    "norm": "LayerNorm",
}


def minilm_l6() -> tuple[nn.Module, dict[str, Tensor]]:
    """all-MiniLM-L6-v2 without its pooling, and inputs of 128 tokens."""
    model, weights = Bert(), read_safetensors(fetch("minilm-l6-weights"))

    def published(name: str) -> str:
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            part, leaf = rest.rsplit(".", 1)
            return f"encoder.layer.{index}.{_LAYER[part]}.{leaf}"
        part, leaf = name.rsplit(".", 1)
        return f"embeddings.{_EMBEDDINGS[part]}.{leaf}"

    model.load_state_dict({name: torch.from_numpy(weights[published(name)]) for name in model.state_dict()})
    tokens = torch.ones(1, 128, dtype=torch.int64)
    return model, {"input_ids": tokens, "attention_mask": tokens}


def deit_tiny() -> tuple[nn.Module, dict[str, Tensor]]:
    """Random weights of the variance that keeps signals of one size, and one image."""
    torch.manual_seed(SEED)
    model = Deit()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            nn.init.normal_(module.bias, std=0.02)
        elif isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1.0, 0.1)
            nn.init.normal_(module.bias, std=0.1)
    return model, {"image": torch.randn(1, 3, 224, 224)}


ENCODERS: Mapping[str, Callable[[], tuple[nn.Module, dict[str, Tensor]]]] = {
    "minilm-l6": minilm_l6,
    "deit-tiny": deit_tiny,
}


def exported(name: str) -> Path:
    """The path of the encoder's ONNX file: static shapes, one output called `output`.

    Raises FetchError when its weights cannot be had.
    """
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    path = cache() / "exports" / f"{name}-{torch.__version__}-{digest}.onnx"
    if not path.exists():
        model, inputs = ENCODERS[name]()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        torch.onnx.export(
            model.eval(),
            tuple(inputs.values()),
            str(part),
            input_names=list(inputs),
            output_names=["output"],
            opset_version=OPSET,
            dynamo=False,
        )
        part.replace(path)
    return path


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of a .safetensors file: a length, a JSON header, then the bytes."""
    types = {"F32": np.float32, "I64": np.int64}
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            array = np.frombuffer(content[start + first : start + end], types[entry["dtype"]])
            arrays[name] = array.reshape(entry["shape"]).copy()
    return arrays


if __name__ == "__main__":
    try:
        print(*[exported(name) for name in sys.argv[1:]], sep="\n")
    except FetchError as error:
        sys.exit(f"encoders: {error}")
