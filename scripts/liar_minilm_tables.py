"""What liar_minilm.py measured: as a page of tables, and as statements.

Every statement is decided here from the numbers, with the bounds below, and says them.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from findings_tables import markdown_table
from liar_steps import BIAS, LIAR, NONE, TRAINED
from measuring_steps import machine

KINDS = (NONE, BIAS, LIAR, TRAINED)
FIDELITIES = {0.5: 0.90, 0.3: 0.955}  # of LIAR, by what was removed
SPEARMAN_RATIO = 0.5
LIAR_KEEPS, BEST_KEEPS = 0.95, 0.98  # of the dense model's Spearman correlation


@dataclass
class Row:
    """One line of liar.csv. Quality on the test split, and under dev_ on the one that decides."""

    nsamples: int
    ratio: float
    criterion: str
    reconstruction: str
    fidelity: float  # mean cosine between the embeddings and the dense model's
    fidelity_min: float
    spearman: float
    pearson: float
    dev_fidelity: float | None = None  # of what was trained, as the next
    dev_fidelity_min: float | None = None
    dev_spearman: float | None = None
    dev_pearson: float | None = None
    held_out_loss: float | None = None  # relative squared error of the last hidden states
    ffn_removed: float | None = None  # as it came out, in the mean over blocks
    heads_removed: float | None = None
    sweep_seconds: float | None = None  # of all rows made together
    rows_together: int = 1
    allocation: str = "uniform"
    propagation: str = "dense"
    epochs: int | None = None  # of what was trained
    lr: float | None = None
    best: int = 0  # 1: of its ratio and sentences, by dev_fidelity


@dataclass
class Measured:
    """All rows: `rows` in tables, `candidates` for the best alone, and which are the best."""

    dense: Row
    rows: list[Row] = field(default_factory=list)
    candidates: list[Row] = field(default_factory=list)

    def all(self) -> list[Row]:
        return [self.dense, *self.rows, *self.candidates]

    def best(self) -> list[Row]:
        """In the order of the tables."""
        found = [row for row in self.all() if row.best]
        return sorted(found, key=lambda row: (row.nsamples, row.ratio))

    def groups(self) -> dict[str, list[Row]]:
        """The rows of the tables, by the heading of theirs."""
        found = {}
        for row in self.rows:
            found.setdefault(f"{row.nsamples:,} sentences, {row.allocation}", []).append(row)
        return found

    def kept(self, row: Row) -> float:
        """Share of the dense model's Spearman correlation."""
        return row.spearman / self.dense.spearman


# --- tables


def quality_table(rows: list[Row], shown: Callable[[Row], str]) -> str:
    """A line a ratio and criterion, a column a way of reconstruction."""
    cells = {(row.ratio, row.criterion, row.reconstruction): shown(row) for row in rows}
    lines = [
        [f"{ratio:.0%}", criterion, *(cells.get((ratio, criterion, kind), "") for kind in KINDS)]
        for ratio, criterion in dict.fromkeys((row.ratio, row.criterion) for row in rows)
    ]
    return markdown_table(["removed", "criterion", *KINDS], lines)


def best_table(measured: Measured) -> str:
    headings = ["sentences", "removed", "chosen", "fidelity, dev", "fidelity", "Spearman"]
    lines = [
        [
            *[f"{row.nsamples:,}", f"{row.ratio:.0%}", chosen(row), f"{row.dev_fidelity:.3f}"],
            *[f"{row.fidelity:.3f}", f"{measured.kept(row):.1%}"],
        ]
        for row in measured.best()
    ]
    return markdown_table(headings, lines)


def chosen(row: Row) -> str:
    """How a row was made."""
    text = f"{row.criterion}, {row.reconstruction}"
    if row.reconstruction == TRAINED:
        text += f", {row.allocation}, {row.propagation} propagation, epochs: {row.epochs}"
    return text


# --- statements


