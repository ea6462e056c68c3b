"""Measures structured pruning of a sentence encoder with and without LIAR; see liar_minilm.sh."""

import argparse
import functools
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import liar_plot
from liar_minilm_tables import KINDS, About, Measured, Row, as_markdown
from liar_steps import (
    ROOT,
    TRAINED,
    LiarSteps,
    as_csv,
    fetched_model,
    numbers,
    removed_shares,
    share_flags,
    words,
)
from measuring_steps import (
    MeasuringError,
    Program,
    exit_code,
    file_hash,
    finite,
    model_hash,
    program_in,
    write_atomically,
)

UNIFORM = "uniform"
RATE_RATIO, RATE_CRITERION = 0.5, "wanda_sp"  # the rate is chosen here, for all
BEST_CRITERIA = ("flap", "wanda_sp")  # of the candidates for the best
SEQUENTIAL = ("mixed",)  # statistics as the pruned prefix makes them
MEASURES = ("fidelity", "fidelity_min", "spearman", "pearson")
SENTENCE_FIELDS = (5, 6)  # of a row of STS-B, from 0


@dataclass(frozen=True)
class Setup:
    """What the numbers depend on."""

    model: Path
    train: Path
    dev: Path
    test: Path
    nsamples: tuple[int, ...]
    seqlen: int
    ratios: tuple[float, ...]
    criteria: tuple[str, ...]
    allocations: tuple[str, ...]
    rates: tuple[float, ...]
    epochs: tuple[int, ...]  # the first in the tables
    batch_size: int

    @functools.cached_property
    def settings(self) -> dict:
        """Files by their contents, so that they may move."""
        return {
            "model": model_hash(self.model),
            "train": file_hash(self.train),
            "dev": file_hash(self.dev),
            "test": file_hash(self.test),
            "seqlen": self.seqlen,
            "rates": list(self.rates),
            "batch_size": self.batch_size,
        }


@dataclass(frozen=True)
class Share:
    """What is removed: of every block the same share, or of the model."""

    ratio: float
    allocation: str

    def __str__(self) -> str:
        return f"{self.ratio:g}" if self.allocation == UNIFORM else f"{self.ratio:g}.{self.allocation}"


class Experiment(LiarSteps):
    """A sweep over criteria and ways of reconstruction a ratio; then candidates for the best."""

    def __init__(self, setup: Setup, out: Path, program: Program):
        super().__init__(out, program, setup.settings, {setup.model: "MODEL"})
        self.setup = setup
        self.dataset = self.out / "sentences.txt"
        sentences = distinct_sentences(setup.train, max(setup.nsamples))
        write_atomically(self.dataset, "\n".join(sentences) + "\n")

    def measured(self) -> Measured:
        setup = self.setup
        measured = Measured(Row(0, 0, "", "dense", **self.dense_quality(setup.model)))
        for nsamples, ratio in itertools.product(setup.nsamples, setup.ratios):
            rows, candidates = [], []
            for allocation in setup.allocations:
                share = Share(ratio, allocation)
                rows += self.swept_rows(nsamples, share, KINDS, setup.criteria, setup.epochs[0])
                candidates += self.candidates(nsamples, share)
            trained = [row for row in rows if row.reconstruction == TRAINED]
            max([*trained, *candidates], key=lambda row: row.dev_fidelity).best = 1
            measured.rows += rows
            measured.candidates += candidates
        return measured

    def candidates(self, nsamples: int, share: Share) -> list[Row]:
        """For the best: trained longer, or with sequential statistics, or both."""
        rows = []
        for epochs in self.setup.epochs[1:]:
            rows += self.swept_rows(nsamples, share, (TRAINED,), BEST_CRITERIA, epochs)
        for epochs, *names in itertools.product(self.setup.epochs, SEQUENTIAL, BEST_CRITERIA):
            rows.append(self.sequential_row(nsamples, share, epochs, *names))
        return rows

    def quality(self, name: str, directory: Path, kind: str) -> dict:
        """The dense model beside it; what may become the best is judged on both splits."""
        columns = {}
        splits = {"test": self.setup.test}
        if kind == TRAINED:
            splits["dev"] = self.setup.dev
        for split, file in splits.items():
            flags = ["--task", "stsb", "--data", str(file), "--against", str(self.setup.model)]
            result = self.said_by_eval(f"{name}.{split}", directory, flags)
            for measure in MEASURES:
                value = finite(result[measure])
                column = measure if split == "test" else f"{split}_{measure}"
                columns[column] = -math.inf if value is None else value
        return columns

    def flags(self, nsamples: int, share: Share, epochs: int) -> list[str]:
        setup = self.setup
        return [
            *["--model", str(setup.model), "--dataset", str(self.dataset)],
            # Drawn: the file is sorted by genre.
            *["--nsamples", str(nsamples), "--sample-windows", "true"],
            *["--seqlen", str(setup.seqlen)],
            *share_flags(share.ratio),
            *["--allocation", share.allocation],
            *["--epochs", str(epochs), "--batch-size", str(setup.batch_size)],
        ]

    def rate(self, nsamples: int) -> float:
        """Of training after LIAR; longer training takes the same."""
        epochs = self.setup.epochs[0]
        arguments = ["sweep", *self.flags(nsamples, Share(RATE_RATIO, UNIFORM), epochs)]
        arguments += ["--prune-method", RATE_CRITERION, "--solver", TRAINED]
        return self.best_rate(f"rate.{nsamples}.{epochs}", arguments, self.setup.rates)

    def swept_rows(
        self,
        nsamples: int,
        share: Share,
        kinds: tuple[str, ...],
        criteria: tuple[str, ...],
        epochs: int,
    ) -> list[Row]:
        """Under dense propagation."""
        stem = "ways" if kinds == KINDS else "longer"
        name = f"{stem}.{nsamples}.{share}.{epochs}"
        flags = self.flags(nsamples, share, epochs)
        rows = []
        for columns in self.swept_columns(name, flags, kinds, criteria, self.rate(nsamples)):
            is_trained = columns["reconstruction"] == TRAINED
            how = {"allocation": share.allocation, "epochs": epochs if is_trained else None}
            rows.append(Row(nsamples, share.ratio, **how, **columns))
        return rows

    def sequential_row(
        self, nsamples: int, share: Share, epochs: int, propagation: str, criterion: str
    ) -> Row:
        name = f"{propagation}.{nsamples}.{share}.{epochs}.{criterion}"
        lr = self.rate(nsamples)
        arguments = ["run", *self.flags(nsamples, share, epochs), "--propagation", propagation]
        arguments += ["--prune-method", criterion, "--solver", TRAINED, "--lr", f"{lr:g}"]

        def make() -> dict:
            report = self.checkpoint(name, arguments)
            made = {"sweep_seconds": report["totals"]["wall_seconds"]}
            return made | removed_shares(report) | self.quality(name, self.work / name, TRAINED)

        result = self.once(name, arguments, make)
        self.discard(name)
        how = {"propagation": propagation, "epochs": epochs, "lr": lr}
        how["allocation"] = share.allocation
        return Row(nsamples, share.ratio, criterion, TRAINED, **how, **result)


