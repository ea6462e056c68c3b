"""Times plain PyTorch on one device: products, or SparseGPT as its paper states it. Prints JSON.

usage: gpu_rates.py products --device cuda:0 --size 8192 --rows 4096 --hidden 8192 --ffn 29568
       gpu_rates.py sparsegpt --device cuda:0 --hidden 8192 --ffn 29568

A process of its own: what it holds of the device is given back before the next measurement.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch

import sparsegpt_reference


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device, wanted: float) -> float:
    """The mean of as many calls as take `wanted` seconds, after two that warm up."""
    call()
    finish(device)
    begin = time.perf_counter()
    call()
    finish(device)
    count = max(1, min(1000, int(wanted / (time.perf_counter() - begin))))
    begin = time.perf_counter()
    for _ in range(count):
        call()
    finish(device)
    return (time.perf_counter() - begin) / count


def product_rate(
    device: torch.device, rows: int, inner: int, columns: int, wanted: float
) -> dict:
    """Of [rows, inner] x [inner, columns] in bf16, the right one transposed as a linear's weight."""
    left = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    right = torch.randn(columns, inner, device=device, dtype=torch.bfloat16)
    seconds = seconds_of(lambda: left @ right.t(), device, wanted)
    return {
        "shape": [rows, inner, columns],
        "seconds": seconds,
        "flop_per_second": 2.0 * rows * inner * columns / seconds,
    }


def products(args: argparse.Namespace, device: torch.device) -> dict:
    """A cube, and the MLP half's three kinds of product on the rows of one step."""
    shapes = {
        "cube": (args.size, args.size, args.size),
        "mlp gate or up": (args.rows, args.hidden, args.ffn),
        "mlp down": (args.rows, args.ffn, args.hidden),
        "mlp gradient of a weight": (args.ffn, args.rows, args.hidden),
    }
    return {
        name: product_rate(device, *shape, args.seconds) for name, shape in shapes.items()
    }


def sparsegpt(args: argparse.Namespace, device: torch.device) -> dict:
    """gate_proj and down_proj, each once: a second time would only warm what takes seconds."""
    result = {}
    small = torch.eye(64, device=device)
    sparsegpt_reference.prune(torch.randn(64, 64, device=device), small, 0.5)  # loads libraries
    for name, rows, columns in (
        ("gate_proj", args.ffn, args.hidden),
        ("down_proj", args.hidden, args.ffn),
    ):
        torch.manual_seed(0)
        weight = torch.randn(rows, columns, device=device) / columns**0.5
        inputs = torch.randn(columns + columns // 4, columns, device=device)
        gram = inputs.t() @ inputs
        del inputs
        finish(device)
        begin = time.perf_counter()
        pruned = sparsegpt_reference.prune(weight, gram, 0.5)
        finish(device)
        result[name] = {
            "seconds": time.perf_counter() - begin,
            "zeros": (pruned == 0).float().mean(dtype=torch.float64).item(),
        }
        del weight, gram, pruned
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("products", "sparsegpt"))
    parser.add_argument("--device", type=torch.device, default="cuda:0")
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=8192)
    parser.add_argument("--ffn", type=int, default=29568)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each product")
    args = parser.parse_args()
    measure = {"products": products, "sparsegpt": sparsegpt}[args.what]
    json.dump(measure(args, args.device), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
