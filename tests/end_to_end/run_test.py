"""A dense checkpoint goes in, a pruned and reconstructed one comes out that transformers loads."""

import json
import os
import subprocess
import unittest
from pathlib import Path

import numpy as np
from support import PROGRAM, ProgramTest, as_float, report, tensors


class Run(ProgramTest):
    def pruned(self, model, **keys):
        output = self.dir / "out"
        self.coppice(
            *self.run_arguments(model, self.tokens(8 * 32 + 5), output, **keys)
        )
        return output

    def check_against_report(self, model, output):
        """Zeros, shapes, and bytes of what was neither pruned nor trained."""
        dense, made, told = tensors(model), tensors(output), report(output)
        self.assertEqual(set(dense), set(made))
        pruned = {l["name"]: l for block in told["blocks"] for l in block["linears"]}
        trained = {name for block in told["blocks"] for name in block["trained"]}
        self.assertTrue(pruned)
        for name, tensor in made.items():
            self.assertEqual(tensor[:2], dense[name][:2], name)
            if name in pruned:
                values = as_float(tensor)
                self.assertAlmostEqual(
                    np.mean(values == 0), pruned[name]["sparsity"], places=6
                )
                self.assertFalse(
                    np.signbit(values[values == 0]).any(), f"{name}: zeros must be +0"
                )
            elif name not in trained:
                self.assertEqual(
                    tensor[2],
                    dense[name][2],
                    f"{name}: neither pruned nor trained, yet changed",
                )
        return pruned, trained

    def test_half_block_run_keeps_what_it_did_not_touch(self):
        for name in ("llama_fp32", "llama_bias_llama3_fp32", "llama_bf16"):
            with self.subTest(name):
                model = self.model(name)
                output = self.dir / f"out_{name}"
                self.coppice(*self.run_arguments(model, self.tokens(300), output))
                _, trained = self.check_against_report(model, output)
                self.assertTrue(trained, "no window was improved")

    def test_prune_only_trains_nothing(self):
        model = self.model()
        output = self.pruned(model, window="none", sparsity=0.6)
        pruned, trained = self.check_against_report(model, output)
        self.assertFalse(trained)
        dense, made = tensors(model), tensors(output)
        for name in pruned:
            kept, before = as_float(made[name]), as_float(dense[name])
            self.assertTrue(np.array_equal(kept[kept != 0], before[kept != 0]), name)

    def test_block_window_and_magnitude(self):
        model = self.model()
        self.check_against_report(
            model, self.pruned(model, window="block", prune_method="magnitude")
        )

    def test_every_window_and_propagation_does_what_the_report_says(self):
        model, tokens = self.model(), self.tokens(300)
        for window in ("none", "matrix", "half-block", "block", 2):
            for propagation in ("dense", "sparse", "mixed"):
                for statistics in ("auto", "dense") if window == "half-block" else ("auto",):
                    with self.subTest(f"{window} {propagation} {statistics}"):
                        output = self.dir / f"out_{window}_{propagation}_{statistics}"
                        self.coppice(
                            *self.run_arguments(
                                model,
                                tokens,
                                output,
                                window=window,
                                propagation=propagation,
                                statistics=statistics,
                                solver="least_squares+adamw",
                            )
                        )
                        _, trained = self.check_against_report(model, output)
                        self.assertEqual(bool(trained), window != "none")
                        work = Path(f"{output}.work")
                        self.assertEqual(list(work.glob("*.h5")), [])

    def test_a_window_of_several_blocks_is_the_first_ones(self):
        model = self.model()
        told = report(self.pruned(model, window=2))
        windows = [[w["name"] for w in block["windows"]] for block in told["blocks"]]
        self.assertEqual(windows, [["2 blocks"], [], ["block"]])
        self.assertEqual([len(block["linears"]) for block in told["blocks"]], [7, 7, 7])

    def test_statistics_of_the_first_block_do_not_depend_on_the_propagation(self):
        model, tokens = self.model(), self.tokens(300)
        made = {}
        for propagation in ("dense", "sparse"):
            output = self.dir / propagation
            keys = {"propagation": propagation, "window": "none"}
            self.coppice(*self.run_arguments(model, tokens, output, **keys))
            made[propagation] = tensors(output)
        differing = {
            name.split(".")[2]
            for name, tensor in made["dense"].items()
            if tensor != made["sparse"][name]
        }
        self.assertIn("1", differing)  # its inputs are those of a pruned block
        self.assertEqual(
            made["dense"]["model.layers.0.self_attn.q_proj.weight"],
            made["sparse"]["model.layers.0.self_attn.q_proj.weight"],
        )

    def test_exported_masks_are_read_back_to_the_same_bytes(self):
        model, tokens = self.model(), self.tokens(300)
        for window in ("half-block", 2):
            made, again = self.dir / f"made_{window}", self.dir / f"again_{window}"
            self.coppice(
                *self.run_arguments(model, tokens, made, window=window, export_masks="true")
            )
            masks, weights = tensors(made / "masks"), tensors(made)
            for name, (dtype, shape, data) in masks.items():
                weight = as_float(weights[name.removesuffix(".bitmask")])
                self.assertEqual(dtype, "U8", name)
                bits = np.frombuffer(data, np.uint8).reshape(shape)
                kept = np.unpackbits(bits, axis=-1, count=weight.shape[1], bitorder="little")
                self.assertFalse(weight[kept == 0].any(), name)
                self.assertEqual(kept.sum(), weight.size - weight.shape[0] * (weight.shape[1] // 2))
            self.assertEqual(len(masks), 3 * 7)
            self.coppice(*self.run_arguments(model, tokens, again, window=window, masks=made))
            self.assertEqual(tensors(again), weights)
            methods = {l["method"] for b in report(again)["blocks"] for l in b["linears"]}
            self.assertEqual(methods, {"given"})

    def test_zeros_of_a_checkpoint_are_a_mask(self):
        model, tokens = self.model(), self.tokens(300)
        pruned, made = self.dir / "pruned", self.dir / "made"
        self.coppice(*self.run_arguments(model, tokens, pruned, window="none", sparsity=0.6))
        self.coppice(*self.run_arguments(model, tokens, made, masks=pruned, ignore="down_proj"))
        before, after = tensors(pruned), tensors(made)
        touched, _ = self.check_against_report(model, made)
        self.assertFalse([name for name in touched if "down_proj" in name])
        for name in touched:
            zeros = as_float(before[name]) == 0
            self.assertFalse(as_float(after[name])[zeros].any(), name)

    def test_every_method_prunes_what_the_report_says(self):
        model = self.model()
        tokens = self.tokens(300)
        for method in ("random", "magnitude", "wanda", "ria", "sparsegpt"):
            for pattern in (
                {"sparsity": 0.6},
                {"sparsity_type": "1:4", "ignore": "down_proj"},
            ):
                with self.subTest(method=method, **pattern):
                    output = self.dir / f"{method}_{len(pattern)}"
                    flags = {"prune_method": method, "window": "none"} | pattern
                    self.coppice(*self.run_arguments(model, tokens, output, **flags))
                    pruned, trained = self.check_against_report(model, output)
                    self.assertEqual({p["method"] for p in pruned.values()}, {method})
                    updated = set(pruned) if method == "sparsegpt" else set()
                    self.assertEqual(trained, updated)

    def test_every_solver_lowers_the_held_out_error(self):
        tokens = self.tokens(40 * 32)
        for solver in ("adamw", "least_squares", "least_squares+adamw"):
            for window in ("half-block", "block"):
                with self.subTest(solver=solver, window=window):
                    output = self.dir / f"{solver}_{window}"
                    flags = {"solver": solver, "window": window, "nsamples": 40}
                    self.coppice(
                        *self.run_arguments(self.model(), tokens, output, **flags)
                    )
                    self.check_against_report(self.model(), output)
                    windows = [
                        w
                        for block in report(output)["blocks"]
                        for w in block["windows"]
                    ]
                    self.assertLess(
                        sum(w["validation_reconstructed"] for w in windows),
                        sum(w["validation_pruned"] for w in windows),
                    )
                    self.assertIn(solver.split("+")[-1], {w["kept"] for w in windows})

    def test_every_loss_is_lowered(self):
        for loss in ("mse", "mse_normalized", "cosine"):
            with self.subTest(loss):
                output = self.dir / loss
                arguments = self.run_arguments(
                    self.model(), self.tokens(300), output, loss=loss, epochs=6, lr=3e-3
                )
                self.coppice(*arguments)
                windows = [
                    w for block in report(output)["blocks"] for w in block["windows"]
                ]
                self.assertLess(
                    sum(w["validation_reconstructed"] for w in windows),
                    sum(w["validation_pruned"] for w in windows),
                )

    def test_sparsity_by_block_and_by_name(self):
        output = self.pruned(
            self.model(),
            window="none",
            block_sparsities="0.25,0.75,0.5",
            sparsity_map="q_proj=0,re:model\\.layers\\.1\\.mlp=0.5",
        )
        self.check_against_report(self.model(), output)
        for block in report(output)["blocks"]:
            for linear in block["linears"]:
                expected = (0.25, 0.75, 0.5)[block["block"]]
                if "q_proj" in linear["name"]:
                    expected = 0
                elif block["block"] == 1 and ".mlp." in linear["name"]:
                    expected = 0.5
                self.assertAlmostEqual(linear["sparsity"], expected, 1, linear["name"])

    def test_n_of_m_pattern_holds_in_every_group(self):
        model = self.model()
        output = self.pruned(model, sparsity_type="2:4", ignore="re:.*down_proj")
        pruned, _ = self.check_against_report(model, output)
        made = tensors(output)
        for name in pruned:
            groups = (as_float(made[name]) != 0).reshape(-1, 4).sum(axis=1)
            self.assertLessEqual(groups.max(), 2, name)

    def test_reconstruction_lowers_the_held_out_error(self):
        told = report(self.pruned(self.model(), epochs=6, lr=3e-3))
        windows = [w for block in told["blocks"] for w in block["windows"]]
        before = sum(w["validation_pruned"] for w in windows)
        after = sum(w["validation_reconstructed"] for w in windows)
        self.assertLess(after, before)
        for window in windows:
            self.assertLessEqual(
                window["validation_reconstructed"], window["validation_pruned"]
            )

    def test_openmp_waits_without_spinning_unless_the_user_says_otherwise(self):
        for given, expected in ((None, "passive"), ("active", "active")):
            environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
            if given:
                environment["OMP_WAIT_POLICY"] = given
            arguments = self.run_arguments(
                self.model(), self.tokens(300), self.dir / expected, epochs=50
            )
            process = subprocess.Popen(
                [PROGRAM, *map(str, arguments)],
                stderr=subprocess.PIPE, text=True, cwd=self.dir, env=environment,
            )  # fmt: skip
            process.stderr.readline()  # a block is done
            variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            name = Path(f"/proc/{process.pid}/comm").read_text().strip()
            process.kill()
            process.communicate()
            self.assertIn(f"OMP_WAIT_POLICY={expected}".encode(), variables)
            self.assertEqual(name, Path(PROGRAM).name[:15])

    def test_two_runs_write_the_same_bytes(self):
        model, tokens = self.model(), self.tokens(300)
        for output in ("a", "b"):
            self.coppice(*self.run_arguments(model, tokens, self.dir / output))
        self.assertEqual(tensors(self.dir / "a"), tensors(self.dir / "b"))

    def test_bytes_do_not_depend_on_engine_slots_and_slabs(self):
        model, tokens = self.model(), self.tokens(300)
        self.coppice(*self.run_arguments(model, tokens, self.dir / "a"))
        self.coppice(
            *self.run_arguments(
                model,
                tokens,
                self.dir / "b",
                io_engine="pread",
                prefetch_blocks=3,
                num_slabs=1,
                slab_size="1MiB",
            )
        )
        self.assertEqual(tensors(self.dir / "a"), tensors(self.dir / "b"))

    def test_directory_is_complete(self):
        model = self.model()
        (model / "tokenizer_config.json").write_text("{}")
        (model / "README.md").write_text("---\nlicense: apache-2.0\n---\nDense.\n")
        output = self.pruned(model)
        self.assertEqual(
            (output / "config.json").read_bytes(), (model / "config.json").read_bytes()
        )
        self.assertTrue((output / "tokenizer_config.json").exists())
        card = (output / "README.md").read_text()
        self.assertIn("license: apache-2.0", card)
        self.assertIn("no faster", card)
        told = report(output)
        for key in (
            "version",
            "command",
            "model",
            "recipe",
            "calibration",
            "blocks",
            "totals",
        ):
            self.assertIn(key, told)
        for key in (
            "wall_seconds compute_seconds read_seconds write_seconds compute_waited_for_io_seconds bytes_read "
            "bytes_written peak_rss_bytes peak_device_bytes activation_cache"
        ).split():
            self.assertIn(key, told["totals"])
        index = json.loads((output / "model.safetensors.index.json").read_text())
        self.assertEqual(set(index["weight_map"]), set(tensors(output)))
        self.assertEqual(list(output.glob("*.tmp")), [])
        work = self.dir / "out.work"
        self.assertEqual(
            sorted(p.name for p in work.iterdir()),
            ["coppice_report.json", "journal.bin"],
        )

    def test_resolved_recipe_gives_the_same_run(self):
        model, tokens = self.model(), self.tokens(300)
        self.coppice(*self.run_arguments(model, tokens, self.dir / "a", sparsity=0.7))
        recipe = self.dir / "a" / "recipe.yaml"
        self.coppice(
            "run",
            "--model",
            model,
            "--dataset",
            tokens,
            "-o",
            self.dir / "b",
            "--recipe",
            recipe,
        )
        self.assertEqual(tensors(self.dir / "a"), tensors(self.dir / "b"))


if __name__ == "__main__":
    unittest.main()
