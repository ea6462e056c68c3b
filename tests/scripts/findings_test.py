"""scripts/findings.py: verdicts from numbers, tables, and steps that continue."""

import contextlib
import csv
import io
import json
import os
import signal
import sys
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from unittest import mock

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import findings
import findings_plot
import findings_tables as tables
import measuring_steps
from findings_tables import About, RateChoice, Row

# Does what findings.py sees of coppice: arguments in, reports and journals out. Every call is a
# line of $STAND_IN/calls. Where $STAND_IN/disturbed is there, the first call for each result ends
# early: stopped when its journal is there, or killed before. $STAND_IN/fail holds the number of
# one that fails.
STAND_IN = """#!{python} -IS
import itertools, json, os, pathlib, sys
state = pathlib.Path(os.environ["STAND_IN"])
command, arguments = sys.argv[1], sys.argv[2:]
with open(state / "calls", "a") as file:
    print(json.dumps([command, *arguments]), file=file)
number = len((state / "calls").read_text().splitlines())
def value(flag, otherwise=None):
    return arguments[arguments.index(flag) + 1] if flag in arguments else otherwise
if (state / "fail").exists() and number == int((state / "fail").read_text()):
    sys.exit("the disk is made of cheese")
mark = state / ("seen." + (arguments[0] if command == "eval" else value("-o")).replace("/", "."))
is_disturbed = (state / "disturbed").exists() and not mark.exists()
if is_disturbed:
    mark.touch()
is_killed = is_disturbed and len(list(state.glob("seen.*"))) % 2 == 0
is_stopped = is_disturbed and not is_killed
if command == "eval" and is_disturbed:
    sys.exit(130)
if command == "eval":
    quality = pathlib.Path(arguments[0]) / "quality"
    perplexity = float(quality.read_text()) if quality.exists() else 20.0
    pathlib.Path(value("--json")).write_text(
        json.dumps({{"perplexity": perplexity, "nll": perplexity}}))
    sys.exit()
out = pathlib.Path(value("-o"))
work = pathlib.Path(str(out) + ".work")
journal = work / "journal.bin"
if journal.exists() != ("--resume" in arguments):
    sys.exit("a journal without --resume, or the other way round")
work.mkdir(exist_ok=True)
if is_killed:
    sys.exit(137)
is_resumed = journal.exists()
journal.write_text("")
if is_stopped:
    sys.exit(130)
def write(directory, window, lr, method, is_retrained=False):
    directory.mkdir(parents=True)
    quality = {{"magnitude": 90, "wanda": 40, "ria": 41, "sparsegpt": 38}}[method]
    if window != "none":
        quality = 30 + quality / 20 + abs(lr - 1e-3)
    if is_retrained:
        quality = 31 + abs(lr - 3e-4) + 5 / int(value("--nsamples"))
    (directory / "quality").write_text(str(quality + int(value("--seed")) / 10))
    left = 0.4 + abs(lr - 1e-3)
    windows = [] if window == "none" else [
        {{"validation_pruned": 2.0, "validation_reconstructed": 2 * left, "kept": "adamw"}}]
    report = {{"machine": {{"device": "cpu", "description": "a stand-in"}},
        "recipe": {{"reconstruct": {{"loss": value("--loss", "mse")}}}},
        "blocks": [{{"windows": windows, "linears": [{{"sparsity": 0.5, "fallback": ""}}]}}],
        "totals": {{"wall_seconds": 10.0, "resumed": is_resumed, "peak_rss_bytes": 1 << 28}}}}
    if is_retrained:
        report["totals"]["wall_seconds"] = 3.0 * int(value("--nsamples"))
        report["retrain"] = {{"kept": "retrained", "validation_pruned": 4.0, "seconds": 1.0,
            "validation_retrained": 3 + abs(lr - 3e-4), "zeros": 1, "weights": 2}}
    (directory / "coppice_report.json").write_text(json.dumps(report))
    (directory / "model.safetensors.index.json").write_text("")
if command == "retrain":
    if not (pathlib.Path(value("--model")) / "quality").exists():
        sys.exit("there is no pruned model")
    write(out, "none", float(value("--lr")), "wanda", is_retrained=True)
elif command == "run":
    write(out, value("--window"), float(value("--lr", "1e-4")), value("--prune-method"))
elif value("--propagation") != "dense":
    sys.exit("a sweep is dense")
else:
    varied = [a.partition("=") for f, a in zip(arguments, arguments[1:]) if f == "--vary"]
    headings = {{"lr": "reconstruct.lr", "window": "reconstruct.window",
        "prune-method": "prune.method"}}
    lines = ["name," + ",".join(headings[k] for k, _, _ in varied) + ",held_out_loss"]
    out.mkdir(exist_ok=True)
    for i, chosen in enumerate(itertools.product(*(v.split(",") for _, _, v in varied))):
        keys = {{k: v for (k, _, _), v in zip(varied, chosen)}}
        lr = float(keys.get("lr", value("--lr", "1e-4")))
        lines.append(f"{{i}},{{','.join(chosen)}},{{3 + abs(lr - 1e-3)}}")
        if value("--outputs") == "all":
            write(out / str(i), keys["window"], lr, keys["prune-method"])
    (out / "sweep.csv").write_text("\\n".join(lines) + "\\n")
"""


