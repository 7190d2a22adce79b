"""The small networks that are trained here, each function spelled the way that its export should show it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


def tf_softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis, decomposed as TensorFlow and JAX write it."""
    exp = torch.exp(x - x.amax(-1, keepdim=True))
    return exp * torch.reciprocal(exp.sum(-1, keepdim=True))


def torch_softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis as Exp, ReduceSum, Div."""
    exp = torch.exp(x - x.amax(-1, keepdim=True))
    return exp / exp.sum(-1, keepdim=True)


def erf_gelu(x: Tensor) -> Tensor:
    """GELU by the error function, spelled out."""
    return x * 0.5 * (torch.erf(x / math.sqrt(2.0)) + 1.0)


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU's tanh form, spelled out."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class PowerSoftmax(nn.Module):
    """Attention weights (x/c)^p / (eps + sum (x/c)^p), p even: no exponential, no maximum.

    The stable, scaled form of Zimerman et al., Power-Softmax: Towards Secure LLM Inference over Encrypted
    Data (2024, arXiv 2410.09457). The scale c is a constant: encrypted data has no maximum to divide by.
    """

    def __init__(self, power: int = 2, scale: float = 4.0, epsilon: float = 1e-3) -> None:
        super().__init__()
        self.power, self.scale, self.epsilon = power, scale, epsilon

    def forward(self, x: Tensor) -> Tensor:
        """[..., keys] to weights that sum to almost 1 over the last axis."""
        powers = torch.pow(x / self.scale, self.power)
        return powers / (powers.sum(-1, keepdim=True) + self.epsilon)


class SpelledLayerNorm(nn.LayerNorm):
    """LayerNorm in primitive operators: Sqrt and Div, or `rsqrt` as Reciprocal of Sqrt with the affine part
    folded into one multiplication and one addition, as TensorFlow does."""

    affine_form = False

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] to the same."""
        mean = x.mean(-1, keepdim=True)
        variance = torch.pow(x - mean, 2.0).mean(-1, keepdim=True)
        if self.affine_form:
            inverse = torch.reciprocal(torch.sqrt(variance + self.eps)) * self.weight
            return x * inverse + (self.bias - mean * inverse)
        return (x - mean) / torch.sqrt(variance + self.eps) * self.weight + self.bias


class TfLayerNorm(SpelledLayerNorm):
    """The TensorFlow form."""

    affine_form = True


class TokenBatchNorm(nn.Module):
    """Batch normalisation of every feature over images and tokens: a constant affine map once it is trained."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(size)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, size] to the same."""
        normal: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return normal


class Bounded(nn.Module):
    """The identity; in training `excess` says how far numbers are beyond `limit`, as a loss that keeps them within.

    A polynomial in a function's place is the better the narrower its interval is: Baruch et al., Training Large Scale
    Polynomial CNNs for E2E Inference over Homomorphic Encryption (2023, arXiv 2304.14836), section 4.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit, self.excess = limit, torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if self.training:
            self.excess = torch.relu(x.abs() - self.limit).square().mean()
        return x


def excess(model: nn.Module) -> Tensor:
    """The sum over all `Bounded` of the last batch."""
    found = [module.excess for module in model.modules() if isinstance(module, Bounded)]
    return torch.stack([torch.zeros(()), *found]).sum()


@dataclass(frozen=True)
class Spelling:
    """Which functions a ViT is built of. State dicts fit every spelling with the same kind of norm.

    Attributes:
        limit: of what softmax and GELU get, in training.
    """

    softmax: Function
    gelu: Function
    norm: Callable[[int], nn.Module] = nn.LayerNorm
    limit: float = math.inf


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis."""
    return torch.softmax(x, -1)


PLAIN = Spelling(softmax, nn.functional.gelu)
POWER = Spelling(PowerSoftmax(), nn.functional.gelu)
ENCRYPTED = Spelling(PowerSoftmax(epsilon=1.0), nn.functional.gelu, TokenBatchNorm, limit=2.0)
TORCH = Spelling(torch_softmax, erf_gelu, SpelledLayerNorm)
#: Exact for a network trained with the tanh form; the erf form differs by 1e-3 at most.
TF = Spelling(tf_softmax, tanh_gelu, TfLayerNorm)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, size: int, heads: int, spelling: Spelling) -> None:
        super().__init__()
        self.heads, self.spelling = heads, spelling
        self.norm1, self.norm2 = spelling.norm(size), spelling.norm(size)
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.out = nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.bounded_scores, self.bounded_hidden = Bounded(spelling.limit), Bounded(spelling.limit)

    def attention(self, x: Tensor) -> Tensor:
        """[batch, tokens, size] to the same."""
        _, tokens, size = x.shape

        def split(y: Tensor) -> Tensor:
            return y.reshape(-1, tokens, self.heads, size // self.heads).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = self.bounded_scores(q @ k.transpose(-1, -2) / math.sqrt(size // self.heads))
        mixed = self.spelling.softmax(scores) @ v
        joined: Tensor = self.out(mixed.transpose(1, 2).reshape(-1, tokens, size))
        return joined

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, size] to the same."""
        x = x + self.attention(self.norm1(x))
        change: Tensor = self.down(self.spelling.gelu(self.bounded_hidden(self.up(self.norm2(x)))))
        return x + change


class Vit(nn.Module):
    """[batch, 1, 8, 8] in [0, 1] to [batch, 10] logits: 2x2 patches, 16 tokens, mean pooling."""

    def __init__(self, spelling: Spelling, size: int = 32, heads: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, size, 2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, size))
        self.blocks = nn.ModuleList(Block(size, heads, spelling) for _ in range(depth))
        self.norm = spelling.norm(size)
        self.head = nn.Linear(size, 10)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        x = self.patches(image).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class Mlp(nn.Module):
    """[batch, 784] in [0, 1] to [batch, 10] logits through 128 units, ReLU or the square."""

    def __init__(self, square: bool = False) -> None:
        super().__init__()
        self.hidden, self.head, self.square = nn.Linear(784, 128), nn.Linear(128, 10), square

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        x = self.hidden(image)
        logits: Tensor = self.head(x * x if self.square else torch.relu(x))
        return logits


class Cnn(nn.Module):
    """[batch, 784] in [0, 1], images of 28x28, to [batch, 10] logits: a depthwise and two plain convolutions."""

    def __init__(self) -> None:
        super().__init__()

        def convolved(inputs: int, outputs: int, size: int, groups: int = 1) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs))

        self.features = nn.Sequential(
            convolved(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
            convolved(8, 8, 3, groups=8), convolved(8, 24, 1), nn.ReLU(), nn.MaxPool2d(2),
            convolved(24, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.head(self.features(image.reshape(-1, 1, 28, 28)).flatten(1))
        return logits


class Square(nn.Module):
    """x^2: the cheapest function that is not linear, for encrypted numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * x


class LenetSquare(nn.Module):
    """[batch, 784] in [0, 1], images of 28x28, to [batch, 10] logits: LeNet-5 with squares and average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2, bias=False), nn.BatchNorm2d(6), Square(), nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5, bias=False), nn.BatchNorm2d(16), Square(), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(400, 64, bias=False), nn.BatchNorm1d(64), Square(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.head(self.features(image.reshape(-1, 1, 28, 28)))
        return logits
