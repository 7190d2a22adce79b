"""The vision transformer of M3ViT with the shapes that Edge-MoE runs it at, and seeded random weights.

    python -m examples.m3vit [--seed 0] FILE.onnx

Twelve pre-norm blocks of width 192 with 3 heads over 129 tokens: 128 patches of 16 x 16 from an image of 128 x 256, and
a class token. Every second block has, in place of its MLP of 768 hidden units, 16 experts of 384 hidden units, of which
each token takes 2: with half the hidden units of the MLP, two experts cost as much as it does. Shares are softmax over
all 16 logits, and the two chosen ones are not normalised. The graph ends where the accelerator does, behind the last
block; heads for single tasks and the final normalisation are not part of it.

Sources: Fan et al., M3ViT (NeurIPS 2022), section 3, and its public gate; Sarkar et al., Edge-MoE (ICCAD 2023),
section III, and the shapes in its public code. Trained weights are not public in ONNX; speed, memory and bit-exactness
do not depend on them, accuracy does.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

OPSET = 23


@dataclass(frozen=True)
class Shapes:
    """Of the network; the defaults are Edge-MoE's."""

    layers: int = 12
    width: int = 192
    heads: int = 3
    image: tuple[int, int] = (128, 256)
    patch: int = 16
    hidden: int = 768
    experts: int = 16
    chosen: int = 2
    expert_hidden: int = 384

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image[0] // self.patch) * (self.image[1] // self.patch) + 1

    def is_moe(self, layer: int) -> bool:
        """The second of each two blocks."""
        return layer % 2 == 1


M3VIT = Shapes()


