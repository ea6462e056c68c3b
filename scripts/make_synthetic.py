#!/usr/bin/env python3
"""Writes a random Llama or Qwen2 checkpoint in Hugging Face layout, of any size, with little memory.

For measuring and testing with models larger than RAM. The weights are scaled so that activations
and logits stay near 1; each tensor depends on the seed and its name only, so neither sharding nor
threads change it. Every thread makes and writes one tensor, a slab at a time.

--like takes the shape of a published model; other flags win over it, so that --blocks 2
--vocab 1024 makes two of its blocks and little else. --headers-only writes what `coppice plan`
reads: files of full length, headers and holes.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

SLAB_ELEMENTS = 1 << 18  # made at a time: 1 MiB of float32, which stays in a core's cache
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
# The sizes and switches of published configs (config.json of each model's base version).
SHAPES = {
    "llama-3.1-8b": {
        "family": "llama",
        "hidden": 4096,
        "ffn": 14336,
        "heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
        "blocks": 32,
        "vocab": 128256,
        "untied": True,
        "rope": "llama3",
    },
    "llama-3.3-70b": {
        "family": "llama",
        "hidden": 8192,
        "ffn": 28672,
        "heads": 64,
        "kv_heads": 8,
        "head_dim": 128,
        "blocks": 80,
        "vocab": 128256,
        "untied": True,
        "rope": "llama3",
    },
    "qwen2.5-72b": {
        "family": "qwen2",
        "hidden": 8192,
        "ffn": 29568,
        "heads": 64,
        "kv_heads": 8,
        "head_dim": 128,
        "blocks": 80,
        "vocab": 152064,
        "untied": True,
        "rope": "plain",
    },
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
    qkv_bias = bias or args.family == "qwen2"
    # Both halves of all blocks add to the residual stream: together they add about 1.
    gain = 1 / math.sqrt(2 * args.blocks)
    return [
        *norm(f"{prefix}.input_layernorm", args.hidden),
        *linear(f"{prefix}.self_attn.q_proj", queries, args.hidden, qkv_bias),
        *linear(f"{prefix}.self_attn.k_proj", keys, args.hidden, qkv_bias),
        *linear(f"{prefix}.self_attn.v_proj", keys, args.hidden, qkv_bias),
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


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: the file, and its first byte there."""

    file: int
    offset: int


def write_all(file: int, data: memoryview, offset: int) -> None:
    data = data.cast("B")
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def write_tensor(tensor: Tensor, place: Place, dtype: str, seed: int) -> None:
    offset = place.offset
    for values in slabs(tensor, seed):
        data = (to_bf16(values) if dtype == "bf16" else values).data
        write_all(place.file, data, offset)
        offset += data.nbytes


def write_tensors(
    places: list[tuple[Tensor, Place]], args: argparse.Namespace
) -> None:
    """One thread a tensor: numpy lets go of Python's lock while it draws and rounds."""
    # The largest first, lest one thread begin it when the others are done.
    places.sort(key=lambda item: -item[0].elements)
    with ThreadPoolExecutor(args.threads) as pool:
        done = [pool.submit(write_tensor, *item, args.dtype, args.seed) for item in places]
        try:
            for future in done:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def write_shards(
    folder: Path, shards: list[list[Tensor]], args: argparse.Namespace
) -> None:
    """Files of their length with their headers first, then the weights, each at its place."""
    places, files = [], []
    try:
        for name, tensors in zip(shard_names(len(shards)), shards, strict=True):
            file = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            files.append(file)
            header = shard_header(tensors, args.dtype)
            write_all(file, memoryview(header), 0)
            offset = len(header)
            for tensor in tensors:
                places.append((tensor, Place(file, offset)))
                offset += tensor.elements * ELEMENT_BYTES[args.dtype]
            os.ftruncate(file, offset)
        if not args.headers_only:
            write_tensors(places, args)
    finally:
        for file in files:
            os.close(file)


def write_index(folder: Path, shards: list[list[Tensor]], dtype: str) -> None:
    weight_map, elements = {}, 0
    for name, tensors in zip(shard_names(len(shards)), shards, strict=True):
        weight_map.update(dict.fromkeys((tensor.name for tensor in tensors), name))
        elements += sum(tensor.elements for tensor in tensors)
    index = {
        "metadata": {"total_size": elements * ELEMENT_BYTES[dtype]},
        "weight_map": weight_map,
    }
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=2) + "\n"
    )


