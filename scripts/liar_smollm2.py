"""Measures structured pruning with and without LIAR; see liar_smollm2.sh."""

import argparse
import functools
import math
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import liar_plot
from liar_steps import (
    BIAS,
    LIAR,
    NONE,
    ROOT,
    SCRIPTS,
    STOCK,
    TRAINED,
    LiarSteps,
    as_csv,
    fetched_model,
    numbers,
    share_flags,
    words,
)
from measuring_steps import (
    MeasuringError,
    Program,
    exit_code,
    file_hash,
    finite,
    machine,
    model_hash,
    program_in,
    write_atomically,
)
from quickstart_summary import read_json

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


class Experiment(LiarSteps):
    """Sweeps over criteria and ways of reconstruction, one or two a ratio."""

    def __init__(self, setup: Setup, out: Path, program: Program):
        names = {setup.model: "MODEL", setup.dataset: "DATASET", setup.text: "TEXT"}
        super().__init__(out, program, setup.settings, names)
        self.setup = setup

    def rows(self) -> list[Row]:
        rows = [Row(0, "", "dense", **self.dense_quality(self.setup.model))]
        lr = self.rate()
        for ratio in self.setup.ratios:
            added = ["--add-biases", "true"]
            rows += self.swept_rows("added", ratio, [NONE, BIAS, LIAR, TRAINED], added, lr)
            rows += self.swept_rows("stock", ratio, [STOCK], [], lr)
        return rows

    def quality(self, name: str, directory: Path, kind: str = "") -> dict:
        setup = self.setup
        result = self.evaluate(name, directory, setup.text, EVAL_SEQLEN, setup.max_windows)
        value = finite(result["perplexity"])
        return {"perplexity": math.inf if value is None else value}

    def data_flags(self) -> list[str]:
        setup = self.setup
        return [
            *["--model", str(setup.model), "--dataset", str(setup.dataset)],
            *["--nsamples", str(setup.nsamples), "--seqlen", str(setup.seqlen)],
        ]

    def rate(self) -> float:
        """Of training after LIAR."""
        arguments = ["sweep", *self.data_flags(), *share_flags(RATE_RATIO)]
        arguments += ["--prune-method", RATE_CRITERION, "--solver", TRAINED, "--add-biases", "true"]
        return self.best_rate("rate", arguments, self.setup.rates)

    def swept_rows(
        self, stem: str, ratio: float, kinds: list[str], flags: list[str], lr: float
    ) -> list[Row]:
        flags = [*self.data_flags(), *share_flags(ratio), *flags]
        swept = self.swept_columns(f"{stem}.{ratio:g}", flags, kinds, self.setup.criteria, lr)
        return [Row(ratio, **columns) for columns in swept]

    def cut_out(self) -> dict:
        """A third cut out: its size, its quality and its speed in transformers."""
        arguments = ["run", *self.data_flags(), *share_flags(CUT), "--head-units", "group"]
        arguments += ["--prune-method", "flap", "--solver", LIAR, "--structured-output", "sliced"]

        def make() -> dict:
            self.checkpoint("sliced", arguments)
            directory = self.work / "sliced"
            result = self.quality("sliced", directory)
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


# --- the page


def as_markdown(rows: list[Row], cut: dict, setup: Setup) -> str:
    (dense,) = [row for row in rows if row.reconstruction == "dense"]
    lines = [
        f"Perplexity of {setup.model.name} on {setup.text.name} (first {setup.max_windows} windows"
        f" of {EVAL_SEQLEN:,} tokens; dense {dense.perplexity:.2f}), calibrated on"
        f" {setup.nsamples} × {setup.seqlen} tokens of {setup.dataset.name}; {machine()},"
        f" {date.today()}.",
        "",
        "![perplexity by what was removed](liar.svg)",
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


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="liar_smollm2.sh", description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "liar-smollm2")
    parser.add_argument("--ratios", type=numbers, default=(0.1, 0.2, 0.3, 0.5))
    parser.add_argument("--criteria", type=words, default=("magnitude_sp", "wanda_sp", "flap"))
    parser.add_argument("--nsamples", type=int, default=64)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--rates", type=numbers, default=(3e-4, 1e-3, 3e-3))
    parser.add_argument("--max-windows", type=int, default=20)
    parser.add_argument("--program", type=Path, default=ROOT / "build/release/bin/coppice")
    return parser.parse_args(arguments)


def measure(args: argparse.Namespace) -> None:
    setup = Setup(
        (args.model or fetched_model("fetch_smollm2.py", "smollm2-135m")).resolve(),
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
        perplexity = liar_plot.Quality("perplexity", "perplexity", "log")
        dense, *pruned = rows
        liar_plot.draw(dense, {"": pruned}, KINDS, [perplexity], out / "liar.svg")
    print(f"\n{out / 'liar.md'}\n{out / 'liar.csv'}\n{out / 'liar.svg'}")


if __name__ == "__main__":
    sys.exit(exit_code("liar_smollm2", lambda: measure(parse())))
