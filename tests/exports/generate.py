"""Writes the graphs beside it: small networks as real exporters write them. Tests read only the files.

    python3.11 -m venv exports && exports/bin/pip install torch==2.13.0 transformers==5.23.0 onnx==1.23.2 \\
        onnxscript==0.7.2 jax==0.10.2 jax2onnx==0.17.1
    exports/bin/python tests/exports/generate.py torch
    exports/bin/python tests/exports/generate.py jax
    # in an environment of its own, with tensorflow-cpu==2.21.0 and tf2onnx==1.17.0
    python tests/exports/generate.py tf

Weights are random with a fixed seed; a file's name says network and exporter. What an installed version
cannot export is reported and left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMIT = 200_000  # bytes


def save(name: str, write: Callable[[Path], object]) -> None:
    """Have `write` write the file `name`.onnx; report what fails."""
    path = HERE / f"{name}.onnx"
    try:
        write(path)
    except Exception as error:  # each exporter has its own; a network it cannot export is no fixture
        path.unlink(missing_ok=True)
        print(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[:1]}")
        return
    size = path.stat().st_size
    print(f"{name}: {size} bytes")
    if size > LIMIT:
        path.unlink()
        raise SystemExit(f"{name}: larger than {LIMIT} bytes")


def torch_networks() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Modules of torch alone, with example inputs."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Attend(nn.Module):
        """Scaled-dot-product attention, with whichever mask."""

        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.options = options

        def forward(self, q: Any, k: Any, v: Any, mask: Any = None) -> Any:
            return functional.scaled_dot_product_attention(q, k, v, mask, **self.options)

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.attention(x, x, x, need_weights=False)[0]

    class Weights(SelfAttention):
        """Its weights are an output, so that the named operator cannot take their place."""

        def forward(self, x: Any) -> Any:
            return self.attention(x, x, x, need_weights=True)

    def linear(activation: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), activation)

    x, tokens = torch.randn(2, 8), torch.randn(2, 6, 16)
    heads = tuple(torch.randn(2, 2, 6, 8) for _ in range(3))
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    mask[3] = False
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish())
    for module in convolution.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    layer = {"batch_first": True, "dropout": 0.0}
    return {
        "gelu": (linear(nn.GELU()), (x,)),
        "gelu-tanh": (linear(nn.GELU(approximate="tanh")), (x,)),
        "silu": (linear(nn.SiLU()), (x,)),
        "mish": (linear(nn.Mish()), (x,)),
        "hardswish": (linear(nn.Hardswish()), (x,)),
        "hardsigmoid": (linear(nn.Hardsigmoid()), (x,)),
        "softplus": (linear(nn.Softplus()), (x,)),
        "softmax": (linear(nn.Softmax(dim=-1)), (x,)),
        "logsoftmax": (linear(nn.LogSoftmax(dim=-1)), (x,)),
        "layernorm": (linear(nn.LayerNorm(8)), (x,)),
        "layernorm-plain": (linear(nn.LayerNorm(8, elementwise_affine=False)), (x,)),
        "rmsnorm": (linear(nn.RMSNorm(8)), (x,)),
        "conv-batchnorm": (convolution, (torch.randn(1, 3, 6, 6),)),
        "sdpa": (Attend(), heads),
        "sdpa-causal": (Attend(is_causal=True), heads),
        "sdpa-bool-mask": (Attend(), (*heads, mask)),
        "sdpa-float-mask": (Attend(), (*heads, torch.randn(6, 6))),
        "multihead": (SelfAttention(), (tokens,)),
        "multihead-weights": (Weights(), (tokens,)),
        "encoder-relu": (nn.TransformerEncoderLayer(16, 2, 32, **layer), (tokens,)),
        "encoder-gelu": (nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", norm_first=True, **layer), (tokens,)),
    }  # fmt: skip


def transformers_networks() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Tiny configurations of transformers, with eager attention and with torch's."""
    import torch
    import transformers
    from torch import nn

    class Only(nn.Module):
        """The first output, called with positional inputs."""

        def __init__(self, model: Any, names: tuple[str, ...], options: dict[str, Any]) -> None:
            super().__init__()
            self.model, self.names, self.options = model, names, options

        def forward(self, *inputs: Any) -> Any:
            return self.model(
                **dict(zip(self.names, inputs, strict=True)), **self.options, return_dict=False
            )[0]

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text = (torch.arange(6).reshape(1, 6), torch.ones(1, 6, dtype=torch.int64))
    both, ids = ("input_ids", "attention_mask"), ("input_ids",)
    result = {}
    for attention in ("eager", "sdpa"):
        kind = {"attn_implementation": attention}
        bert = transformers.BertConfig(vocab_size=32, max_position_embeddings=8, **sizes, **kind)
        gpt2 = transformers.GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=2, n_head=2, **kind)
        llama = transformers.LlamaConfig(vocab_size=32, num_key_value_heads=1, **sizes, **kind)
        vit = transformers.ViTConfig(image_size=8, patch_size=4, **sizes, **kind)
        models = {
            "bert": (transformers.BertModel(bert), both, text, {}),
            "gpt2": (transformers.GPT2Model(gpt2), ids, text[:1], {"use_cache": False}),
            "llama": (transformers.LlamaModel(llama), ids, text[:1], {"use_cache": False}),
            "vit": (transformers.ViTModel(vit), ("pixel_values",), (torch.randn(1, 3, 8, 8),), {}),
        }
        for name, (model, names, inputs, options) in models.items():
            result[f"hf-{name}-{attention}"] = Only(model, names, options), inputs
    return result