def row(table, name, perplexity, **keys):
    return Row(table, name, perplexity=perplexity, **keys)


def about(**keys):
    return replace(
        About("a model", "a machine", "2026-01-02", "a command", "a text", "calibration", False),
        **keys,
    )


class Retraining(unittest.TestCase):
    """The first claim."""

    def outcome(self, local, tenfold, local_seconds=100.0, tenfold_seconds=1000.0):
        rows = [
            row("a", tables.RECONSTRUCTED, local, wall_seconds=local_seconds),
            row("a", tables.LORA, 40.0, wall_seconds=100.0),
            row("a", tables.LORA_TENFOLD, tenfold, wall_seconds=tenfold_seconds),
        ]
        return tables.claim_retraining(rows).outcome

    def test_as_good_with_a_tenth_of_the_work(self):
        self.assertEqual(self.outcome(35.0, 36.0), tables.HELD)
        self.assertEqual(self.outcome(36.0 * 1.0299, 36.0), tables.HELD)

    def test_worse_by_more_than_the_margin(self):
        self.assertEqual(self.outcome(36.0 * 1.0301, 36.0), tables.NOT_HELD)
        self.assertEqual(self.outcome(float("inf"), 36.0), tables.NOT_HELD)

    def test_as_good_with_more_than_a_tenth_of_the_work(self):
        self.assertEqual(self.outcome(35.0, 36.0, tenfold_seconds=999.0), tables.IN_PART)

    def test_interrupted_runs_decide_nothing_about_work(self):
        self.assertEqual(self.outcome(35.0, 36.0, tenfold_seconds=None), tables.UNDECIDED)
        self.assertEqual(self.outcome(40.0, 36.0, tenfold_seconds=None), tables.NOT_HELD)

    def test_the_mean_of_the_seeds_decides(self):
        rows = [row("a", tables.LORA, 36.0), row("a", tables.LORA_TENFOLD, 36.0, wall_seconds=99)]
        rows += [
            row("a", tables.RECONSTRUCTED, value, seed=seed, wall_seconds=1.0)
            for seed, value in enumerate((30.0, 36.0, 45.0))
        ]
        verdict = tables.claim_retraining(rows)
        self.assertEqual(verdict.outcome, tables.HELD)
        self.assertIn("37.00", verdict.numbers)
        rows[-1].perplexity = 46.0
        self.assertEqual(tables.claim_retraining(rows).outcome, tables.NOT_HELD)

    def test_no_rows(self):
        self.assertEqual(tables.claim_retraining([]).outcome, tables.UNDECIDED)


