"""Prints what a run took, beside what its products alone would take.

usage: bench_summary.py coppice_report.json
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    """Reads one report, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    report = json.loads(parser.parse_args().report.read_text())
    totals, machine, calibration = (
        report["totals"],
        report["machine"],
        report["calibration"],
    )
    wall, rate = totals["wall_seconds"], machine["product_flop_per_second"]
    print(
        f"\nmachine        {machine['device']}, {machine['description']}, {machine['io_engine']}"
    )
    print(
        f"tokens         {calibration['tokens']} ({calibration['nsamples']} x {calibration['seqlen']})"
    )
    print(f"{'stage':<14} {'seconds':>9} {'TFLOP':>8} {'GFLOP/s':>9} {'of plain':>9}")
    flop = 0.0
    for name, stage in totals["stages"].items():
        flop += stage["flop"]
        achieved = stage["flop"] / stage["seconds"]
        share = f"{achieved / rate:9.2f}" if stage["flop"] else " " * 9
        print(
            f"{name:<14} {stage['seconds']:9.1f} {stage['flop'] / 1e12:8.2f} {achieved / 1e9:9.1f} {share}"
        )
    floor = flop / rate
    print(
        f"plain product  {rate / 1e9:.1f} GFLOP/s in {machine['compute_dtype']}, measured in this run"
    )
    print(
        f"wall           {wall:.1f} s = {calibration['tokens'] / wall:.0f} tokens/s; floor {floor:.1f} s"
    )
    print(
        f"wall / floor   {wall / floor:.2f}  (floor: every product and attention at the plain product's rate)"
    )
    print(
        f"waited for I/O {100 * totals['compute_waited_for_io_seconds'] / wall:.1f} % of the wall time"
    )
    print(f"peak RSS       {totals['peak_rss_bytes'] / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
