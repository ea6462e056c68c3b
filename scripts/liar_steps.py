"""Ways of reconstruction after neurons and heads went, and how they are measured.

Used by liar_smollm2.py and liar_minilm.py, which say what quality is.
"""

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from measuring_steps import MeasuringError, Steps, finite, write_atomically
from quickstart_summary import read_json

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"

NONE, BIAS, LIAR, TRAINED = "none", "bias", "liar", "liar+adamw"
STOCK = "liar, no biases added"
RECIPES = {
    NONE: "window: none",
    BIAS: "solver: bias",
    LIAR: "solver: liar",
    STOCK: "solver: liar",
    TRAINED: "solver: liar+adamw",
}
# What reads neurons and heads: of Llama, and of BERT both.
CONSUMERS = ("down_proj.weight", "o_proj.weight", "output.dense.weight")


class LiarSteps(Steps):
    """Sweeps over criteria and ways of reconstruction."""

    def quality(self, name: str, directory: Path, kind: str) -> dict:
        """Of a checkpoint that was made in one of the ways, as columns of its row."""
        raise NotImplementedError

    def dense_quality(self, model: Path) -> dict:
        def make() -> dict:
            return self.quality("dense", model, "dense")

        return self.once("dense", ["eval", str(model)], make)

    def recipe(self, kind: str) -> Path:
        """A recipe file of one way of reconstruction."""
        path = self.work / "recipes" / f"{kind.replace('+', '-').partition(',')[0]}.yaml"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, f"reconstruct:\n  {RECIPES[kind]}\n")
        return path

    def best_rate(self, name: str, arguments: list[str], rates: Sequence[float]) -> float:
        """By the loss of the whole model on held-out windows."""
        varied = ",".join(f"{lr:g}" for lr in rates)
        arguments = [*arguments, "--outputs", "none", "--vary", f"lr={varied}"]

        def make() -> dict:
            lines, _ = self.swept(name, arguments)
            return {"losses": [(float(line["reconstruct.lr"]), loss_of(line)) for line in lines]}

        losses = self.once(name, arguments, make)["losses"]
        self.discard(name)
        known = {lr: loss for lr, loss in sorted(losses) if loss is not None}
        if not known:
            raise MeasuringError("no learning rate gave a finite held-out loss", 6)
        return min(known, key=known.get)

    def swept_columns(
        self, name: str, flags: list[str], kinds: Sequence[str], criteria: Sequence[str], lr: float
    ) -> list[dict]:
        """One sweep, each of its checkpoints judged and deleted; the columns of their rows."""
        recipes = [self.recipe(kind) for kind in kinds]
        arguments = ["sweep", *flags]
        arguments += [part for path in recipes for part in ("--recipe", str(path))]
        arguments += ["--lr", f"{lr:g}", "--vary", "prune-method=" + ",".join(criteria)]

        def make() -> dict:
            lines, took = self.swept(name, arguments)
            return {"lines": lines, "seconds": took.seconds}

        result = self.once(name, arguments, make)
        by_stem = {path.stem: kind for path, kind in zip(recipes, kinds, strict=True)}
        rows = []
        for line in result["lines"]:
            kind = by_stem[line.get("recipe", recipes[0].stem)]
            columns = {
                "criterion": line["prune.method"],
                "reconstruction": kind,
                "held_out_loss": loss_of(line),
                "sweep_seconds": result["seconds"],
                "rows_together": len(result["lines"]),
                "lr": lr if kind == TRAINED else None,
            }
            rows.append(columns | self.judged(name, line["name"], kind))
        self.discard(name)
        return rows

    def judged(self, sweep: str, directory_name: str, kind: str) -> dict:
        """What was removed and what is left of the quality; the checkpoint is deleted."""
        directory = self.work / sweep / directory_name
        name = f"{sweep}.{directory_name}"

        def make() -> dict:
            report = directory / "coppice_report.json"
            shutil.copyfile(report, self.reports / f"{name}.json")
            return removed_shares(read_json(report)) | self.quality(name, directory, kind)

        result = self.once(name, ["eval", str(directory)], make)
        shutil.rmtree(directory, ignore_errors=True)
        return result


def share_flags(ratio: float) -> list[str]:
    return ["--ffn-sparsity", f"{ratio:g}", "--head-sparsity", f"{ratio:g}"]


def loss_of(line: dict) -> float | None:
    return finite(line["held_out_loss"])


def removed_shares(report: dict) -> dict:
    """Of neurons and of heads: the zeros of the consumers' columns."""
    found = {"ffn": 0.0, "heads": 0.0}
    for block in report["blocks"]:
        for linear in block["linears"]:
            if linear["name"].endswith(CONSUMERS):
                found[linear["pattern"]] += linear["sparsity"]
    # A block that lost none has no line.
    return {f"{kind}_removed": total / len(report["blocks"]) for kind, total in found.items()}


def as_csv(rows: Sequence) -> str:
    """Rows of one dataclass, a column a field."""
    text = io.StringIO()
    names = [field.name for field in fields(rows[0])]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
        writer.writerow(values)
    return text.getvalue()


# --- command line


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def fetched_model(script: str, directory: str) -> Path:
    """models/DIRECTORY, as the script makes it unless it is there."""
    model = ROOT / "models" / directory
    code = subprocess.run([sys.executable, str(SCRIPTS / script), str(model)]).returncode
    if code != 0:
        raise MeasuringError("no model, see above; give one by --model DIR", code)
    return model
