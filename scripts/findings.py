"""Measures what the paper claims, table by table, and writes one page; see findings.sh.

Every finished step leaves a record, OUT/records/<step>.json, with the settings it was made with;
a step that was interrupted is continued by `coppice … --resume` in OUT/work. Checkpoints go once
they are evaluated, reports stay in OUT/reports and what the program said in OUT/logs.
"""

import argparse
import functools
import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import h5py
import numpy as np

import findings_plot
import findings_tables as tables
from findings_tables import About, RateChoice, Row
from measuring_steps import (
    MeasuringError,
    Program,
    Steps,
    exit_code,
    file_hash,
    finite,
    model_hash,
    program_in,
    write_atomically,
)
from quickstart_summary import read_json

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"

HELD_OUT = 0.0625  # of the windows of a row, the program's default
RATE_HELD_OUT = 0.25  # where rates are chosen: few windows would judge by one or two otherwise
# The tenfold row takes more steps and may want a lower rate: chosen on more windows, too.
TENFOLD_RATE_SAMPLES = 4
PATTERN_KEYS = {
    "50 %": {"sparsity": "0.5"},
    "60 %": {"sparsity": "0.6"},
    "2:4": {"sparsity-type": "2:4"},
}


@dataclass(frozen=True)
class Setup:
    """What the numbers depend on."""

    model: Path
    dataset: Path
    text: Path
    nsamples: int
    seqlen: int
    rate_samples: int
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    max_windows: int
    eval_seqlen: int

    @functools.cached_property
    def settings(self) -> dict:
        """As records keep them: files by their contents, so that they may move."""
        return {
            "model": model_hash(self.model),
            "dataset": file_hash(self.dataset),
            "text": file_hash(self.text),
            "nsamples": self.nsamples,
            "seqlen": self.seqlen,
            "rate_samples": self.rate_samples,
            "rates": list(self.rates),
            "max_windows": self.max_windows,
            "eval_seqlen": self.eval_seqlen,
        }


FULL = {
    "nsamples": 64,
    "seqlen": 512,
    "rate_samples": 32,
    "rates": (1e-4, 3e-4, 1e-3, 3e-3),
    "seeds": (0, 1, 2),
    "max_windows": 20,
    "eval_seqlen": 2048,
}
QUICK = {
    "nsamples": 8,
    "seqlen": 128,
    "rate_samples": 4,
    "rates": (3e-4, 1e-3),
    "seeds": (0,),
    "max_windows": 4,
    "eval_seqlen": 512,
}


@dataclass(frozen=True)
class Recipe:
    """What a row asks of `coppice run`, but for the learning rate."""

    criterion: str = "wanda"
    pattern: str = "50 %"
    window: str = "half-block"
    propagation: str = "dense"
    loss: str = "mse"

    @property
    def name(self) -> str:
        pattern = plain(self.pattern)
        return f"{self.criterion}.{pattern}.{self.window}.{self.propagation}.{self.loss}"

    def flags(self, varied: tuple[str, ...] = ()) -> list[str]:
        """Of `coppice run`; without those that a sweep varies."""
        keys = {
            "prune-method": self.criterion,
            **PATTERN_KEYS[self.pattern],
            "window": self.window,
            "propagation": self.propagation,
            "loss": self.loss,
        }
        pairs = [(f"--{key}", value) for key, value in keys.items() if key not in varied]
        return [part for pair in pairs for part in pair]


def plain(pattern: str) -> str:
    """As a part of file names."""
    return pattern.replace(" %", "").replace(":", "of")


# --- calibration text


