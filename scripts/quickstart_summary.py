#!/usr/bin/env python3
"""Prints the result of scripts/quickstart.sh on one screen.

Reads {dense,pruned,reconstructed}.eval.json and {pruned,reconstructed}/coppice_report.json in the
folder. What a report does not say is shown as a dash.
"""

import argparse
import json
import sys
from pathlib import Path

ROWS = ("dense", "pruned", "reconstructed")
HEADINGS = ("", "perplexity", "vs dense", "run time", "waited for I/O", "peak memory")
WIDTHS = (14, 11, 10, 14, 16, 13)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def memory(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 2**30:.2f} GiB"


def share(part: float | None, whole: float | None) -> str:
    return "-" if part is None or not whole else f"{part / whole:.1%}"


def row(out: Path, name: str, dense_perplexity: float) -> tuple[str, ...]:
    perplexity = read_json(out / f"{name}.eval.json")["perplexity"]
    relative = "" if name == "dense" else f"{perplexity / dense_perplexity - 1:+.1%}"
    if name == "dense":
        return (name, f"{perplexity:.2f}", relative, "", "", "")
    totals = read_json(out / name / "coppice_report.json").get("totals", {})
    wall = totals.get("wall_seconds")
    return (
        name,
        f"{perplexity:.2f}",
        relative,
        duration(wall),
        share(totals.get("compute_waited_for_io_seconds"), wall),
        memory(totals.get("peak_rss_bytes")),
    )


def recovered(values: dict[str, float]) -> str:
    """How much of the damage reconstruction undid, in words."""
    lost = values["pruned"] - values["dense"]
    if lost <= 0:
        return (
            "Pruning did not raise the perplexity here: there was nothing to win back."
        )
    part = (values["pruned"] - values["reconstructed"]) / lost
    if part <= 0:
        return "Reconstruction won nothing back: try another --lr or more --nsamples."
    return f"Reconstruction won back {part:.0%} of the perplexity that pruning lost."


def summary(out: Path, model: Path) -> str:
    evals = {name: read_json(out / f"{name}.eval.json") for name in ROWS}
    values = {name: content["perplexity"] for name, content in evals.items()}
    rows = [HEADINGS, *(row(out, name, values["dense"]) for name in ROWS)]
    table = "\n".join(
        "".join(
            [cells[0].ljust(WIDTHS[0]), *map(str.rjust, cells[1:], WIDTHS[1:])]
        ).rstrip()
        for cells in rows
    )
    dense = evals["dense"]
    rounded = (
        "\n* The dense model was rounded to 4 bits before it got here: compare with the first row "
        "only,\n  not with published numbers."
        if "smollm2" in model.name.lower()
        else ""
    )
    return f"""
{table}

{recovered(values)}
Held-out text, {dense["windows"]} windows of {dense["seqlen"]} tokens; lower is better.

Output         {out / "reconstructed"}
               a Hugging Face directory: AutoModelForCausalLM.from_pretrained(...) loads it
Report         {out / "reconstructed" / "coppice_report.json"}

Before you use it:{rounded}
* The zeros are stored like other numbers: the files are as large and as fast as before.
* One short text says little about a model: measure it on what you need it for.

Next:
  build/release/bin/coppice eval {out / "reconstructed"} --against {model} --text FILE
               how far its predictions are from the dense model's
  .venv/bin/python scripts/check_with_transformers.py {out / "reconstructed"} --text FILE --dense {model}
               does Hugging Face transformers agree, and is every zero where the report says?"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path, help="results of scripts/quickstart.sh")
    parser.add_argument("--model", type=Path, required=True, help="the dense model")
    args = parser.parse_args()
    try:
        print(summary(args.out_dir, args.model))
    except (OSError, json.JSONDecodeError, KeyError) as error:
        print(f"quickstart_summary: {args.out_dir}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