def order_statement(rows: list[Row]) -> str:
    """Each way is better than the one before it: where, and where not."""
    places = {}
    for row in rows:
        place = f"{row.nsamples:,} sentences, {row.allocation}, {row.ratio:.0%}, {row.criterion}"
        places.setdefault(place, {})[row.reconstruction] = row.fidelity
    exceptions = []
    for place, found in places.items():
        wrong = [
            f"{first} {found[first]:.4f}, {second} {found[second]:.4f}"
            for first, second in itertools.pairwise(KINDS)
            if not found[first] < found[second]
        ]
        if wrong:
            exceptions.append(f"{place}: {'; '.join(wrong)}")
    lines = [
        f"Fidelity: {' < '.join(KINDS)}: in {len(places) - len(exceptions)} of {len(places)} places"
        " (sentences, allocation, ratio, criterion)" + (", but not in" if exceptions else ""),
        *(f"    * {exception}" for exception in exceptions),
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Bound:
    """What rows at one ratio are to reach."""

    what: str
    ratio: float
    least: float
    digits: str  # as in f"{value:{digits}}"


def bound_statement(
    bound: Bound, rows: Sequence[Row], value: Callable[[Row], float], name: Callable[[Row], str]
) -> str:
    """By which rows it is reached, by number of sentences."""
    found = {}
    for row in rows:
        if row.ratio == bound.ratio:
            is_reached = value(row) >= bound.least
            said = f"{name(row)} ({value(row):{bound.digits}})"
            found.setdefault(row.nsamples, {True: [], False: []})[is_reached].append(said)
    parts = []
    for nsamples, by_answer in found.items():
        answers = [
            f"{answer} by {', '.join(by_answer[is_reached])}"
            for is_reached, answer in ((True, "reached"), (False, "missed"))
            if by_answer[is_reached]
        ]
        parts.append(f"{nsamples:,} sentences: {'; '.join(answers)}")
    return (
        f"{bound.what} at {bound.ratio:.0%}, at least {bound.least:{bound.digits}}: "
        + ("; ".join(parts) if parts else "not measured")
    )


def statements(measured: Measured) -> list[str]:
    def fidelity(row: Row) -> float:
        return row.fidelity

    def criterion(row: Row) -> str:
        return f"{row.criterion}, {row.allocation}"

    liar = [row for row in measured.rows if row.reconstruction == LIAR]
    said = [order_statement(measured.rows)]
    for ratio, least in FIDELITIES.items():
        bound = Bound(f"Fidelity of {LIAR}", ratio, least, ".4f")
        said.append(bound_statement(bound, liar, fidelity, criterion))
    bound = Bound(f"Spearman of {LIAR}, of the dense", SPEARMAN_RATIO, LIAR_KEEPS, ".2%")
    said.append(bound_statement(bound, liar, measured.kept, criterion))
    bound = Bound("Spearman of the best, of the dense", SPEARMAN_RATIO, BEST_KEEPS, ".2%")
    said.append(bound_statement(bound, measured.best(), measured.kept, chosen))
    return said


# --- the page


@dataclass(frozen=True)
class About:
    """What the page says of where numbers come from."""

    model: str
    train: str
    dev: str
    test: str


def as_markdown(measured: Measured, about: About) -> str:
    dense = measured.dense
    parts = [
        f"Fidelity: mean cosine between sentence embeddings of the pruned and of the dense"
        f" {about.model}. Spearman: correlation of the cosine of two sentences with people's score,"
        f" in percent of the dense model's, which is {dense.spearman:.4f}. Both on {about.test}."
        f" Calibrated on distinct sentences of {about.train}, drawn, without scores; of neurons"
        f" and of heads the same share is removed, of every block (uniform) or of the model, as"
        f" trials find it best (measured); {machine()}.",
        "![fidelity and Spearman by what was removed](liar.svg)",
    ]
    for heading, rows in measured.groups().items():
        rates = sorted({row.lr for row in rows if row.lr is not None})
        parts += [
            f"## {heading}",
            f"Rate of training: {', '.join(f'{lr:g}' for lr in rates)}, by held-out sentences.",
            "Fidelity:",
            quality_table(rows, lambda row: f"{row.fidelity:.3f}"),
            "Spearman, of the dense:",
            quality_table(rows, lambda row: f"{measured.kept(row):.1%}"),
        ]
    parts += [
        "## The best",
        f"Of {TRAINED}, also with mixed propagation or more epochs, by the fidelity on"
        f" {about.dev}.",
        best_table(measured),
        "## What holds",
        "Decided by the program that made this page.",
        "\n".join(f"{number}. {said}" for number, said in enumerate(statements(measured), start=1)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
