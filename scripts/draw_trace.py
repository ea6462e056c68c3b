#!/usr/bin/env python3
"""Draws a stretch of a trace (`coppice run --trace`) as a compact SVG: a row per track.

A row is as high as the share of the time in which something of it was under way; the compute row
shows spans and the stages inside them. For a page; to look around in a trace, open it at ui.perfetto.dev.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import PathPatch
from matplotlib.path import Path as MplPath

WIDTH_INCHES = 9.5
BINS = 500  # across; a row is as high in each as the share of it in which something happened
GREY = "#808080"
PALE = "#e8e8e8"
STAGE_COLOURS = {"calibrate": "#4878a8", "prune": "#d08040", "reconstruct": "#5a9a5a"}
ROW_COLOURS = {
    "reads: weights": "#30a0a0",
    "reads: activations": "#30a0a0",
    "upload": "#30a0a0",
    "waits for activations": "#c03030",
}
ROW_ORDER = [
    "reads: weights",
    "reads: activations",
    "upload",
    "codec decode",
    "compute",
    "waits for activations",
    "codec encode",
    "cache writes",
    "shard writes",
]


def load(path: Path) -> list[dict]:
    """The events; of a killed run those before the cut."""
    text = path.read_text().rstrip()
    if text.endswith("]"):
        return json.loads(text)
    try:
        return json.loads(text + "]")
    except json.JSONDecodeError:  # the last line is cut off too
        return json.loads(text[: text.rindex(",\n")] + "]")


def intervals_of(events: list[dict]) -> dict[str, list[tuple[float, float, str]]]:
    """Row -> [(begin, end, name)] in seconds; reads by what they read, lanes of a track joined."""
    names = {
        e["tid"]: re.sub(r" \d+$", "", e["args"]["name"])
        for e in events
        if e["ph"] == "M" and e["name"] == "thread_name"
    }
    rows, begun = defaultdict(list), {}
    for e in events:
        if e["ph"] == "X":
            begin = e["ts"] * 1e-6
            rows[names[e["tid"]]].append((begin, begin + e["dur"] * 1e-6, e["name"]))
        elif e["ph"] == "b":
            begun[e["id2"]["local"]] = e
        elif e["ph"] == "e":
            begin = begun.pop(e["id2"]["local"])
            is_cache = begin["args"]["file"].endswith(".h5")
            row = "reads: activations" if is_cache else "reads: weights"
            rows[row].append((begin["ts"] * 1e-6, e["ts"] * 1e-6, begin["name"]))
    return rows


def cut_to(rows: dict, first: float, last: float) -> dict:
    """What lies in the stretch, clipped to it, times from its beginning."""
    return {
        row: [
            (max(begin, first) - first, min(end, last) - first, name)
            for begin, end, name in slices
            if end > first and begin < last
        ]
        for row, slices in rows.items()
    }


def shares(slices: list, seconds: float) -> np.ndarray:
    """Of each bin, the share that at least one slice covers."""
    covered, width, reached = np.zeros(BINS), seconds / BINS, 0.0
    for begin, end, _ in sorted(slices):
        begin, reached = max(begin, reached), max(end, reached)
        for bin_ in range(int(begin / width), min(int(end / width) + 1, BINS)):
            covered[bin_] += max(0.0, min(end, (bin_ + 1) * width) - max(begin, bin_ * width))
    return covered / width


def draw_row(axes, y: float, of_bins: np.ndarray, seconds: float, colour: str) -> None:
    """The shares as one filled outline per run of bins that are not empty."""
    vertices, codes, width = [], [], seconds / BINS
    edges = np.flatnonzero(np.diff(np.concatenate([[0], of_bins > 0, [0]])))
    for first, last in zip(edges[::2], edges[1::2]):
        outline = [(first * width, y)]
        for bin_ in range(first, last):
            top = y + 0.8 * of_bins[bin_]
            outline += [(bin_ * width, top), ((bin_ + 1) * width, top)]
        outline.append((last * width, y))
        vertices += [*outline, outline[0]]
        codes += [MplPath.MOVETO, *[MplPath.LINETO] * (len(outline) - 1), MplPath.CLOSEPOLY]
    axes.add_patch(PathPatch(MplPath(vertices, codes), facecolor=colour, linewidth=0))
    axes.axhline(y, color=PALE, linewidth=0.6, zorder=0)


def draw_compute(axes, y: float, slices: list, seconds: float) -> None:
    """Steps as pale bars with their names, the stages inside them coloured below."""
    steps = [s for s in slices if s[2].endswith((": forward", ": adapt"))]
    stages = [s for s in slices if s not in steps]
    if not steps:  # an evaluation has no stages
        steps, stages = stages, []
    axes.broken_barh([(b, e - b) for b, e, _ in steps], (y, 1.7), color=PALE,
                     edgecolor="white", linewidth=0.8)  # fmt: skip
    for begin, end, name in steps:
        short = name.replace(": ", " ").replace("embedding of ", "")
        if (end - begin) / seconds * WIDTH_INCHES * 13 > len(short):
            axes.text((begin + end) / 2, y + 1.32, short, ha="center", va="center", fontsize=7)
    kinds = defaultdict(list)
    for begin, end, name in stages:
        kinds[name.partition(": ")[2]].append((begin, end - begin))
    for kind, of_kind in sorted(kinds.items()):
        colour = STAGE_COLOURS.get(kind, "#8a6aa8")
        axes.broken_barh(of_kind, (y + 0.05, 0.9), color=colour, linewidth=0, label=kind)


def draw(rows: dict, seconds: float, out: Path) -> None:
    """One row per track that has anything, the compute row twice as high."""
    present = [row for row in ROW_ORDER if rows.get(row)]
    figure, axes = plt.subplots(figsize=(WIDTH_INCHES, 0.28 * len(present) + 1.0))
    y, ticks = 0.0, []
    for row in reversed(present):
        height = 1.7 if row == "compute" else 0.8
        ticks.append(y + height / 2)
        if row == "compute":
            draw_compute(axes, y, rows[row], seconds)
        else:
            draw_row(axes, y, shares(rows[row], seconds), seconds, ROW_COLOURS.get(row, GREY))
        y += height + 0.25
    axes.set_yticks(ticks, list(reversed(present)), fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlim(0, seconds)
    axes.set_ylim(-0.2, y)
    axes.set_xlabel("seconds", fontsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, fontsize=8, frameon=False)
    figure.savefig(out, bbox_inches="tight", metadata={"Date": None})


def main() -> int:
    """Reads the arguments and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--from", type=float, default=0, dest="first", help="seconds [0]")
    parser.add_argument("--to", type=float, dest="last", help="seconds [the end]")
    given = parser.parse_args()
    rows = intervals_of(load(given.trace))
    end = max((e for slices in rows.values() for _, e, _ in slices), default=0)
    last = end if given.last is None else min(given.last, end)
    if last <= given.first:
        print(f"{given.trace}: nothing between {given.first} and {last} s; it ends at {end:.1f} s",
              file=sys.stderr)  # fmt: skip
        return 1
    # Text stays text; the same trace gives the same file.
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "coppice", "font.family": "sans-serif"}
    )
    draw(cut_to(rows, given.first, last), last - given.first, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