def sentences_of(file: Path) -> Iterator[str]:
    """Both of every row, each on one line, their scores left alone."""
    try:
        # At nothing else: quotes, and what other ends of lines there are, are part of sentences.
        lines = file.read_bytes().decode("utf-8").split("\n")
    except OSError as error:
        raise MeasuringError(f"{file}: {error.strerror}", 3) from error
    except UnicodeDecodeError as error:
        raise MeasuringError(f"{file}: not UTF-8: {error.reason}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) <= SENTENCE_FIELDS[-1]:
            raise MeasuringError(
                f"{file}, line {number}: {len(columns)} fields between tabs; the sixth and the"
                " seventh are sentences"
            )
        for column in SENTENCE_FIELDS:
            yield " ".join(columns[column].split())


def distinct_sentences(file: Path, count: int) -> list[str]:
    """In order, each once; at least so many."""
    found = dict.fromkeys(sentence for sentence in sentences_of(file) if sentence)
    if len(found) < count:
        raise MeasuringError(f"{file}: {len(found)} distinct sentences, --nsamples wants {count}")
    return list(found)


# --- command line


def counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="liar_minilm.sh", description=__doc__)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "liar-minilm")
    parser.add_argument("--ratios", type=numbers, default=(0.1, 0.3, 0.5, 0.7))
    criteria = ("random_sp", "magnitude_sp", "wanda_sp", "flap")
    parser.add_argument("--criteria", type=words, default=criteria)
    parser.add_argument("--allocations", type=words, default=(UNIFORM, "measured"))
    parser.add_argument("--nsamples", type=counts, default=(256, 2048))
    parser.add_argument("--seqlen", type=int, default=128)
    parser.add_argument("--rates", type=numbers, default=(1e-4, 3e-4, 1e-3, 3e-3))
    parser.add_argument("--epochs", type=counts, default=(10,))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--program", type=Path, default=ROOT / "build/release/bin/coppice")
    return parser.parse_args(arguments)


def measure(args: argparse.Namespace) -> None:
    setup = Setup(
        (args.model or fetched_model("fetch_minilm.py", "minilm")).resolve(),
        args.train.resolve(),
        args.dev.resolve(),
        args.test.resolve(),
        args.nsamples,
        args.seqlen,
        args.ratios,
        args.criteria,
        args.allocations,
        args.rates,
        args.epochs,
        args.batch_size,
    )
    about = About(setup.model.name, setup.train.name, setup.dev.name, setup.test.name)
    out = args.out.resolve()
    with program_in(out, args.program) as program:
        measured = Experiment(setup, out, program).measured()
        write_atomically(out / "liar.csv", as_csv(measured.all()))
        write_atomically(out / "liar.md", as_markdown(measured, about))
        groups = measured.groups()
        qualities = [liar_plot.Quality("fidelity", "fidelity")]
        qualities += [liar_plot.Quality("spearman", "Spearman")]
        liar_plot.draw(measured.dense, groups, KINDS, qualities, out / "liar.svg")
    print(f"\n{out / 'liar.md'}\n{out / 'liar.csv'}\n{out / 'liar.svg'}")


if __name__ == "__main__":
    sys.exit(exit_code("liar_minilm", lambda: measure(parse())))
