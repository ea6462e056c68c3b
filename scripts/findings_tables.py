"""What findings.py measured: as CSV, as a page of tables, as verdicts on the paper's claims.

Every verdict is decided here from the numbers, with the margins below, and says them.
"""

import csv
import io
import math
from dataclasses import asdict, dataclass, fields

from quickstart_summary import duration

SAME = 0.03  # perplexities that differ by no more than this share are the same
LESS_WORK = 10.0  # "over ten times less compute": of wall time
NARROWER = 0.9  # a gap shrinks if this share of it, or less, is left
TENFOLD = 10  # tokens of the last row of table a, in those of the others

DENSE = "dense"
PRUNED = "pruned only"
RECONSTRUCTED = "reconstructed"
LORA = "masked LoRA"
LORA_TENFOLD = f"masked LoRA, {TENFOLD} times the tokens"

WINDOWS = ("matrix", "half-block", "block", "2")
CRITERIA = ("magnitude", "wanda", "ria", "sparsegpt")
CLAIMED_CRITERIA = ("magnitude", "wanda", "sparsegpt")
PATTERNS = ("50 %", "60 %", "2:4")
VARIANTS = (
    ("dense", "mse"),
    ("sparse", "mse"),
    ("mixed", "mse"),
    ("dense", "cosine"),
    ("dense", "mse_normalized"),
)
CLAIMED_VARIANTS = VARIANTS[:4]

HELD = "held at this size"
IN_PART = "held in part at this size"
NOT_HELD = "did not hold at this size"
UNDECIDED = "not decided"


@dataclass
class Row:
    """One line of findings.csv. None: there is no such number."""

    table: str
    row: str
    seed: int = 0
    criterion: str = ""
    pattern: str = ""
    window: str = ""
    propagation: str = ""
    loss: str = ""
    windows: int = 0  # of calibration or training, the held-out ones included
    tokens: int = 0
    lr: float | None = None
    perplexity: float = math.inf
    held_out_unit: str = ""
    held_out_before: float | None = None
    held_out_after: float | None = None
    held_out_ratio: float | None = None
    sparsity: float | None = None
    wall_seconds: float | None = None  # pruning included; None where it was interrupted
    recipes_in_command: int = 1  # a sweep takes its wall time for so many rows together
    resumed: bool = False
    peak_rss_bytes: int | None = None
    kept_pruned: int = 0  # windows (or models) where training improved nothing
    fallbacks: int = 0  # matrices not pruned as asked
    command: str = ""


@dataclass
class RateChoice:
    """The loss of the whole model, in nats a token, on held-out calibration text, by rate."""

    what: str
    windows: int
    values: dict[float, float]
    lr: float

    @property
    def is_at_edge(self) -> bool:
        return self.lr in (min(self.values), max(self.values))


@dataclass
class About:
    """What stands under every table and figure."""

    model: str
    machine: str
    date: str
    command: str
    text: str  # "WikiText-2, first 20 windows of 2,048 tokens"
    calibration: str
    is_rounded: bool  # the dense model was rounded to 4 bits before it got here
    is_quick: bool = False


@dataclass
class Spread:
    """One number for all seeds of a row."""

    mean: float
    least: float
    most: float
    count: int


@dataclass
class Verdict:
    claim: str
    outcome: str
    numbers: str


# --- CSV


def as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(
        text, [field.name for field in fields(Row)], lineterminator="\n"
    )
    writer.writeheader()
    for row in rows:
        values = {
            name: f"{value:.6g}" if isinstance(value, float) else value
            for name, value in asdict(row).items()
        }
        writer.writerow(values)
    return text.getvalue()


# --- looking rows up


def find(rows: list[Row], table: str, name: str, pattern: str = "") -> list[Row]:
    """The rows of one name, one for each seed."""
    return [
        row
        for row in rows
        if row.table == table
        and row.row == name
        and (not pattern or row.pattern == pattern)
    ]


def spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    mean = sum(values) / len(values)
    return Spread(mean, min(values), max(values), len(values))


def perplexity(
    rows: list[Row], table: str, name: str, pattern: str = ""
) -> Spread | None:
    return spread([row.perplexity for row in find(rows, table, name, pattern)])


def shortest(same_rows: list[Row]) -> float | None:
    """Wall time of the seeds that nothing interrupted: other work only makes a run longer."""
    seconds = [row.wall_seconds for row in same_rows if row.wall_seconds is not None]
    return min(seconds, default=None)


def wall(rows: list[Row], table: str, name: str) -> float | None:
    return shortest(find(rows, table, name))


def variant_name(propagation: str, loss: str) -> str:
    return f"{propagation}, {loss}"


