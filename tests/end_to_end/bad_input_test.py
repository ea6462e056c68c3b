"""Bad input ends with the right exit code, a message to act on, and nothing that looks finished."""

import json
import struct
import subprocess
import unittest

import numpy as np
from support import PROGRAM, ProgramTest


class BadInput(ProgramTest):
    def refused(self, code, *said, model=None, tokens=None, prepare=None, **keys):
        """Runs; expects exit `code`, every text of `said` on stderr, and no index in the output."""
        output = self.dir / "out"
        model = model or self.model()
        tokens = tokens or self.tokens(300)
        done = self.coppice(
            *self.run_arguments(model, tokens, output, **keys), expect=code
        )
        for text in said:
            self.assertIn(text, done.stderr)
        self.assertFalse((output / "model.safetensors.index.json").exists())
        self.assertEqual(list(output.glob("*.tmp")) if output.exists() else [], [])

    def edit_config(self, model, **values):
        config = json.loads((model / "config.json").read_text())
        config.update(values)
        (model / "config.json").write_text(json.dumps(config))

    def single_shard(self, model):
        return sorted(model.glob("model*.safetensors"))[-1]

    def edit_header(self, shard, edit):
        data = shard.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        edit(header)
        text = json.dumps(header).encode()
        shard.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    def edit_tensor(self, model, name, values):
        """Overwrites the first bytes of a tensor."""
        for shard in model.glob("model*.safetensors"):
            data = bytearray(shard.read_bytes())
            length = struct.unpack("<Q", data[:8])[0]
            header = json.loads(data[8 : 8 + length])
            if name in header:
                begin = 8 + length + header[name]["data_offsets"][0]
                data[begin : begin + len(values)] = values
                shard.write_bytes(data)
                return
        self.fail(f"no tensor {name}")

    def test_no_model(self):
        self.refused(3, "config.json", model=self.dir / "nowhere")

    def test_pattern_that_names_nothing(self):
        self.refused(2, "prune.targets: upproj: names no linear", targets="upproj")
        self.refused(2, "prune.ignore: re:q_proj: names no", ignore="re:q_proj")
        self.refused(2, "prune.sparsity_map: a_proj", sparsity_map="a_proj=0.5")

    def test_pattern_that_names_a_router(self):
        said = "an MoE router is never pruned"
        for pattern in ("mlp.gate", "gate", r"re:.*mlp\.gate$"):
            model = self.model("qwen3_moe_fp32")
            self.refused(2, "prune.targets", said, model=model, targets=pattern)
        rules = "block_sparse_moe.gate=0.25"
        model = self.model("mixtral_fp32")
        self.refused(2, "prune.sparsity_map", said, model=model, sparsity_map=rules)

    def test_matrices_of_experts_under_mixed_propagation(self):
        flags = {"window": "matrix", "propagation": "mixed"}
        model = self.model("mixtral_fp32")
        self.refused(2, "tokens reach other experts", model=model, **flags)

    def test_sparsities_of_another_number_of_blocks(self):
        self.refused(2, "2 numbers for a model of 3 blocks", block_sparsities="0.1,0.2")

    def test_work_directory_that_is_the_output(self):
        self.refused(2, "that is the output directory", work_dir=self.dir / "out")

    def test_window_larger_than_the_model(self):
        self.refused(2, "reconstruct.window: 4 blocks: the model has 3", window=4)

    def test_masks_of_another_model(self):
        model = self.model("llama_bias_llama3_fp32")
        self.refused(2, "prune.masks", masks=model)
        self.refused(3, "no_such_place", masks="no_such_place")

    def test_missing_shard(self):
        model = self.model()
        self.single_shard(model).unlink()
        self.refused(3, "safetensors", model=model)

    def test_index_names_an_absent_file(self):
        model = self.model()
        shard = self.single_shard(model)
        index = {
            "metadata": {},
            "weight_map": {"model.norm.weight": "model-00009-of-00009.safetensors"},
        }
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        shard.rename(model / "model-00001-of-00009.safetensors")
        self.refused(
            3, "model-00009-of-00009.safetensors", "model.norm.weight", model=model
        )

    def test_truncated_shard(self):
        model = self.model()
        shard = self.single_shard(model)
        shard.write_bytes(shard.read_bytes()[:-100])
        self.refused(4, shard.name, model=model)

    def test_header_that_lies_about_a_shape(self):
        model = self.model()
        shard = self.single_shard(model)

        def lie(header):
            name = next(n for n in header if n.endswith("weight"))
            header[name]["shape"][0] += 1

        self.edit_header(shard, lie)
        self.refused(4, shard.name, model=model)

    def test_header_length_beyond_the_file(self):
        model = self.model()
        shard = self.single_shard(model)
        shard.write_bytes(struct.pack("<Q", 2**63) + shard.read_bytes()[8:])
        self.refused(4, shard.name, model=model)

    def test_tensor_of_another_shape_than_the_config_says(self):
        model = self.model()
        self.edit_config(model, intermediate_size=999)
        self.refused(4, "999", model=model)

    def test_unknown_dtype(self):
        model = self.model()

        def rename(header):
            for name, info in header.items():
                if name.endswith("q_proj.weight"):
                    info["dtype"] = "F4_E2M1"

        for shard in model.glob("model*.safetensors"):
            self.edit_header(shard, rename)
        self.refused(2, "F4_E2M1", model=model)

    def test_unknown_architecture(self):
        model = self.model()
        self.edit_config(model, architectures=["MambaForCausalLM"])
        self.refused(2, "MambaForCausalLM", "LlamaForCausalLM", model=model)

    def test_nan_weights(self):
        model = self.model()
        name = "model.layers.1.mlp.up_proj.weight"
        self.edit_tensor(model, name, struct.pack("<f", float("nan")))
        self.refused(6, name, "block 1", model=model)

    def test_unknown_recipe_key(self):
        recipe = self.dir / "recipe.yaml"
        recipe.write_text("prune:\n  sparsty: 0.5\n")
        self.refused(2, "sparsty", "sparsity", "recipe.yaml", recipe=recipe)

    def test_unknown_flag_and_command_name_the_nearest(self):
        self.refused(2, "--sparsty", "--sparsity", sparsty=0.5)
        self.assertIn("eval", self.coppice("evl", expect=2).stderr)

    def test_sparsity_outside_its_range(self):
        for value in (1.0, -0.1, 1.5, "half"):
            with self.subTest(value):
                self.refused(2, "sparsity", str(value), sparsity=value)

    def test_m_that_does_not_divide(self):
        self.refused(2, "5:7", "inputs", sparsity_type="5:7")

    def test_too_little_calibration_text(self):
        self.refused(2, "too little", "300", nsamples=1000)

    def test_tokens_of_another_vocabulary(self):
        self.refused(2, "vocabulary", tokens=self.tokens(300, vocab=5000))

    def test_no_dataset(self):
        self.refused(3, "absent.txt", tokens=self.dir / "absent.txt")

    def test_output_directory_with_files_of_something_else(self):
        (self.dir / "out").mkdir()
        (self.dir / "out" / "thesis.tex").write_text("all of it")
        self.refused(2, "not empty")
        self.assertEqual((self.dir / "out" / "thesis.tex").read_text(), "all of it")

    def test_one_window_cannot_be_held_out_and_trained_on(self):
        self.refused(2, "nsamples", nsamples=1)

    def test_no_such_device(self):
        self.refused(2, "cuda:99", device="cuda:99")

    def test_full_disk(self):
        """A file size limit gives the short writes and refusals of a full disk, without root."""
        model, tokens, output = self.model(), self.tokens(300), self.dir / "out"
        arguments = " ".join(map(str, self.run_arguments(model, tokens, output)))
        limited = subprocess.run(
            ["bash", "-c", f"trap '' XFSZ; ulimit -f 8; exec {PROGRAM} {arguments}"],
            capture_output=True, text=True, cwd=self.dir, timeout=280,
        )  # fmt: skip
        self.assertEqual(limited.returncode, 3, limited.stderr)
        self.assertFalse((output / "model.safetensors.index.json").exists())
        self.coppice(*self.run_arguments(model, tokens, output, resume=True))
        self.assertTrue((output / "model.safetensors.index.json").exists())

    def test_eval_of_too_little_text(self):
        done = self.coppice(
            "eval", self.model(), "--text", self.tokens(10), "--seqlen", 32, expect=2
        )
        self.assertIn("too little", done.stderr)
        self.assertEqual(list(self.dir.glob(".coppice-eval*")), [])

    def test_infinite_weights_in_eval(self):
        model = self.model()
        name = "model.layers.0.self_attn.q_proj.weight"
        self.edit_tensor(model, name, np.array([np.inf], np.float32).tobytes())
        self.assertIn(
            name,
            self.coppice(
                "eval", model, "--text", self.tokens(64), "--seqlen", 32, expect=6
            ).stderr,
        )

    def test_nan_in_the_head_in_eval(self):
        model = self.model()
        self.edit_tensor(model, "model.norm.weight", struct.pack("<f", float("nan")))
        done = self.coppice(
            "eval", model, "--text", self.tokens(64), "--seqlen", 32, expect=6
        )
        self.assertIn("log-likelihood", done.stderr)


if __name__ == "__main__":
    unittest.main()
