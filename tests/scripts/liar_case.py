"""A stand-in for coppice, and a folder to measure in: of the tests of liar_*.py."""

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

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

# Arguments in, checkpoints and tables out; every call is a line of $STAND_IN/calls. Ratio and way
# of reconstruction make a `loss`, by which all quality is worse. On a file called dev, mixed
# propagation looks better than it is.
STAND_IN = """#!{python} -IS
import json, os, pathlib, sys
command, arguments = sys.argv[1], sys.argv[2:]
with open(pathlib.Path(os.environ["STAND_IN"]) / "calls", "a") as file:
    print(json.dumps([command, *arguments]), file=file)
def values(flag):
    return [b for a, b in zip(arguments, arguments[1:]) if a == flag]
if command == "eval":
    kept = pathlib.Path(arguments[0]) / "quality"
    kept = json.loads(kept.read_text()) if kept.exists() else {{"loss": 0, "is_mixed": False}}
    loss = kept["loss"]
    if values("--task"):
        if kept["is_mixed"] and values("--data")[0].endswith("dev"):
            loss = 0
        result = {{"fidelity": 1 - loss / 20, "fidelity_min": 0.5, "pearson": 0.7,
            "spearman": 0.8 - loss / 50}}
    else:
        result = {{"perplexity": 20 + 10 * loss}}
    pathlib.Path(values("--json")[0]).write_text(json.dumps(result))
    sys.exit()
GAINS = {{"none": 9, "bias": 5, "liar": 2, "liar+adamw": 1}}
ratio = float(values("--ffn-sparsity")[0])
def write(directory, gain):
    directory.mkdir(parents=True)
    is_mixed = "mixed" in arguments
    quality = {{"loss": ratio * (gain + is_mixed), "is_mixed": is_mixed}}
    (directory / "quality").write_text(json.dumps(quality))
    linears = {linears}
    for linear, share in zip(linears, (ratio, 0.9, ratio / 2)):
        linear["sparsity"] = share
    (directory / "coppice_report.json").write_text(json.dumps(
        {{"blocks": [{{"linears": linears}}], "totals": {{"wall_seconds": 1.5}}}}))
    (directory / "model.safetensors.index.json").write_text("")
out = pathlib.Path(values("-o")[0])
if command == "run":
    write(out, GAINS[values("--solver")[0]])
    sys.exit()
out.mkdir(parents=True)
varied = dict(v.split("=") for v in values("--vary"))
if "lr" in varied:
    lines = ["name,reconstruct.lr,held_out_loss"]
    lines += [f"{{lr}},{{lr}},{{abs(float(lr) - 1e-3)}}" for lr in varied["lr"].split(",")]
else:
    recipes = values("--recipe")
    lines = ["name," + ("recipe," if len(recipes) > 1 else "") + "prune.method,held_out_loss"]
    for recipe in recipes:
        stem, text = pathlib.Path(recipe).stem, pathlib.Path(recipe).read_text()
        gain = GAINS[text.split()[-1]] + {without_biases} * ("--add-biases" not in arguments)
        for method in varied["prune-method"].split(","):
            name = f"{{stem}}_{{method}}" if len(recipes) > 1 else method
            lines.append(",".join([name, *([stem] if len(recipes) > 1 else []), method, "3.5"]))
            write(out / name, gain)
(out / "sweep.csv").write_text("\\n".join(lines) + "\\n")
"""


class LiarCase(unittest.TestCase):
    """A folder with a model, files and the program. Suites give what follows."""

    script = None  # its module
    linears = ()  # names of a consumer of neurons, a producer of them, and a consumer of heads
    without_biases = 0.5  # what it costs to add none
    files = {}  # by flag, their contents

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = Path(scratch.name)
        self.program = self.dir / "coppice"
        patterns = zip(self.linears, ("ffn", "ffn", "heads"), strict=True)
        linears = [{"name": name, "pattern": pattern} for name, pattern in patterns]
        self.program.write_text(
            STAND_IN.format(
                python=sys.executable, linears=linears, without_biases=self.without_biases
            )
        )
        self.program.chmod(0o755)
        model = self.dir / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_text("weights")
        for name, content in self.files.items():
            (self.dir / name).write_text(content)
        handlers = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
        self.addCleanup(lambda: [signal.signal(*handler) for handler in handlers])
        os.environ["STAND_IN"] = str(self.dir)

    def measure(self, *more):
        arguments = [f"--{name}={self.dir / name}" for name in (*self.files, "model", "out")]
        arguments += [f"--program={self.program}", "--ratios=0.1,0.5", *more]
        with contextlib.redirect_stdout(io.StringIO()):
            self.script.measure(self.script.parse(arguments))

    def calls(self):
        return [json.loads(line) for line in (self.dir / "calls").read_text().splitlines()]

    def rows(self):
        with (self.dir / "out/liar.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def page(self):
        return (self.dir / "out/liar.md").read_text()