def criterion_name(criterion: str, is_reconstructed: bool) -> str:
    return f"{criterion}, {RECONSTRUCTED if is_reconstructed else PRUNED}"


# --- verdicts


def difference(values: list[float]) -> float:
    """By what share the largest is above the smallest; not finite counts as endlessly far."""
    if not all(map(math.isfinite, values)):
        return math.inf
    return max(values) / min(values) - 1


def claim_retraining(rows: list[Row]) -> Verdict:
    claim = (
        f"Local reconstruction matches LoRA retraining with {TENFOLD} times less data and"
        " compute."
    )
    local, same, tenfold = (
        perplexity(rows, "a", name) for name in (RECONSTRUCTED, LORA, LORA_TENFOLD)
    )
    if not (local and same and tenfold):
        return Verdict(claim, UNDECIDED, "table a is not complete.")
    matches = local.mean <= tenfold.mean * (1 + SAME)
    local_wall, tenfold_wall = (
        wall(rows, "a", name) for name in (RECONSTRUCTED, LORA_TENFOLD)
    )
    ratio = tenfold_wall / local_wall if local_wall and tenfold_wall else None
    if not matches:
        outcome = NOT_HELD
    elif ratio is None:
        outcome = UNDECIDED
    else:
        outcome = HELD if ratio >= LESS_WORK else IN_PART
    time = (
        "wall times are not comparable, because runs were interrupted"
        if ratio is None
        else f"masked LoRA took {ratio:.1f} times the wall time, pruning included (wanted:"
        f" {LESS_WORK:g} or more)"
    )
    numbers = (
        f"Perplexity {local.mean:.2f} by reconstruction, {tenfold.mean:.2f} by masked LoRA with"
        f" {TENFOLD} times the tokens ({local.mean / tenfold.mean - 1:+.1%}; a match is at most"
        f" {SAME:+.0%}) and {same.mean:.2f} with the same tokens, means of {local.count} seed(s);"
        f" {time}."
    )
    return Verdict(claim, outcome, numbers)


def claim_granularity(rows: list[Row]) -> Verdict:
    claim = (
        "Half-blocks, blocks and several blocks do equally well; single matrices do worse"
        " in small models."
    )
    found = [perplexity(rows, "b", name) for name in WINDOWS]
    if not all(found):
        return Verdict(claim, UNDECIDED, "table b is not complete.")
    matrix, *larger = [value.mean for value in found]
    apart, worse = difference(larger), matrix / max(larger) - 1
    are_same, is_worse = apart <= SAME, worse > SAME
    numbers = (
        f"From half-block to two blocks perplexities lie {apart:.1%} apart (the same is at most"
        f" {SAME:.0%}); single matrices are {worse:+.1%} from the worst of them (worse is more than"
        f" {SAME:+.0%}). One seed."
    )
    return Verdict(claim, outcome_of([are_same, is_worse]), numbers)


def claim_criteria(rows: list[Row]) -> Verdict:
    claim = (
        "Reconstruction narrows the gap between magnitude, Wanda and SparseGPT (the more, the"
        " larger the model)."
    )
    shrinks, said = [], []
    for pattern in PATTERNS:
        gaps = [criteria_gap(rows, pattern, after) for after in (False, True)]
        if None in gaps:
            return Verdict(claim, UNDECIDED, "table c is not complete.")
        before, after = gaps
        shrinks.append(after <= NARROWER * before)
        said.append(f"{pattern}: {math.exp(before):.2f} → {math.exp(after):.2f}")
    numbers = (
        f"Worst over best perplexity of the three, before → after: {'; '.join(said)}. Narrower"
        f" means that at most {NARROWER:.0%} of its logarithm is left. One seed; one model cannot"
        " say what becomes of it as models grow."
    )
    return Verdict(claim, outcome_of(shrinks), numbers)


def criteria_gap(
    rows: list[Row], pattern: str, is_reconstructed: bool
) -> float | None:
    """ln(worst / best perplexity) of the criteria that the claim names."""
    found = [
        perplexity(rows, "c", criterion_name(criterion, is_reconstructed), pattern)
        for criterion in CLAIMED_CRITERIA
    ]
    if not all(found):
        return None
    return math.log1p(difference([value.mean for value in found]))