class Text:
    """Windows of the dataset: some drawn by seed to train on, the file's end to judge by."""

    def __init__(self, setup: Setup, folder: Path):
        self.setup = setup
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def windows(self) -> np.ndarray:  # [windows, seqlen]
        tokens, seqlen = self.setup.dataset, self.setup.seqlen
        if tokens.suffix not in (".h5", ".hdf5"):
            tokens = self.tokenised()
        with h5py.File(tokens) as file:
            if "input_ids" not in file:
                raise MeasuringError(f"{tokens}: no /input_ids")
            ids = file["input_ids"][:]
        if ids.ndim == 2 and ids.shape[1] != seqlen:
            raise MeasuringError(
                f"{tokens}: holds windows of {ids.shape[1]} tokens: --seqlen {ids.shape[1]}"
            )
        ids = ids.reshape(-1)
        windows = ids[: len(ids) // seqlen * seqlen].reshape(-1, seqlen)
        if len(windows) < self.needed:
            raise MeasuringError(
                f"{self.setup.dataset}: {len(windows)} windows of {seqlen} tokens, {self.needed}"
                " are needed: give more text, or a smaller --nsamples"
            )
        return windows

    @property
    def most_held_out(self) -> int:
        tenfold = tables.TENFOLD * self.setup.nsamples
        rates = TENFOLD_RATE_SAMPLES * self.setup.rate_samples
        return max(num_held_out(HELD_OUT, tenfold), num_held_out(RATE_HELD_OUT, rates))

    @property
    def needed(self) -> int:
        """Those to prune with, ten times as many fresh ones, and those held out."""
        tenfold = num_trained(HELD_OUT, tables.TENFOLD * self.setup.nsamples)
        rates = num_trained(RATE_HELD_OUT, TENFOLD_RATE_SAMPLES * self.setup.rate_samples)
        return self.pruned_with + max(tenfold, rates) + self.most_held_out

    @property
    def pruned_with(self) -> int:
        return num_trained(HELD_OUT, self.setup.nsamples)

    def tokenised(self) -> Path:
        """As `coppice run` does it: documents joined by the end-of-sequence token."""
        tokens = self.folder / "tokens.h5"
        if tokens.exists():
            return tokens
        eos = read_json(self.setup.model / "config.json").get("eos_token_id")
        if isinstance(eos, list):
            eos = eos[0]
        command = [sys.executable, SCRIPTS / "tokenize_text.py", "--tokenizer", self.setup.model]
        command += ["--input", self.setup.dataset, "--output", tokens]
        command += [] if eos is None else ["--join-token", eos]
        code = subprocess.run([str(part) for part in command]).returncode
        if code != 0:
            raise MeasuringError(f"{self.setup.dataset}: not tokenised, see above", code)
        return tokens

    def take(self, seed: int, count: int, held_out: float, is_fresh: bool = False) -> Path:
        """A file of `count` windows, the held-out ones last, where the program expects them.

        The same seed gives the same order: fewer windows are the first of more. Fresh ones are
        none of those that the seed's model was pruned with.
        """
        name = f"seed{seed}.{count}.held-out-{held_out:g}{'.fresh' if is_fresh else ''}.h5"
        path = self.folder / name
        if path.exists():
            return path
        num_held = num_held_out(held_out, count)
        pool = len(self.windows) - self.most_held_out
        order = np.random.default_rng(seed).permutation(pool)
        first = self.pruned_with if is_fresh else 0
        train = self.windows[order[first : first + count - num_held]]
        return write_windows(path, np.concatenate([train, self.windows[-num_held:]]))

    def end(self, count: int) -> Path:
        """The last windows alone."""
        path = self.folder / f"end.{count}.h5"
        return path if path.exists() else write_windows(path, self.windows[-count:])


def write_windows(path: Path, ids: np.ndarray) -> Path:
    temporary = path.with_suffix(".tmp")
    with h5py.File(temporary, "w") as file:
        file["input_ids"] = ids.astype(np.int32)
    os.replace(temporary, path)
    return path


def num_held_out(share: float, count: int) -> int:
    """As the program counts them: the last ⌈share · count⌉, at least one."""
    return max(1, math.ceil(share * count - 1e-9))


def num_trained(share: float, count: int) -> int:
    return count - num_held_out(share, count)


# --- steps


class Experiment(Steps):
    """The steps behind the tables. Each is done once and then read from its record."""

    def __init__(self, setup: Setup, out: Path, program: Program):
        names = {setup.model: "MODEL", setup.text: "TEXT"}
        super().__init__(out, program, setup.settings, names)
        self.setup = setup
        self.text = Text(setup, out / "windows")

    def perplexity(self, name: str, directory: Path) -> float:
        """On the text that is reported."""
        setup = self.setup
        result = self.evaluate(name, directory, setup.text, setup.eval_seqlen, setup.max_windows)
        value = finite(result["perplexity"])
        return math.inf if value is None else value

    def data_flags(self, model: Path, dataset: Path, count: int, seed: int) -> list[str]:
        return [
            *["--model", str(model), "--dataset", str(dataset), "--nsamples", str(count)],
            *["--seqlen", str(self.setup.seqlen), "--seed", str(seed), "--shuffle", "true"],
        ]

    # Rows

    def dense(self) -> dict:
        arguments = ["eval", str(self.setup.model)]
        return self.once(
            "dense", arguments, lambda: {"perplexity": self.perplexity("dense", self.setup.model)}
        )

    def run_of(self, recipe: Recipe, seed: int, lr: float | None) -> tuple[str, list[str]]:
        """Name and arguments of the `coppice run` of a row. It is pruned only without a rate."""
        count = self.setup.nsamples
        dataset = self.text.take(seed, count, HELD_OUT)
        arguments = ["run", *self.data_flags(self.setup.model, dataset, count, seed)]
        return f"{recipe.name}.seed{seed}", [*arguments, *recipe.flags(), *rate_flags(lr)]

    def ran(self, recipe: Recipe, seed: int, lr: float | None) -> dict:
        """A run and its perplexity; its checkpoint goes."""
        name, arguments = self.run_of(recipe, seed, lr)

        def make() -> dict:
            result = numbers_of_run(self.checkpoint(name, arguments))
            result |= {"perplexity": self.perplexity(name, self.work / name), "lr": lr}
            return result | self.size_of(arguments)

        result = self.once(name, arguments, make)
        if lr is not None:  # the pruned ones are what retraining starts from
            self.discard(name)
        return result

    def reconstructed(self, recipe: Recipe, seed: int = 0) -> dict:
        return self.ran(recipe, seed, self.rate(recipe).lr)

    def pruned(self, seed: int) -> dict:
        return self.ran(Recipe(window="none"), seed, None)

    def size_of(self, arguments: list[str]) -> dict:
        windows = int(arguments[arguments.index("--nsamples") + 1])
        return {
            "windows": windows,
            "tokens": windows * self.setup.seqlen,
            "command": self.command(arguments),
        }

    def retrain(self, name: str, seed: int, dataset: Path, lr: float, *flags: str) -> dict:
        """`coppice retrain` of the pruned model of a seed, which is made again where it is gone."""
        with h5py.File(dataset) as file:
            count = file["input_ids"].shape[0]
        pruned, pruning = self.run_of(Recipe(window="none"), seed, None)
        arguments = ["retrain", *self.data_flags(self.work / pruned, dataset, count, seed)]
        arguments += [*rate_flags(lr), *flags]

        def make() -> dict:
            self.checkpoint(pruned, pruning)
            result = numbers_of_retraining(self.checkpoint(name, arguments))
            if not flags:  # a row, and not a search for its rate
                result["perplexity"] = self.perplexity(name, self.work / name)
            return result | {"lr": lr} | self.size_of(arguments)

        result = self.once(name, arguments, make)
        self.discard(name)
        return result

    def retrained(self, seed: int, times: int) -> dict:
        count = times * self.setup.nsamples
        dataset = self.text.take(seed, count, HELD_OUT, is_fresh=times > 1)
        lr = self.retraining_rate(times).lr
        result = self.retrain(f"masked-lora.{times}x.seed{seed}", seed, dataset, lr)
        # Local reconstruction prunes within its run, retraining before it.
        pruning = self.pruned(seed)["wall_seconds"]
        training = result["wall_seconds"]
        both = None if pruning is None or training is None else pruning + training
        return result | {"wall_seconds": both}

    # Learning rates

    def rate(self, recipe: Recipe) -> RateChoice:
        """On few windows, judged by the loss of the whole model on those held out."""
        count = self.setup.rate_samples
        dataset = self.text.take(0, count, RATE_HELD_OUT)
        arguments = self.data_flags(self.setup.model, dataset, count, 0) + recipe.flags()
        arguments += ["--validation-fraction", str(RATE_HELD_OUT)]
        # A sweep shares one dense pass, so it cannot propagate anything else.
        of_rates = self.rates_swept if recipe.propagation == "dense" else self.rates_run
        what = ", ".join(
            [f"{recipe.criterion} {recipe.pattern}", recipe.window, recipe.propagation, recipe.loss]
        )
        return chosen_rate(what, count, of_rates(f"rate.{recipe.name}", arguments))

    def rates_swept(self, name: str, arguments: list[str]) -> dict[float, float | None]:
        arguments = ["sweep", *arguments, "--outputs", "none"]
        arguments += ["--vary", f"lr={rates_text(self.setup.rates)}"]

        def make() -> dict:
            lines, _ = self.swept(name, arguments)
            pairs = [(of_key(line, "lr"), of_key(line, "held-out-loss")) for line in lines]
            return {"losses": [(float(lr), finite(loss)) for lr, loss in pairs]}

        result = self.once(name, arguments, make)
        self.discard(name)
        return dict(result["losses"])

    def rates_run(self, name: str, arguments: list[str]) -> dict[float, float | None]:
        return {lr: self.rate_run(f"{name}.{lr:g}", arguments, lr) for lr in self.setup.rates}

    def rate_run(self, name: str, arguments: list[str], lr: float) -> float | None:
        """What a sweep would have said: a run, its model judged on the same held-out windows."""
        count, seqlen = self.setup.rate_samples, self.setup.seqlen
        held_out = self.text.end(num_held_out(RATE_HELD_OUT, count))
        arguments = ["run", *arguments, *rate_flags(lr)]

        def make() -> dict:
            self.checkpoint(name, arguments)
            judged = self.evaluate(name, self.work / name, held_out, seqlen, 0)
            return {"loss": finite(judged["nll"])}

        result = self.once(name, arguments, make)
        self.discard(name)
        return result["loss"]

    def retraining_rate(self, times: int) -> RateChoice:
        """By a short retraining at each rate, judged on its held-out windows."""
        is_tenfold = times > 1
        count = self.setup.rate_samples * (TENFOLD_RATE_SAMPLES if is_tenfold else 1)
        dataset = self.text.take(0, count, RATE_HELD_OUT, is_fresh=is_tenfold)
        flags = ["--validation-fraction", str(RATE_HELD_OUT)]
        losses = {}
        for lr in self.setup.rates:
            name = f"rate.masked-lora.{times}x.{lr:g}"
            losses[lr] = self.retrain(name, 0, dataset, lr, *flags)["held_out_after"]
        return chosen_rate(tables.LORA_TENFOLD if is_tenfold else tables.LORA, count, losses)

    # Tables

    def row(self, table: str, name: str, result: dict, seed: int = 0, **keys: object) -> Row:
        known = Row.__dataclass_fields__
        return Row(table, name, seed, **{k: v for k, v in result.items() if k in known}, **keys)

    def table_a(self) -> tuple[list[Row], list[RateChoice]]:
        recipe, pruned_only = Recipe(), Recipe(window="none")
        rows = [self.row("a", tables.DENSE, self.dense())]
        for seed in self.setup.seeds:
            made = {
                tables.PRUNED: (self.pruned(seed), keys_of(pruned_only)),
                tables.RECONSTRUCTED: (self.reconstructed(recipe, seed), keys_of(recipe)),
                tables.LORA: (self.retrained(seed, 1), keys_of(pruned_only)),
                tables.LORA_TENFOLD: (self.retrained(seed, tables.TENFOLD), keys_of(pruned_only)),
            }
            rows += [
                self.row("a", name, result, seed, **keys) for name, (result, keys) in made.items()
            ]
            self.discard(self.run_of(pruned_only, seed, None)[0])
        rates = [self.rate(recipe), self.retraining_rate(1), self.retraining_rate(tables.TENFOLD)]
        return rows, rates

    def table_b(self) -> tuple[list[Row], list[RateChoice]]:
        recipes = {window: Recipe(window=window) for window in tables.WINDOWS}
        return self.rows_of_runs("b", recipes)

    def table_d(self) -> tuple[list[Row], list[RateChoice]]:
        recipes = {
            tables.variant_name(propagation, loss): Recipe(propagation=propagation, loss=loss)
            for propagation, loss in tables.VARIANTS
        }
        return self.rows_of_runs("d", recipes)

    def rows_of_runs(
        self, table: str, recipes: dict[str, Recipe]
    ) -> tuple[list[Row], list[RateChoice]]:
        rows = [
            self.row(table, name, self.reconstructed(recipe), **keys_of(recipe))
            for name, recipe in recipes.items()
        ]
        return rows, [self.rate(recipe) for recipe in recipes.values()]

    def table_c(self) -> tuple[list[Row], list[RateChoice]]:
        rows, rates = [], []
        for pattern in tables.PATTERNS:
            by_rate: dict[float, list[str]] = {}
            for criterion in tables.CRITERIA:
                rates.append(self.rate(Recipe(criterion, pattern)))
                by_rate.setdefault(rates[-1].lr, []).append(criterion)
            # One dense pass serves all criteria that want the same rate, pruned only included.
            for lr, criteria in by_rate.items():
                rows += self.criteria(pattern, criteria, lr)
        return rows, rates

    def criteria(self, pattern: str, criteria: list[str], lr: float) -> list[Row]:
        """One sweep, each of its checkpoints evaluated and deleted."""
        name = f"criteria.{plain(pattern)}.{'+'.join(criteria)}"
        count = self.setup.nsamples
        dataset = self.text.take(0, count, HELD_OUT)
        arguments = ["sweep", *self.data_flags(self.setup.model, dataset, count, 0)]
        arguments += Recipe(pattern=pattern).flags(varied=("prune-method", "window"))
        arguments += [*rate_flags(lr), "--outputs", "all"]
        arguments += ["--vary", "prune-method=" + ",".join(criteria)]
        arguments += ["--vary", "window=none,half-block"]

        def make() -> dict:
            is_begun = any((self.work / f"{name}.work").rglob("journal.bin"))
            lines, took = self.swept(name, arguments)
            cost = {
                "wall_seconds": None if is_begun else took.seconds,
                "peak_rss_bytes": took.peak_rss_bytes,
                "resumed": is_begun,
                "recipes_in_command": len(lines),
            }
            return {"lines": lines, "cost": cost | self.size_of(arguments)}

        result = self.once(name, arguments, make)
        rows = []
        for line in result["lines"]:
            window = of_key(line, "window")
            recipe = Recipe(of_key(line, "prune-method"), pattern, window)
            # Time and memory are those of the sweep as a whole, whatever a report in it says.
            numbers = self.evaluated(name, line["name"], recipe) | result["cost"]
            numbers["lr"] = None if window == "none" else lr
            row_name = tables.criterion_name(recipe.criterion, window != "none")
            rows.append(self.row("c", row_name, numbers, **keys_of(recipe)))
        self.discard(name)
        return rows

    def evaluated(self, sweep: str, directory_name: str, recipe: Recipe) -> dict:
        """One checkpoint of a sweep, which goes."""
        directory = self.work / sweep / directory_name
        name = f"{sweep}.{recipe.criterion}.{recipe.window}"

        def make() -> dict:
            report = directory / "coppice_report.json"
            if not report.exists():
                record = self.records.path(sweep)
                raise MeasuringError(
                    f"{report}: not there; remove {record} and {self.work / sweep}* to make the"
                    " sweep again",
                    3,
                )
            shutil.copyfile(report, self.reports / f"{name}.json")
            numbers = numbers_of_run(read_json(report))
            return numbers | {"perplexity": self.perplexity(name, directory)}

        result = self.once(name, ["eval", str(directory)], make)
        shutil.rmtree(directory, ignore_errors=True)
        return result


def chosen_rate(what: str, windows: int, losses: dict[float, float | None]) -> RateChoice:
    """The rate of the least loss; of equal ones the lowest."""
    known = {lr: loss for lr, loss in sorted(losses.items()) if loss is not None}
    if not known:
        raise MeasuringError(f"{what}: no learning rate gave a finite held-out loss", 6)
    return RateChoice(what, windows, known, min(known, key=known.get))


def rate_flags(lr: float | None) -> list[str]:
    return [] if lr is None else ["--lr", f"{lr:g}"]


def keys_of(recipe: Recipe) -> dict:
    keys = asdict(recipe)
    return keys if recipe.window != "none" else keys | {"propagation": "", "loss": ""}


def of_key(line: dict, key: str) -> str:
    """A column; that of a varied key is headed by its flag or by its section.name path."""
    for heading in line:
        flag = heading.replace("_", "-").replace(".", "-")
        if flag == key or flag.endswith(f"-{key}"):
            return line[heading]
    raise MeasuringError(f"sweep.csv: no column for {key}; there are {', '.join(line)}", 4)


def numbers_of_run(report: dict) -> dict:
    """Of a `coppice run`: cost, held-out errors summed over windows, what was not as asked."""
    windows = [window for block in report["blocks"] for window in block["windows"]]
    linears = [linear for block in report["blocks"] for linear in block["linears"]]
    pairs = [
        (finite(w["validation_pruned"]), finite(w["validation_reconstructed"])) for w in windows
    ]
    before = after = None
    if pairs and not any(None in pair for pair in pairs):
        before, after = (sum(values) for values in zip(*pairs))
    totals = report["totals"]
    resumed = totals["resumed"]
    return {
        "device": "{device}, {description}".format(**report["machine"]),
        "held_out_unit": report["recipe"]["reconstruct"]["loss"] if pairs else "",
        "held_out_before": before,
        "held_out_after": after,
        "held_out_ratio": after / before if before else None,
        "sparsity": sum(linear["sparsity"] for linear in linears) / max(len(linears), 1),
        # Of a run that was continued, the report knows the last process only.
        "wall_seconds": None if resumed else totals["wall_seconds"],
        "resumed": resumed,
        "peak_rss_bytes": totals["peak_rss_bytes"],
        "kept_pruned": sum(window["kept"] == "pruned" for window in windows),
        "fallbacks": sum(bool(linear["fallback"]) for linear in linears),
    }


def numbers_of_retraining(report: dict) -> dict:
    """Of a `coppice retrain`: cost, and nats a token on its held-out windows."""
    retrain, totals = report["retrain"], report["totals"]
    resumed = totals["resumed"]
    before, after = finite(retrain["validation_pruned"]), finite(retrain["validation_retrained"])
    return {
        "held_out_unit": "nats",
        "held_out_before": before,
        "held_out_after": after,
        "held_out_ratio": after / before if before and after is not None else None,
        "sparsity": retrain["zeros"] / retrain["weights"],
        # Training and judging by all processes; what a continued one loses is reading the model.
        "wall_seconds": retrain["seconds"] if resumed else totals["wall_seconds"],
        "resumed": resumed,
        "peak_rss_bytes": totals["peak_rss_bytes"],
        "kept_pruned": int(retrain["kept"] == "pruned"),
    }


# --- the page


def about(setup: Setup, records: dict[str, dict], is_quick: bool) -> About:
    """Machines and days are those of the records: a page may be made long after them."""
    done = [record for record in records.values() if record["result"] is not None]
    machines = sorted({record["machine"] for record in done})
    machines += sorted({r["result"]["device"] for r in done if "device" in r["result"]})
    days = sorted({record["date"] for record in done})
    command = ["scripts/findings.sh", "--dataset", setup.dataset.name, "--text", setup.text.name]
    if is_quick:
        command.append("--quick")
    usual = replace(setup, **(QUICK if is_quick else FULL))
    for flag, value, otherwise in (
        ("--nsamples", setup.nsamples, usual.nsamples),
        ("--seqlen", setup.seqlen, usual.seqlen),
        ("--rate-samples", setup.rate_samples, usual.rate_samples),
        ("--rates", rates_text(setup.rates), rates_text(usual.rates)),
        ("--seeds", len(setup.seeds), len(usual.seeds)),
        ("--max-windows", setup.max_windows, usual.max_windows),
    ):
        command += [flag, str(value)] if value != otherwise else []
    is_smollm2 = "smollm2" in setup.model.name.lower()
    if not is_smollm2:
        command += ["--model", setup.model.name]
    windows = f"first {setup.max_windows} windows" if setup.max_windows else "all windows"
    return About(
        model=setup.model.name,
        machine="; ".join(machines),
        date=days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
        command=shlex.join(command),
        text=f"{setup.text.name}, {windows} of {setup.eval_seqlen:,} tokens",
        calibration=f"{setup.dataset.name}, {setup.nsamples} windows of {setup.seqlen} tokens",
        is_rounded=is_smollm2,
        is_quick=is_quick,
    )


def write_page(experiment: Experiment, is_quick: bool) -> None:
    """From all tables that are complete, so that a long run shows what it has."""
    records = experiment.records.all()
    rows, rates = [], {}
    for table in "abcd":
        result = records.get(f"table.{table}", {}).get("result")
        if not result:
            continue
        rows += [Row(**row) for row in result["rows"]]
        for choice in result["rates"]:
            choice["values"] = dict(choice["values"])
            rates.setdefault(choice["what"], RateChoice(**choice))
    shown = about(experiment.setup, records, is_quick)
    out = experiment.out
    write_atomically(out / "findings.csv", tables.as_csv(rows))
    write_atomically(out / "findings.md", tables.as_markdown(rows, list(rates.values()), shown))
    findings_plot.draw(rows, shown, [out / "findings.png", out / "findings.svg"])


def make_table(experiment: Experiment, table: str) -> None:
    """Its steps are records; so is the table, for a page made by a call with --only another."""
    print(f"\n=== table {table}", flush=True)
    make = {
        "a": experiment.table_a,
        "b": experiment.table_b,
        "c": experiment.table_c,
        "d": experiment.table_d,
    }
    rows, rates = make[table]()
    choices = [asdict(rate) | {"values": list(rate.values.items())} for rate in rates]
    result = {"rows": [asdict(row) for row in rows], "rates": choices}
    experiment.records.write(f"table.{table}", [], result)


# --- command line


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="findings.sh", description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=tuple("abcd"))
    parser.add_argument("--nsamples", type=int)
    parser.add_argument("--seqlen", type=int)
    parser.add_argument("--rate-samples", type=int)
    parser.add_argument("--rates", type=rates)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--max-windows", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--program", type=Path, default=ROOT / "build/release/bin/coppice")
    return parser.parse_args(arguments)


