"""scripts/liar_smollm2.py: rows from sweeps, the page, and steps that are done once."""

import contextlib
import csv
import io
import json
import os
import signal
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import liar_smollm2 as liar

# Arguments in, checkpoints and tables out; every call is a line of $STAND_IN/calls.
STAND_IN = """#!{python} -IS
import json, os, pathlib, sys
command, arguments = sys.argv[1], sys.argv[2:]
with open(pathlib.Path(os.environ["STAND_IN"]) / "calls", "a") as file:
    print(json.dumps([command, *arguments]), file=file)
def values(flag):
    return [b for a, b in zip(arguments, arguments[1:]) if a == flag]
if command == "eval":
    quality = pathlib.Path(arguments[0]) / "quality"
    perplexity = float(quality.read_text()) if quality.exists() else 20.0
    pathlib.Path(values("--json")[0]).write_text(json.dumps({{"perplexity": perplexity}}))
    sys.exit()
out = pathlib.Path(values("-o")[0])
out.mkdir(parents=True)
ratio = float(values("--ffn-sparsity")[0])
varied = dict(v.split("=") for v in values("--vary"))
if "lr" in varied:
    lines = ["name,reconstruct.lr,held_out_loss"]
    lines += [f"{{lr}},{{lr}},{{abs(float(lr) - 1e-3)}}" for lr in varied["lr"].split(",")]
else:
    recipes = values("--recipe")
    lines = ["name," + ("recipe," if len(recipes) > 1 else "") + "prune.method,held_out_loss"]
    for recipe in recipes:
        stem, text = pathlib.Path(recipe).stem, pathlib.Path(recipe).read_text()
        gain = {{"none": 9, "bias": 5, "liar": 2, "liar+adamw": 1}}[text.split()[-1]]
        gain += 0 if "--add-biases" in arguments else 0.5
        for method in varied["prune-method"].split(","):
            name = f"{{stem}}_{{method}}" if len(recipes) > 1 else method
            lines.append(",".join([name, *([stem] if len(recipes) > 1 else []), method, "3.5"]))
            directory = out / name
            directory.mkdir()
            (directory / "quality").write_text(str(20 + 10 * ratio * gain))
            linears = [
                {{"name": "model.layers.0.mlp.down_proj.weight", "pattern": "ffn"}},
                {{"name": "model.layers.0.mlp.up_proj.weight", "pattern": "ffn"}},
                {{"name": "model.layers.0.self_attn.o_proj.weight", "pattern": "heads"}}]
            for linear, share in zip(linears, (ratio, 0.9, ratio / 2)):
                linear["sparsity"] = share
            (directory / "coppice_report.json").write_text(
                json.dumps({{"blocks": [{{"linears": linears}}]}}))
(out / "sweep.csv").write_text("\\n".join(lines) + "\\n")
"""

CUT = {
    "command": "coppice run",
    "perplexity": 25.0,
    "bytes": 3 << 20,
    "against_bytes": 4 << 20,
    "tokens": 512,
    "rounds": 15,
    "seconds": 0.25,
    "against_seconds": 0.5,
}


class LiarTables(unittest.TestCase):
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
        for name in ("text", "tokens"):
            (self.dir / name).write_text(name)
        handlers = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
        self.addCleanup(lambda: [signal.signal(*handler) for handler in handlers])
        os.environ["STAND_IN"] = str(self.dir)
        cut = mock.patch.object(liar.Experiment, "cut_out", lambda _: CUT)
        cut.start()
        self.addCleanup(cut.stop)

    def measure(self, *more):
        flags = {"dataset": "tokens", "text": "text", "model": "model", "out": "out"}
        arguments = [f"--{key}={self.dir / value}" for key, value in flags.items()]
        arguments += [f"--program={self.program}", "--ratios=0.1,0.5", *more]
        with contextlib.redirect_stdout(io.StringIO()):
            liar.measure(liar.parse(arguments))

    def calls(self):
        return [json.loads(line) for line in (self.dir / "calls").read_text().splitlines()]

    def rows(self):
        with (self.dir / "out/liar.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def test_every_ratio_criterion_and_reconstruction_has_a_row(self):
        self.measure()
        rows = self.rows()
        self.assertEqual(len(rows), 1 + 2 * 3 * 5)
        found = {(r["ratio"], r["criterion"], r["reconstruction"]): r for r in rows}
        perplexities = [
            float(found["0.5", "flap", kind]["perplexity"]) for kind in liar.KINDS
        ]
        self.assertEqual(perplexities, [65, 45, 32.5, 30, 25])
        trained = found["0.1", "wanda_sp", liar.TRAINED]
        self.assertEqual(trained["lr"], "0.001")  # of the least held-out loss
        self.assertEqual(found["0.1", "wanda_sp", liar.LIAR]["lr"], "")
        self.assertEqual((trained["ffn_removed"], trained["heads_removed"]), ("0.1", "0.05"))
        self.assertEqual((trained["rows_together"], trained["held_out_loss"]), ("12", "3.5"))
        page = (self.dir / "out/liar.md").read_text()
        self.assertIn("| 50% | flap | 65.00 | 45.00 | 32.50 | 30.00 | 25.00 |", page)
        self.assertIn("3 MiB of 4 MiB", page)
        self.assertNotIn(str(self.dir), page)
        self.assertTrue((self.dir / "out/liar.svg").read_text().endswith("</svg>\n"))

    def test_the_reported_text_chooses_nothing(self):
        self.measure()
        for command, *arguments in self.calls():
            self.assertEqual(command == "eval", str(self.dir / "text") in arguments)

    def test_a_second_call_does_nothing_and_checkpoints_go(self):
        self.measure()
        before = self.calls()
        self.measure()
        self.assertEqual(self.calls(), before)
        left = [path.name for path in (self.dir / "out/work").iterdir()]
        self.assertEqual(left, ["recipes"])

    def test_more_ratios_go_on_from_what_is_there(self):
        self.measure()
        count = len(self.calls())
        self.measure("--ratios=0.1,0.3,0.5")
        self.assertEqual(len(self.calls()), count + 2 + 3 * 5)
        with self.assertRaisesRegex(liar.MeasuringError, "nsamples: there"):
            self.measure("--nsamples=7")


if __name__ == "__main__":
    unittest.main()