class OtherClaims(unittest.TestCase):
    def granularity(self, *values):
        rows = [row("b", name, value) for name, value in zip(tables.WINDOWS, values)]
        return tables.claim_granularity(rows).outcome

    def test_granularity(self):
        self.assertEqual(self.granularity(40.0, 36.0, 35.5, 35.0), tables.HELD)
        # Matrices are as good, or the larger windows differ, or both.
        self.assertEqual(self.granularity(37.0, 36.0, 35.5, 35.0), tables.IN_PART)
        self.assertEqual(self.granularity(40.0, 36.0, 35.5, 34.0), tables.IN_PART)
        self.assertEqual(self.granularity(36.0, 36.0, 35.5, 34.0), tables.NOT_HELD)
        self.assertEqual(self.granularity(40.0, 36.0, 35.5), tables.UNDECIDED)

    def criteria_rows(self, after_by_pattern):
        """Before: 80, 40, 40, and RIA at 400."""
        rows = []
        for pattern, after in after_by_pattern.items():
            for criterion, before, reconstructed in zip(
                tables.CRITERIA, (80.0, 40.0, 400.0, 40.0), (after, 35.0, 350.0, 35.0)
            ):
                for value, is_after in ((before, False), (reconstructed, True)):
                    name = tables.criterion_name(criterion, is_after)
                    rows.append(row("c", name, value, pattern=pattern))
        return rows

    def criteria(self, *after):
        rows = self.criteria_rows(dict(zip(tables.PATTERNS, after)))
        return tables.claim_criteria(rows).outcome

    def test_criteria(self):
        self.assertEqual(self.criteria(40.0, 40.0, 40.0), tables.HELD)
        self.assertEqual(self.criteria(40.0, 40.0, 70.0), tables.IN_PART)
        self.assertEqual(self.criteria(70.0, 70.0, 70.0), tables.NOT_HELD)
        # 2 becomes 1.88: 91 % of its logarithm are left; then 1.85: 89 %.
        self.assertEqual(self.criteria(65.8, 65.8, 65.8), tables.NOT_HELD)
        self.assertEqual(self.criteria(64.75, 64.75, 64.75), tables.HELD)
        self.assertEqual(self.criteria(40.0, 40.0), tables.UNDECIDED)

    def test_a_criterion_that_ruins_the_model_is_endlessly_far(self):
        rows = self.criteria_rows(dict.fromkeys(tables.PATTERNS, 40.0))
        rows[0].perplexity = float("inf")
        self.assertEqual(tables.claim_criteria(rows).outcome, tables.HELD)
        rows[1].perplexity = float("inf")
        rows[0].perplexity = 80.0
        self.assertEqual(tables.claim_criteria(rows).outcome, tables.IN_PART)

    def propagation(self, *values):
        names = [tables.variant_name(*variant) for variant in tables.VARIANTS]
        rows = [row("d", name, value) for name, value in zip(names, values)]
        return tables.claim_propagation(rows)

    def test_propagation_and_loss(self):
        self.assertEqual(self.propagation(36.0, 36.5, 35.5, 36.0, 36.0).outcome, tables.HELD)
        verdict = self.propagation(36.0, 38.0, 35.5, 36.0, 36.0)
        self.assertEqual(verdict.outcome, tables.NOT_HELD)
        self.assertIn("35.50 (mixed, mse) to 38.00 (sparse, mse)", verdict.numbers)
        # The claim does not name the normalised loss.
        self.assertEqual(self.propagation(36.0, 36.5, 35.5, 36.0, 99.0).outcome, tables.HELD)
        self.assertEqual(self.propagation(36.0, 36.5, 35.5).outcome, tables.UNDECIDED)