def claim_propagation(rows: list[Row]) -> Verdict:
    claim = (
        "Dense, sparse and mixed propagation, MSE and cosine give nearly the same result."
    )
    found = {
        variant_name(*variant): perplexity(rows, "d", variant_name(*variant))
        for variant in CLAIMED_VARIANTS
    }
    if not all(found.values()):
        return Verdict(claim, UNDECIDED, "table d is not complete.")
    means = {name: value.mean for name, value in found.items()}
    best, worst = min(means, key=means.get), max(means, key=means.get)
    apart = difference(list(means.values()))
    numbers = (
        f"From {means[best]:.2f} ({best}) to {means[worst]:.2f} ({worst}): {apart:.1%} apart (the"
        f" same is at most {SAME:.0%}). One seed."
    )
    return Verdict(claim, HELD if apart <= SAME else NOT_HELD, numbers)


def outcome_of(parts: list[bool]) -> str:
    if all(parts):
        return HELD
    return IN_PART if any(parts) else NOT_HELD


def verdicts(rows: list[Row]) -> list[Verdict]:
    return [
        claim_retraining(rows),
        claim_granularity(rows),
        claim_criteria(rows),
        claim_propagation(rows),
    ]


# --- the page


def as_markdown(rows: list[Row], rates: list[RateChoice], about: About) -> str:
    parts = [
        head(rows, about),
        section("a. Local reconstruction against retraining", table_a(rows), about),
        section("b. What is reconstructed at once", table_b(rows), about),
        section("c. Criteria, perplexity pruned → reconstructed", table_c(rows), about),
        section("d. Propagation and loss", table_d(rows), about),
        claims_section(rows, about),
        rates_section(rates),
        notes(rows),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def head(rows: list[Row], about: About) -> str:
    text = (
        "# The findings of \"A Free Lunch in LLM Compression\" (arXiv 2510.14444), at this size\n\n"
        f"![perplexities of the four tables](findings.png)\n\n{caption(about)}\n\n"
        f"Perplexity on {about.text}; lower is better. Calibration: {about.calibration}. Learning"
        " rates were chosen on held-out calibration text, never on the text that is reported."
        " Held-out calibration windows are the end of the file, for every row."
    )
    dense = perplexity(rows, "a", DENSE)
    if dense:
        text += f"\n\nThe dense model: perplexity {dense.mean:.2f}."
        if about.is_rounded:
            text += (
                " It was rounded to 4 bits before it got here: compare with this number only, not"
                " with published ones."
            )
    if about.is_quick:
        text += (
            "\n\n**Made with `--quick`: this shows that everything runs, and nothing about the"
            " method.**"
        )
    return text


def caption(about: About) -> str:
    return f"{about.model}; {about.machine}; {about.date}; `{about.command}`"


def section(title: str, table: str, about: About) -> str:
    return f"## {title}\n\n{table}\n\n{caption(about)}" if table else ""


def markdown_table(headings: list[str], lines: list[list[str]]) -> str:
    """Empty where there are no lines."""
    if not lines:
        return ""
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in rows)


def shown(value: float | None) -> str:
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def shown_spread(value: Spread | None) -> str:
    if value is None:
        return "-"
    if value.count == 1:
        return shown(value.mean)
    return f"{shown(value.mean)} ({shown(value.least)}–{shown(value.most)})"


def shown_rate(lr: float | None) -> str:
    return "-" if lr is None else f"{lr:g}"


def mebibytes(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 2**20:,.0f} MiB"


def shown_held_out(row: Row) -> str:
    """In percent of the pruned model's error, or in nats."""
    if row.held_out_ratio is None:
        return "-"
    if row.held_out_unit == "nats":
        return f"{row.held_out_before:.3f} → {row.held_out_after:.3f} nats"
    return f"{row.held_out_ratio:.1%}"


def shown_cost(same_rows: list[Row]) -> list[str]:
    """Wall time and memory of a row, over its seeds."""
    peaks = [
        row.peak_rss_bytes for row in same_rows if row.peak_rss_bytes is not None
    ]
    seconds = shortest(same_rows)
    time = "interrupted" if seconds is None else duration(seconds)
    return [time, mebibytes(max(peaks, default=None))]


def line(rows: list[Row], table: str, name: str) -> list[str]:
    """Name, tokens, rate, seeds, perplexity, held-out error, wall time, memory."""
    same_rows = find(rows, table, name)
    first = same_rows[0]
    return [
        name,
        f"{first.tokens:,}",
        shown_rate(first.lr),
        str(len(same_rows)),
        shown_spread(perplexity(rows, table, name)),
        shown_held_out(first),
        *shown_cost(same_rows),
    ]


HEADINGS = [
    "tokens",
    "rate",
    "seeds",
    "perplexity",
    "held-out error",
    "wall time",
    "peak memory",
]