def write_torch() -> None:
    """Every network of torch and transformers, by both of torch's exporters."""
    import torch

    torch.manual_seed(0)
    for name, (module, inputs) in (torch_networks() | transformers_networks()).items():
        module.eval()
        for exporter, options in (
            ("legacy", {"dynamo": False, "opset_version": 17}),
            ("dynamo", {"dynamo": True, "external_data": False, "verbose": False, "optimize": True}),
        ):

            def write(path: Path, module: Any = module, inputs: Any = inputs, options: Any = options) -> None:
                torch.onnx.export(module, inputs, str(path), **options)
                strip(path)

            save(f"{name}.torch-{exporter}", write)


def write_jax() -> None:
    """jax.nn and attention written in jax, by jax2onnx."""
    import jax
    import jax.numpy as jnp
    from jax2onnx import to_onnx

    def layer_norm(x: Any) -> Any:
        mean = x.mean(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)

    def rms_norm(x: Any) -> Any:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)

    def attention(q: Any, k: Any, v: Any) -> Any:
        return jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) / jnp.sqrt(8.0), axis=-1) @ v

    networks: dict[str, tuple[Callable[..., Any], int, tuple[int, ...]]] = {
        "softmax": (jax.nn.softmax, 1, (2, 8)),
        "logsoftmax": (jax.nn.log_softmax, 1, (2, 8)),
        "gelu": (lambda x: jax.nn.gelu(x, approximate=False), 1, (2, 8)),
        "gelu-tanh": (lambda x: jax.nn.gelu(x, approximate=True), 1, (2, 8)),
        "silu": (jax.nn.silu, 1, (2, 8)),
        "mish": (jax.nn.mish, 1, (2, 8)),
        "hardswish": (jax.nn.hard_swish, 1, (2, 8)),
        "layernorm": (layer_norm, 1, (2, 8)),
        "rmsnorm": (rms_norm, 1, (2, 8)),
        "attention": (attention, 3, (2, 2, 6, 8)),
    }
    for name, (function, count, shape) in networks.items():

        def write(path: Path, function: Any = function, count: int = count, shape: Any = shape) -> None:
            to_onnx(function, [shape] * count, return_mode="file", output_path=str(path))
            strip(path)

        save(f"{name}.jax2onnx", write)


def write_tf() -> None:
    """Keras layers, by tf2onnx."""
    import tensorflow as tf
    import tf2onnx

    tf.random.set_seed(0)
    x = tf.keras.layers.Input((6, 16))
    layers = tf.keras.layers
    networks = {
        "softmax": tf.keras.layers.Softmax()(x),
        "gelu": layers.Activation("gelu")(x),
        "silu": layers.Activation("silu")(x),
        "layernorm": layers.LayerNormalization()(x),
        "attention": layers.MultiHeadAttention(2, 8)(x, x),
    }
    for name, y in networks.items():

        def write(path: Path, y: Any = y) -> None:
            model = tf.keras.Model(x, y)
            function = tf.function(lambda v: model(v))
            spec = [tf.TensorSpec((2, 6, 16), tf.float32, name="x")]
            tf2onnx.convert.from_function(function, spec, opset=17, output_path=str(path))
            strip(path)

        save(f"{name}.tf2onnx", write)


def strip(path: Path) -> None:
    """Without what exporters say about source lines and paths."""
    import onnx

    model = onnx.load(path)
    model.doc_string = ""
    del model.metadata_props[:]
    for graph in (model.graph, *model.functions):
        graph.doc_string = ""
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        for value in graph.value_info:
            del value.metadata_props[:]
    del model.graph.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    onnx.save(model, path)


if __name__ == "__main__":
    for kind in sys.argv[1:]:
        {"torch": write_torch, "jax": write_jax, "tf": write_tf}[kind]()
