"""Layers go, those whose output resembles their input most, and transformers loads the rest."""

import json
import unittest

import numpy as np
from families_test import SEQLEN, VOCAB, WINDOWS, FamilyTest
from support import as_float, report, shards, tensors

HALVES = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "query", "key", "value"),
    "mlp": ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "fc1", "fc2"),
}


class Layers(FamilyTest):
    """Golden models have two or three blocks: of them one goes, of their halves one or two."""

    def pruned(self, model, name, **keys):
        output = self.dir / name
        defaults = {"prune_method": "similarity", "layer_sparsity": 0.33, "window": "none"}
        self.coppice(*self.run_arguments(model, self.tokens(300), output, **(defaults | keys)))
        return output

    def removed(self, output):
        """The linears of the layers that went, as in (block, "attention" or "mlp")."""
        halves = set()
        for layer in report(output)["survey"]["similarity"]["removed"]:
            kinds = ("attention", "mlp") if layer["layer"] == "block" else (layer["layer"],)
            halves |= {(layer["block"], kind) for kind in kinds}
        return halves

    def check_zeros_and_bytes(self, model, output):
        """Weights and biases of these are +0 and reported so; what is in no report is as it was."""
        dense, made, told = tensors(model), tensors(output), report(output)
        self.assertEqual(set(made), set(dense))
        pruned = {l["name"] for block in told["blocks"] for l in block["linears"]}
        trained = {name for block in told["blocks"] for name in block["trained"]}
        for name in pruned:
            values = as_float(made[name])
            self.assertFalse(values.any() or np.signbit(values).any(), name)
            bias = name.removesuffix("weight") + "bias"
            if bias in made:
                self.assertFalse(as_float(made[bias]).any(), bias)
        for name in set(made) - pruned - trained:
            self.assertEqual(made[name], dense[name], name)
        gone = {
            (int(name.split("layers.")[1].split(".")[0]), kind)
            for name in pruned
            for kind, linears in HALVES.items()
            if name.split(".")[-2] in linears
        }
        self.assertEqual(gone, self.removed(output))

    def logits(self, model):
        import torch

        ids = np.random.default_rng(1).integers(0, VOCAB, (WINDOWS, SEQLEN), dtype=np.int32)
        with torch.no_grad():
            return model(torch.tensor(ids, dtype=torch.long)).logits.float().numpy()

    def check_same_logits(self, model, other):
        from transformers import AutoModelForCausalLM

        ours, theirs = (
            self.logits(self.loaded(AutoModelForCausalLM, directory))
            for directory in (model, other)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

    def skipping(self, model, halves):
        """transformers' dense model, whose layers add nothing in these halves."""
        from transformers import AutoModelForCausalLM

        def adds_nothing(module, inputs, output):
            return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

        loaded = self.loaded(AutoModelForCausalLM, model)
        for block, kind in halves:
            layer = loaded.model.layers[block]
            module = layer.self_attn if kind == "attention" else layer.mlp
            module.register_forward_hook(adds_nothing)
        return loaded

    def test_what_goes_is_skipped(self):
        from transformers import AutoModelForCausalLM

        model = self.model("llama_bias_llama3_fp32")
        for units, count in (("blocks", 2), ("sublayers", 2), ("attention", 1), ("mlp", 1)):
            with self.subTest(units):
                output = self.pruned(model, units, layer_units=units, layer_sparsity=0.5)
                self.check_zeros_and_bytes(model, output)
                halves = self.removed(output)
                self.assertEqual(len(halves), count)
                np.testing.assert_allclose(
                    self.logits(self.loaded(AutoModelForCausalLM, output)),
                    self.logits(self.skipping(model, halves)),
                    rtol=1e-5,
                    atol=1e-5,
                )

    def hidden_states(self, model, windows, seqlen):
        """Entering every block and leaving the last one, before the final norm."""
        import h5py
        import torch
        from transformers import AutoModelForCausalLM

        with h5py.File(self.dir / "tokens.h5") as file:
            ids = file["input_ids"][: windows * seqlen].reshape(windows, seqlen)
        loaded = self.loaded(AutoModelForCausalLM, model)
        states = []
        for layer in loaded.model.layers:
            layer.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        loaded.model.norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        with torch.no_grad():
            loaded(torch.tensor(ids, dtype=torch.long))
        return [state.double().numpy() for state in states]

    def test_similarities_are_those_of_hidden_states_of_transformers(self):
        model = self.model()
        output = self.pruned(model, "out")
        states = self.hidden_states(model, windows=8, seqlen=32)
        expected = [
            np.mean(
                np.sum(x * y, -1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
            )
            for x, y in zip(states, states[1:])
        ]
        found = report(output)["survey"]["similarity"]
        np.testing.assert_allclose(found["block"], expected, atol=1e-5)
        self.assertEqual(
            found["removed"], [{"block": int(np.argmax(expected)), "layer": "block"}]
        )
        self.assertEqual(len(found["attention"]), 3)
        self.assertEqual(len(found["mlp"]), 3)

    def test_families(self):
        for name in (
            *("llama_bf16", "qwen2_fp32", "qwen2_window_fp32", "qwen3_fp32", "opt_fp32"),
            *("mixtral_fp32", "qwen3_moe_fp32"),
        ):
            with self.subTest(name):
                model = self.model(name)
                output = self.pruned(model, f"out_{name}", layer_units="sublayers")
                self.check_zeros_and_bytes(model, output)
                said = self.perplexity(output)
                self.assertAlmostEqual(
                    said / self.perplexity_by_transformers(output), 1.0, delta=0.002
                )

    def test_norms_behind_a_layer_that_went_still_act(self):
        from transformers import BertModel

        model = self.model("bert_fp32")
        output = self.pruned(model, "out", layer_units="sublayers")
        self.check_zeros_of_an_encoder(output)
        self.loaded(BertModel, output, add_pooling_layer=False)
        trained = self.pruned(
            model, "trained", window="half-block", propagation="mixed", lr=1e-2
        )
        windows = [w for block in report(trained)["blocks"] for w in block["windows"]]
        self.assertTrue(windows)

    def check_zeros_of_an_encoder(self, output):
        made = tensors(output)
        for block in report(output)["blocks"]:
            for linear in block["linears"]:
                self.assertFalse(as_float(made[linear["name"]]).any(), linear)

    def test_layers_that_stay_make_up_for_those_that_went(self):
        model = self.model()
        for units in ("blocks", "sublayers"):
            for window in ("half-block", "block", 2):
                with self.subTest(f"{units} {window}"):
                    output = self.pruned(
                        model, f"{units}-{window}", window=window, layer_units=units,
                        propagation="mixed", epochs=4,
                    )  # fmt: skip
                    self.check_zeros_and_bytes(model, output)
                    gone = self.removed(output)
                    windows = [
                        (block["block"], w)
                        for block in report(output)["blocks"]
                        for w in block["windows"]
                    ]
                    if window != 2:
                        for block, told in windows:
                            self.assertNotIn((block, told["name"]), gone)
                            self.assertGreaterEqual(block, min(gone)[0])
                    for _, told in windows:
                        self.assertLessEqual(
                            told["validation_reconstructed"], told["validation_pruned"]
                        )
                    if min(gone)[0] < 2:
                        self.assertIn("adamw", {told["kept"] for _, told in windows})

    def test_several_blocks_at_once_make_up_under_dense_propagation(self):
        model = self.model()
        output = self.pruned(model, "out", window=3, layer_units="sublayers", epochs=4)
        self.check_zeros_and_bytes(model, output)
        (window,) = [w for block in report(output)["blocks"] for w in block["windows"]]
        self.assertEqual(window["kept"], "adamw")

    def test_blocks_are_cut_out_and_the_smaller_model_is_the_masked_one(self):
        for name, keys in (
            ("llama_fp32", {}),
            ("llama_fp32", {"window": "half-block", "propagation": "mixed"}),
            ("llama_fp32", {"layer_sparsity": 0.67}),
            ("llama_bias_llama3_fp32", {}),
            ("qwen2_window_fp32", {}),
            ("qwen2_fp32", {"window": 2}),
            ("qwen3_fp32", {}),
            ("mistral_fp32", {}),
            ("opt_fp32", {}),
            ("mixtral_fp32", {}),
        ):
            with self.subTest(name, **keys):
                model, tag = self.model(name), name + "".join(map(str, keys.values()))
                masked, sliced = (
                    self.pruned(model, f"{tag}_{form}", structured_output=form, **keys)
                    for form in ("masked", "sliced")
                )
                self.assertEqual(self.removed(masked), self.removed(sliced))
                gone = {block for block, _ in self.removed(sliced)}
                config = json.loads((sliced / "config.json").read_text())
                before = json.loads((masked / "config.json").read_text())
                kept = before["num_hidden_layers"] - len(gone)
                self.assertEqual(config["num_hidden_layers"], kept)
                if "layer_types" in before:
                    kinds = [k for i, k in enumerate(before["layer_types"]) if i not in gone]
                    self.assertEqual(config["layer_types"], kinds)
                self.assertEqual(len(list(sliced.glob("*.safetensors"))), 1 + kept)
                self.check_same_logits(masked, sliced)
                self.assertAlmostEqual(
                    self.perplexity(sliced) / self.perplexity(masked), 1.0, delta=1e-4
                )

    def test_a_killed_run_continues_to_the_same_bytes(self):
        model, dataset = self.model("llama_bias_llama3_fp32"), self.tokens(32 * 32)
        keys = {"prune_method": "similarity", "layer_sparsity": 0.33, "nsamples": 32, "epochs": 4}
        for name, more in (
            ("sliced", {"window": "half-block", "propagation": "mixed", "structured_output": "sliced"}),
            ("masked", {"window": 2, "layer_units": "sublayers", "export_masks": "true"}),
        ):  # fmt: skip
            with self.subTest(name):
                arguments = lambda output, resume: self.run_arguments(
                    model, dataset, self.dir / output, resume=resume, **keys, **more
                )
                undisturbed = f"undisturbed_{name}"
                seconds = self.coppice(*arguments(undisturbed, False)).seconds
                for output in self.continued_after_kills(arguments, 3, seconds, name):
                    self.assertEqual(shards(self.dir / output), shards(self.dir / undisturbed))
                    self.assertEqual(
                        (self.dir / output / "config.json").read_bytes(),
                        (self.dir / undisturbed / "config.json").read_bytes(),
                    )

    def test_recipes_of_a_sweep_lose_layers_each_for_itself(self):
        model, dataset = self.model(), self.tokens(300)
        self.coppice(
            *("sweep", "--model", model, "--dataset", dataset, "-o", self.dir / "sweep"),
            *("--nsamples", 8, "--seqlen", 32, "--probe", "false", "--window", "none"),
            *("--prune-method", "similarity", "--layer-sparsity", 0.33),
            *("--vary", "layer-units=blocks,mlp", "--vary", "structured-output=masked"),
        )
        for units in ("blocks", "mlp"):
            (swept,) = (self.dir / "sweep").glob(f"{units}*")
            alone = self.pruned(model, units, layer_units=units)
            self.assertEqual(tensors(swept), tensors(alone))

    def test_layers_are_surveyed_beside_rates_and_outliers(self):
        model, dataset = self.model(), self.tokens(300)
        (self.dir / "layers.yaml").write_text(
            "prune: {method: similarity, layer_sparsity: 0.33}\nreconstruct: {window: none}\n"
        )
        (self.dir / "owl.yaml").write_text(
            "prune: {allocation: owl}\nreconstruct: {lr: auto, epochs: 1}\n"
        )
        self.coppice(
            *("sweep", "--model", model, "--dataset", dataset, "-o", self.dir / "sweep"),
            *("--nsamples", 8, "--seqlen", 32, "--probe", "false"),
            *("--recipe", self.dir / "layers.yaml", "--recipe", self.dir / "owl.yaml"),
        )
        alone = self.pruned(model, "alone")
        self.assertEqual(tensors(self.dir / "sweep" / "layers"), tensors(alone))
        told = report(self.dir / "sweep" / "owl")["survey"]
        self.assertEqual(set(told), {"lr", "allocation"})

    def test_plan_knows_layers(self):
        flags = ("--prune-method", "similarity", "--layer-sparsity", 0.33, "--probe", "false")
        flags += ("--window", "half-block", "--propagation", "mixed", "--nsamples", 8)
        plan = self.coppice("plan", "--model", self.model(), *flags, "--seqlen", 32, "--json")
        self.assertIn("survey", {stage["name"] for stage in json.loads(plan.stdout)["stages"]})

    def test_what_is_refused(self):
        dataset = self.tokens(300)
        layers = {"prune_method": "similarity", "layer_sparsity": 0.33, "window": "none"}
        for name, keys, said in (
            ("llama_fp32", {"prune_method": "similarity"}, "how many? prune.layer_sparsity"),
            ("llama_fp32", {"layer_sparsity": 0.3}, "of method similarity"),
            ("llama_fp32", layers | {"layer_sparsity": 0.9}, "of the 3 layers of the model"),
            ("llama_fp32", layers | {"sparsity": 0.4}, "leave out sparsity"),
            ("llama_fp32", layers | {"targets": "down_proj"}, "leave out sparsity"),
            ("llama_fp32", layers | {"solver": "bias"}, "adamw trains the layers that stay"),
            ("llama_fp32", layers | {"window": "half-block"}, "choose mixed"),
            (
                "llama_fp32",
                layers | {"layer_units": "mlp", "structured_output": "sliced"},
                "only whole blocks can be cut out",
            ),
            (
                "opt_after_fp32",
                layers | {"structured_output": "sliced"},
                "comes after its layer",
            ),
        ):
            with self.subTest(said):
                output = self.dir / "never"
                arguments = self.run_arguments(self.model(name), dataset, output, **keys)
                self.assertIn(said, self.coppice(*arguments, expect=2).stderr)
                self.assertFalse(output.exists())


if __name__ == "__main__":
    unittest.main()
