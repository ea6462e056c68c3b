"""Measures structured pruning with and without LIAR; see liar_smollm2.sh."""

import argparse
import csv
import functools
import io
import math
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import liar_plot
from measuring_steps import (
    MeasuringError,
    Program,
    Steps,
    exit_code,
    file_hash,
    finite,
    machine,
    model_hash,
    program_in,
    write_atomically,
)
from quickstart_summary import read_json

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"

NONE, BIAS, LIAR, TRAINED = "none", "bias", "liar", "liar+adamw"
STOCK = "liar, no biases added"
KINDS = (NONE, BIAS, STOCK, LIAR, TRAINED)
RATE_RATIO, RATE_CRITERION = 0.3, "flap"  # the rate is chosen here, for all
CUT = 0.34  # of the neurons, and one of three key-value heads
EVAL_SEQLEN = 2048


@dataclass(frozen=True)
class Setup:
    """What the numbers depend on."""

    model: Path
    dataset: Path
    text: Path
    nsamples: int
    seqlen: int
    ratios: tuple[float, ...]
    criteria: tuple[str, ...]
    rates: tuple[float, ...]
    max_windows: int

    @functools.cached_property
    def settings(self) -> dict:
        """Files by their contents, so that they may move."""
        return {
            "model": model_hash(self.model),
            "dataset": file_hash(self.dataset),
            "text": file_hash(self.text),
            "nsamples": self.nsamples,
            "seqlen": self.seqlen,
            "rates": list(self.rates),
            "max_windows": self.max_windows,
        }


@dataclass
class Row:
    """One line of liar.csv."""

    ratio: float
    criterion: str
    reconstruction: str
    perplexity: float
    held_out_loss: float | None = None  # nats a token, of the whole model
    ffn_removed: float | None = None  # as it came out, in the mean over blocks
    heads_removed: float | None = None
    sweep_seconds: float | None = None  # of all rows made together
    rows_together: int = 1
    lr: float | None = None