class Page(unittest.TestCase):
    def rows(self):
        return [
            row("a", tables.DENSE, 20.96),
            row("a", tables.RECONSTRUCTED, 37.0, tokens=32768, lr=1e-3, wall_seconds=200.0),
            row("a", tables.RECONSTRUCTED, 38.0, seed=1, tokens=32768, resumed=True),
            row("b", "2", 34.5, peak_rss_bytes=3 << 20, held_out_ratio=0.5, kept_pruned=2),
        ]

    def test_csv_has_a_line_a_row_and_says_nothing_where_there_is_no_number(self):
        lines = list(csv.DictReader(io.StringIO(tables.as_csv(self.rows()))))
        self.assertEqual(len(lines), 4)
        self.assertEqual(lines[1]["perplexity"], "37")
        self.assertEqual(lines[1]["lr"], "0.001")
        self.assertEqual(lines[2]["wall_seconds"], "")
        self.assertEqual(lines[2]["resumed"], "True")

    def test_tables(self):
        page = tables.as_markdown(self.rows(), [], about())
        self.assertIn("| reconstructed | 32,768 | 0.001 | 2 | 37.50 (37.00–38.00) |", page)
        self.assertIn("| 2 blocks | 0 | - | 1 | 34.50 | 50.0% | interrupted | 3 MiB |", page)
        self.assertNotIn("## c.", page)
        self.assertIn("so many windows, or in the model: b, 2: 2.", page)
        self.assertIn("Interrupted and continued: a, reconstructed (seed 1).", page)

    def test_every_table_carries_model_machine_date_and_command(self):
        page = tables.as_markdown(self.rows(), [], about())
        self.assertEqual(page.count("a model; a machine; 2026-01-02; `a command`"), 3)

    def test_rounding_is_told_of_the_rounded_model_only_and_where_dense_is_compared(self):
        for rows, is_rounded, is_told in (
            (self.rows(), True, True),
            (self.rows(), False, False),
            (self.rows()[1:], True, False),
        ):
            page = tables.as_markdown(rows, [], about(is_rounded=is_rounded))
            self.assertEqual("rounded to 4 bits" in page, is_told)

    def test_rates(self):
        rates = [
            RateChoice("inside", 32, {1e-4: 4.0, 1e-3: 3.5, 3e-3: 3.7}, 1e-3),
            RateChoice("at an end", 32, {1e-4: 4.0, 1e-3: 3.5}, 1e-3),
        ]
        page = tables.as_markdown(self.rows(), rates, about())
        self.assertIn("| inside | 32 | 4.0000 | **3.5000** | 3.7000 |", page)
        self.assertIn("| at an end | 32 | 4.0000 | **3.5000** | - |", page)
        self.assertIn("1 of 2 were chosen at an end of the grid", page)

    def test_a_quick_page_says_so(self):
        self.assertIn("nothing about the", tables.as_markdown([], [], about(is_quick=True)))
        self.assertNotIn("--quick", tables.as_markdown([], [], about()))


class Figure(unittest.TestCase):
    def test_is_drawn_from_whatever_rows_there_are(self):
        rows = [
            row("a", tables.RECONSTRUCTED, 37.0, wall_seconds=9.0),
            row("a", tables.RECONSTRUCTED, 38.0, seed=1, wall_seconds=9.0),
            row("c", tables.criterion_name("ria", True), 1e5, pattern="2:4"),
            row("d", "dense, mse", float("inf")),
        ]
        with tempfile.TemporaryDirectory() as scratch:
            for some in (rows, []):
                for suffix in ("png", "svg"):
                    file = Path(scratch) / f"{len(some)}.{suffix}"
                    findings_plot.draw(some, about(), [file])
                    self.assertGreater(file.stat().st_size, 1000)


