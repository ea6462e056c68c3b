#!/usr/bin/env python3
"""Times the forward pass of a checkpoint beside another's, both loaded by transformers as they are.

Prints JSON: median seconds of each over alternating rounds in one process, tokens of a pass, bytes
of the weights' files, threads. One sequence, random tokens, no cache of keys and values.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def load(directory: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()


def weight_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def seconds_of(model: torch.nn.Module, ids: torch.Tensor) -> float:
    begin = time.perf_counter()
    model(ids, use_cache=False)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--against", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    models = {"seconds": load(args.model), "against_seconds": load(args.against)}
    vocabulary = next(iter(models.values())).config.vocab_size
    ids = torch.randint(0, vocabulary, (1, args.tokens), generator=torch.Generator().manual_seed(0))
    times = {name: [] for name in models}
    with torch.inference_mode():
        for model in models.values():
            seconds_of(model, ids)
        for _ in range(args.rounds):
            for name, model in models.items():
                times[name].append(seconds_of(model, ids))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        json.dumps(
            medians
            | {
                "tokens": args.tokens,
                "rounds": args.rounds,
                "threads": torch.get_num_threads(),
                "bytes": weight_bytes(args.model),
                "against_bytes": weight_bytes(args.against),
            }
        )
    )


if __name__ == "__main__":
    main()
