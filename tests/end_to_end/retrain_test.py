"""A pruned checkpoint goes in, one with the same zeros and better weights comes out."""

import json
import signal
import subprocess
import unittest

import h5py
import numpy as np
from support import PROGRAM, ProgramTest, as_float, report, shards, tensors


class RetrainTest(ProgramTest):
    """A small pruned model, and text that it can learn."""

    def text(self, windows=32, seqlen=32, vocab=61, name="counting.h5"):
        """Every window counts on in sevens from a token of its own."""
        starts = np.arange(windows)[:, None] * 5
        ids = (starts + 7 * np.arange(seqlen)) % vocab
        path = self.dir / name
        with h5py.File(path, "w") as file:
            file["input_ids"] = ids.astype(np.int32)
        return path

    def pruned(self, name="llama_bf16"):
        """The golden model with half of its weights zero."""
        output = self.dir / f"{name}.pruned"
        if not output.exists():
            flags = {"window": "none", "prune_method": "magnitude"}
            self.coppice(
                *self.run_arguments(self.model(name), self.text(), output, **flags)
            )
        return output

    def arguments(self, model, output, **keys):
        """`coppice retrain` with small defaults."""
        flags = {"dataset": self.text()} if "dataset" not in keys else {}
        flags |= {"nsamples": 32, "seqlen": 32, "lr": 2e-2, "epochs": 2, "rank": 4}
        arguments = ["retrain", "--model", model, "-o", self.dir / output]
        for key, value in (flags | keys).items():
            arguments.append("--" + key.replace("_", "-"))
            if value is not True:
                arguments.append(value)
        return arguments


class Retrain(RetrainTest):
    def test_held_out_loss_falls_zeros_stay_and_the_rest_is_byte_identical(self):
        for name in (
            "llama_bias_llama3_fp32",
            "llama_bf16",
            "qwen3_fp32",
            "opt_wide_bf16",
        ):
            with self.subTest(name):
                pruned = self.pruned(name)
                output = self.dir / f"out_{name}"
                said = self.coppice(*self.arguments(pruned, output)).stdout
                self.assertIn("held out   loss", said)
                self.check(pruned, output)

    def check(self, pruned, output):
        before, after = tensors(pruned), tensors(output)
        told = report(output)
        self.assertEqual(set(before), set(after))
        retrain = told["retrain"]
        self.assertEqual(retrain["kept"], "retrained")
        self.assertLess(retrain["validation_retrained"], retrain["validation_pruned"])
        self.assertLess(retrain["loss_retrained"], retrain["loss_pruned"])
        self.assertEqual(retrain["tokens_seen"], 2 * 30 * 32)
        linears = {l["name"]: l for block in told["blocks"] for l in block["linears"]}
        trained = {name for block in told["blocks"] for name in block["trained"]}
        self.assertTrue(set(linears) <= trained)
        zeros = 0
        for name, tensor in after.items():
            self.assertEqual(tensor[:2], before[name][:2], name)
            if name not in trained:
                self.assertEqual(tensor[2], before[name][2], name)
            if name in linears:
                values = as_float(tensor)
                self.assertTrue((values[as_float(before[name]) == 0] == 0).all(), name)
                self.assertFalse(np.signbit(values[values == 0]).any(), name)
                self.assertEqual((values == 0).sum(), linears[name]["zeros"])
                zeros += linears[name]["zeros"]
        self.assertEqual(zeros, retrain["zeros"])

    def test_eval_measures_what_was_reported(self):
        # In bf16 eval rounds what it keeps on disk.
        for name in ("mistral_fp32", "opt_after_fp32"):
            with self.subTest(name):
                self.check_eval(self.pruned(name), f"out_{name}")

    def check_eval(self, pruned, output):
        self.coppice(*self.arguments(pruned, output))
        told = report(self.dir / output)["retrain"]
        with h5py.File(self.text()) as file:
            held_out = file["input_ids"][-2:]
        with h5py.File(self.dir / "held_out.h5", "w") as file:
            file["input_ids"] = held_out
        for model, key in ((pruned, "pruned"), (self.dir / output, "retrained")):
            self.coppice(
                *["eval", model, "--text", self.dir / "held_out.h5", "--seqlen", 32],
                *["--json", self.dir / "eval.json"],
            )
            measured = json.loads((self.dir / "eval.json").read_text())["nll"]
            self.assertAlmostEqual(measured, told[f"validation_{key}"], places=5)

    def test_first_window_leaves_windows_out(self):
        pruned = self.pruned()
        self.coppice(*self.arguments(pruned, "later", nsamples=8, first_window=24))
        with h5py.File(self.text()) as file:
            last = file["input_ids"][24:]
        with h5py.File(self.dir / "last.h5", "w") as file:
            file["input_ids"] = last
        self.coppice(
            *self.arguments(pruned, "last", nsamples=8, dataset=self.dir / "last.h5")
        )
        self.assertEqual(shards(self.dir / "later"), shards(self.dir / "last"))

    def test_a_rate_that_ruins_the_model_leaves_it_as_it_was(self):
        pruned = self.pruned()
        said = self.coppice(*self.arguments(pruned, "out", lr=30)).stdout
        self.assertIn("the pruned weights stay", said)
        self.assertEqual(tensors(self.dir / "out"), tensors(pruned))
        self.assertEqual(report(self.dir / "out")["retrain"]["kept"], "pruned")

    def test_card_and_side_files(self):
        pruned = self.pruned()
        self.coppice(*self.arguments(pruned, "out"))
        card = (self.dir / "out" / "README.md").read_text()
        self.assertIn(f"base_model: {pruned}", card)
        self.assertIn("low-rank adapters (rank 4, alpha 32)", card)
        self.assertEqual(
            (self.dir / "out" / "config.json").read_text(),
            (pruned / "config.json").read_text(),
        )