class Steps(unittest.TestCase):
    """The whole way, with a program that stands in for coppice."""

    NSAMPLES, SEQLEN, WINDOWS = 8, 4, 100

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = Path(scratch.name)
        self.program = self.dir / "coppice"
        self.program.write_text(STAND_IN.format(python=sys.executable))
        self.program.chmod(0o755)
        model = self.dir / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_text("weights")
        (self.dir / "text.txt").write_text("a text")
        with h5py.File(self.dir / "tokens.h5", "w") as file:
            file["input_ids"] = np.arange(self.WINDOWS * self.SEQLEN, dtype=np.int32)
        handlers = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
        self.addCleanup(lambda: [signal.signal(*handler) for handler in handlers])
        os.environ["STAND_IN"] = str(self.dir)
        self.drawn = []
        drawing = mock.patch("findings_plot.draw", lambda rows, *_: self.drawn.append(len(rows)))
        drawing.start()  # it takes longer than everything else
        self.addCleanup(drawing.stop)

    def arguments(self, out="out", **keys):
        flags = {"dataset": "tokens.h5", "text": "text.txt", "model": "model", "out": out}
        arguments = [f"--{key}={self.dir / value}" for key, value in flags.items()]
        flags = {"nsamples": self.NSAMPLES, "seqlen": self.SEQLEN, "rate_samples": 4, "seeds": 2}
        for key, value in (flags | keys).items():
            arguments.append(f"--{key.replace('_', '-')}={value}")
        return findings.parse([*arguments, f"--program={self.program}"])

    def measure(self, **keys):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            findings.measure(self.arguments(**keys))
        return said.getvalue()

    def calls(self):
        path = self.dir / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def csv(self, out="out"):
        with (self.dir / out / "findings.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def find(self, table, name, seed=0):
        (found,) = [
            line
            for line in self.csv()
            if (line["table"], line["row"], line["seed"]) == (table, name, str(seed))
        ]
        return found

    def test_every_row_of_every_table(self):
        self.measure()
        counts = {t: sum(line["table"] == t for line in self.csv()) for t in "abcd"}
        self.assertEqual(counts, {"a": 1 + 2 * 4, "b": 4, "c": 3 * 4 * 2, "d": 5})
        self.assertEqual(self.drawn, [9, 13, 37, 42])
        self.assertEqual(self.find("a", tables.RECONSTRUCTED, 1)["perplexity"], "32.1")
        # Chosen on held-out text, each method its own.
        self.assertEqual(self.find("a", tables.RECONSTRUCTED)["lr"], "0.001")
        self.assertEqual(self.find("a", tables.LORA_TENFOLD)["lr"], "0.0003")
        self.assertEqual(self.find("d", "mixed, mse")["lr"], "0.001")
        self.assertEqual(self.find("b", "matrix")["held_out_ratio"], "0.4")
        self.assertEqual(self.find("a", tables.LORA)["held_out_unit"], "nats")
        page = (self.dir / "out/findings.md").read_text()
        self.assertIn("| magnitude | 90.00 → 34.50 | 90.00 → 34.50 | 90.00 → 34.50 |", page)
        self.assertNotIn(str(self.dir), page)

    def test_retraining_pays_for_the_pruning_that_it_starts_from(self):
        self.measure(only="a")
        self.assertEqual(self.find("a", tables.RECONSTRUCTED)["wall_seconds"], "10")
        self.assertEqual(self.find("a", tables.LORA)["wall_seconds"], "34")
        self.assertEqual(self.find("a", tables.LORA_TENFOLD)["wall_seconds"], "250")

    def test_the_reported_text_chooses_no_rate(self):
        self.measure()
        for command, *arguments in self.calls():
            if str(self.dir / "text.txt") in arguments:
                self.assertEqual(command, "eval")
                self.assertFalse([argument for argument in arguments if "/rate." in argument])

    def test_a_second_call_does_nothing(self):
        self.measure(only="c")
        before, count = self.csv(), len(self.calls())
        self.measure(only="c")
        self.assertEqual(len(self.calls()), count)
        self.assertEqual(self.csv(), before)

    def test_checkpoints_go_and_reports_stay(self):
        self.measure()
        self.assertEqual(list((self.dir / "out/work").iterdir()), [])
        names = {path.name for path in (self.dir / "out/reports").iterdir()}
        self.assertIn("masked-lora.10x.seed1.json", names)
        self.assertIn("rate.wanda.50.block.dense.mse.sweep.csv", names)

    def test_stopped_at_any_step_the_same_call_continues(self):
        for table in "acd":
            with self.subTest(table):
                self.check_disturbed(table)

    def check_disturbed(self, table):
        (self.dir / "disturbed").unlink(missing_ok=True)
        self.measure(out=f"undisturbed.{table}", only=table)
        (self.dir / "disturbed").touch()
        (self.dir / "calls").unlink()
        ends = []
        while not ends or ends[-1] is not None:
            self.assertLess(len(ends), 200)
            try:
                self.measure(out=table, only=table)
                ends.append(None)
            except (measuring_steps.Interrupted, findings.MeasuringError) as end:
                ends.append(type(end))
        self.assertGreater(ends.count(measuring_steps.Interrupted), 5)
        self.assertGreater(ends.count(findings.MeasuringError), 2)
        cost = ("wall_seconds", "resumed", "peak_rss_bytes")
        numbers = [
            [{key: value for key, value in line.items() if key not in cost} for line in lines]
            for lines in (self.csv(f"undisturbed.{table}"), self.csv(table))
        ]
        self.assertEqual(*numbers)
        self.assertTrue(any("--resume" in call for call in self.calls()))
        # Nobody knows how long a run took that was interrupted.
        resumed = [line for line in self.csv(table) if line["resumed"] == "True"]
        self.assertTrue(resumed)
        for line in resumed:
            if line["held_out_unit"] != "nats":
                self.assertEqual(line["wall_seconds"], "")

    def test_other_settings_are_refused_by_name(self):
        self.measure(only="b")
        for keys in ({"nsamples": 7}, {"max_windows": 3}, {"rates": "0.001"}):
            said = f"{[*keys][0]}: there (.|\n)*--out"
            with self.assertRaisesRegex(findings.MeasuringError, said):
                self.measure(only="b", **keys)
        (self.dir / "text.txt").write_text("another text")
        with self.assertRaisesRegex(findings.MeasuringError, "text: there"):
            self.measure(only="b")

    def test_a_step_of_other_arguments_is_neither_taken_nor_continued(self):
        (self.dir / "disturbed").touch()
        with self.assertRaises(measuring_steps.Interrupted):
            self.measure(only="b")
        (record,) = (self.dir / "out/records").glob("rate.*.json")
        content = json.loads(record.read_text())
        self.assertIsNone(content["result"])
        content["arguments"].append("--epochs=7")
        record.write_text(json.dumps(content))
        with self.assertRaisesRegex(findings.MeasuringError, "other arguments(.|\n)*remove it"):
            self.measure(only="b")

    def test_an_error_shows_what_the_program_said(self):
        (self.dir / "fail").write_text("2")
        with self.assertRaisesRegex(findings.MeasuringError, "code 1(.|\n)*made of cheese"):
            self.measure()

    def test_two_at_work_in_one_folder(self):
        (self.dir / "out").mkdir()
        with measuring_steps.locked(self.dir / "out"):
            with self.assertRaisesRegex(findings.MeasuringError, "is at work there"):
                self.measure()

    def windows(self, seed, count, share, is_fresh=False):
        """Numbers of the windows that were taken."""
        setup = findings.setup_of(self.arguments(), self.dir / "model")
        text = findings.Text(setup, self.dir / "windows")
        with h5py.File(text.take(seed, count, share, is_fresh)) as file:
            ids = file["input_ids"][:]
        self.assertEqual(ids.shape, (count, self.SEQLEN))
        return list(ids[:, 0] // self.SEQLEN)

    def test_the_hold_out_is_the_end_of_the_file_and_never_trained_on(self):
        for count, share, num_held in ((8, 1 / 16, 1), (80, 1 / 16, 5), (16, 0.25, 4)):
            for seed in (0, 1):
                taken = self.windows(seed, count, share, is_fresh=count == 80)
                end = list(range(self.WINDOWS - num_held, self.WINDOWS))
                self.assertEqual(taken[-num_held:], end)
                self.assertEqual(len(set(taken)), count)
                self.assertLess(max(taken[:-num_held]), self.WINDOWS - 5)

    def test_seeds_draw_other_windows_and_fresh_ones_are_none_of_those_pruned_with(self):
        pruned_with = set(self.windows(0, 8, 1 / 16)[:-1])
        self.assertNotEqual(pruned_with, set(self.windows(1, 8, 1 / 16)[:-1]))
        self.assertFalse(pruned_with & set(self.windows(0, 80, 1 / 16, is_fresh=True)[:-5]))
        self.assertTrue(set(self.windows(0, 4, 0.25)[:-1]) <= pruned_with)

    def test_rates_to_choose_from_are_given_and_shown(self):
        args = findings.parse(["--dataset", "C4", "--text", "T", "--rates", "3e-4,0.001"])
        setup = findings.setup_of(args, self.dir / "model")
        self.assertEqual(setup.rates, (3e-4, 1e-3))
        record = {"result": {}, "machine": "m", "date": "2026-01-01"}
        shown = findings.about(setup, {"dense": record}, is_quick=False)
        self.assertIn("--rates 0.0003,0.001", shown.command)
        for wrong in ("1e-3,", "0", "-1e-3", "inf", "fast"):
            with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit):
                findings.parse(["--dataset", "C4", "--text", "T", "--rates", wrong])

    def test_rates_without_a_finite_loss(self):
        choice = findings.chosen_rate("x", 4, {1e-3: None, 3e-4: 2.0, 1e-4: 2.0})
        self.assertEqual((choice.lr, choice.values), (1e-4, {1e-4: 2.0, 3e-4: 2.0}))
        with self.assertRaisesRegex(findings.MeasuringError, "no learning rate"):
            findings.chosen_rate("x", 4, {1e-3: None})

    def test_too_little_text_says_how_much_is_needed(self):
        with self.assertRaisesRegex(findings.MeasuringError, "100 windows .* are needed"):
            self.measure(nsamples=12)

    def test_windows_of_another_length(self):
        with h5py.File(self.dir / "tokens.h5", "w") as file:
            file["input_ids"] = np.zeros((99, 8), np.int32)
        with self.assertRaisesRegex(findings.MeasuringError, "--seqlen 8"):
            self.measure()


if __name__ == "__main__":
    unittest.main()
