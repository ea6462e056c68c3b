"""Draws what liar_smollm2.py and liar_minilm.py measured: quality by what was removed, a panel a
criterion."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from liar_steps import BIAS, LIAR, NONE, STOCK, TRAINED
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter, ScalarFormatter

COLOURS = {NONE: "#b0b0b0", BIAS: "#d08040", STOCK: "#88a868", LIAR: "#4878a8", TRAINED: "#303030"}
DASHES = ("-", "--", "-.", (0, (1, 1)))


@dataclass(frozen=True)
class Quality:
    """A row of panels."""

    column: str  # of the rows that are drawn
    label: str
    scale: str = "linear"


def draw(
    dense: object,
    groups: dict[str, list],
    kinds: Sequence[str],
    qualities: Sequence[Quality],
    file: Path,
) -> None:
    """`dense` and what the groups hold as liar_smollm2.Row or liar_minilm.Row; the dense one is a
    dotted line, a group has dashes of its own, and its name in the legend."""
    criteria = list(dict.fromkeys(row.criterion for rows in groups.values() for row in rows))
    size = (3.6 * len(criteria), 0.6 + 2.8 * len(qualities))
    # Of the same numbers the same bytes: identifiers in an SVG are random otherwise.
    with plt.rc_context({"svg.hashsalt": "liar", "font.size": 9}):
        figure, panels = plt.subplots(
            len(qualities), len(criteria), figsize=size, sharex=True, sharey="row", squeeze=False
        )
        for quality, line_of_panels in zip(qualities, panels, strict=True):
            for axes, criterion in zip(line_of_panels, criteria, strict=True):
                panel(axes, dense, groups, kinds, quality, criterion)
            line_of_panels[0].set_ylabel(f"{quality.label} (dotted: dense)")
        for axes, criterion in zip(panels[0], criteria, strict=True):
            axes.set_title(criterion)
        for axes in panels[-1]:
            axes.set_xlabel("neurons and heads removed")
        panels[0, 0].legend(handles=legend_handles(groups, kinds), frameon=False, fontsize=7)
        figure.tight_layout()
        temporary = file.with_name(f"{file.stem}.tmp{file.suffix}")
        figure.savefig(temporary, metadata={"Date": None})
        temporary.replace(file)
        plt.close(figure)


def panel(
    axes: Axes,
    dense: object,
    groups: dict[str, list],
    kinds: Sequence[str],
    quality: Quality,
    criterion: str,
) -> None:
    axes.set_yscale(quality.scale)
    axes.axhline(getattr(dense, quality.column), color="#808080", linewidth=0.8, linestyle=":")
    for rows, dashes in zip(groups.values(), DASHES, strict=False):
        for kind in kinds:
            line = [
                (row.ratio, getattr(row, quality.column))
                for row in rows
                if (row.criterion, row.reconstruction) == (criterion, kind)
            ]
            if line:
                style = {"color": COLOURS[kind], "linestyle": dashes}
                axes.plot(*zip(*line, strict=True), marker="o", markersize=3, **style)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    if quality.scale == "log":
        axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.spines[["top", "right"]].set_visible(False)


def legend_handles(groups: dict[str, list], kinds: Sequence[str]) -> list[plt.Line2D]:
    """Ways by colour; groups, where there are some, by dashes."""
    handles = [
        plt.Line2D([], [], color=COLOURS[kind], marker="o", markersize=3, label=kind)
        for kind in kinds
    ]
    if len(groups) > 1:
        handles += [
            plt.Line2D([], [], color="#808080", linestyle=dashes, label=name)
            for name, dashes in zip(groups, DASHES, strict=False)
        ]
    return handles
