"""Blocks handed to several devices: a CPU, counted as often as it is named."""

import json
import subprocess
import sys
import unittest

from support import SOURCE, ProgramTest, report, shards

BLOCKS = 7


class Devices(ProgramTest):
    def setUp(self):
        super().setUp()
        self.model_dir = self.dir / "model"
        subprocess.run(
            [sys.executable, SOURCE / "scripts/make_synthetic.py", self.model_dir,
             "--blocks", str(BLOCKS), "--tokens", str(16 * 32)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def arguments(self, output, device="cpu,cpu", **keys):
        flags = {"nsamples": 16, "threads": 1, "device": device} | keys
        return self.run_arguments(
            self.model_dir, self.model_dir / "tokens.h5", self.dir / output, **flags
        )

    def run_on(self, output, device, **keys):
        self.coppice(*self.arguments(output, device, **keys))
        return shards(self.dir / output)

    def left_of(self, output):
        """What the work directory of a finished run holds: no hidden states."""
        return {path.name for path in (self.dir / f"{output}.work").iterdir()}

    def test_how_many_there_are_changes_no_byte(self):
        for number, keys in enumerate(
            (
                {},
                {"half_block_targets": "recomputed"},
                {"window": 2, "solver": "least_squares+adamw"},
                {"window": "none", "prune_method": "sparsegpt"},
                {"window": "none", "prune_method": "magnitude"},
            )
        ):
            with self.subTest(**keys):
                one = self.run_on(f"one{number}", "cpu", **keys)
                self.assertEqual(len(one) > BLOCKS, True)
                for devices in ("cpu,cpu", "cpu,cpu,cpu"):
                    output = f"{devices}{number}"
                    self.assertEqual(self.run_on(output, devices, **keys), one)
                    self.assertEqual(self.left_of(output), self.left_of(f"one{number}"))

    def test_the_report_names_them_and_has_every_block(self):
        self.run_on("out", "cpu,cpu")
        told = report(self.dir / "out")
        self.assertEqual(told["machine"]["device"], "cpu,cpu")
        self.assertEqual(
            [block["block"] for block in told["blocks"]], list(range(BLOCKS))
        )

    def test_a_killed_run_continues_on_as_many_or_on_one(self):
        long = {"epochs": 6}
        seconds = self.coppice(*self.arguments("undisturbed", **long)).seconds
        golden = shards(self.dir / "undisturbed")
        for device in ("cpu,cpu", "cpu"):
            arguments = lambda output, resume: self.arguments(
                output, device if resume else "cpu,cpu", resume=resume, **long
            )
            for output in self.continued_after_kills(
                arguments, 2, seconds, f"killed.{device}."
            ):
                self.assertEqual(shards(self.dir / output), golden)

    def test_what_must_go_in_order_is_refused(self):
        for keys in ({"propagation": "sparse"}, {"propagation": "mixed"}):
            said = self.coppice(*self.arguments("never", **keys), expect=2).stderr
            self.assertIn("under dense propagation", said)
            self.assertFalse((self.dir / "never").exists())
        dataset = self.model_dir / "tokens.h5"
        said = self.coppice(
            "eval", self.model_dir, "--text", dataset, "--seqlen", 32, "--device", "cpu,cpu",
            expect=2,
        ).stderr
        self.assertIn("expected one device", said)

    def test_what_is_measured_before_the_run_is_measured_on_the_first(self):
        keys = {"window": "none", "prune_method": "wanda", "allocation": "owl"}
        self.assertEqual(
            self.run_on("owl", "cpu,cpu", **keys), self.run_on("owl1", "cpu", **keys)
        )
        keys = {"prune_method": "wanda_sp", "solver": "liar", "allocation": "measured"}
        keys |= {"unit_sparsity": 0.3, "seqlen": 16, "nsamples": 32}
        self.assertEqual(
            self.run_on("trials", "cpu,cpu", **keys),
            self.run_on("trials1", "cpu", **keys),
        )

    def test_the_plan_counts_them(self):
        def ram(device):
            flags = self.arguments("never", device)[1:]
            told = self.coppice("plan", *flags, "--json").stdout
            return json.loads(told)

        one, two = ram("cpu"), ram("cpu,cpu")
        self.assertEqual(two["settings"]["devices"], 2)
        items = lambda plan: {i["name"]: i["bytes"] for i in plan["ram"]["items"]}
        work = "work of the largest stage"
        self.assertAlmostEqual(
            items(two)[f"{work}, 2 times"], 2 * items(one)[work], delta=1
        )


if __name__ == "__main__":
    unittest.main()
