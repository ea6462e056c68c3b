#!/usr/bin/env python3
"""Writes a random Llama checkpoint in Hugging Face layout, of any size, with little memory.

For measuring and testing with models larger than RAM. The weights are scaled so that activations
and logits stay near 1; each tensor depends on the seed and its name only, so sharding does not
change it. Tensors are made and written some rows at a time.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

SLAB_ELEMENTS = 16 << 20  # made at a time: 64 MiB of float32
UNITS = {
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}
ELEMENT_BYTES = {"bf16": 2, "fp32": 4}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Tensor:
    """What is drawn: mean + deviation * normal."""

    name: str
    shape: tuple[int, ...]
    deviation: float
    mean: float = 0.0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def linear(
    name: str, rows: int, columns: int, bias: bool, gain: float = 1.0
) -> list[Tensor]:
    tensors = [Tensor(f"{name}.weight", (rows, columns), gain / math.sqrt(columns))]
    if bias:
        tensors.append(Tensor(f"{name}.bias", (rows,), 0.02))
    return tensors


def norm(name: str, size: int) -> list[Tensor]:
    return [Tensor(f"{name}.weight", (size,), 0.1, mean=1.0)]


def block_tensors(args: argparse.Namespace, block: int) -> list[Tensor]:
    prefix = f"model.layers.{block}"
    queries, keys = args.heads * args.head_dim, args.kv_heads * args.head_dim
    bias = args.attention_bias
    # Both halves of all blocks add to the residual stream: together they add about 1.
    gain = 1 / math.sqrt(2 * args.blocks)
    return [
        *norm(f"{prefix}.input_layernorm", args.hidden),
        *linear(f"{prefix}.self_attn.q_proj", queries, args.hidden, bias),
        *linear(f"{prefix}.self_attn.k_proj", keys, args.hidden, bias),
        *linear(f"{prefix}.self_attn.v_proj", keys, args.hidden, bias),
        *linear(f"{prefix}.self_attn.o_proj", args.hidden, queries, bias, gain),
        *norm(f"{prefix}.post_attention_layernorm", args.hidden),
        *linear(f"{prefix}.mlp.gate_proj", args.ffn, args.hidden, args.mlp_bias),
        *linear(f"{prefix}.mlp.up_proj", args.ffn, args.hidden, args.mlp_bias),
        *linear(f"{prefix}.mlp.down_proj", args.hidden, args.ffn, args.mlp_bias, gain),
    ]


def all_tensors(args: argparse.Namespace) -> list[Tensor]:
    tensors = linear("model.embed_tokens", args.vocab, args.hidden, bias=False)
    for block in range(args.blocks):
        tensors += block_tensors(args, block)
    tensors += norm("model.norm", args.hidden)
    if args.untied:
        tensors += linear("lm_head", args.vocab, args.hidden, bias=False)
    return tensors


def parse_bytes(text: str) -> int:
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return int(float(text[: -len(unit)]) * factor)
    return int(text)


def split_shards(
    tensors: list[Tensor], element_bytes: int, max_bytes: int
) -> list[list[Tensor]]:
    """Tensors in order; a shard is closed before it would exceed max_bytes."""
    shards, used = [[]], 0
    for tensor in tensors:
        size = tensor.elements * element_bytes
        if shards[-1] and used + size > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += size
    return shards


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Rounds float32 to the nearest bf16, ties to even; returns the bits. No NaN comes in."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def slabs(tensor: Tensor, seed: int) -> Iterator[np.ndarray]:
    """Yields the float32 values of a tensor in order."""
    random = np.random.Generator(
        np.random.SFC64([seed, zlib.crc32(tensor.name.encode())])
    )
    for start in range(0, tensor.elements, SLAB_ELEMENTS):
        count = min(SLAB_ELEMENTS, tensor.elements - start)
        values = random.standard_normal(count, dtype=np.float32)
        values *= np.float32(tensor.deviation)
        values += np.float32(tensor.mean)
        yield values


def shard_header(tensors: list[Tensor], dtype: str) -> bytes:
    """The safetensors header: 8 bytes of length, JSON padded with spaces to 8 bytes."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        end = offset + tensor.elements * ELEMENT_BYTES[dtype]
        header[tensor.name] = {
            "dtype": {"bf16": "BF16", "fp32": "F32"}[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shard(path: Path, tensors: list[Tensor], dtype: str, seed: int) -> None:
    with path.open("wb") as file:
        file.write(shard_header(tensors, dtype))
        for tensor in tensors:
            for values in slabs(tensor, seed):
                file.write((to_bf16(values) if dtype == "bf16" else values).data)


def write_shards(
    folder: Path, shards: list[list[Tensor]], dtype: str, seed: int
) -> None:
    if len(shards) == 1:
        write_shard(folder / "model.safetensors", shards[0], dtype, seed)
        return
    weight_map, elements = {}, 0
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / name, tensors, dtype, seed)
        weight_map.update(dict.fromkeys((tensor.name for tensor in tensors), name))
        elements += sum(tensor.elements for tensor in tensors)
    index = {
        "metadata": {"total_size": elements * ELEMENT_BYTES[dtype]},
        "weight_map": weight_map,
    }
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=2) + "\n"
    )


