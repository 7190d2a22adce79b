"""PP-OCR's text recogniser on drawn lines of text: what it reads, before and after lowering.

    python -m examples.ocr --write-data D.npz     # pictures of lines, for `compile` and `validate`
    python -m examples.ocr --artifact OUT         # lines read right, original and artifact

The texts are the first words of the Lee documents, drawn in DejaVu Sans with some noise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from examples.fetch import FetchError, fetch
from examples.minilm import documents
from lowerkit import Artifact, LowerkitError, load
from lowerkit.validation.samples import write_arrays

HEIGHT, WIDTH = 48, 320
#: Letters that fit the width.
LONGEST = 22
#: Standard deviation of the noise, of a picture from 0 to 1.
NOISE = 0.08


def lines() -> list[str]:
    """One line of each document: its first words."""
    found = []
    for text in documents():
        line = ""
        for word in text.split():
            if len(line) + 1 + len(word) > LONGEST:
                break
            line = f"{line} {word}".strip()
        found.append(line)
    return found


def pictures(texts: Sequence[str]) -> np.ndarray:
    """The lines as the recogniser takes them: float32 [lines, 3, 48, 320] from -1 to 1."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(path), 24)
    rng = np.random.default_rng(0)
    found = []
    for text in texts:
        image = Image.new("L", (WIDTH, HEIGHT), 235)
        ImageDraw.Draw(image).text((6, 8), text, fill=40, font=font)
        picture = np.asarray(image, np.float64) / 255
        picture = np.clip(picture + rng.normal(0, NOISE, picture.shape), 0, 1)
        found.append(np.repeat(((picture - 0.5) / 0.5)[None], 3, axis=0))
    return np.stack(found).astype(np.float32)


def read(probabilities: np.ndarray) -> list[str]:
    """Greedy CTC decoding of [lines, steps, characters]: repeats once, blanks not at all."""
    metadata = load(fetch("ocr-rec"), {"x": (1, 3, HEIGHT, WIDTH)}).metadata_props
    alphabet = ["", *metadata["character"].split("\n"), " "]
    texts = []
    for best in probabilities.argmax(axis=-1):
        kept = [int(b) for b, before in zip(best, [-1, *best[:-1]], strict=True) if b != before]
        texts.append("".join(alphabet[b] for b in kept))
    return texts


def read_right(probabilities: np.ndarray, texts: Sequence[str]) -> float:
    """The share of letters, spaces left out, that are read: 1 less the edit distance over the length."""
    wrong = total = 0
    for found, text in zip(read(probabilities), texts, strict=True):
        wanted, got = text.replace(" ", ""), found.replace(" ", "")
        wrong += _distance(got, wanted)
        total += len(wanted)
    return 1 - wrong / total


def _distance(a: str, b: str) -> int:
    """Levenshtein's."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def main() -> None:
    """Write data or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write-data", type=Path, metavar="D.npz")
    parser.add_argument("--artifact", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    if arguments.write_data is None and arguments.artifact is None:
        sys.exit("ocr: give --write-data or --artifact")
    try:
        texts = lines()
        drawn = pictures(texts)
        if arguments.write_data is not None:
            write_arrays(arguments.write_data, {"x": drawn})
        if arguments.artifact is not None:
            session = ort.InferenceSession(str(fetch("ocr-rec")), providers=["CPUExecutionProvider"])
            artifact = Artifact.load(arguments.artifact)
            before = np.concatenate([session.run(None, {"x": x[None]})[0] for x in drawn])
            after = np.concatenate([next(iter(artifact.run({"x": x[None]}).values())) for x in drawn])
            for name, found in (("original", before), ("artifact", after)):
                print(f"{name}: {read_right(found, texts):.2%} of the letters read right")
    except (FetchError, LowerkitError) as error:
        sys.exit(f"ocr: {error}")


if __name__ == "__main__":
    main()