def rates(text: str) -> tuple[float, ...]:
    """"3e-4,1e-3" as learning rates."""
    values = tuple(float(part) for part in text.split(","))
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError
    return values


def rates_text(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def setup_of(args: argparse.Namespace, model: Path) -> Setup:
    given = {
        key: value
        for key in ("nsamples", "seqlen", "rate_samples", "rates", "max_windows")
        if (value := getattr(args, key)) is not None
    }
    if args.seeds is not None:
        given["seeds"] = tuple(range(args.seeds))
    numbers = (QUICK if args.quick else FULL) | given
    setup = Setup(model.resolve(), args.dataset.resolve(), args.text.resolve(), **numbers)
    if setup.nsamples < 2 or setup.rate_samples < 2 or setup.seqlen < 2 or not setup.seeds:
        raise MeasuringError("--nsamples, --rate-samples, --seqlen: 2 or more; --seeds: 1 or more")
    if setup.max_windows < 0:
        raise MeasuringError("--max-windows: 0 (all) or more")
    return setup


def fetched_model() -> Path:
    model = ROOT / "models" / "smollm2-135m"
    command = [sys.executable, str(SCRIPTS / "fetch_smollm2.py"), str(model)]
    code = subprocess.run(command).returncode
    if code != 0:
        raise MeasuringError("no model, see above; give one by --model DIR", code)
    return model


def measure(args: argparse.Namespace) -> None:
    setup = setup_of(args, args.model or fetched_model())
    out = (args.out or ROOT / "runs" / ("findings-quick" if args.quick else "findings")).resolve()
    with program_in(out, args.program) as program:
        experiment = Experiment(setup, out, program)
        for table in args.only or "abcd":
            make_table(experiment, table)
            write_page(experiment, args.quick)
    print(f"\n{out / 'findings.md'}\n{out / 'findings.csv'}\n{out / 'findings.png'}")


def main() -> int:
    args = parse()
    return exit_code("findings", lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
