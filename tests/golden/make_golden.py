#!/usr/bin/env python3
"""Makes the golden checkpoints and tensors: small random models, computed by transformers.

Each folder beside this file, <family>_<variant>, is a Hugging Face checkpoint of odd sizes plus
golden.safetensors:

  input_ids      int64 [windows, seqlen]
  hidden.N       [windows, seqlen, hidden]  embedding output (0), then the output of each block
  half.B         [windows, seqlen, hidden]  block B after its attention residual (and the norm that
                 follows it, where one does), before its MLP
  logits         [windows, seqlen, vocab]; this and the next not of encoders
  nll            float32 []  mean over the seqlen - 1 predicted tokens of all windows
  train.H.*      only in llama_fp32, H is `attention` or `mlp` of block 0:
    x, target    [windows, seqlen, hidden]
    mask.ROLE    uint8, shape of the weight; 1 is kept; the weight is multiplied by it
    loss         float32 []  mean((half(x) - target)^2) over all elements, half with its residual
    grad.ROLE    gradient at the masked weight, itself not masked; grad.norm: of the norm's gain

Eager attention and experts, everything in the model's dtype. Seed and versions are in the metadata under
`recorded`. The files are committed; run this only to change them.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SEED = 20251122
WINDOWS, SEQLEN = 3, 23
COMMON = {
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vocab_size": 61,
}
# Grouped-query attention throughout. The first is spelled as older config.json files are.
LLAMA_FP32 = {
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}
# head_dim is not hidden / heads. With theta 10000 and 5 frequencies the wavelengths are 6, 40, 250,
# 1577 and 9953; original 64 keeps those under 16, divides those over 64, and blends 40.
LLAMA_BIAS_LLAMA3_FP32 = {
    "hidden_size": 28,
    "intermediate_size": 41,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
LLAMA_BF16 = {
    "hidden_size": 40,
    "intermediate_size": 53,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
# Of 10 frequencies two are kept (10 and 4 turns in 64 positions), two blended, the others divided.
LLAMA_YARN_FP32 = LLAMA_BF16 | {
    "head_dim": 20,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 3.0,
        "beta_slow": 0.3,
    },
}
LLAMA_LINEAR_FP32 = LLAMA_BF16 | {
    "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
}
# The windows are longer than the positions: theta grows.
LLAMA_DYNAMIC_FP32 = LLAMA_BF16 | {
    "max_position_embeddings": 16,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.5},
}
LLAMAS = [
    ("llama_fp32", LLAMA_FP32, torch.float32),
    ("llama_bias_llama3_fp32", LLAMA_BIAS_LLAMA3_FP32, torch.float32, "20KB"),
    ("llama_bf16", LLAMA_BF16, torch.bfloat16),
    ("llama_fp16", LLAMA_BF16, torch.float16),
    ("llama_linear_fp32", LLAMA_LINEAR_FP32, torch.float32),
    ("llama_dynamic_fp32", LLAMA_DYNAMIC_FP32, torch.float32),
    ("llama_yarn_fp32", LLAMA_YARN_FP32, torch.float32),
]
SMALL = {
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
WINDOWED = {
    "use_sliding_window": True,
    "sliding_window": 7,
    "num_hidden_layers": 3,
    "max_window_layers": 1,
}
MISTRALS = [
    ("mistral_fp32", SMALL | {"head_dim": 10, "sliding_window": 7}, torch.float32),
    ("mistral_all_bf16", SMALL | {"sliding_window": None}, torch.bfloat16),
]
QWEN2S = [
    ("qwen2_fp32", SMALL | {"tie_word_embeddings": True}, torch.float32),
    ("qwen2_window_fp32", SMALL | WINDOWED, torch.float32),
]
KINDS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
QWEN3S = [
    ("qwen3_fp32", SMALL | {"head_dim": 10}, torch.float32),
    (
        "qwen3_window_bf16",
        SMALL | WINDOWED | KINDS | {"head_dim": 10, "attention_bias": True},
        torch.bfloat16,
    ),
]
MIXTRALS = [
    (
        "mixtral_fp32",
        SMALL | {"num_local_experts": 5, "num_experts_per_tok": 2},
        torch.float32,
    ),
    (
        "mixtral_window_bf16",
        SMALL
        | {
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "head_dim": 10,
            "sliding_window": 7,
        },
        torch.bfloat16,
    ),
]
# Weights of experts that do not sum to 1, and such that do.
QWEN3_MOE = {"head_dim": 10, "moe_intermediate_size": 19, "num_experts": 7}
QWEN3_MOES = [
    (
        "qwen3_moe_fp32",
        SMALL | QWEN3_MOE | {"num_experts_per_tok": 3},
        torch.float32,
    ),
    (
        "qwen3_moe_normalised_bf16",
        SMALL
        | QWEN3_MOE
        | {"num_experts_per_tok": 2, "norm_topk_prob": True, "attention_bias": True},
        torch.bfloat16,
    ),
]
OPT = {
    "hidden_size": 24,
    "ffn_dim": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "vocab_size": 61,
    "dropout": 0.1,
}
# The second is as the 350m one is, the third has no biases, the fourth is as old checkpoints were.
OPTS = [
    ("opt_fp32", OPT, torch.float32),
    (
        "opt_after_fp32",
        OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 14},
        torch.float32,
    ),
    (
        "opt_wide_bf16",
        OPT
        | {
            "word_embed_proj_dim": 30,
            "enable_bias": False,
            "tie_word_embeddings": False,
        },
        torch.bfloat16,
    ),
    (
        "opt_no_final_norm_fp32",
        OPT | {"_remove_final_layer_norm": True, "activation_function": "gelu"},
        torch.float32,
    ),
]
BERTS = [
    (
        "bert_fp32",
        {
            "hidden_size": 24,
            "intermediate_size": 37,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "type_vocab_size": 3,
            "vocab_size": 61,
        },
        torch.float32,
    ),
]
FAMILIES = [
    (LlamaForCausalLM, LlamaConfig, LLAMAS),
    (MistralForCausalLM, MistralConfig, MISTRALS),
    (Qwen2ForCausalLM, Qwen2Config, QWEN2S),
    (Qwen3ForCausalLM, Qwen3Config, QWEN3S),
    (MixtralForCausalLM, MixtralConfig, MIXTRALS),
    (Qwen3MoeForCausalLM, Qwen3MoeConfig, QWEN3_MOES),
    (OPTForCausalLM, OPTConfig, OPTS),
    (BertModel, BertConfig, BERTS),
]
HALVES = {
    "attention": (
        "self_attn",
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        "input_layernorm",
    ),
    "mlp": ("mlp", ("gate_proj", "up_proj", "down_proj"), "post_attention_layernorm"),
}


def random_model(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Draws every parameter: gains around 1, biases not 0, weights that keep activations sane."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if "norm" in name.lower() and not name.endswith("bias"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "position" in name or "token_type" in name:
                parameter.copy_(0.5 * noise)
            elif "embed" in name:
                # The output layer too, where tied: logits near 1.
                scale = (
                    parameter.shape[1] ** -0.5
                    if model.config.tie_word_embeddings
                    else 1
                )
                parameter.copy_(scale * noise)
            else:
                # All experts of a block are one parameter, [experts, out, in].
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return model.to(dtype)


def respell(folder: Path) -> None:
    """Writes config.json as transformers 4 did: rope_theta and torch_dtype, no head_dim."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    del config["head_dim"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def reload(folder: Path, model: PreTrainedModel, more: dict) -> PreTrainedModel:
    """The goldens are of the files, so they are computed from what was read back."""
    if hasattr(model.config, "num_experts_per_tok"):
        more = more | {"experts_implementation": "eager"}
    read, info = type(model).from_pretrained(
        folder,
        dtype="auto",
        attn_implementation="eager",
        output_loading_info=True,
        **more,
    )
    assert not any(info.values()), info
    assert read.dtype == model.dtype, read.dtype
    return read.eval()