class Experiment(Steps):
    """Sweeps over criteria and ways of reconstruction, one or two a ratio."""

    def __init__(self, setup: Setup, out: Path, program: Program):
        super().__init__(out, program, setup.settings, {setup.model: "MODEL", setup.text: "TEXT"})
        self.setup = setup

    def rows(self) -> list[Row]:
        rows = [Row(0, "", "dense", self.dense())]
        lr = self.rate()
        for ratio in self.setup.ratios:
            added = ["--add-biases", "true"]
            rows += self.swept_rows(ratio, [NONE, BIAS, LIAR, TRAINED], added, lr)
            rows += self.swept_rows(ratio, [STOCK], [], lr)
        return rows

    def dense(self) -> float:
        def make() -> dict:
            return {"perplexity": self.perplexity("dense", self.setup.model)}

        return self.once("dense", ["eval", str(self.setup.model)], make)["perplexity"]

    def perplexity(self, name: str, directory: Path) -> float:
        setup = self.setup
        result = self.evaluate(name, directory, setup.text, EVAL_SEQLEN, setup.max_windows)
        value = finite(result["perplexity"])
        return math.inf if value is None else value

    def data_flags(self) -> list[str]:
        setup = self.setup
        return [
            *["--model", str(setup.model), "--dataset", str(setup.dataset)],
            *["--nsamples", str(setup.nsamples), "--seqlen", str(setup.seqlen)],
        ]

    def share_flags(self, ratio: float) -> list[str]:
        return ["--ffn-sparsity", f"{ratio:g}", "--head-sparsity", f"{ratio:g}"]

    def recipe(self, kind: str) -> Path:
        """A recipe file of one way of reconstruction."""
        keys = {
            NONE: "window: none",
            BIAS: "solver: bias",
            LIAR: "solver: liar",
            STOCK: "solver: liar",
            TRAINED: "solver: liar+adamw",
        }
        path = self.work / "recipes" / f"{kind.replace('+', '-').partition(',')[0]}.yaml"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, f"reconstruct:\n  {keys[kind]}\n")
        return path

    def rate(self) -> float:
        """Of training after LIAR, by the loss of the whole model on held-out windows."""
        arguments = ["sweep", *self.data_flags(), *self.share_flags(RATE_RATIO)]
        arguments += ["--prune-method", RATE_CRITERION, "--solver", TRAINED, "--add-biases", "true"]
        rates = ",".join(f"{lr:g}" for lr in self.setup.rates)
        arguments += ["--outputs", "none", "--vary", f"lr={rates}"]

        def make() -> dict:
            lines, _ = self.swept("rate", arguments)
            return {"losses": [(float(line["reconstruct.lr"]), loss_of(line)) for line in lines]}

        losses = self.once("rate", arguments, make)["losses"]
        self.discard("rate")
        known = {lr: loss for lr, loss in sorted(losses) if loss is not None}
        if not known:
            raise MeasuringError("no learning rate gave a finite held-out loss", 6)
        return min(known, key=known.get)

    def swept_rows(self, ratio: float, kinds: list[str], flags: list[str], lr: float) -> list[Row]:
        """One sweep, each of its checkpoints evaluated and deleted."""
        stem = "stock" if kinds == [STOCK] else "added"
        name = f"{stem}.{ratio:g}"
        recipes = [self.recipe(kind) for kind in kinds]
        arguments = ["sweep", *self.data_flags(), *self.share_flags(ratio), *flags]
        arguments += [part for path in recipes for part in ("--recipe", str(path))]
        arguments += ["--lr", f"{lr:g}"]
        arguments += ["--vary", "prune-method=" + ",".join(self.setup.criteria)]

        def make() -> dict:
            lines, took = self.swept(name, arguments)
            return {"lines": lines, "seconds": took.seconds}

        result = self.once(name, arguments, make)
        by_stem = {path.stem: kind for path, kind in zip(recipes, kinds, strict=True)}
        rows = []
        for line in result["lines"]:
            kind = by_stem[line.get("recipe", recipes[0].stem)]
            row = self.evaluated(name, line["name"], ratio, line["prune.method"], kind)
            row.held_out_loss = loss_of(line)
            row.sweep_seconds, row.rows_together = result["seconds"], len(result["lines"])
            row.lr = lr if kind == TRAINED else None
            rows.append(row)
        self.discard(name)
        return rows

    def evaluated(self, sweep: str, directory_name: str, ratio: float, *names: str) -> Row:
        directory = self.work / sweep / directory_name
        name = f"{sweep}.{directory_name}"

        def make() -> dict:
            report = directory / "coppice_report.json"
            shutil.copyfile(report, self.reports / f"{name}.json")
            shares = removed_shares(read_json(report))
            return shares | {"perplexity": self.perplexity(name, directory)}

        result = self.once(name, ["eval", str(directory)], make)
        shutil.rmtree(directory, ignore_errors=True)
        return Row(ratio, *names, **result)

    def cut_out(self) -> dict:
        """A third cut out: its size, its quality and its speed in transformers."""
        arguments = ["run", *self.data_flags(), *self.share_flags(CUT), "--head-units", "group"]
        arguments += ["--prune-method", "flap", "--solver", LIAR, "--structured-output", "sliced"]

        def make() -> dict:
            self.checkpoint("sliced", arguments)
            directory = self.work / "sliced"
            result = {"perplexity": self.perplexity("sliced", directory)}
            command = [sys.executable, str(SCRIPTS / "time_forward.py"), str(directory)]
            done = subprocess.run(
                [*command, "--against", str(self.setup.model)], stdout=subprocess.PIPE, text=True
            )
            if done.returncode != 0:
                raise MeasuringError("time_forward.py: see above", done.returncode)
            (self.reports / "sliced.time.json").write_text(done.stdout)
            return result | read_json(self.reports / "sliced.time.json")

        result = self.once("sliced", arguments, make)
        self.discard("sliced")
        return result | {"command": self.command(arguments)}


def loss_of(line: dict) -> float | None:
    return finite(line["held_out_loss"])