def model_config(args: argparse.Namespace) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": args.attention_bias,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "head_dim": args.head_dim,
        "hidden_act": "silu",
        "hidden_size": args.hidden,
        "intermediate_size": args.ffn,
        "max_position_embeddings": 131072 if args.rope == "llama3" else 8192,
        "mlp_bias": args.mlp_bias,
        "num_attention_heads": args.heads,
        "num_hidden_layers": args.blocks,
        "num_key_value_heads": args.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_scaling": LLAMA3_SCALING if args.rope == "llama3" else None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": not args.untied,
        "torch_dtype": {"bf16": "bfloat16", "fp32": "float32"}[args.dtype],
        "vocab_size": args.vocab,
    }


def write_tokens(path: Path, args: argparse.Namespace) -> None:
    ids = np.random.default_rng(args.seed).integers(
        args.vocab, size=args.tokens, dtype=np.int32
    )
    with h5py.File(path, "w") as file:
        file.create_dataset("input_ids", data=ids)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out_dir", type=Path, help="folder to make; must not exist")
    for name, value in {
        "hidden": 64,
        "ffn": 172,
        "heads": 8,
        "kv-heads": 4,
        "blocks": 4,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=" ")
    parser.add_argument("--head-dim", type=int, help="hidden / heads, if absent")
    parser.add_argument("--vocab", type=int, default=512, help="number of token ids")
    parser.add_argument(
        "--untied", action="store_true", help="write an lm_head of its own"
    )
    parser.add_argument(
        "--attention-bias", action="store_true", help="biases on q, k, v, o"
    )
    parser.add_argument(
        "--mlp-bias", action="store_true", help="biases on gate, up, down"
    )
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16", help=" ")
    parser.add_argument(
        "--rope", choices=["plain", "llama3"], default="plain", help="scaling"
    )
    parser.add_argument(
        "--max-shard-size", type=parse_bytes, default="5GB", help="e.g. 512MiB"
    )
    parser.add_argument("--seed", type=int, default=0, help=" ")
    parser.add_argument(
        "--tokens", type=int, default=0, help="random ids to put in tokens.h5"
    )
    args = parser.parse_args()
    if args.head_dim is None:
        args.head_dim = args.hidden // args.heads
    if args.heads % args.kv_heads or args.head_dim % 2:
        parser.error("heads must be a multiple of kv-heads, and head-dim even")
    if args.out_dir.exists():
        parser.error(f"{args.out_dir} exists")
    return args


def main() -> int:
    args = parse_arguments()
    tensors = all_tensors(args)
    shards = split_shards(tensors, ELEMENT_BYTES[args.dtype], args.max_shard_size)
    args.out_dir.parent.mkdir(parents=True, exist_ok=True)
    parent = args.out_dir.parent
    with tempfile.TemporaryDirectory(
        prefix=f".{args.out_dir.name}.", dir=parent
    ) as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps(model_config(args), indent=2) + "\n"
        )
        write_shards(folder, shards, args.dtype, args.seed)
        if args.tokens:
            write_tokens(folder / "tokens.h5", args)
        os.rename(folder, args.out_dir)
    parameters = sum(tensor.elements for tensor in tensors)
    print(
        f"{args.out_dir}: {parameters:,} parameters, {args.dtype}, {len(shards)} shards"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