def blocks_of(model: PreTrainedModel):
    if isinstance(model, BertModel):
        return model.encoder.layer
    return (
        model.model.decoder if isinstance(model, OPTForCausalLM) else model.model
    ).layers


def keep_half(model: PreTrainedModel, layer, keep) -> None:
    """Has `keep` told the hidden states between the halves of a block."""
    if isinstance(model, BertModel):
        layer.attention.register_forward_hook(lambda _, inputs, output: keep(output[0]))
    elif not isinstance(model, OPTForCausalLM):
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda _, inputs: keep(inputs[0])
        )
    elif model.config.do_layer_norm_before:
        layer.final_layer_norm.register_forward_pre_hook(
            lambda _, inputs: keep(inputs[0])
        )
    else:
        layer.self_attn_layer_norm.register_forward_hook(
            lambda _, inputs, output: keep(output)
        )


@torch.no_grad()
def forward_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    ids = torch.randint(model.config.vocab_size, (WINDOWS, SEQLEN))
    tensors = {"input_ids": ids}

    def keep(name, hidden):
        tensors[name] = hidden.reshape(WINDOWS, SEQLEN, -1)

    blocks = blocks_of(model)
    for block, layer in enumerate(blocks):
        layer.register_forward_pre_hook(
            lambda _, inputs, block=block: keep(f"hidden.{block}", inputs[0])
        )
        keep_half(model, layer, lambda hidden, block=block: keep(f"half.{block}", hidden))
    blocks[-1].register_forward_hook(
        lambda _, inputs, output: keep(
            f"hidden.{len(blocks)}", output[0] if isinstance(output, tuple) else output
        )
    )
    output = model(ids) if isinstance(model, BertModel) else model(ids, use_cache=False)
    if not hasattr(output, "logits"):
        return tensors
    predictions = output.logits[:, :-1].float().flatten(0, 1)
    nll = torch.nn.functional.cross_entropy(predictions, ids[:, 1:].flatten())
    return {**tensors, "logits": output.logits, "nll": nll}


