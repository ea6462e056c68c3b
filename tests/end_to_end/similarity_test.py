"""An encoder on sentences of their own lengths: what it is calibrated by and judged with, beside
transformers, which pads them."""

import csv
import json
import random
import unittest

import numpy as np
from support import ProgramTest, as_float, report, shards, tensors

WORDS = [f"w{number}" for number in range(57)]
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
SEQLEN = 32


def sentences(count, seed):
    """Of 1 to 40 words: some are cut."""
    draw = random.Random(seed)
    lengths = [draw.choice((1, 2, 3, 5, 8, 13, 40)) for _ in range(count)]
    return [" ".join(draw.choices(WORDS, k=length)) for length in lengths]


def ranks(values):
    """Equal values share the mean of theirs."""
    values = np.asarray(values)
    return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])


class Similarity(ProgramTest):
    def setUp(self):
        super().setUp()
        self.encoder = self.model("bert_fp32")
        self.write_tokenizer()
        self.text = self.dir / "sentences.txt"
        self.text.write_text("\n\n".join(sentences(60, seed=0)) + "\n")  # empty lines are skipped
        self.pairs = sentences(40, seed=1)
        self.scores = [random.Random(2 + i).randrange(11) / 2 for i in range(20)]
        self.data = self.dir / "pairs.csv"
        self.data.write_text(
            "".join(
                f"g\tf\ty\t{i:04}\t{score:.3f}\t{self.pairs[2 * i]}\t{self.pairs[2 * i + 1]}\n"
                for i, score in enumerate(self.scores)
            )
        )

    def write_tokenizer(self):
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
        tokenizer.save(str(self.encoder / "tokenizer.json"))

    def batch(self, texts):
        """Padded, as transformers wants it."""
        import torch
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.encoder / "tokenizer.json"))
        tokenizer.enable_truncation(SEQLEN)
        tokenizer.enable_padding()
        encoded = tokenizer.encode_batch(texts)
        return {
            "input_ids": torch.tensor([e.ids for e in encoded]),
            "attention_mask": torch.tensor([e.attention_mask for e in encoded]),
        }

    def embeddings(self, directory):
        import torch
        from transformers import AutoModel

        batch = self.batch(self.pairs)
        with torch.no_grad():
            hidden = AutoModel.from_pretrained(directory).eval()(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        return ((hidden * mask).sum(1) / mask.sum(1)).double().numpy()

    def pruned(self, name, text=None, **keys):
        keys = {"nsamples": 50, "seqlen": SEQLEN, "window": "none"} | keys
        output = self.dir / name
        self.coppice(*self.run_arguments(self.encoder, text or self.text, output, **keys))
        return output

    def evaluate(self, directory, *flags, expect=0):
        return self.coppice(
            *("eval", directory, "--task", "stsb", "--data", self.data, "--seqlen", SEQLEN),
            *flags,
            expect=expect,
        )

    def test_embeddings_agree_with_transformers(self):
        pruned = self.pruned("pruned", sparsity=0.6)
        told = json.loads(self.evaluate(pruned, "--against", self.encoder, "--json", "-").stdout)

        def cosines(a, b):
            return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

        def correlations(rows):
            likeness = cosines(rows[::2], rows[1::2])
            spearman = np.corrcoef(ranks(likeness.round(9)), ranks(self.scores))[0, 1]
            return spearman, np.corrcoef(likeness, self.scores)[0, 1]

        own, dense = self.embeddings(pruned), self.embeddings(self.encoder)
        for prefix, rows in (("", own), ("reference_", dense)):
            spearman, pearson = correlations(rows)
            self.assertAlmostEqual(told[prefix + "pearson"], pearson, delta=2e-4)
            self.assertAlmostEqual(told[prefix + "spearman"], spearman, delta=0.02)
        fidelity = cosines(own, dense)
        self.assertLess(fidelity.mean(), 0.999)  # there is something to tell apart
        self.assertAlmostEqual(told["fidelity"], fidelity.mean(), delta=1e-5)
        self.assertAlmostEqual(told["fidelity_min"], fidelity.min(), delta=1e-5)
        self.assertEqual((told["pairs"], told["sentences"]), (20, 40))
        self.assertEqual(told["tokens"], int(self.batch(self.pairs)["attention_mask"].sum()))
        self.assertEqual(list(self.dir.glob(".coppice-eval*")), [])

    def test_statistics_are_of_the_tokens_without_what_fills_a_window(self):
        """Wanda's masks from transformers' activations, of padded sentences without their padding."""
        import torch
        from transformers import AutoModel

        made = tensors(self.pruned("pruned"))
        calibration = report(self.dir / "pruned")["calibration"]
        lines = [line for line in self.text.read_text().split("\n") if line][:50]
        batch = self.batch(lines)
        mask = batch["attention_mask"].bool()
        self.assertEqual(calibration["nsamples"], 50)
        self.assertEqual(calibration["tokens"], int(mask.sum()))
        model = AutoModel.from_pretrained(self.encoder).eval()
        norms = {}
        for name, module in model.encoder.layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(
                    lambda _, inputs, __, name=name: norms.update(
                        {name: inputs[0][mask].double().square().sum(0).sqrt()}
                    )
                )
        with torch.no_grad():
            model(**batch)
        self.assertEqual(len(norms), 12)
        for name, norm in norms.items():
            weight = torch.from_numpy(
                as_float(tensors(self.encoder)[f"encoder.layer.{name}.weight"]).copy()
            )
            scores = weight.double().abs() * norm
            removed = scores.argsort(1)[:, : weight.shape[1] // 2]
            expected = torch.ones_like(weight, dtype=torch.bool).scatter_(1, removed, False)
            kept = as_float(made[f"encoder.layer.{name}.weight"]) != 0
            # Two scores that differ by rounding alone may change places.
            self.assertLess(np.mean(kept != expected.numpy()), 0.003, name)

    def test_records_and_lines_are_the_same_sequences(self):
        records = self.dir / "sentences.jsonl"
        lines = [line for line in self.text.read_text().split("\n") if line]
        records.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        self.assertEqual(
            shards(self.pruned("records", records)), shards(self.pruned("lines"))
        )

    def test_killed_sweep_continues_to_the_same_bytes(self):
        def arguments(output, resume):
            more = ["--resume"] if resume else []
            keys = {"nsamples": 60, "seqlen": SEQLEN, "ffn_sparsity": 0.5, "head_sparsity": 0.5}
            keys |= {"solver": "liar+adamw", "epochs": 6}
            run = self.run_arguments(self.encoder, self.text, self.dir / output, **keys)
            return ["sweep", *run[1:], "--vary", "prune-method=wanda_sp,flap", *more]

        seconds = self.coppice(*arguments("whole", False)).seconds
        whole = {path.name: shards(path) for path in (self.dir / "whole").iterdir() if path.is_dir()}
        self.assertEqual(len(whole), 2)
        losses = self.held_out_losses("whole")
        for output in self.continued_after_kills(arguments, rounds=2, seconds=seconds):
            for name, files in whole.items():
                self.assertEqual(shards(self.dir / output / name), files)
            self.assertEqual(self.held_out_losses(output), losses)

    def held_out_losses(self, sweep):
        with open(self.dir / sweep / "sweep.csv", newline="") as file:
            return {row["name"]: row["held_out_loss"] for row in csv.DictReader(file)}

    def test_plan_counts_the_windows_that_sequences_fill(self):
        run = self.run_arguments(
            self.encoder, self.text, self.dir / "out", nsamples=50, seqlen=SEQLEN, window="none"
        )
        tokens = self.batch([l for l in self.text.read_text().split("\n") if l][:50])
        least = -(-int(tokens["attention_mask"].sum()) // SEQLEN)
        windows = int(self.coppice("plan", *run[1:]).stdout.split(" windows of ")[0].split()[-1])
        self.assertGreaterEqual(windows, least)
        self.assertLess(windows, 50)

    def test_what_cannot_be_is_said(self):
        few = self.dir / "few.txt"
        few.write_text("w1 w2\nw3\n")
        for keys, text, words in (
            ({"nsamples": 3}, few, "2 sequences, one a line, nsamples asks for 3"),
            ({"nsamples": 2, "window": "half-block"}, few, "fill one window of 32"),
        ):
            keys = {"seqlen": SEQLEN, "window": "none"} | keys
            done = self.coppice(
                *self.run_arguments(self.encoder, text, self.dir / "refused", **keys), expect=2
            )
            self.assertIn(words, done.stderr)
        llama = self.model("llama_fp32")
        for directory, flags, words in (
            (llama, [], "a llama model"),
            (self.encoder, ["--text", self.text], "--text: not of --task stsb"),
            (self.encoder, ["--against", llama], "--task stsb: "),
        ):
            self.assertIn(words, self.evaluate(directory, *flags, expect=2).stderr)
        done = self.coppice("eval", self.encoder, "--task", "stsb", expect=2)
        self.assertIn("--data is required by --task stsb", done.stderr)
        done = self.coppice("eval", self.encoder, "--text", self.text, expect=2)
        self.assertIn("predicts no next token", done.stderr)


if __name__ == "__main__":
    unittest.main()