class RetrainResume(RetrainTest):
    KEYS = {"epochs": 6, "save_minutes": 0}

    def stopped(self, arguments, send, lines):
        """A retraining that got a signal when it had said so many lines."""
        process = subprocess.Popen([PROGRAM, *map(str, arguments)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=self.dir,
        )  # fmt: skip
        for _ in range(lines):
            process.stderr.readline()
        process.send_signal(send)
        said = process.communicate()[1]
        return process.returncode, said

    def test_killed_and_stopped_runs_continue_to_the_same_bytes(self):
        pruned = self.pruned()
        self.coppice(*self.arguments(pruned, "undisturbed", **self.KEYS))
        arguments = self.arguments(pruned, "out", **self.KEYS)
        codes = []
        for send, lines in (
            (signal.SIGKILL, 1),
            (signal.SIGTERM, 3),
            (signal.SIGKILL, 8),
            (signal.SIGINT, 12),
        ):
            code, said = self.stopped(arguments, send, lines)
            codes.append(code)
            if code == 130:
                self.assertIn("--resume", said)
                self.assertFalse((self.dir / "out").exists())
            arguments = self.arguments(pruned, "out", resume=True, **self.KEYS)
        said = self.coppice(*arguments).stdout
        self.assertIn(130, codes)
        self.assertIn("continued from an earlier run", said)
        self.assertEqual(shards(self.dir / "out"), shards(self.dir / "undisturbed"))
        seen = report(self.dir / "out")["retrain"]["tokens_seen"]
        self.assertEqual(seen, 6 * 30 * 32)
        left = {path.name for path in (self.dir / "out.work").iterdir()}
        self.assertEqual(left, {"journal.bin", "coppice_report.json"})

    def test_damaged_state_is_not_used(self):
        pruned = self.pruned()
        self.coppice(*self.arguments(pruned, "undisturbed", **self.KEYS))
        arguments = self.arguments(pruned, "out", **self.KEYS)
        self.stopped(arguments, signal.SIGTERM, 6)
        for state in (self.dir / "out.work").glob("state.*.safetensors"):
            data = bytearray(state.read_bytes())
            data[-1] ^= 1
            state.write_bytes(data)
        self.coppice(*arguments, "--resume")
        self.assertEqual(shards(self.dir / "out"), shards(self.dir / "undisturbed"))

    def test_other_options_are_refused_by_name(self):
        pruned = self.pruned()
        self.stopped(self.arguments(pruned, "out", **self.KEYS), signal.SIGTERM, 3)
        keys = self.KEYS | {"resume": True, "lora_alpha": 7}
        said = self.coppice(*self.arguments(pruned, "out", **keys), expect=2).stderr
        self.assertIn("retrain.lora_alpha", said)

    def test_earlier_run_is_refused_without_resume_and_finished_one_says_so(self):
        pruned = self.pruned()
        self.coppice(*self.arguments(pruned, "out"))
        said = self.coppice(*self.arguments(pruned, "out"), expect=2).stderr
        self.assertIn("--resume", said)
        said = self.coppice(*self.arguments(pruned, "out", resume=True)).stderr
        self.assertIn("finished already", said)
        golden = shards(self.dir / "out")
        (pruned / "eval.json").write_text("{}")  # of a later evaluation
        (self.dir / "out" / "config.json").unlink()
        said = self.coppice(*self.arguments(pruned, "out", resume=True)).stderr
        self.assertIn("finished already", said)
        self.assertTrue((self.dir / "out" / "config.json").exists())
        next((self.dir / "out").glob("model-*")).unlink()
        self.coppice(*self.arguments(pruned, "out", resume=True))
        self.assertEqual(shards(self.dir / "out"), golden)


class RetrainBadInput(RetrainTest):
    def refused(self, code, *said, model=None, **keys):
        model = model or self.pruned()
        done = self.coppice(*self.arguments(model, "out", **keys), expect=code)
        for text in said:
            self.assertIn(text, done.stderr)
        self.assertFalse((self.dir / "out" / "model.safetensors.index.json").exists())

    def test_dense_model(self):
        self.refused(2, "is zero", "prune it first", model=self.model("llama_bf16"))
        self.coppice(*self.arguments(self.pruned(), "out"))  # nothing is in the way

    def test_values_that_make_no_sense(self):
        self.refused(2, "--rank: 0: at least 1", rank=0)
        self.refused(2, "--lora-alpha", lora_alpha=0)
        self.refused(2, "--nsamples: 1", nsamples=1)
        self.refused(2, "--first-window", first_window=-1)
        self.refused(2, "--epochs: 0", epochs=0)
        self.refused(2, "did you mean --rank", rnak=4)

    def test_an_encoder_has_nothing_to_be_retrained_on(self):
        self.refused(2, "predicts no next token", model=self.pruned("bert_fp32"))

    def test_too_little_text(self):
        self.refused(2, "too little calibration text", nsamples=33)
        self.refused(2, "too little calibration text", nsamples=30, first_window=3)

    def test_windows_longer_than_the_model(self):
        self.refused(2, "the model has 64 positions", seqlen=4096)

    def test_output_directory_that_is_not_empty(self):
        (self.dir / "out").mkdir()
        (self.dir / "out" / "thesis.tex").write_text("mine")
        self.refused(2, "not empty")

    def test_no_model(self):
        self.refused(3, "config.json", model=self.dir / "nowhere")

    def test_budget_that_is_too_small(self):
        self.refused(
            5,
            "the model as it is stored",
            "given by --ram-budget",
            ram_budget="100MiB",
        )


if __name__ == "__main__":
    unittest.main()