def removed_shares(report: dict) -> dict:
    """Of neurons and of heads: the zeros of the consumers' columns."""
    found = {"ffn": [], "heads": []}
    for block in report["blocks"]:
        for linear in block["linears"]:
            if linear["name"].endswith(("down_proj.weight", "o_proj.weight")):
                found[linear["pattern"]].append(linear["sparsity"])
    return {
        f"{kind}_removed": sum(values) / len(values) if values else 0.0
        for kind, values in found.items()
    }


# --- the page


def as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
        writer.writerow(values)
    return text.getvalue()


def as_markdown(rows: list[Row], cut: dict, setup: Setup) -> str:
    (dense,) = [row for row in rows if row.reconstruction == "dense"]
    lines = [
        f"Perplexity of {setup.model.name} on {setup.text.name} (first {setup.max_windows} windows"
        f" of {EVAL_SEQLEN:,} tokens; dense {dense.perplexity:.2f}), calibrated on"
        f" {setup.nsamples} × {setup.seqlen} tokens of {setup.dataset.name}; {machine()}.",
        "",
        "| removed | criterion | " + " | ".join(KINDS) + " |",
        "|---|---|" + "---|" * len(KINDS),
    ]
    for ratio in setup.ratios:
        for criterion in setup.criteria:
            found = {
                row.reconstruction: f"{row.perplexity:.2f}"
                for row in rows
                if (row.ratio, row.criterion) == (ratio, criterion)
            }
            cells = [f"{ratio:.0%}", criterion, *(found.get(kind, "") for kind in KINDS)]
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"A third cut out (`{cut['command']}`): {cut['bytes'] / 2**20:.0f} MiB of"
        f" {cut['against_bytes'] / 2**20:.0f} MiB, a forward pass of {cut['tokens']} tokens in"
        f" {cut['seconds']:.3f} s beside {cut['against_seconds']:.3f} s (medians of"
        f" {cut['rounds']} alternations in one process), perplexity {cut['perplexity']:.2f}.",
    ]
    return "\n".join(lines) + "\n"


# --- command line


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="liar_smollm2.sh", description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "liar-smollm2")
    parser.add_argument("--ratios", type=numbers, default=(0.1, 0.2, 0.3, 0.5))
    parser.add_argument(
        "--criteria",
        type=lambda text: tuple(text.split(",")),
        default=("magnitude_sp", "wanda_sp", "flap"),
    )
    parser.add_argument("--nsamples", type=int, default=64)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--rates", type=numbers, default=(3e-4, 1e-3, 3e-3))
    parser.add_argument("--max-windows", type=int, default=20)
    parser.add_argument("--program", type=Path, default=ROOT / "build/release/bin/coppice")
    return parser.parse_args(arguments)


def fetched_model() -> Path:
    model = ROOT / "models" / "smollm2-135m"
    command = [sys.executable, str(SCRIPTS / "fetch_smollm2.py"), str(model)]
    code = subprocess.run(command).returncode
    if code != 0:
        raise MeasuringError("no model, see above; give one by --model DIR", code)
    return model


def measure(args: argparse.Namespace) -> None:
    setup = Setup(
        (args.model or fetched_model()).resolve(),
        args.dataset.resolve(),
        args.text.resolve(),
        args.nsamples,
        args.seqlen,
        args.ratios,
        args.criteria,
        args.rates,
        args.max_windows,
    )
    out = args.out.resolve()
    with program_in(out, args.program) as program:
        experiment = Experiment(setup, out, program)
        rows = experiment.rows()
        write_atomically(out / "liar.csv", as_csv(rows))
        write_atomically(out / "liar.md", as_markdown(rows, experiment.cut_out(), setup))
        liar_plot.draw(rows, KINDS, out / "liar.svg")
    print(f"\n{out / 'liar.md'}\n{out / 'liar.csv'}\n{out / 'liar.svg'}")


if __name__ == "__main__":
    sys.exit(exit_code("liar_smollm2", lambda: measure(parse())))
