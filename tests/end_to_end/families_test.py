"""Every family goes through the program, and transformers agrees on what comes out."""

import json
import unittest

import numpy as np
from support import GOLDEN, ProgramTest, as_float, report, tensors

WINDOWS, SEQLEN, VOCAB = 5, 24, 61


class FamilyTest(ProgramTest):
    """A golden checkpoint through the program, and what transformers makes of the output."""

    def text(self):
        return self.tokens(WINDOWS * SEQLEN, name="text.h5", seed=1)

    def perplexity(self, directory):
        """What the program says."""
        flags = ("--text", self.text(), "--seqlen", SEQLEN, "--json", "-")
        told = json.loads(self.coppice("eval", directory, *flags).stdout)
        self.assertEqual(
            (told["tokens"], told["windows"], told["seqlen"]),
            (WINDOWS * (SEQLEN - 1), WINDOWS, SEQLEN),
        )
        return told["perplexity"]

    def loaded(self, kind, directory):
        model, info = kind.from_pretrained(directory, output_loading_info=True)
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            self.assertFalse(info[key], info)
        return model

    def perplexity_by_transformers(self, directory):
        import torch
        from transformers import AutoModelForCausalLM

        ids = np.random.default_rng(1).integers(
            0, VOCAB, (WINDOWS, SEQLEN), dtype=np.int32
        )
        model = self.loaded(AutoModelForCausalLM, directory)
        with torch.no_grad():
            logits = model(torch.tensor(ids, dtype=torch.long)).logits.float()
        targets = torch.tensor(ids[:, 1:], dtype=torch.long).reshape(-1)
        predictions = logits[:, :-1].reshape(len(targets), -1)
        nll = torch.nn.functional.cross_entropy(predictions, targets)
        return float(nll.exp())

    def check_zeros(self, model, output):
        """Zeros as reported, and every window improved or left alone; dtypes stay."""
        dense, made = tensors(model), tensors(output)
        self.assertEqual(set(dense), set(made))
        for block in report(output)["blocks"]:
            self.assertTrue(block["trained"], "no window was improved")
            for linear in block["linears"]:
                name = linear["name"]
                self.assertEqual(made[name][:2], dense[name][:2])
                share = np.mean(as_float(made[name]) == 0)
                self.assertAlmostEqual(share, linear["sparsity"], places=6)
                self.assertAlmostEqual(share, 0.5, delta=0.03)

    def check_decoders(self, is_meant):
        for name in sorted(path.name for path in GOLDEN.iterdir() if path.is_dir()):
            if name.startswith("bert") or not is_meant(name):
                continue
            with self.subTest(name):
                model, output = self.model(name), self.dir / f"out_{name}"
                seqlen = 16 if name == "llama_dynamic_fp32" else 32
                self.coppice(
                    *self.run_arguments(model, self.tokens(300), output, seqlen=seqlen)
                )
                self.check_zeros(model, output)
                said = self.perplexity(output)
                self.assertAlmostEqual(
                    said / self.perplexity_by_transformers(output), 1.0, delta=0.002
                )


class Llamas(FamilyTest):
    def test_every_one_is_pruned_and_agrees_on_perplexity(self):
        self.check_decoders(lambda name: name.startswith("llama"))


class OtherDecoders(FamilyTest):
    def test_every_one_is_pruned_and_agrees_on_perplexity(self):
        self.check_decoders(lambda name: not name.startswith("llama"))


class Others(FamilyTest):
    def test_an_encoder_is_pruned_and_has_no_perplexity(self):
        from transformers import BertModel

        model, output = self.model("bert_fp32"), self.dir / "out"
        self.coppice(*self.run_arguments(model, self.tokens(300), output))
        self.check_zeros(model, output)
        config = json.loads((output / "config.json").read_text())
        self.assertEqual(config["architectures"], ["BertModel"])
        BertModel.from_pretrained(output, add_pooling_layer=False)
        done = self.coppice("eval", output, "--text", self.text(), expect=2)
        self.assertIn("a bert model predicts no next token", done.stderr)

    def test_sequences_beyond_learned_positions_are_refused(self):
        flags = ("--text", self.tokens(300), "--seqlen", 65)
        done = self.coppice("eval", self.model("opt_fp32"), *flags, expect=2)
        self.assertIn("has learned 64 positions", done.stderr)
        arguments = self.run_arguments(
            self.model("opt_fp32"), self.tokens(900), self.dir / "out", seqlen=65
        )
        done = self.coppice(*arguments, expect=2)
        self.assertIn("the model has 64 positions", done.stderr)

    def test_what_no_stage_computes_is_refused(self):
        for name, values, said in (
            ("opt_fp32", {"layer_norm_elementwise_affine": False}, "only true is"),
            ("opt_fp32", {"activation_function": "mish"}, "one of silu, gelu"),
            ("bert_fp32", {"is_decoder": True}, "is_decoder: true: not computed"),
            ("mistral_fp32", {"sliding_window": -1}, "sliding_window: -1: must be"),
            ("qwen3_fp32", {"architectures": ["Qwen9ForCausalLM"]}, "is unknown"),
        ):
            with self.subTest(name, **values):
                model = self.model(name)
                path = model / "config.json"
                before = path.read_text()
                path.write_text(json.dumps(json.loads(before) | values))
                done = self.coppice("inspect", model, expect=2)
                self.assertIn(said, done.stderr)
                path.write_text(before)


if __name__ == "__main__":
    unittest.main()
