"""Budgets: refused before the first read, or kept; never a byte of difference."""

import json
import os
import re
import subprocess
import sys
import unittest

from support import PROGRAM, SOURCE, ProgramTest, report, shards

MIB = 1 << 20


def said_to_fit(refused):
    """Flags that a refused run is offered: of the window, if of another one, and the budget."""
    [[whole, unit]] = re.findall(r"would fit into ([\d.]+) (\w+) of RAM", refused.stderr)
    offers = [["--ram-budget", whole + unit]]
    for window, bytes_, unit in re.findall(
        r"with --window (\S+) into ([\d.]+) (\w+) of RAM", refused.stderr
    ):
        offers.append(["--window", window, "--ram-budget", bytes_ + unit])
    return offers


class Budgets(ProgramTest):
    """Runs on a model of which a block's optimiser needs some 100 MiB."""

    def setUp(self):
        super().setUp()
        self.model_dir = self.dir / "model"
        subprocess.run(
            [
                sys.executable,
                SOURCE / "scripts" / "make_synthetic.py",
                self.model_dir,
                *"--hidden 512 --ffn 2048 --heads 8 --blocks 2 --tokens 4096".split(),
            ],
            check=True,
            capture_output=True,
        )
        self.dataset = self.model_dir / "tokens.h5"

    def arguments(self, output, **keys):
        """Four windows of 64 tokens."""
        keys = {"nsamples": 4, "seqlen": 64, "epochs": 1} | keys
        return self.run_arguments(self.model_dir, self.dataset, output, **keys)

    def peak_of(self, arguments):
        """Exit code, peak RSS in bytes as the kernel counted it, stderr."""
        with subprocess.Popen(
            [PROGRAM, *map(str, arguments)],
            cwd=self.dir,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            errors = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_maxrss * 1024, errors

    def test_every_budget_is_refused_or_kept_and_changes_no_byte(self):
        self.coppice(*self.arguments("plenty"))
        expected = shards(self.dir / "plenty")
        refused, kept = 0, 0
        for mib in (100, 220, 260, 300, 340, 380, 460, 700):
            output = f"out{mib}"
            probe = str(mib in (300, 380)).lower()  # what it takes counts, too
            code, peak, errors = self.peak_of(
                self.arguments(output, ram_budget=f"{mib}MiB", probe=probe)
            )
            if code == 5:
                self.assertEqual(kept, 0, "a larger budget was refused")
                self.assertIn("given by --ram-budget", errors)
                self.assertFalse((self.dir / output).exists())
                refused += 1
                continue
            self.assertEqual(code, 0, errors)
            self.assertLessEqual(peak, mib * MIB, f"budget of {mib} MiB")
            self.assertEqual(shards(self.dir / output), expected, f"{mib} MiB")
            kept += 1
        self.assertGreater(refused, 0)
        self.assertGreater(kept, 2)

    def test_activations_computed_again_under_a_tight_budget_change_no_byte(self):
        # Tokens enough that keeping takes several of the steps below more than computing again.
        keys = {"window": "block", "nsamples": 9, "seqlen": 256, "batch_size": 8}
        self.coppice(*self.arguments("plenty", **keys))
        plan = report(self.dir / "plenty")["plan"]["plan"]
        self.assertEqual(plan["settings"]["activations"], "kept")
        # The smallest budget that is not refused.
        code, mib = 5, 300
        while code == 5:
            mib += 4
            code, peak, errors = self.peak_of(
                self.arguments("tight", ram_budget=f"{mib}MiB", probe="false", **keys)
            )
        self.assertEqual(code, 0, errors)
        plan = report(self.dir / "tight")["plan"]["plan"]
        self.assertEqual(plan["settings"]["activations"], "computed again")
        self.assertLessEqual(peak, mib * MIB)
        self.assertEqual(shards(self.dir / "tight"), shards(self.dir / "plenty"))

    def test_recomputed_targets_are_the_cached_ones(self):
        for targets in ("cached", "recomputed"):
            self.coppice(*self.arguments(targets, half_block_targets=targets))
            plan = report(self.dir / targets)["plan"]["plan"]
            self.assertEqual(plan["settings"]["targets"], targets)
        self.assertEqual(shards(self.dir / "recomputed"), shards(self.dir / "cached"))

    def test_memory_is_as_planned(self):
        for number, keys in enumerate(({}, {"window": "block"}, {"window": "none"})):
            output = f"out{number}"
            self.coppice(*self.arguments(output, **keys))
            ram = report(self.dir / output)["plan"]["ram"]
            self.assertLess(abs(ram["ratio"] - 1), 0.15, f"{keys}: {ram}")

    def test_a_refused_run_leaves_nothing_in_the_way(self):
        refused = self.coppice(*self.arguments("out", ram_budget="64MiB"), expect=5)
        self.assertIn("would fit into", refused.stderr)
        self.coppice(*self.arguments("out"))

    def test_what_a_refusal_offers_is_not_refused(self):
        similarity = {"prune_method": "similarity", "layer_sparsity": 0.5, "window": 2}
        for keys, windows in (
            ({"window": "block", "half_block_targets": "recomputed"}, ["half-block", "none"]),
            ({"window": "block", "lr": "auto"}, ["half-block"]),
            (similarity | {"propagation": "sparse"}, ["none"]),
        ):
            flags = ["plan", *self.arguments("out", **keys)[1:]]
            offers = said_to_fit(self.coppice(*flags, "--ram-budget", "64MiB", expect=5))
            self.assertEqual([offer[1] for offer in offers[1:]], windows)
            for offer in offers:
                self.coppice(*flags, *offer)  # of a flag given twice the last counts

    def test_a_refused_run_is_told_a_budget_that_every_process_keeps(self):
        for number in range(5):  # some have more pages than others, before they plan
            flags = self.arguments(f"out{number}", window="none")
            [offer] = said_to_fit(self.coppice(*flags, "--ram-budget", "64MiB", expect=5))
            self.coppice("plan", *flags[1:], *offer)
            self.coppice(*flags, *offer)

    def test_of_scores_and_run_the_larger_is_told_and_fits(self):
        keys = {"prune_method": "snip", "ffn_sparsity": 0.5}
        for window, larger in (
            ("none", "the model as it is stored"),
            ("block", "work of the largest stage"),
        ):
            flags = ["plan", *self.arguments("out", window=window, **keys)[1:]]
            refused = self.coppice(*flags, "--ram-budget", "16MiB", "--json", expect=5)
            plan = json.loads(refused.stdout)
            self.assertFalse(plan["fits"])
            self.assertGreater(plan["ram"]["bytes"], plan["ram"]["limit_bytes"])
            self.assertIn(larger, [item["name"] for item in plan["ram"]["items"]])
            for offer in said_to_fit(refused):
                self.coppice(*flags, *offer)

    def test_disk_budget_too_small_is_refused(self):
        self.coppice(*self.arguments("out", disk_budget="20MiB"))
        done = self.coppice(*self.arguments("other", disk_budget="1MiB"), expect=5)
        self.assertIn("disk for hidden states", done.stderr)
        self.assertIn("--disk-budget", done.stderr)

    def test_a_continued_run_may_have_another_budget(self):
        self.coppice(*self.arguments("plenty"))
        with subprocess.Popen(
            [PROGRAM, *map(str, self.arguments("out", ram_budget="2GiB"))],
            cwd=self.dir,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            process.stderr.readline()  # a block is done
            process.kill()
        self.coppice(*self.arguments("out", ram_budget="400MiB", resume=True))
        self.assertEqual(shards(self.dir / "out"), shards(self.dir / "plenty"))


class Plan(ProgramTest):
    """`coppice plan`: headers in, numbers out, nothing left behind."""

    def plan(self, *arguments, **kwargs):
        """Its JSON."""
        done = self.coppice("plan", *arguments, "--json", **kwargs)
        return json.loads(done.stdout)

    def test_takes_the_arguments_of_run_and_writes_nothing(self):
        arguments = self.run_arguments(self.model(), self.tokens(512), "out")[1:]
        before = sorted(self.dir.iterdir())
        plan = self.plan(*arguments)
        self.assertEqual(sorted(self.dir.iterdir()), before)
        self.assertGreater(plan["ram"]["bytes"], 0)
        self.assertIsNone(plan["seconds"])  # --probe false

    def test_measures_the_machine(self):
        plan = self.plan("--model", self.model(), "--nsamples", 8, "--seqlen", 32)
        self.assertGreater(plan["seconds"], 0)
        self.assertTrue(all(rate > 0 for rate in plan["rates"].values()), plan["rates"])
        for stage in ("calibrate", "prune", "reconstruct"):
            self.assertIn(stage, [s["name"] for s in plan["stages"]])
            self.assertGreater(plan["corrections"][stage], 0)

    def test_reads_headers_only(self):
        model = self.model()
        for shard in model.glob("*.safetensors"):
            data = shard.read_bytes()
            header = 8 + int.from_bytes(data[:8], "little")
            with open(shard, "r+b") as file:
                file.truncate(header)
                file.truncate(len(data))  # the weights are a hole now
        self.plan("--model", model, "--nsamples", 8, "--seqlen", 32, "--probe", "false")

    def test_run_makes_the_same_plan(self):
        arguments = self.run_arguments(self.model(), self.tokens(512), "out")
        planned = self.plan(*arguments[1:])
        self.coppice(*arguments)
        run = report(self.dir / "out")["plan"]["plan"]
        for key in ("bytes_read", "bytes_written", "settings"):
            self.assertEqual(run[key], planned[key])
        for key in ("bytes_read", "bytes_written"):
            beside = report(self.dir / "out")["plan"][key]
            self.assertEqual(beside["planned"], planned[key])
            self.assertGreater(beside["measured"], 0)

    def test_counts_the_tokens_that_a_run_holds_when_it_plans(self):
        keys = {"nsamples": 1 << 16, "window": "none", "ram_budget": "64MiB"}
        arguments = self.run_arguments(self.model(), self.tokens(32 << 16), "out", **keys)
        needed = [
            re.search(r"([\d.]+) MiB  program", self.coppice(*command, expect=5).stderr)
            for command in (("plan", *arguments[1:]), arguments)
        ]
        of_plan, of_run = (float(found[1]) for found in needed)
        self.assertGreaterEqual(of_plan, of_run)

    def test_what_does_not_fit_is_told_as_json_too(self):
        done = self.coppice(
            *("plan", "--model", self.model(), "--seqlen", 32, "--ram-budget", "100MiB", "--json"),
            expect=5,
        )
        plan = json.loads(done.stdout)
        self.assertFalse(plan["fits"])
        self.assertGreater(plan["ram"]["bytes"], plan["ram"]["limit_bytes"])
        self.assertIn("given by --ram-budget", done.stderr)

    def test_of_trials_and_the_run_behind_them_both_are_told(self):
        flags = ("--prune-method", "wanda_sp", "--ffn-sparsity", 0.5, "--allocation", "measured")
        flags += ("--seqlen", 32, "--probe", "false", "--ram-budget", "100MiB")
        done = self.coppice("plan", "--model", self.model(), *flags, expect=5)
        run, trials = done.stderr.split("the trials of --allocation measured, before the run")
        self.assertIn("would fit into", run)
        self.assertIn("would fit into", trials)
        done = self.coppice(
            *("run", "--model", self.model(), "--dataset", self.tokens(8 * 32), "--nsamples", 8),
            *("-o", "out", *flags),
            expect=5,
        )
        run, trials = done.stderr.split("the trials of --allocation measured, before the run")
        self.assertIn("would fit into", run)
        self.assertIn("would fit into", trials)
        self.assertFalse((self.dir / "out.work").exists())

    def test_a_disk_too_small_names_the_windows_that_fit(self):
        arguments = ("--model", self.model(), "--seqlen", 64, "--probe", "false")
        done = self.coppice(
            *("plan", *arguments, "--nsamples", 4096, "--disk-budget", "40MiB"), expect=5
        )
        [windows] = re.findall(r"--nsamples (\d+) would fit", done.stderr)
        self.plan(*arguments, "--nsamples", windows, "--disk-budget", "40MiB")

    def test_a_budget_for_memory_that_there_is_not_is_told(self):
        arguments = ("plan", "--model", self.model(), "--seqlen", 32, "--device", "cpu")
        arguments += ("--probe", "false")
        done = self.coppice(*arguments, "--vram-budget", "1GiB")
        self.assertIn("no effect", done.stderr)

    def test_tells_where_the_input_lies(self):
        model = self.model()
        plan = self.plan("--model", model, "--seqlen", 32, "--probe", "false")
        shards_bytes = sum(shard.stat().st_size for shard in model.glob("*.safetensors"))
        self.assertGreater(shards_bytes, plan["input"]["bytes"])  # headers
        self.assertGreater(plan["input"]["bytes"], 0.5 * shards_bytes)
        self.assertGreater(plan["input"]["free_bytes"], 0)
        self.assertTrue(plan["fits"])

    def test_text_names_resources_and_bounds(self):
        text = self.coppice(
            "plan", "--model", self.model(), "--nsamples", 8, "--seqlen", 32
        ).stdout
        for words in ("disk of the input", "RAM", "disk for the output", "bytes read", "bound by", "in all"):
            self.assertIn(words, text)


if __name__ == "__main__":
    unittest.main()
