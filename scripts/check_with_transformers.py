#!/usr/bin/env python3
"""Holds a model directory against Hugging Face transformers, which coppice does not use.

Loads the directory with the stock class (a missing or unexpected weight is an error) and prints its
perplexity: the text as one stream without special tokens, cut in windows of --seqlen, each window
predicts its own seqlen - 1 tokens, exp of the mean over all predicted tokens.

  --coppice-json FILE   `coppice eval --json` of the same text: fails if they differ by over 0.2 %
                        (gives --seqlen and --max-windows unless they are given)
  --dense DIR           the model before pruning: every tensor that differs must be named as pruned
                        or trained in coppice_report.json, zeros must be +0, sparsity as reported

Exit codes: 0 all checks hold, 1 one does not, 2 wrong arguments.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import h5py
import torch
from safetensors import safe_open
from tokenize_text import TextError, load_tokenizer, stream_ids
from transformers import AutoModelForCausalLM
from transformers.utils import logging

PERPLEXITY_TOLERANCE = 0.002
SPARSITY_TOLERANCE = 1e-4  # reports may round to four digits
MAX_SHOWN = 20


class CheckError(Exception):
    """A check that does not hold, in words."""


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def load_model(folder: Path, dtype: str, device: str) -> torch.nn.Module:
    """Loads with the stock class; every weight must be found and used."""
    logging.disable_progress_bar()
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        output_loading_info=True,
        attn_implementation="eager",
    )
    wrong = {kind: entries for kind, entries in info.items() if entries}
    if wrong:
        raise CheckError(f"{folder}: transformers reports {wrong}")
    return model.to(device).eval()


def read_windows(
    folder: Path, text: Path, seqlen: int, max_windows: int | None
) -> torch.Tensor:
    """Returns ids [windows, seqlen]; an incomplete last window is dropped."""
    if text.suffix in (".h5", ".hdf5"):
        with h5py.File(text) as file:
            stream = torch.from_numpy(file["input_ids"][...]).flatten()
    else:
        stream = torch.tensor(stream_ids(load_tokenizer(folder)[0], text))
    num_windows = stream.numel() // seqlen
    if num_windows == 0:
        raise CheckError(
            f"{text}: {stream.numel()} tokens are less than one window of {seqlen}"
        )
    windows = stream[: num_windows * seqlen].view(num_windows, seqlen)
    return windows[:max_windows].long()


@torch.inference_mode()
def perplexity(model: torch.nn.Module, windows: torch.Tensor) -> float:
    total = 0.0
    for done, window in enumerate(windows, start=1):
        ids = window.to(model.device)
        logits = model(ids[None], use_cache=False).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(
            logits, ids[1:], reduction="sum"
        ).item()
        mean = total / (done * (ids.numel() - 1))
        if sys.stderr.isatty():
            print(
                f"\r{done}/{len(windows)}: {math.exp(mean):.3f}",
                end="",
                file=sys.stderr,
            )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return math.exp(mean)


def check_perplexity(args: argparse.Namespace) -> None:
    claimed = read_json(args.coppice_json) if args.coppice_json else {}
    seqlen = args.seqlen or claimed.get("seqlen", 2048)
    max_windows = args.max_windows or claimed.get("windows")
    model = load_model(args.model, args.dtype, args.device)
    windows = read_windows(args.model, args.text, seqlen, max_windows)
    value = perplexity(model, windows)
    print(
        f"perplexity {value:.4f} ({len(windows)} windows of {seqlen}, {model.dtype}, {args.text})"
    )
    if not claimed:
        return
    if (claimed["windows"], claimed["seqlen"]) != (len(windows), seqlen):
        raise CheckError(
            f"{args.coppice_json} is of {claimed['windows']} windows of {claimed['seqlen']}, "
            f"this is of {len(windows)} of {seqlen}: not comparable"
        )
    difference = claimed["perplexity"] / value - 1
    verdict = f"coppice says {claimed['perplexity']:.4f}, {difference:+.4%}"
    if not abs(difference) <= PERPLEXITY_TOLERANCE:
        raise CheckError(f"{verdict}, more than {PERPLEXITY_TOLERANCE:.1%} apart")
    print(verdict)


class Checkpoint:
    """Tensors of a single or sharded safetensors checkpoint by name, read one at a time."""

    def __init__(self, folder: Path):
        index = folder / "model.safetensors.index.json"
        names = set(read_json(index)["weight_map"].values()) if index.exists() else None
        self.where = {}
        for name in sorted(names or {"model.safetensors"}):
            shard = safe_open(folder / name, framework="pt")
            self.where.update(dict.fromkeys(shard.keys(), shard))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.where[name].get_tensor(name)


def as_tensor_name(name: str) -> str:
    """A report names tensors, or the modules that hold them."""
    return name if name.endswith((".weight", ".bias")) else name + ".weight"


def names_under_trained(node) -> set[str]:
    """Every tensor in a list called `trained`, wherever it stands in the report."""
    if isinstance(node, list):
        return set().union(*map(names_under_trained, node))
    if not isinstance(node, dict):
        return set()
    own = {as_tensor_name(name) for name in node.get("trained", [])}
    return own.union(*map(names_under_trained, node.values()))


def pruned_claims(report: dict) -> dict[str, dict]:
    """The entries of blocks[].linears[] by tensor name."""
    linears = [
        linear for block in report["blocks"] for linear in block.get("linears", [])
    ]
    return {as_tensor_name(linear["name"]): linear for linear in linears}


def pattern_violations(weight: torch.Tensor, pattern: str) -> int:
    """Groups of an N:M pattern (N kept of M consecutive inputs) with more than N nonzeros."""
    if ":" not in pattern:
        return 0
    kept, group = map(int, pattern.split(":"))
    nonzeros = (weight != 0).view(-1, group).sum(1)
    return int((nonzeros > kept).sum())


def pruned_complaints(
    name: str, claim: dict, tensor: torch.Tensor, dense: torch.Tensor
):
    """Yields what is wrong with a pruned tensor."""
    zeros = (tensor == 0).double().mean().item()
    dense_zeros = (dense == 0).double().mean().item()
    wanted = claim.get("sparsity", 0.0)
    # Zeros that the dense model already had may come on top of those that pruning made.
    if (
        not wanted - SPARSITY_TOLERANCE
        <= zeros
        <= wanted + dense_zeros + SPARSITY_TOLERANCE
    ):
        yield f"{name}: the report claims a sparsity of {wanted:.6f}, found {zeros:.6f}"
    if bad := pattern_violations(tensor, claim.get("pattern", "unstructured")):
        yield f"{name}: {bad} groups break the pattern {claim['pattern']}"


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(
        left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8)
    )


def tensor_complaints(name: str, tensor, dense, claim: dict | None, trained: bool):
    """Yields what is wrong with one tensor of the pruned model."""
    if tensor.dtype != dense.dtype or tensor.shape != dense.shape:
        yield (
            f"{name}: dense {dense.dtype} {list(dense.shape)}, "
            f"found {tensor.dtype} {list(tensor.shape)}"
        )
        return
    if claim is not None:
        yield from pruned_complaints(name, claim, tensor, dense)
    if claim is None and not trained:
        if not same_bytes(tensor.reshape(-1), dense.reshape(-1)):
            yield f"{name}: differs from the dense one, but is neither pruned nor trained"
        return
    if negative := int(((tensor == 0) & torch.signbit(tensor)).sum()):
        yield f"{name}: {negative} zeros are -0"


def check_against_dense(folder: Path, dense_folder: Path) -> None:
    report = read_json(folder / "coppice_report.json")
    claims, trained = pruned_claims(report), names_under_trained(report)
    pruned, dense = Checkpoint(folder), Checkpoint(dense_folder)
    complaints = [
        f"{name}: absent" for name in sorted(dense.where.keys() - pruned.where.keys())
    ]
    complaints += [
        f"{name}: is new" for name in sorted(pruned.where.keys() - dense.where.keys())
    ]
    named = claims.keys() | trained
    complaints += [
        f"{name}: only in the report" for name in sorted(named - pruned.where.keys())
    ]
    for name in sorted(dense.where.keys() & pruned.where.keys()):
        complaints += tensor_complaints(
            name, pruned[name], dense[name], claims.get(name), name in trained
        )
    if complaints:
        shown = "\n  ".join(complaints[:MAX_SHOWN])
        raise CheckError(f"{len(complaints)} tensors are not as reported:\n  {shown}")
    untouched = len(dense.where) - len(named)
    print(
        f"tensors: {len(claims)} pruned as reported, {len(trained - claims.keys())} more trained, "
        f"{untouched} byte-identical"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", type=Path, metavar="DIR", help="Hugging Face directory to check"
    )
    parser.add_argument(
        "--text", type=Path, help="text, .jsonl or HDF5 with /input_ids"
    )
    parser.add_argument("--seqlen", type=int, help="tokens of a window (default: 2048)")
    parser.add_argument(
        "--max-windows", type=int, help="first windows only (default: all)"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["auto", "float32", "bfloat16"],
        help="of the computation; a processor without bf16 emulates it (default: float32)",
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument(
        "--coppice-json", type=Path, metavar="FILE", help="number to compare with"
    )
    parser.add_argument(
        "--dense", type=Path, metavar="DIR", help="the model before pruning"
    )
    args = parser.parse_args()
    if not args.text and (args.coppice_json or not args.dense):
        parser.error("--text is needed, unless only --dense is checked")
    try:
        if args.dense:
            check_against_dense(args.model, args.dense)
        if args.text:
            check_perplexity(args)
    except (CheckError, TextError, OSError) as error:
        print(f"check_with_transformers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
