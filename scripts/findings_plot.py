"""Draws the four tables of findings.py as one figure."""

import math
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogFormatter

import findings_tables as tables
from findings_tables import About, Row, Spread

SIZE_INCHES = (11, 8.5)
BEFORE = "#b0b0b0"
AFTER = "#4878a8"
RETRAINED = "#d08040"
CAPTION_CHARACTERS = 150


def draw(rows: list[Row], about: About, files: list[Path]) -> None:
    """One panel a table; a table without rows leaves its panel empty."""
    # Of the same numbers the same bytes: identifiers in an SVG are random otherwise.
    with plt.rc_context({"svg.hashsalt": "findings", "font.size": 9}):
        figure, panels = plt.subplots(2, 2, figsize=SIZE_INCHES)
        for panel, axes in zip((panel_a, panel_b, panel_c, panel_d), panels.flat, strict=True):
            panel(axes, rows)
            axes.spines[["top", "right"]].set_visible(False)
        caption = f"Perplexity on {about.text}. {tables.caption(about).replace('`', '')}"
        if about.is_rounded and tables.find(rows, "a", tables.DENSE):
            caption += ". The dense model was rounded to 4 bits before it got here."
        if about.is_quick:
            caption = f"--quick: shows that everything runs, nothing else. {caption}"
        figure.text(
            0.01, 0.01, textwrap.fill(caption, CAPTION_CHARACTERS), fontsize=7, color="#606060"
        )
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        for file in files:
            no_date = {"Date": None} if file.suffix == ".svg" else {"Software": None}
            temporary = file.with_name(f"{file.stem}.tmp{file.suffix}")
            figure.savefig(temporary, dpi=130, metadata=no_date)
            temporary.replace(file)
        plt.close(figure)


def panel_a(axes: Axes, rows: list[Row]) -> None:
    axes.set_title("a. Reconstruction against masked LoRA (Wanda 50 %)")
    axes.set_xlabel("wall time, pruning included (s)")
    axes.set_ylabel("perplexity")
    axes.set_xscale("log")
    plain_numbers(axes.xaxis)
    axes.margins(x=0.25, y=0.15)
    for name, colour, marker in (
        (tables.PRUNED, BEFORE, "o"),
        (tables.RECONSTRUCTED, AFTER, "o"),
        (tables.LORA, RETRAINED, "o"),
        (tables.LORA_TENFOLD, RETRAINED, "D"),
    ):
        value, seconds = tables.perplexity(rows, "a", name), tables.wall(rows, "a", name)
        if not value or not seconds or not math.isfinite(value.mean):
            continue
        tokens = tables.find(rows, "a", name)[0].tokens
        axes.errorbar(
            seconds, value.mean, yerr=reach(value), color=colour, marker=marker, capsize=3,
            linestyle="", label=f"{name.partition(',')[0]}, {tokens:,} tokens",
        )  # fmt: skip
    if axes.containers:
        axes.legend(fontsize=8, frameon=False)
    dense = tables.perplexity(rows, "a", tables.DENSE)
    if dense:
        axes.axhline(dense.mean, color=BEFORE, linewidth=0.8, linestyle="--")
        axes.annotate(
            f"dense {dense.mean:.2f}", (0, dense.mean), (4, 3), fontsize=8,
            xycoords=("axes fraction", "data"), textcoords="offset points",
        )  # fmt: skip


def plain_numbers(axis: Axis) -> None:
    """300, not 3 × 10²."""
    axis.set_major_formatter(LogFormatter())
    # Between powers of ten only where hardly one of them is in sight.
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def reach(value: Spread) -> list[list[float]] | None:
    """From the mean to the least and the most."""
    if value.count == 1:
        return None
    return [[value.mean - value.least], [value.most - value.mean]]


def bars(axes: Axes, rows: list[Row], table: str, names: dict[str, str]) -> None:
    """A bar for each name that is there, its perplexity above it."""
    found = {
        shown: value.mean
        for name, shown in names.items()
        if (value := tables.perplexity(rows, table, name)) and math.isfinite(value.mean)
    }
    axes.set_ylabel("perplexity")
    if not found:
        return
    drawn = axes.bar(list(found), list(found.values()), color=AFTER, width=0.6)
    axes.bar_label(drawn, fmt="%.2f", fontsize=8)
    axes.margins(y=0.15)


def panel_b(axes: Axes, rows: list[Row]) -> None:
    axes.set_title("b. What is reconstructed at once (Wanda 50 %)")
    bars(axes, rows, "b", {w: "2 blocks" if w == "2" else w for w in tables.WINDOWS})


def panel_c(axes: Axes, rows: list[Row]) -> None:
    axes.set_title("c. Criteria, pruned (grey) and reconstructed (blue)")
    axes.set_ylabel("perplexity")
    places, labels = [], []
    for group, pattern in enumerate(tables.PATTERNS):
        for i, criterion in enumerate(tables.CRITERIA):
            place = group * (len(tables.CRITERIA) + 1) + i
            places.append(place)
            labels.append(criterion)
            ends = []
            for after, colour in ((False, BEFORE), (True, AFTER)):
                name = tables.criterion_name(criterion, after)
                value = tables.perplexity(rows, "c", name, pattern)
                if value and math.isfinite(value.mean):
                    axes.plot(place, value.mean, marker="o", color=colour, zorder=2)
                    ends.append(value.mean)
            if len(ends) == 2:
                axes.plot([place, place], ends, color=BEFORE, linewidth=1, zorder=1)
        middle = group * (len(tables.CRITERIA) + 1) + (len(tables.CRITERIA) - 1) / 2
        axes.annotate(
            pattern, (middle, 0.97), xycoords=("data", "axes fraction"), ha="center", va="top"
        )
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    axes.margins(y=0.2)
    axes.set_xticks(places, labels, rotation=60, ha="right", fontsize=8)


def panel_d(axes: Axes, rows: list[Row]) -> None:
    axes.set_title("d. Propagation and loss (Wanda 50 %)")
    names = [tables.variant_name(*variant) for variant in tables.VARIANTS]
    bars(axes, rows, "d", {name: name.replace(", ", "\n") for name in names})
