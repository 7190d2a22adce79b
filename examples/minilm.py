"""MiniLM-L3, a sentence encoder, on the Lee documents: does lowering change what it says about similarity?

    python -m examples.minilm --write-data D.npz     # tokenised, for `compile` and `validate`
    python -m examples.minilm --artifact OUT         # correlation with people, before and after

The data are 50 news texts, and how similar people found each two of them (Lee, Pincombe and Welsh, 2005).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from examples.fetch import FetchError, fetch
from lowerkit import Artifact, LowerkitError
from lowerkit.numerics.metrics import pairwise_cosines, pearson, spearman
from lowerkit.validation.samples import write_arrays

TOKENS = 128
#: The model's output of token embeddings, [1, tokens, 384].
EMBEDDINGS = "onnx::Shape_422"

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def documents() -> list[str]:
    """The texts."""
    return fetch("lee-documents").read_text(encoding="latin-1").splitlines()


def human_similarities() -> np.ndarray:
    """What people said, for each pair i < j of texts, from 0 to 1."""
    matrix = np.loadtxt(fetch("lee-similarities"))
    return matrix[np.triu_indices(len(matrix), 1)]


def tokenise(texts: list[str]) -> dict[str, np.ndarray]:
    """`input_ids` and `attention_mask`, int64 [texts, 128], cut or padded."""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(str(fetch("bert-vocabulary")), lowercase=True)
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([text.ids for text in encoded], np.int64),
        "attention_mask": np.array([text.attention_mask for text in encoded], np.int64),
    }


def embed(run: Run, data: Mapping[str, np.ndarray]) -> np.ndarray:
    """[texts, 384]: the mean of the token embeddings of each text, padding left out."""
    texts = range(len(data["input_ids"]))
    samples = [{name: array[i : i + 1] for name, array in data.items()} for i in texts]
    return pooled([run(sample)[EMBEDDINGS] for sample in samples], data["attention_mask"])


def pooled(embeddings: Sequence[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """The mean of each text's token embeddings, [1, 128, 384], where its row of the mask is 1."""
    pairs = zip(embeddings, mask, strict=True)
    return np.stack([(x[0] * kept[:, None]).sum(0) / kept.sum() for x, kept in pairs])


def onnxruntime_run(path: Path) -> Run:
    """The original model in onnxruntime."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda sample: dict(zip([EMBEDDINGS], session.run([EMBEDDINGS], dict(sample)), strict=True))


def compare(artifact: Path) -> Table:
    """Correlation of cosine similarities with people's, original against artifact."""
    data, human = tokenise(documents()), human_similarities()
    table = Table("model", "Pearson with people", "Spearman with people", "Spearman with the original")
    before = pairwise_cosines(embed(onnxruntime_run(fetch("minilm")), data))
    after = pairwise_cosines(embed(Artifact.load(artifact).run, data))
    for name, found in (("original, onnxruntime", before), ("artifact", after)):
        numbers = (pearson(human, found), spearman(human, found), spearman(before, found))
        table.add_row(name, *(f"{number:.6f}" for number in numbers))
    return table


def main() -> None:
    """Write data or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write-data", type=Path, metavar="D.npz")
    parser.add_argument("--artifact", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    if arguments.write_data is None and arguments.artifact is None:
        sys.exit("minilm: give --write-data or --artifact")
    try:
        if arguments.write_data is not None:
            write_arrays(arguments.write_data, tokenise(documents()))
        if arguments.artifact is not None:
            Console().print(compare(arguments.artifact))
    except (FetchError, LowerkitError) as error:
        sys.exit(f"minilm: {error}")


if __name__ == "__main__":
    main()