def table_a(rows: list[Row]) -> str:
    names = [PRUNED, RECONSTRUCTED, LORA, LORA_TENFOLD]
    present = [name for name in names if find(rows, "a", name)]
    table = markdown_table(["Wanda, 50 %", *HEADINGS], [line(rows, "a", n) for n in present])
    if not table:
        return ""
    return (
        table
        + "\n\nPerplexity: mean of the seeds (least–most); held-out error: of the first seed, in"
        " percent of the pruned model's, or a token's loss. A seed chooses the windows and their"
        " order. All start from the same pruned model of their seed; its pruning is in every wall"
        " time, which is the shortest of the seeds' (other work only makes it longer)."
    )


def table_b(rows: list[Row]) -> str:
    present = [name for name in WINDOWS if find(rows, "b", name)]
    lines = [line(rows, "b", name) for name in present]
    for cells in lines:
        cells[0] = "2 blocks" if cells[0] == "2" else cells[0]
    return markdown_table(["Wanda, 50 %", *HEADINGS], lines)


def table_c(rows: list[Row]) -> str:
    patterns = [p for p in PATTERNS if any(r.table == "c" and r.pattern == p for r in rows)]
    lines = [
        [criterion, *(criterion_cell(rows, criterion, pattern) for pattern in patterns)]
        for criterion in CRITERIA
    ]
    if not patterns:
        return ""
    lines.append(["worst / best (without RIA)", *(gap_cell(rows, p) for p in patterns)])
    return markdown_table(["", *patterns], lines)


def criterion_cell(rows: list[Row], criterion: str, pattern: str) -> str:
    return " → ".join(
        shown_spread(perplexity(rows, "c", criterion_name(criterion, after), pattern))
        for after in (False, True)
    )


def gap_cell(rows: list[Row], pattern: str) -> str:
    gaps = [criteria_gap(rows, pattern, after) for after in (False, True)]
    return " → ".join("-" if gap is None else f"{math.exp(gap):.2f}" for gap in gaps)


def table_d(rows: list[Row]) -> str:
    names = [variant_name(*variant) for variant in VARIANTS]
    present = [name for name in names if find(rows, "d", name)]
    table = markdown_table(
        ["propagation, loss", *HEADINGS], [line(rows, "d", name) for name in present]
    )
    return table and (
        table + "\n\nHeld-out errors of other losses or propagations are not comparable."
    )


def claims_section(rows: list[Row], about: About) -> str:
    lines = [
        f"{number}. *{verdict.claim}* **{verdict.outcome.capitalize()}.** {verdict.numbers}"
        for number, verdict in enumerate(verdicts(rows), start=1)
    ]
    quick = " (with `--quick` they mean nothing)" if about.is_quick else ""
    return (
        f"## The paper's claims\n\nDecided by the program that made this page{quick}.\n\n"
        + "\n".join(lines)
    )


def rates_section(rates: list[RateChoice]) -> str:
    if not rates:
        return ""
    grid = sorted({lr for choice in rates for lr in choice.values})
    lines = [
        [choice.what, str(choice.windows), *(rate_cell(choice, lr) for lr in grid)]
        for choice in rates
    ]
    table = markdown_table(["", "windows", *(f"{lr:g}" for lr in grid)], lines)
    num_at_edge = sum(choice.is_at_edge for choice in rates)
    text = (
        "## Learning rates\n\nNats a token of the whole model on the held-out windows; the least"
        f" was chosen (bold).\n\n{table}"
    )
    if num_at_edge:
        text += (
            f"\n\n{num_at_edge} of {len(rates)} were chosen at an end of the grid: others may do"
            " better there."
        )
    return text


def rate_cell(choice: RateChoice, lr: float) -> str:
    value = choice.values.get(lr)
    if value is None:
        return "-"
    text = f"{value:.4f}"
    return f"**{text}**" if lr == choice.lr else text


def notes(rows: list[Row]) -> str:
    """What was not as asked."""
    said = {
        "Interrupted and continued": [(row, "") for row in rows if row.resumed],
        "Training improved nothing in so many windows, or in the model": [
            (row, f": {row.kept_pruned}") for row in rows if row.kept_pruned
        ],
        "Matrices pruned by another method": [
            (row, f": {row.fallbacks}") for row in rows if row.fallbacks
        ],
    }
    lines = [
        f"* {what}: {'; '.join(row_name(row) + count for row, count in found)}."
        for what, found in said.items()
        if found
    ]
    return "## Notes\n\n" + "\n".join(lines) if lines else ""


def row_name(row: Row) -> str:
    pattern = f" {row.pattern}" if row.table == "c" else ""
    seed = f" (seed {row.seed})" if row.table == "a" else ""
    return f"{row.table}, {row.row}{pattern}{seed}"
