"""Several recipes in one dense pass: each as its own run would have been; what a recipe leaves open is
found by a pass before."""

import csv
import json
import shutil
import unittest

import h5py
import numpy as np
from support import ProgramTest, report, shards


def held_out_loss(directory, tokens, first, count, seqlen):
    """Mean next-token loss of a checkpoint on windows, as transformers computes it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with h5py.File(tokens) as file:
        ids = file["input_ids"][first * seqlen : (first + count) * seqlen]
    ids = torch.from_numpy(np.asarray(ids, np.int64)).view(count, seqlen)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].double()
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)
    ).item()


class SweepTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.data = self.tokens(16 * 32)

    def arguments(self, output, vary=(), command="sweep", model=None, **keys):
        model = model or self.model()
        # A run that only prunes would hold nothing out of SparseGPT's Gram matrices.
        keys = {"nsamples": 16, "validation_fraction": 0.0625} | keys
        arguments = self.run_arguments(model, self.data, self.dir / output, **keys)
        arguments[0] = command
        for key in vary:
            arguments += ["--vary", key]
        return arguments

    def rows(self, output):
        with open(self.dir / output / "sweep.csv", newline="") as file:
            return list(csv.DictReader(file))


class Sweep(SweepTest):
    GRID = ("prune-method=wanda,sparsegpt", "window=none,half-block,2")

    def test_every_recipe_is_byte_for_byte_its_own_run(self):
        self.check_against_runs("llama_fp32", "cached")

    def test_hidden_states_between_blocks_are_those_of_a_run_where_they_are_rounded(self):
        self.check_against_runs("llama_bf16", "recomputed", compute_dtype="fp32")

    def check_against_runs(self, name, half_block_targets, **keys):
        keys |= {"model": self.model(name), "solver": "least_squares+adamw"}
        self.coppice(
            *self.arguments("sweep", self.GRID, half_block_targets=half_block_targets, **keys)
        )
        rows = self.rows("sweep")
        self.assertEqual(len(rows), 6)
        for row in rows:
            method, window = row["prune.method"], row["reconstruct.window"]
            with self.subTest(row["name"]):
                alone = f"alone_{row['name']}"
                self.coppice(
                    *self.arguments(
                        alone, command="run", prune_method=method, window=window,
                        half_block_targets="cached", **keys,
                    )
                )  # fmt: skip
                self.assertEqual(
                    shards(self.dir / "sweep" / row["name"]), shards(self.dir / alone)
                )

    def test_recipes_in_another_order_are_another_sweep(self):
        self.kill_after(self.arguments("out", ("sparsity=0.3,0.6",), epochs=6), 1, 0)
        said = self.coppice(
            *self.arguments("out", ("sparsity=0.6,0.3",), epochs=6, resume=True), expect=2
        ).stderr
        self.assertIn("another recipes", said)

    def test_the_best_predicts_the_held_out_windows_best(self):
        self.coppice(*self.arguments("sweep", ("sparsity=0.3,0.6,0.9",)))
        rows = self.rows("sweep")
        count = 1  # of 16 windows a sixteenth
        for row in rows:
            expected = held_out_loss(self.dir / "sweep" / row["name"], self.data, 15, count, 32)
            self.assertAlmostEqual(float(row["held_out_loss"]), expected, places=4)
        dense = json.loads((self.dir / "sweep" / "sweep_report.json").read_text())["dense"]
        self.assertAlmostEqual(dense, held_out_loss(self.model(), self.data, 15, count, 32), places=4)
        best = min(rows, key=lambda row: float(row["held_out_loss"]))
        self.assertEqual([r["name"] for r in rows if r["best"] == "1"], [best["name"]])

    def test_without_outputs_the_table_is_the_same_and_no_weights_are_written(self):
        grid = ("prune-method=magnitude,ria", "lr=1e-3,1e-4")
        self.coppice(*self.arguments("all", grid))
        said = self.coppice(*self.arguments("none", grid, outputs="none")).stdout
        keep = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
        self.assertEqual(keep(self.rows("none")), keep(self.rows("all")))
        self.assertEqual(list((self.dir / "none").rglob("*.safetensors")), [])
        self.assertEqual(list((self.dir / "none.work").glob("*.safetensors")), [])
        best = next(row["name"] for row in self.rows("none") if row["best"] == "1")
        self.assertIn(f"--recipe {self.dir}/none/{best}/recipe.yaml", said)
        self.coppice(
            "run", "--model", self.model(), "--dataset", self.data, "-o", self.dir / "best",
            "--recipe", self.dir / "none" / best / "recipe.yaml",
        )  # fmt: skip
        self.assertEqual(shards(self.dir / "best"), shards(self.dir / "all" / best))
        shutil.rmtree(self.dir / "none")
        self.coppice(*self.arguments("none", grid, outputs="none", resume=True))
        self.assertEqual(keep(self.rows("none")), keep(self.rows("all")))

    def test_recipes_from_files_are_named_by_them(self):
        (self.dir / "half.yaml").write_text("prune: {sparsity: 0.5}\n")
        (self.dir / "pattern.yaml").write_text("prune: {sparsity_type: '2:4'}\n")
        model = self.model("llama_bf16")
        self.coppice(
            *self.arguments("sweep", ("window=none,block",), model=model, ignore="down_proj,o_proj"),
            "--recipe", self.dir / "half.yaml", "--recipe", self.dir / "pattern.yaml",
        )  # fmt: skip
        names = [row["name"] for row in self.rows("sweep")]
        self.assertEqual(names, ["half_none", "half_block", "pattern_none", "pattern_block"])

    def test_encoders_are_judged_by_their_hidden_states(self):
        model = self.model("bert_fp32")
        self.coppice(*self.arguments("sweep", ("sparsity=0.3,0.9",), model=model))
        rows = self.rows("sweep")
        self.assertEqual([row["best"] for row in rows], ["1", "0"])
        told = json.loads((self.dir / "sweep" / "sweep_report.json").read_text())
        self.assertIn("hidden states", told["metric"])

    def test_killed_at_any_moment_continues_to_the_same_table_and_bytes(self):
        grid = ("prune-method=wanda,magnitude", "window=half-block,block")
        seconds = self.coppice(*self.arguments("undisturbed", grid, epochs=6)).seconds
        golden = self.rows("undisturbed")
        arguments = lambda output, resume: self.arguments(output, grid, epochs=6, resume=resume)
        for output in self.continued_after_kills(arguments, 3, seconds):
            for row, expected in zip(self.rows(output), golden, strict=True):
                self.assertEqual(row["held_out_loss"], expected["held_out_loss"])
                self.assertEqual(row["best"], expected["best"])
                name = row["name"]
                self.assertEqual(
                    shards(self.dir / output / name), shards(self.dir / "undisturbed" / name)
                )

    def test_plan_of_a_sweep_counts_all_recipes(self):
        plan = lambda *vary: json.loads(
            self.coppice(*self.arguments("out", vary, command="plan"), "--json").stdout
        )
        one, six = plan(), plan("sparsity=0.2,0.3,0.4,0.5,0.6,0.7")
        self.assertGreater(six["output"]["bytes"], 5.5 * one["output"]["bytes"])
        names = [item["name"] for item in six["ram"]["items"]]
        self.assertIn("held-out windows of every recipe", names)

    def test_what_cannot_share_a_dense_pass_is_refused(self):
        for vary, word in (
            ("propagation=dense,sparse", "must be dense"),
            ("nsamples=4,8", "same windows"),
            ("spursity=0.5", "did you mean sparsity"),
        ):
            said = self.coppice(*self.arguments("out", (vary,)), expect=2).stderr
            self.assertIn(word, said)
        self.assertFalse((self.dir / "out").exists())


class Survey(SweepTest):
    def test_a_rate_is_found_and_the_run_is_that_of_the_rate(self):
        self.coppice(*self.arguments("auto", command="run", lr="auto"))
        found = report(self.dir / "auto")["survey"]["lr"]
        self.assertEqual([t["lr"] for t in found["tried"]], [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3])
        best = min(found["tried"], key=lambda t: t["error"])
        self.assertEqual(found["chosen"], best["lr"])
        self.assertLess(best["error"], 1)
        self.coppice(*self.arguments("stated", command="run", lr=best["lr"]))
        self.assertEqual(shards(self.dir / "auto"), shards(self.dir / "stated"))

    def test_owl_is_the_run_with_its_sparsities_and_their_mean_is_the_sparsity(self):
        keys = {"command": "run", "sparsity": 0.6}
        self.coppice(*self.arguments("owl", allocation="owl", owl_lambda=0.1, **keys))
        found = report(self.dir / "owl")["survey"]["allocation"]
        sparsities = found["block_sparsities"]
        self.assertAlmostEqual(np.mean(sparsities), 0.6)
        self.assertAlmostEqual(max(sparsities) - min(sparsities), 0.2)
        ratios = found["outlier_ratios"]
        self.assertEqual(np.argmax(ratios), np.argmin(sparsities))
        listed = ",".join(map(repr, sparsities))
        self.coppice(*self.arguments("listed", block_sparsities=listed, **keys))
        self.assertEqual(shards(self.dir / "owl"), shards(self.dir / "listed"))

    def test_every_method_and_window_can_be_surveyed(self):
        for method in ("random", "magnitude", "sparsegpt"):
            for window in ("none", "matrix", "2"):
                rate = {} if window == "none" else {"lr": "auto"}
                output = f"{method}_{window}"
                self.coppice(
                    *self.arguments(
                        output, command="run", allocation="owl", prune_method=method,
                        window=window, epochs=1, **rate,
                    )
                )  # fmt: skip
                self.assertIn("allocation", report(self.dir / output)["survey"])

    def test_recipes_of_a_sweep_are_surveyed_each_for_itself(self):
        self.coppice(*self.arguments("sweep", ("window=block,2",), lr="auto"))
        for window in ("block", "2"):
            self.coppice(*self.arguments(window, command="run", window=window, lr="auto"))
            self.assertEqual(shards(self.dir / "sweep" / window), shards(self.dir / window))

    def test_killed_in_the_survey_continues_to_the_same_bytes(self):
        keys = {"command": "run", "allocation": "owl", "lr": "auto", "epochs": 4}
        seconds = self.coppice(*self.arguments("undisturbed", **keys)).seconds
        arguments = lambda output, resume: self.arguments(output, resume=resume, **keys)
        for output in self.continued_after_kills(arguments, 3, seconds):
            self.assertEqual(shards(self.dir / output), shards(self.dir / "undisturbed"))

    def test_what_leaves_the_model_in_a_survey_takes_no_disk_beside_the_run(self):
        keys = {"command": "run", "lr": "auto", "window": "block", "epochs": 8}
        told = 3 + 1  # lines: of the survey's blocks, and of the run's first
        self.assertTrue(self.kill_after(self.arguments("killed", **keys), told, 0))
        kept = {path.stem for path in (self.dir / "killed.work").glob("dense.*.h5")}
        self.assertIn("dense.2", kept)
        self.assertNotIn("dense.6", kept)

    def test_what_a_survey_cannot_close_is_refused(self):
        for keys, word in (
            ({"lr": "auto", "window": "none"}, "nothing is trained"),
            ({"lr": "auto", "solver": "least_squares"}, "nothing is trained"),
            ({"lr": "auto", "propagation": "mixed"}, "dense activations"),
            ({"allocation": "owl", "sparsity_type": "2:4"}, "2:4"),
            ({"allocation": "owl", "block_sparsities": "0.1,0.2,0.3"}, "leave them out"),
            ({"allocation": "owl", "propagation": "sparse"}, "propagation dense"),
            ({"allocation": "owl", "sparsity": 0.1}, "owl_lambda"),
        ):
            said = self.coppice(*self.arguments("out", command="run", **keys), expect=2).stderr
            self.assertIn(word, said, keys)


if __name__ == "__main__":
    unittest.main()