def common_config(args: argparse.Namespace) -> dict:
    return {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": args.hidden,
        "intermediate_size": args.ffn,
        "num_attention_heads": args.heads,
        "num_hidden_layers": args.blocks,
        "num_key_value_heads": args.kv_heads,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": not args.untied,
        "torch_dtype": {"bf16": "bfloat16", "fp32": "float32"}[args.dtype],
        "vocab_size": args.vocab,
    }


def llama_config(args: argparse.Namespace) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": args.attention_bias,
        "head_dim": args.head_dim,
        "max_position_embeddings": 131072 if args.rope == "llama3" else 8192,
        "mlp_bias": args.mlp_bias,
        "rope_scaling": LLAMA3_SCALING if args.rope == "llama3" else None,
        "rope_theta": 500000.0,
    }


def qwen2_config(args: argparse.Namespace) -> dict:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "max_position_embeddings": 131072,
        "max_window_layers": 80,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "use_sliding_window": False,
    }
    if args.head_dim * args.heads != args.hidden:  # the published configs have no such key
        config["head_dim"] = args.head_dim
    return config


def model_config(args: argparse.Namespace) -> dict:
    own = {"llama": llama_config, "qwen2": qwen2_config}[args.family](args)
    return dict(sorted((own | common_config(args)).items()))


def write_tokens(path: Path, args: argparse.Namespace) -> None:
    ids = np.random.default_rng(args.seed).integers(
        args.vocab, size=args.tokens, dtype=np.int32
    )
    with h5py.File(path, "w") as file:
        file.create_dataset("input_ids", data=ids)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(family="llama")
    parser.add_argument("out_dir", type=Path, help="folder to make; must not exist")
    parser.add_argument(
        "--like", choices=SHAPES, help="a published model's shape, instead of the defaults below"
    )
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
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="a tensor each"
    )
    parser.add_argument(
        "--headers-only",
        action="store_true",
        help="files of full length whose weights are holes: for `coppice plan`",
    )
    return parser


def parse_arguments() -> argparse.Namespace:
    parse = parser()
    like = parse.parse_known_args()[0].like
    if like:
        parse.set_defaults(**SHAPES[like])
    args = parse.parse_args()
    if args.head_dim is None:
        args.head_dim = args.hidden // args.heads
    if args.heads % args.kv_heads or args.head_dim % 2:
        parse.error("heads must be a multiple of kv-heads, and head-dim even")
    if args.family == "qwen2" and (
        args.attention_bias or args.mlp_bias or args.rope != "plain"
    ):
        parse.error(
            f"--like {like}: this family has biases on q, k and v alone and plain rope; "
            "leave out --attention-bias, --mlp-bias and --rope"
        )
    if args.threads < 1:
        parse.error(f"--threads {args.threads}: at least 1")
    if args.out_dir.exists():
        parse.error(f"{args.out_dir} exists")
    return args


def check_room(parent: Path, wanted: int) -> None:
    free = shutil.disk_usage(parent).free
    if wanted > free:
        raise SystemExit(
            f"make_synthetic: {parent}: {wanted:,} bytes of weights, {free:,} are free; "
            "fewer --blocks, another folder, or --headers-only"
        )


def main() -> int:
    args = parse_arguments()
    tensors = all_tensors(args)
    parameters = sum(tensor.elements for tensor in tensors)
    shards = split_shards(tensors, ELEMENT_BYTES[args.dtype], args.max_shard_size)
    args.out_dir.parent.mkdir(parents=True, exist_ok=True)
    parent = args.out_dir.parent
    if not args.headers_only:
        check_room(parent, parameters * ELEMENT_BYTES[args.dtype])
    with tempfile.TemporaryDirectory(
        prefix=f".{args.out_dir.name}.", dir=parent
    ) as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps(model_config(args), indent=2) + "\n"
        )
        write_shards(folder, shards, args)
        if len(shards) > 1:
            write_index(folder, shards, args.dtype)
        if args.tokens:
            write_tokens(folder / "tokens.h5", args)
        os.rename(folder, args.out_dir)
    print(
        f"{args.out_dir}: {parameters:,} parameters, {args.dtype}, {len(shards)} shards"
        + (", headers only" if args.headers_only else "")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
