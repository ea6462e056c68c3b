"""Perplexity, and how far a model is from its reference, beside transformers."""

import json
import math
import subprocess
import sys
import unittest

import numpy as np
from support import SOURCE, ProgramTest


class Against(ProgramTest):
    def evaluate(self, model, reference, text):
        return json.loads(
            self.coppice(
                *("eval", model, "--against", reference, "--text", text),
                *("--seqlen", 24, "--json", "-"),
            ).stdout
        )

    def test_equals_transformers(self):
        import torch
        from transformers import AutoModelForCausalLM

        for name in ("llama_fp32", "llama_bias_llama3_fp32"):
            with self.subTest(name):
                dense, pruned = self.model(name), self.dir / f"pruned_{name}"
                self.coppice(
                    *self.run_arguments(
                        dense, self.tokens(300), pruned, window="none", sparsity=0.7
                    )
                )
                text = self.tokens(5 * 24, name="text.h5", seed=1)
                told = self.evaluate(pruned, dense, text)

                ids = np.random.default_rng(1).integers(0, 61, 5 * 24, dtype=np.int32)
                ids = torch.tensor(ids, dtype=torch.long).reshape(5, 24)

                def log_probabilities(directory, ids=ids):
                    model = AutoModelForCausalLM.from_pretrained(directory)
                    with torch.no_grad():
                        logits = model(ids).logits[:, :-1].double()
                    return torch.log_softmax(logits, -1).flatten(0, 1)

                p, q = log_probabilities(dense), log_probabilities(pruned)
                targets = ids[:, 1:].reshape(-1, 1)
                kl = (p.exp() * (p - q)).sum(-1).sort().values
                self.assertAlmostEqual(
                    told["reference_perplexity"],
                    math.exp(-p.gather(1, targets).mean()),
                    delta=0.01,
                )
                self.assertAlmostEqual(
                    told["perplexity"],
                    math.exp(-q.gather(1, targets).mean()),
                    delta=0.01,
                )
                self.assertAlmostEqual(told["kl_mean"], float(kl.mean()), places=4)
                rank = math.ceil(0.99 * len(kl)) - 1
                self.assertAlmostEqual(told["kl_p99"], float(kl[rank]), places=3)
                agreement = (p.argmax(-1) == q.argmax(-1)).double().mean()
                self.assertAlmostEqual(told["top1_agreement"], float(agreement))

    def test_a_model_does_not_differ_from_itself(self):
        told = self.evaluate(self.model(), self.model(), self.tokens(100))
        self.assertEqual(told["perplexity"], told["reference_perplexity"])
        self.assertEqual((told["kl_mean"], told["kl_p99"]), (0, 0))
        self.assertEqual(told["top1_agreement"], 1)

    def test_models_of_two_widths_can_be_compared(self):
        for name, hidden in (("narrow", 32), ("wide", 64)):
            subprocess.run(
                [
                    *(sys.executable, SOURCE / "scripts" / "make_synthetic.py"),
                    *(self.dir / name, "--hidden", str(hidden), "--ffn", "96"),
                    *("--heads", "2", "--kv-heads", "2", "--head-dim", "16"),
                    *("--blocks", "2", "--vocab", "61", "--dtype", "bf16"),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        told = self.evaluate(
            self.dir / "narrow", self.dir / "wide", self.tokens(100)
        )
        self.assertGreater(told["kl_mean"], 0)

    def test_budgets_that_nothing_keeps_are_refused(self):
        for flag in ("--ram-budget", "--disk-budget"):
            done = self.coppice(
                *("eval", self.model(), "--text", self.tokens(100), "--seqlen", 24),
                *(flag, "1GiB"),
                expect=2,
            )
            self.assertIn(f"{flag}: eval keeps no budget", done.stderr)

    def test_another_vocabulary_is_refused(self):
        subprocess.run(
            [
                *(sys.executable, SOURCE / "scripts" / "make_synthetic.py"),
                *(self.dir / "other", "--hidden", "32", "--ffn", "96"),
                *("--heads", "2", "--kv-heads", "2", "--head-dim", "16"),
                *("--blocks", "1", "--vocab", "64", "--dtype", "bf16"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        done = self.coppice(
            *("eval", self.model(), "--against", self.dir / "other"),
            *("--text", self.tokens(100), "--seqlen", 24),
            expect=2,
        )
        self.assertIn("vocabulary of 64", done.stderr)
        self.assertIn("61", done.stderr)


if __name__ == "__main__":
    unittest.main()
