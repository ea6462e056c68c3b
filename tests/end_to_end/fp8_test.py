"""FP8 checkpoints with block scales: read, widened, and written as the bf16 they stand for."""

import json
import unittest

from support import ProgramTest, report, shards, tensors

BLOCK = (16, 8)  # rows and columns that share a scale; no size of the model is a multiple


class Fp8(ProgramTest):
    def checkpoints(self, name):
        """A golden model with the matrices of its blocks as FP8, and the bf16 that this stands for."""
        import torch
        from safetensors.torch import load_file, save_file

        quantized, plain = self.model(name), self.dir / f"{name}_plain"
        plain.mkdir()
        stored, widened = {}, {}
        for key, weight in load_file(quantized / "model.safetensors").items():
            stored[key] = widened[key] = weight.to(torch.bfloat16)
            is_kept = "layers" not in key or weight.dim() != 2 or key.endswith(".gate.weight")
            if is_kept or key.endswith("q_proj.weight"):
                continue
            rows, columns = (-(-n // b) for n, b in zip(weight.shape, BLOCK))
            scales = torch.rand(rows, columns, generator=torch.Generator().manual_seed(1))
            scales = 0.003 + 0.01 * scales
            full = scales.repeat_interleave(BLOCK[0], 0)[: weight.shape[0]]
            full = full.repeat_interleave(BLOCK[1], 1)[:, : weight.shape[1]]
            values = (weight.float() / full).clamp(-448, 448).to(torch.float8_e4m3fn)
            stored[key], stored[key + "_scale_inv"] = values, scales
            widened[key] = (values.float() * full).to(torch.bfloat16)
        config = json.loads((quantized / "config.json").read_text())
        config["dtype"] = "bfloat16"
        self.save(plain, widened, config, save_file)
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": ["lm_head", "q_proj", "gate"],
            "quant_method": "fp8",
            "weight_block_size": BLOCK,
        }
        self.save(quantized, stored, config, save_file)
        return quantized, plain

    def save(self, directory, tensors, config, save_file):
        tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (directory / "config.json").write_text(text)

    def both(self, name, **flags):
        """Runs of both checkpoints give the same bytes; returns the output of the FP8 one."""
        outputs = []
        models = self.checkpoints(name)
        for model in models:
            outputs.append(self.dir / f"out_{model.name}")
            arguments = self.run_arguments(model, self.tokens(300), outputs[-1], **flags)
            self.coppice(*arguments)
        self.assertEqual(shards(outputs[0]), shards(outputs[1]))
        config = (outputs[0] / "config.json").read_bytes()
        self.assertEqual(config, (outputs[1] / "config.json").read_bytes())
        self.assertNotIn(b"quantization_config", config)
        return models[0], outputs[0]

    def test_output_is_that_of_the_widened_checkpoint(self):
        model, output = self.both("qwen3_fp32", solver="least_squares+adamw")
        self.assertEqual({dtype for dtype, *_ in tensors(output).values()}, {"BF16"})
        self.assertFalse([n for n in tensors(output) if n.endswith("_scale_inv")])
        note = "weights were FP8 with block scales; written as bf16"
        self.assertEqual(report(output)["model"]["note"], note)
        self.assertIn(note, (output / "README.md").read_text())
        items = report(output)["plan"]["plan"]["ram"]["items"]
        self.assertIn("FP8 weights as bf16", [item["name"] for item in items])

        from transformers import AutoModelForCausalLM

        _, info = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
        self.assertFalse(any(info.values()), info)

    def test_experts_blocks_and_what_is_left_alone(self):
        flags = {"window": "block", "propagation": "sparse", "ignore": "self_attn.k_proj"}
        self.both("mixtral_fp32", **flags)

    def test_eval_and_inspect_read_it(self):
        model, plain = self.checkpoints("qwen3_fp32")
        text = self.tokens(5 * 24, name="text.h5", seed=1)
        flags = ("--text", text, "--seqlen", 24, "--json", "-")
        said = [
            json.loads(self.coppice("eval", directory, *flags).stdout)
            for directory in (model, plain)
        ]
        self.assertEqual(said[0]["perplexity"], said[1]["perplexity"])
        self.assertIn("written as bf16", self.coppice("inspect", model).stdout)
        told = [
            json.loads(self.coppice("inspect", directory, "--json").stdout)
            for directory in (model, plain)
        ]
        self.assertEqual(told[0]["parameters"], told[1]["parameters"])
        self.assertEqual(told[0]["fp8_scale_block"], list(BLOCK))

    def test_what_contradicts_itself_is_refused_before_anything_is_written(self):
        model, _ = self.checkpoints("qwen3_fp32")
        output = self.dir / "out"
        path = model / "config.json"
        good = json.loads(path.read_text())
        for code, said, changes in (
            (2, "quantised weights of this kind", {"quant_method": "awq"}),
            (2, "two whole numbers", {"weight_block_size": None}),
            (4, "_scale_inv", {"weight_block_size": [128, 128]}),
        ):
            with self.subTest(said):
                quantization = good["quantization_config"] | changes
                bad = good | {"quantization_config": quantization}
                path.write_text(json.dumps(bad))
                arguments = self.run_arguments(model, self.tokens(300), output)
                done = self.coppice(*arguments, expect=code)
                self.assertIn(said, done.stderr)
                self.assertFalse(output.exists() and any(output.glob("*.safetensors")))
        path.write_text(json.dumps(good))
        flags = ("--dataset", self.tokens(300), "-o", output)
        done = self.coppice("retrain", "--model", model, *flags, expect=2)
        self.assertIn("FP8 weights are not retrained", done.stderr)


if __name__ == "__main__":
    unittest.main()