def half_output(model: PreTrainedModel, half: str, x: torch.Tensor) -> torch.Tensor:
    """One half of block 0 with its residual."""
    layer = model.model.layers[0]
    if half == "mlp":
        return x + layer.mlp(layer.post_attention_layernorm(x))
    positions = torch.arange(x.shape[1])[None]
    # Called without its model, eager attention is not causal by itself.
    causal = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)[None, None]
    attended, _ = layer.self_attn(
        layer.input_layernorm(x),
        position_embeddings=model.model.rotary_emb(x, positions),
        attention_mask=causal,
    )
    return x + attended


def training_tensors(
    model: PreTrainedModel, half: str, x, target
) -> dict[str, torch.Tensor]:
    module_name, roles, norm_name = HALVES[half]
    layer = model.model.layers[0]
    weights = {
        role: getattr(getattr(layer, module_name), role).weight for role in roles
    }
    gain = getattr(layer, norm_name).weight
    tensors = {"x": x, "target": target}
    with torch.no_grad():
        for role, weight in weights.items():
            mask = torch.rand(weight.shape) < 0.5
            weight.mul_(mask)
            tensors[f"mask.{role}"] = mask.to(torch.uint8)
    model.zero_grad()
    loss = (half_output(model, half, x) - target).square().mean()
    loss.backward()
    tensors["loss"] = loss.detach()
    tensors["grad.norm"] = gain.grad
    tensors.update({f"grad.{role}": weight.grad for role, weight in weights.items()})
    return {f"train.{half}.{name}": tensor for name, tensor in tensors.items()}


def check_halves(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    """The hand-made halves are those of the model."""
    with torch.no_grad():
        half = half_output(model, "attention", tensors["hidden.0"])
        torch.testing.assert_close(half, tensors["half.0"], rtol=1e-5, atol=1e-5)
        block = half_output(model, "mlp", tensors["half.0"])
        torch.testing.assert_close(block, tensors["hidden.1"], rtol=1e-5, atol=1e-5)


def add_training(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    """Adds train.*: inputs and targets are the model's own; masking then changes the weights."""
    check_halves(model, tensors)
    ends = {"attention": ("hidden.0", "half.0"), "mlp": ("half.0", "hidden.1")}
    for half, (x, target) in ends.items():
        tensors.update(
            training_tensors(model, half, tensors[x].clone(), tensors[target].clone())
        )


def make(
    folder: Path, model_class, config, dtype: torch.dtype, max_shard_size: str = "1GB"
) -> None:
    # One stream per folder: changing one leaves the others as they are.
    torch.manual_seed(SEED + sum(map(ord, folder.name)))
    shutil.rmtree(folder, ignore_errors=True)
    # An encoder's pooler is no part of what its blocks compute.
    more = {"add_pooling_layer": False} if model_class is BertModel else {}
    made = random_model(model_class(config, **more), dtype)
    made.save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if folder.name == "llama_fp32":
        respell(folder)
    model = reload(folder, made, more)
    tensors = forward_tensors(model)
    if folder.name == "llama_fp32":
        add_training(model, tensors)
    recorded = {
        "seed": SEED,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "attention": "eager",
    }
    # One entry: safetensors writes several in an order of its own, which would change the bytes.
    metadata = {"recorded": json.dumps(recorded)}
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, folder / "golden.safetensors", metadata=metadata)
    for path in folder.iterdir():
        path.chmod(0o644)
    total = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder.name}: {len(tensors)} tensors, {total} bytes")


def main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out-dir", type=Path, default=here, help="default: %(default)s"
    )
    out = parser.parse_args().out_dir
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for model_class, config_class, variants in FAMILIES:
        for name, sizes, dtype, *shards in variants:
            common = {} if model_class in (OPTForCausalLM, BertModel) else COMMON
            make(out / name, model_class, config_class(**common | sizes), dtype, *shards)


if __name__ == "__main__":
    main()
