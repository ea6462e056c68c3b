"""Neurons and heads go, what they did is folded into what stays, and transformers loads the rest."""

import json
import unittest

import h5py
import numpy as np
from families_test import FamilyTest
from support import as_float, report, tensors

METHODS = ("random_sp", "magnitude_sp", "wanda_sp", "flap", "snip")


class Structured(FamilyTest):
    def pruned(self, model, name, **keys):
        """`name` of an output with half of the neurons and, of three heads, one removed."""
        output = self.dir / name
        shares = {"ffn_sparsity": 0.5, "head_sparsity": 0.3, "prune_method": "wanda_sp"}
        arguments = self.run_arguments(model, self.tokens(300), output, **(shares | keys))
        self.coppice(*arguments)
        return output

    def check_zeros_and_bytes(self, model, output, added=()):
        """Shares of zeros as reported; what is in no report is as it was."""
        dense, made, told = tensors(model), tensors(output), report(output)
        self.assertEqual(set(made), set(dense) | set(added))
        pruned = {l["name"]: l for block in told["blocks"] for l in block["linears"]}
        trained = {name for block in told["blocks"] for name in block["trained"]}
        for name, tensor in made.items():
            if name in pruned:
                values = as_float(tensor)
                self.assertAlmostEqual(
                    np.mean(values == 0), pruned[name]["sparsity"], places=6
                )
                self.assertFalse(np.signbit(values[values == 0]).any(), name)
            elif name in dense and name not in trained:
                self.assertEqual(tensor[2], dense[name][2], name)
        return pruned

    def held_out_error(self, output):
        windows = [w for block in report(output)["blocks"] for w in block["windows"]]
        return sum(window["validation_reconstructed"] for window in windows)

    def check_transformers(self, output):
        said = self.perplexity(output)
        self.assertAlmostEqual(
            said / self.perplexity_by_transformers(output), 1.0, delta=0.002
        )

    def test_removed_units_are_zero_in_every_tensor_they_have(self):
        model = self.model()
        for method in METHODS:
            with self.subTest(method):
                output = self.pruned(model, method, prune_method=method, window="none")
                pruned = self.check_zeros_and_bytes(model, output)
                self.assertEqual(len(pruned), 3 * 7)
                made = tensors(output)
                for block in range(3):
                    prefix = f"model.layers.{block}."
                    down = as_float(made[prefix + "mlp.down_proj.weight"])  # [24, 37]
                    kept = np.any(down != 0, axis=0)
                    self.assertEqual(kept.sum(), 37 - 19)  # of 18.5
                    for producer in ("gate", "up"):
                        rows = as_float(made[f"{prefix}mlp.{producer}_proj.weight"])
                        np.testing.assert_array_equal(np.any(rows != 0, axis=1), kept)
                    heads = as_float(made[prefix + "self_attn.o_proj.weight"])
                    kept = np.any(heads.reshape(24, 3, -1) != 0, axis=(0, 2))
                    self.assertEqual(kept.sum(), 2)
                self.check_transformers(output)

    def test_held_out_error_falls_from_removal_to_bias_to_liar_to_training(self):
        model = self.model("llama_bias_llama3_fp32")
        keys = {"lr": 1e-3, "nsamples": 9}
        bias, liar, trained = (
            self.pruned(model, solver.replace("+", "-"), solver=solver, **keys)
            for solver in ("bias", "liar", "liar+adamw")
        )
        errors = [self.held_out_error(output) for output in (bias, liar, trained)]
        windows = [w for block in report(bias)["blocks"] for w in block["windows"]]
        errors.insert(0, sum(window["validation_pruned"] for window in windows))
        self.assertEqual(errors, sorted(errors, reverse=True))
        self.assertEqual(len(set(errors)), 4)
        for output in (bias, liar, trained):
            self.check_zeros_and_bytes(model, output)
            self.check_transformers(output)
        for window in windows:
            self.assertIsNone(window["ridge"])  # infinite: nothing but the bias
        for block in report(liar)["blocks"]:
            for window in block["windows"]:
                self.assertIn(window["ridge"], (1, 0.1, 0.01, 0.001, None))

    def test_biases_are_added_where_the_class_has_a_place(self):
        model = self.model()
        output = self.pruned(model, "out", solver="bias", add_biases="true")
        config = json.loads((output / "config.json").read_text())
        self.assertTrue(config.pop("attention_bias") and config.pop("mlp_bias"))
        before = json.loads((model / "config.json").read_text())
        self.assertFalse(before.pop("attention_bias") or before.pop("mlp_bias"))
        self.assertEqual(config, before)
        made = tensors(output)
        added = set(made) - set(tensors(model))
        self.assertEqual(len(added), 3 * 7)
        self.check_zeros_and_bytes(model, output, added)
        used = {name for name in added if np.any(as_float(made[name]) != 0)}
        self.assertTrue(used, "no window was improved")
        for name in used:
            self.assertIn(name.split(".")[-2], ("o_proj", "down_proj"))
        self.check_transformers(output)

    def test_families(self):
        for name in (
            *("llama_bf16", "qwen2_fp32", "qwen3_fp32", "opt_fp32", "opt_after_fp32"),
            *("mixtral_fp32", "qwen3_moe_fp32"),
        ):
            with self.subTest(name):
                model = self.model(name)
                output = self.pruned(model, f"out_{name}", solver="liar", head_sparsity=0.5)
                self.check_zeros_and_bytes(model, output)
                windows = [w for b in report(output)["blocks"] for w in b["windows"]]
                self.assertTrue(any(window["kept"] == "liar" for window in windows))
                self.check_transformers(output)

    def test_units_are_cut_out_and_the_smaller_model_is_the_masked_one(self):
        for name, keys in (
            ("llama_fp32", {"ffn_sparsity": 0.5, "head_sparsity": 0.34}),
            ("llama_bf16", {"ffn_sparsity": 0.3, "head_sparsity": 0.5}),
            ("llama_bias_llama3_fp32", {"ffn_sparsity": 0.3, "head_sparsity": 0.5}),
            ("qwen2_fp32", {"ffn_sparsity": 0.3, "head_sparsity": 0.5}),
            ("qwen3_fp32", {"ffn_sparsity": 0.3, "head_sparsity": 0.5, "head_units": "group"}),
            ("mistral_fp32", {"ffn_sparsity": 0.5}),
            ("opt_fp32", {"ffn_sparsity": 0.5}),
            ("mixtral_fp32", {"ffn_sparsity": 0.5}),
            ("qwen3_moe_fp32", {"ffn_sparsity": 0.5}),
        ):
            with self.subTest(name):
                model = self.model(name)
                common = {"solver": "liar", "head_units": "balanced", "head_sparsity": 0}
                masked, sliced = (
                    self.pruned(
                        model, f"{name}_{form}", **(common | keys | {"structured_output": form})
                    )
                    for form in ("masked", "sliced")
                )
                self.assertLess(self.weight_bytes(sliced), self.weight_bytes(masked))
                self.check_transformers(sliced)
                ratio = self.perplexity(sliced) / self.perplexity(masked)
                self.assertAlmostEqual(ratio, 1.0, delta=0.01 if "bf16" in name else 1e-4)

    def weight_bytes(self, directory):
        return sum(len(data) for _, _, data in tensors(directory).values())

    def test_an_encoder(self):
        from transformers import BertModel

        model = self.model("bert_fp32")
        output = self.pruned(model, "out", solver="liar", head_sparsity=0.5)
        self.check_zeros_and_bytes(model, output)
        loaded = self.loaded(BertModel, output, add_pooling_layer=False)
        kept = loaded.encoder.layer[0].output.dense.weight.abs().sum(0) > 0
        self.assertEqual(int(kept.sum()), len(kept) - round(len(kept) / 2 + 0.01))

    def test_windows_and_propagation(self):
        model = self.model()
        for window in ("half-block", "block", 2):
            for propagation in ("dense", "sparse", "mixed"):
                with self.subTest(f"{window} {propagation}"):
                    name = f"{window}-{propagation}"
                    keys = {"window": window, "propagation": propagation}
                    output = self.pruned(model, name, solver="liar", **keys)
                    self.check_zeros_and_bytes(model, output)

    def test_a_killed_run_continues_to_the_same_bytes(self):
        self.check_kills(3, prune_method="flap")

    def test_a_killed_run_that_scores_by_the_loss_continues_to_the_same_bytes(self):
        self.check_kills(2, prune_method="snip")

    def check_kills(self, rounds, **more):
        model, dataset = self.model("llama_bias_llama3_fp32"), self.tokens(300)

        def arguments(output, resume):
            keys = {"ffn_sparsity": 0.5, "head_sparsity": 0.5} | more
            keys |= {"solver": "liar+adamw", "propagation": "mixed", "export_masks": "true"}
            return self.run_arguments(
                model, dataset, self.dir / output, resume=resume, **keys
            )

        seconds = self.coppice(*arguments("undisturbed", False)).seconds
        for output in self.continued_after_kills(arguments, rounds, seconds):
            self.assertEqual(
                tensors(self.dir / output), tensors(self.dir / "undisturbed")
            )
            self.assertEqual(
                tensors(self.dir / output / "masks"),
                tensors(self.dir / "undisturbed" / "masks"),
            )

    def shares_gone(self, model, output):
        """Of all neurons and of all heads, and of each block's."""
        gone = {"mlp.down_proj": [], "self_attn.o_proj": []}
        made = tensors(output)
        for consumer, shares in gone.items():
            for block in range(3):
                weight = as_float(made[f"model.layers.{block}.{consumer}.weight"])
                shares.append(np.mean(np.all(weight == 0, axis=0)))
        return gone

    def test_one_budget_for_the_model_is_kept(self):
        model = self.model()
        for name, keys in (
            ("global", {"prune_method": "flap"}),
            ("ranked_by_loss", {"allocation": "global", "prune_method": "snip"}),
            ("measured", {"solver": "liar", "propagation": "mixed"}),
            ("pruned_only", {"allocation": "measured", "window": "none"}),
        ):
            with self.subTest(name):
                output = self.pruned(model, name, **({"allocation": name, "nsamples": 9} | keys))
                found = report(output)["survey"]["allocation"]
                gone = self.shares_gone(model, output)
                self.assertAlmostEqual(np.mean(gone["mlp.down_proj"]), 0.5, delta=0.5 / 37)
                self.assertAlmostEqual(np.mean(gone["self_attn.o_proj"]), 3 / 9)  # 2.7 of 9
                is_measured = isinstance(found, dict)
                halves = found["halves"] if is_measured else found
                for half in halves:
                    shares = gone[half["consumer"].split(".", 3)[3]]
                    self.assertAlmostEqual(shares[half["block"]], half["sparsity"])
                self.check_zeros_and_bytes(model, output)
                self.check_transformers(output)
                if not is_measured:
                    continue
                # What was found, stated: the same checkpoint without trials.
                again = self.dir / f"{name}_again"
                recipe = output / "recipe.yaml"
                self.coppice(
                    *["run", "--model", model, "--dataset", self.tokens(300)],
                    *["--recipe", recipe, "-o", again],
                )
                self.assertEqual(tensors(again), tensors(output))

    def test_what_does_not_fit_is_refused_before_the_trials(self):
        arguments = self.run_arguments(
            *[self.model(), self.tokens(300), self.dir / "never"],
            **{"prune_method": "flap", "ffn_sparsity": 0.5, "allocation": "measured"},
            **{"ram_budget": "1MiB"},
        )
        self.coppice(*arguments, expect=5)
        self.assertEqual(list(self.dir.rglob("trials")), [])

    def test_neurons_and_heads_can_share_a_budget(self):
        model = self.model("qwen3_moe_fp32")
        keys = {"ffn_sparsity": 0, "head_sparsity": 0, "unit_sparsity": 0.4}
        output = self.pruned(model, "out", allocation="measured", **keys)
        self.check_zeros_and_bytes(model, output)
        self.check_transformers(output)
        shares = {half["sparsity"] for half in report(output)["survey"]["allocation"]["halves"]}
        self.assertGreater(len(shares), 1)

    def test_killed_in_the_trials_continues_to_the_same_bytes(self):
        model, dataset = self.model(), self.tokens(300)

        def arguments(output, resume):
            keys = {"prune_method": "flap", "ffn_sparsity": 0.5, "head_sparsity": 0.3}
            keys |= {"solver": "liar", "allocation": "measured", "nsamples": 9}
            return self.run_arguments(
                model, dataset, self.dir / output, resume=resume, **keys
            )

        seconds = self.coppice(*arguments("undisturbed", False)).seconds
        for output in self.continued_after_kills(arguments, 3, seconds):
            self.assertEqual(
                tensors(self.dir / output), tensors(self.dir / "undisturbed")
            )

    def test_snip_ranks_by_the_slope_of_the_loss(self):
        import torch
        from transformers import AutoModelForCausalLM

        name, seqlen = "llama_bias_llama3_fp32", 32
        model = self.model(name)
        output = self.pruned(model, "out", prune_method="snip", window="none")
        with h5py.File(self.dir / "tokens.h5") as file:
            ids = torch.tensor(file["input_ids"][: 8 * seqlen], dtype=torch.long)
        loaded = self.loaded(AutoModelForCausalLM, model)
        weights = {
            name: parameter
            for name, parameter in loaded.named_parameters()
            if name.endswith("down_proj.weight")
        }
        scores = dict.fromkeys(weights, 0)
        for window in ids.view(8, seqlen):
            loaded.zero_grad()
            loaded(window[None], labels=window[None]).loss.backward()
            for name, weight in weights.items():
                scores[name] += (weight * weight.grad).sum(0).abs().detach().numpy()
        made, told = tensors(output), report(output)
        for name, values in scores.items():
            kept = np.any(as_float(made[name]) != 0, axis=0)
            self.assertGreater(values[kept].min(), values[~kept].max() * 0.999)
        for block in told["blocks"]:
            self.assertEqual({linear["method"] for linear in block["linears"]}, {"snip"})
        self.assertGreater(told["totals"]["stages"]["unit scores"]["seconds"], 0)
        self.assertEqual(list((self.dir / "out.work").glob("*.safetensors")), [])

    def test_scores_by_the_loss_want_the_whole_model_in_memory(self):
        model, dataset = self.model(), self.tokens(300)
        keys = {"prune_method": "snip", "ffn_sparsity": 0.5, "ram_budget": "16MiB"}
        arguments = self.run_arguments(model, dataset, self.dir / "out", **keys)
        for command in (arguments, ["plan", *arguments[1:]]):
            said = self.coppice(*command, expect=5).stderr
            self.assertIn("the model as it is stored", said)
            self.assertIn("flap and wanda_sp need no more than a few blocks", said)
        self.assertFalse((self.dir / "out").exists())
        plan = self.coppice("plan", *arguments[1:-2], "--ram-budget", "4GiB", "--json")
        self.assertIn(
            "unit scores", [stage["name"] for stage in json.loads(plan.stdout)["stages"]]
        )

    def test_scores_by_the_loss_want_a_loss(self):
        keys = {"prune_method": "snip", "ffn_sparsity": 0.5}
        arguments = self.run_arguments(
            self.model("bert_fp32"), self.tokens(300), self.dir / "out", **keys
        )
        for command in (arguments, ["plan", *arguments[1:]]):
            said = self.coppice(*command, expect=2).stderr
            self.assertIn("predicts no next token; choose flap or wanda_sp", said)
        self.assertFalse((self.dir / "out").exists())

    def test_what_is_refused(self):
        model, dataset = self.model(), self.tokens(300)
        for keys, said in (
            ({"prune_method": "wanda_sp"}, "how many? prune.ffn_sparsity"),
            ({"ffn_sparsity": 0.5}, "choose one of them"),
            ({"solver": "liar"}, "least_squares does it"),
            (
                {"prune_method": "flap", "ffn_sparsity": 0.5, "solver": "least_squares"},
                "liar does it",
            ),
            (
                {"prune_method": "flap", "ffn_sparsity": 0.5, "window": "matrix"},
                "choose half-block",
            ),
            (
                {"prune_method": "flap", "ffn_sparsity": 0.5, "solver": "bias"},
                "mlp.down_proj has no bias; add_biases gives it one",
            ),
            (
                {"prune_method": "flap", "head_sparsity": 0.1},
                "prune.head_sparsity: 0.1: of the 3 heads that self_attn.o_proj reads that is none",
            ),
            (
                {"prune_method": "flap", "ffn_sparsity": 0.5, "targets": "gate_proj"},
                "prune.targets: gate_proj: names no linear",
            ),
            (
                {"prune_method": "flap", "head_sparsity": 0.5, "ignore": "o_proj"},
                "no neuron and no head would go",
            ),
            ({"structured_output": "sliced"}, "single zeros cannot be cut out"),
            (
                {"prune_method": "flap", "head_sparsity": 0.4, "structured_output": "sliced"},
                "choose head_units balanced or group",
            ),
            (
                {"prune_method": "flap", "ffn_sparsity": 0.5, "sparsity": 0.4},
                "leave out sparsity",
            ),
            (
                {"prune_method": "flap", "unit_sparsity": 0.5},
                "set prune.allocation to measured or global",
            ),
            (
                {"prune_method": "flap", "unit_sparsity": 0.5, "ffn_sparsity": 0.5},
                "one budget for neurons and heads together",
            ),
            (
                {"prune_method": "flap", "allocation": "global"},
                "how many? prune.ffn_sparsity",
            ),
            (
                {"prune_method": "flap", "ffn_sparsity": 0.5, "allocation": "owl"},
                "leave out sparsity",
            ),
            ({"allocation": "measured"}, "for single weights owl does it"),
            (
                {
                    **{"prune_method": "flap", "ffn_sparsity": 0.5, "allocation": "measured"},
                    "structured_output": "sliced",
                },
                "nearest uniform width: allocation uniform, ffn_sparsity 0.5, head_sparsity 0",
            ),
            (
                {
                    **{"prune_method": "flap", "ffn_sparsity": 0.5, "allocation": "global"},
                    "propagation": "mixed",
                },
                "prune.allocation: global: measures the dense model before the run",
            ),
        ):
            with self.subTest(said):
                output = self.dir / "never"
                arguments = self.run_arguments(model, dataset, output, **keys)
                self.assertIn(said, self.coppice(*arguments, expect=2).stderr)
                self.assertFalse(output.exists())

    def test_plan_and_sweep_know_units(self):
        model, dataset = self.model(), self.tokens(300)
        keys = {"prune_method": "wanda_sp", "ffn_sparsity": 0.5, "nsamples": 8, "seqlen": 32}
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in keys.items()]
        command = ["--model", model, *flags, "--probe", "false"]
        plan = self.coppice("plan", *command, "--solver", "liar", "--json")
        self.assertIn("ram", json.loads(plan.stdout))
        plan = self.coppice("plan", *command, "--allocation", "measured", "--json")
        self.assertIn("ram", json.loads(plan.stdout)["trials"])
        output = self.dir / "swept"
        command += ["--dataset", dataset, "-o", output, "--lr", "1e-3"]
        self.coppice(
            *["sweep", *command, "--vary", "solver=liar,liar+adamw"],
            *["--vary", "prune-method=flap,wanda_sp"],
        )
        for made in ("flap", "wanda_sp"):
            alone = self.pruned(
                model, f"alone_{made}", solver="liar", prune_method=made, head_sparsity=0
            )
            self.assertEqual(tensors(output / f"liar_{made}"), tensors(alone))


if __name__ == "__main__":
    unittest.main()
