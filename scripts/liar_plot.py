"""Draws what liar_smollm2.py measured: perplexity by what was removed, a panel a criterion."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter, ScalarFormatter

COLOURS = ("#b0b0b0", "#d08040", "#88a868", "#4878a8", "#303030")


def draw(rows: list, kinds: tuple[str, ...], file: Path) -> None:
    """`rows` as liar_smollm2.Row; the dense one is a line."""
    (dense,) = [row.perplexity for row in rows if row.reconstruction == "dense"]
    criteria = list(dict.fromkeys(row.criterion for row in rows if row.criterion))
    # Of the same numbers the same bytes: identifiers in an SVG are random otherwise.
    with plt.rc_context({"svg.hashsalt": "liar", "font.size": 9}):
        figure, panels = plt.subplots(
            1, len(criteria), figsize=(3.6 * len(criteria), 3.4), sharey=True, squeeze=False
        )
        for axes, criterion in zip(panels.flat, criteria, strict=True):
            axes.set_title(criterion)
            axes.set_yscale("log")
            axes.axhline(dense, color="#808080", linewidth=0.8, linestyle=":")
            for kind, colour in zip(kinds, COLOURS, strict=True):
                line = [
                    (row.ratio, row.perplexity)
                    for row in rows
                    if (row.criterion, row.reconstruction) == (criterion, kind)
                ]
                axes.plot(*zip(*line), "o-", color=colour, markersize=3, label=kind) if line else ()
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.set_xlabel("neurons and heads removed")
            axes.spines[["top", "right"]].set_visible(False)
        panels[0, 0].set_ylabel("perplexity (dotted: dense)")
        panels[0, 0].legend(frameon=False, fontsize=7)
        figure.tight_layout()
        temporary = file.with_name(f"{file.stem}.tmp{file.suffix}")
        figure.savefig(temporary, metadata={"Date": None})
        temporary.replace(file)
        plt.close(figure)