@dataclass
class _Graph:
    """Nodes and weights under construction. Weights are normal with a deviation of 1 / sqrt(inputs)."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def __call__(self, name: str, op_type: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, inputs, names, name, **attributes))
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        """An initializer; floats are stored in single precision."""
        kept = array.astype(np.float32) if array.dtype.kind == "f" else array
        self.weights.append(onnx.numpy_helper.from_array(kept, name))
        return name

    def random(self, name: str, *shape: int, scale: float) -> str:
        """Normal numbers."""
        return self.constant(name, scale * self.rng.standard_normal(shape))

    def linear(self, name: str, x: str, inner: int, columns: int) -> str:
        """x W + b."""
        w = self.random(f"{name}.weight", inner, columns, scale=inner**-0.5)
        b = self.random(f"{name}.bias", columns, scale=0.02)
        return self(name, "Add", self(f"{name}.product", "MatMul", x, w), b)

    def norm(self, name: str, x: str, width: int) -> str:
        """LayerNorm."""
        gamma = self.constant(f"{name}.weight", 1 + 0.02 * self.rng.standard_normal(width))
        beta = self.random(f"{name}.bias", width, scale=0.02)
        return self(name, "LayerNormalization", x, gamma, beta, axis=-1, epsilon=1e-6)

    def attention(self, name: str, x: str, s: Shapes) -> str:
        """[1, tokens, width] to the same."""
        size = s.width // s.heads
        split = self.constant(f"{name}.split", np.array([1, s.tokens, s.heads, size]))
        join = self.constant(f"{name}.join", np.array([1, s.tokens, s.width]))
        q, k, v = (
            self(
                f"{name}.{what}.heads",
                "Transpose",
                self(
                    f"{name}.{what}.split",
                    "Reshape",
                    self.linear(f"{name}.{what}", x, s.width, s.width),
                    split,
                ),
                perm=perm,
            )
            for what, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
        )
        scale = self.constant(f"{name}.scale", np.array(size**-0.5))
        scores = self(f"{name}.scores", "Mul", self(f"{name}.dots", "MatMul", q, k), scale)
        mixed = self(f"{name}.mixed", "MatMul", self(f"{name}.weights", "Softmax", scores, axis=-1), v)
        turned = self(f"{name}.turned", "Transpose", mixed, perm=[0, 2, 1, 3])
        return self.linear(f"{name}.out", self(f"{name}.joined", "Reshape", turned, join), s.width, s.width)

    def mlp(self, name: str, x: str, s: Shapes) -> str:
        """[1, tokens, width] to the same."""
        hidden = self(f"{name}.gelu", "Gelu", self.linear(f"{name}.up", x, s.width, s.hidden))
        return self.linear(f"{name}.down", hidden, s.hidden, s.width)

    def moe(self, name: str, x: str, s: Shapes) -> str:
        """[1, tokens, width] to the same; every expert is written out for every token."""
        one, last = self.constant(f"{name}.one", np.array([1])), self.constant(f"{name}.last", np.array([-1]))
        # Twice the usual deviation: logits near 0 would give every expert the same share.
        gate = self.random(f"{name}.gate", s.width, s.experts, scale=2 * s.width**-0.5)
        shares = self(f"{name}.softmax", "Softmax", self(f"{name}.logits", "MatMul", x, gate), axis=-1)
        count = self.constant(f"{name}.k", np.array([s.chosen]))
        self(f"{name}.best", "TopK", shares, count, axis=-1, outputs=2)
        zeros = self.constant(f"{name}.zeros", np.zeros((1, s.tokens, s.experts)))
        best, index = f"{name}.best", f"{name}.best_1"
        gates = self(f"{name}.gates", "ScatterElements", zeros, index, best, axis=-1)
        turned = self(f"{name}.turned", "Transpose", gates, perm=[0, 2, 1])
        column = self(f"{name}.column", "Unsqueeze", turned, last)
        value = self(f"{name}.each", "Unsqueeze", x, one)
        for what, inner, columns in (("up", s.width, s.expert_hidden), ("down", s.expert_hidden, s.width)):
            w = self.random(f"{name}.{what}.weight", s.experts, inner, columns, scale=inner**-0.5)
            b = self.random(f"{name}.{what}.bias", s.experts, 1, columns, scale=0.02)
            value = self(f"{name}.{what}", "Add", self(f"{name}.{what}.product", "MatMul", value, w), b)
            value = self(f"{name}.gelu", "Gelu", value) if what == "up" else value
        return self(f"{name}.sum", "ReduceSum", self(f"{name}.shared", "Mul", value, column), one, keepdims=0)

    def block(self, name: str, x: str, s: Shapes, moe: bool) -> str:
        """[1, tokens, width] to the same."""
        attended = self.attention(f"{name}.attention", self.norm(f"{name}.norm1", x, s.width), s)
        x = self(f"{name}.middle", "Add", x, attended)
        normed = self.norm(f"{name}.norm2", x, s.width)
        change = self.moe(f"{name}.moe", normed, s) if moe else self.mlp(f"{name}.mlp", normed, s)
        return self(f"{name}.output", "Add", x, change)

    def finish(
        self, name: str, source: tuple[str, tuple[int, ...]], result: str, s: Shapes
    ) -> onnx.ModelProto:
        """The model from one input to one output [1, tokens, width]."""
        given = helper.make_tensor_value_info(source[0], TensorProto.FLOAT, source[1])
        made = helper.make_tensor_value_info(result, TensorProto.FLOAT, (1, s.tokens, s.width))
        graph = helper.make_graph(self.nodes, name, [given], [made], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=11)


def m3vit(shapes: Shapes = M3VIT, seed: int = 0) -> onnx.ModelProto:
    """image [1, 3, height, width] to features [1, tokens, width]."""
    g, s = _Graph(np.random.default_rng(seed)), shapes
    fan = 3 * s.patch * s.patch
    w = g.random("patches.weight", s.width, 3, s.patch, s.patch, scale=2 * fan**-0.5)
    b = g.random("patches.bias", s.width, scale=0.02)
    strides = [s.patch, s.patch]
    patches = g("patches", "Conv", "image", w, b, strides=strides, kernel_shape=strides)
    flat = g.constant("tokens.shape", np.array([1, s.width, s.tokens - 1]))
    x = g("tokens", "Transpose", g("tokens.flat", "Reshape", patches, flat), perm=[0, 2, 1])
    first = g.random("class", 1, 1, s.width, scale=0.5)
    position = g.random("position", 1, s.tokens, s.width, scale=0.1)
    x = g("embedded", "Add", g("with_class", "Concat", first, x, axis=1), position)
    for layer in range(s.layers):
        x = g.block(f"block{layer}", x, s, s.is_moe(layer))
    return g.finish("m3vit", ("image", (1, 3, *s.image)), x, s)


def block(moe: bool, shapes: Shapes = M3VIT, seed: int = 0) -> onnx.ModelProto:
    """One block, x [1, tokens, width] to the same."""
    g = _Graph(np.random.default_rng(seed))
    result = g.block("block", "x", shapes, moe)
    name = "moe_block" if moe else "dense_block"
    return g.finish(name, ("x", (1, shapes.tokens, shapes.width)), result, shapes)


def experts(shapes: Shapes = M3VIT, seed: int = 0) -> onnx.ModelProto:
    """A gate and its experts alone, x [1, tokens, width] to the same."""
    g = _Graph(np.random.default_rng(seed))
    result = g.moe("moe", "x", shapes)
    return g.finish("experts", ("x", (1, shapes.tokens, shapes.width)), result, shapes)


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    onnx.save(m3vit(seed=arguments.seed), arguments.file)


if __name__ == "__main__":
    main()
