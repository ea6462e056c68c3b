"""scripts/bench_gpu.py: steps that fail or are skipped alone, limits that hold, and its reference."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench_gpu
import sparsegpt_reference
from bench_gpu_support import (
    Deadline,
    DeviceMemory,
    Processes,
    Report,
    Result,
    Skipped,
    StepError,
)

PLAN = {
    "compute_seconds": 7200.0,
    "bytes_read": 1 << 40,
    "ram": {"bytes": 1 << 30},
    "device": {"bytes": 2 << 30},
    "rates": {"read_bytes_per_second": float(1 << 30)},
}
# Of coppice what whole_model sees: a plan that is refused unless no output is asked for.
STAND_IN = """#!{python} -IS
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
with open(folder / "calls", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
refusal = (folder / "refusal").read_text()
if "whole" in sys.argv[3] and "--outputs" not in sys.argv and refusal:
    sys.exit((print(refusal, file=sys.stderr), 5)[1])
print((folder / "plan.json").read_text())
"""


def stand_in(path, text):
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)
    return path


class ReportLaws(unittest.TestCase):
    """One step says nothing about the others."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="bench_gpu.")
        self.addCleanup(folder.cleanup)
        self.dir = Path(folder.name)
        self.report = Report(self.dir, {"device": "cpu"})
        self.enterContext(mock.patch("sys.stderr"))

    def written(self):
        return json.loads((self.dir / "bench_gpu.json").read_text())

    def fail(self):
        raise StepError("the disk is made of cheese")

    def skip(self):
        raise Skipped("no time is left")

    def test_a_failed_step_is_told_and_the_next_one_goes_on(self):
        self.report.step("a", self.fail)
        self.assertTrue(self.report.has_failed())
        self.report.step("b", lambda: Result([("what", "7 | 8")], {"seven": 7}))
        steps = self.written()["steps"]
        self.assertEqual((steps["a"]["status"], steps["b"]["status"]), ("failed", "done"))
        self.assertEqual(steps["b"]["seven"], 7)
        table = (self.dir / "bench_gpu.md").read_text()
        self.assertIn("| a | failed | the disk is made of cheese |", table)
        self.assertIn("| b | what | 7 \\| 8 |", table)

    def test_a_skipped_step_says_why_and_is_no_failure(self):
        self.report.step("a", self.skip)
        self.assertFalse(self.report.has_failed())
        self.assertIn("| a | skipped | no time is left |", (self.dir / "bench_gpu.md").read_text())

    def test_a_report_that_lacks_a_key_fails_its_step_alone(self):
        self.report.step("a", lambda: {}["stages"])
        self.assertEqual(self.written()["steps"]["a"]["status"], "failed")


class Limits(unittest.TestCase):
    """Processes end with the bench."""

    def test_a_process_beyond_the_deadline_is_killed(self):
        processes = Processes(Deadline(0.3))
        begin = time.monotonic()
        with self.assertRaisesRegex(StepError, "time of the whole bench is over"):
            processes.run(["sleep", 60])
        self.assertLess(time.monotonic() - begin, 30)
        with self.assertRaises(Skipped):
            processes.run(["true"])

    def test_what_it_said_and_its_peak_memory_are_told(self):
        code = "import sys; x = bytearray(200 << 20); print('out'); print('err', file=sys.stderr); sys.exit(3)"
        done = Processes(Deadline(60)).run([sys.executable, "-c", code])
        self.assertEqual((done.code, done.output, done.says()), (3, "out\n", "err"))
        self.assertGreater(done.peak_rss_bytes, 200 << 20)

    def test_a_step_that_would_be_cut_off_is_not_begun(self):
        with self.assertRaisesRegex(Skipped, "needs about 100 s"):
            Deadline(50).demand(100)
        Deadline(50).demand(10)


class Memory(unittest.TestCase):
    """What nvidia-smi says, or nothing."""

    def test_the_peak_is_the_largest_of_its_samples(self):
        with tempfile.TemporaryDirectory(prefix="bench_gpu.") as folder:
            smi = "#!/bin/sh\nfor mib in 100 900 300; do echo $mib; done\nexec sleep 60\n"
            stand_in(Path(folder) / "nvidia-smi", smi)
            memory = DeviceMemory(0)
            with mock.patch.dict(os.environ, {"PATH": f"{folder}:{os.environ['PATH']}"}):
                with memory.watched():
                    while memory.peak_bytes != 900 << 20:
                        time.sleep(0.01)
        self.assertEqual(memory.peak_bytes, 900 << 20)

    def test_without_a_gpu_nothing_is_told(self):
        memory = DeviceMemory(None)
        with memory.watched():
            pass
        self.assertIsNone(memory.peak_bytes)


class WholeModel(unittest.TestCase):
    """The plan of all blocks where the disk has no room for them."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="bench_gpu.")
        self.addCleanup(folder.cleanup)
        self.dir = Path(folder.name)
        args = argparse.Namespace(device="cpu", minutes=5.0)
        stand_in(self.dir / "coppice", STAND_IN)
        with mock.patch("bench_gpu.find_program", return_value=self.dir / "coppice"):
            self.bench = bench_gpu.Bench(args, bench_gpu.TINY, self.dir)
        (self.dir / "plan.json").write_text(json.dumps(PLAN))
        (self.dir / "refusal").write_text("")

    def rows(self):
        return dict(self.bench.whole_model().rows)

    def calls(self):
        return [json.loads(line) for line in (self.dir / "calls").read_text().splitlines()]

    def test_the_night_is_the_longer_of_computing_and_reading(self):
        self.assertEqual(self.rows()["the night"], "2.0 h")  # 1024 s of reads
        PLAN_READING = PLAN | {"bytes_read": 36 << 40}
        (self.dir / "plan.json").write_text(json.dumps(PLAN_READING))
        self.assertEqual(self.rows()["the night"], "10.2 h")
        self.assertFalse(any("--outputs" in call for call in self.calls()))

    def test_reads_are_counted_at_the_rate_of_a_checkpoint_that_is_no_hole(self):
        self.rows()
        probed = [call for call in self.calls() if "--probe" not in call]
        self.assertEqual([Path(call[2]).name for call in probed], ["model2", "whole"][::-1])

    def test_a_disk_too_small_for_the_output_is_said_and_the_rest_planned(self):
        (self.dir / "refusal").write_text("  disk for the output: 135 GiB needed")
        self.assertIn("this disk has no room", self.rows()["planned"])
        self.assertIn("--outputs", self.calls()[-2])

    def test_another_refusal_is_a_failure(self):
        (self.dir / "refusal").write_text("  RAM: 135 GiB needed")
        with self.assertRaisesRegex(StepError, "135 GiB"):
            self.bench.whole_model()


class Rows(unittest.TestCase):
    """What a report's numbers become."""

    def test_rates_are_flop_by_seconds_beside_the_plain_product(self):
        data = {
            "blocks": 4,
            "wall_seconds": 10.0,
            "tokens_per_second": 100.0,
            "stages": {
                "reconstruct": {"seconds": 8.0, "flop": 3.2e15},
                "prune": {"seconds": 2.0, "flop": 0.0},
            },
            "waited_share": 0.25,
            "peak_device_bytes": 3 << 30,
            "seen_device_bytes": 4 << 30,
            "budget": "budget 24GiB",
            "peak_rss_bytes": 1 << 30,
        }
        rows = dict(bench_gpu.rows_of_run(data, 800e12))
        self.assertEqual(
            rows["reconstruct"], "2.00 s a block, 400 TFLOP/s, 50.0 % of the plain product"
        )
        self.assertEqual(rows["prune"], "0.50 s a block")
        self.assertEqual(rows["waited for I/O"], "25.0 % of the wall time")
        self.assertIn("3.00 GiB by the report, 4.00 GiB by nvidia-smi", rows["peak device memory"])
        self.assertNotIn("plain", dict(bench_gpu.rows_of_run(data, None))["reconstruct"])


class Reference(unittest.TestCase):
    """SparseGPT in plain PyTorch."""

    def setUp(self):
        torch.manual_seed(1)
        inputs = torch.randn(400, 300) @ torch.randn(300, 300)
        self.weight = torch.randn(40, 300)
        self.gram = inputs.t() @ inputs

    def error(self, pruned):
        """||(W - W') X||^2."""
        difference = (self.weight - pruned).double()
        return torch.einsum("ij,jk,ik->", difference, self.gram.double(), difference).item()

    def by_the_book(self, sparsity, block):
        """Every kept weight of a row right of a pruned one, moved by the inverse of what is left."""
        gram = self.gram.double()
        gram = gram + 0.01 * gram.diagonal().mean() * torch.eye(300, dtype=torch.float64)
        weight = self.weight.double().clone()
        is_pruned = torch.zeros_like(weight, dtype=torch.bool)
        for column in range(300):
            left = torch.linalg.inv(gram[column:, column:])
            if column % block == 0:
                end = min(column + block, 300)
                # The j-th diagonal of U squared is the corner of the inverse of what is left at j.
                corners = [torch.linalg.inv(gram[j:, j:])[0, 0] for j in range(column, end)]
                score = weight[:, column:end] ** 2 / torch.stack(corners)
                count = round(score.numel() * sparsity)
                is_pruned[:, column:end] = score <= score.flatten().sort().values[count - 1]
            for row in range(40):
                if is_pruned[row, column]:
                    weight[row, column:] -= weight[row, column] / left[0, 0] * left[0]
                    weight[row, column] = 0
        return weight.float()

    def test_equals_the_update_by_inverses_of_what_is_left(self):
        ours = sparsegpt_reference.prune(self.weight, self.gram, 0.5, block=128)
        wanted = self.by_the_book(0.5, 128)
        self.assertTrue(torch.equal(ours == 0, wanted == 0))
        torch.testing.assert_close(ours, wanted, rtol=1e-2, atol=1e-2)

    def test_errs_less_than_magnitude_at_the_same_sparsity(self):
        ours = sparsegpt_reference.prune(self.weight, self.gram, 0.5)
        threshold = self.weight.abs().flatten().median()
        magnitude = self.weight.masked_fill(self.weight.abs() <= threshold, 0)
        self.assertAlmostEqual((ours == 0).float().mean().item(), 0.5, places=2)
        self.assertLess(self.error(ours), 0.6 * self.error(magnitude))


class Devices(unittest.TestCase):
    """A bench on the wrong device helps nobody."""

    def test_no_gpu_is_refused_with_what_works(self):
        command = [sys.executable, SCRIPTS / "bench_gpu.py", "--device", "cuda:0"]
        done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/nowhere"})
        self.assertEqual(done.returncode, 1)
        self.assertIn("--tiny", done.stderr)


if __name__ == "__main__":
    unittest.main()
