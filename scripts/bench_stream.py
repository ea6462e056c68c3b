"""Measures the streaming; see bench_stream.sh."""

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

PROGRAM = "build/release/bin/coppice"
MIB = 1 << 20

NARROW = "--hidden 512 --ffn 2048 --heads 8"
MIDDLE = "--hidden 1024 --ffn 4352 --heads 16 --kv-heads 4"
WIDE = "--hidden 2048 --ffn 8192 --heads 16 --dtype fp32"
LARGE = "--hidden 8192 --ffn 29568 --heads 64 --kv-heads 8 --head-dim 128 --vocab 152064"


class Bench:
    """A scratch directory, models made on demand, runs measured from outside."""

    def __init__(self, directory: Path, rounds: int):
        self.dir = directory
        self.rounds = rounds
        self.runs = 0

    def model(self, name: str, options: str, blocks: int) -> Path:
        path = self.dir / name
        if not path.exists():
            arguments = f"{options} --blocks {blocks} --tokens 65536".split()
            subprocess.run(
                [sys.executable, "scripts/make_synthetic.py", path, *arguments],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        return path

    def run(self, model: Path, *flags: object) -> dict:
        """One run: exit code, peak RSS, report, hash of every shard. Its output is removed."""
        self.runs += 1
        out = self.dir / f"out{self.runs}"
        arguments = [PROGRAM, "run", "--quiet", "--json", "--model", model]
        arguments += ["--dataset", model / "tokens.h5", "-o", out, "--lr", "1e-4", *flags]
        with subprocess.Popen(
            [str(a) for a in arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            output, errors = process.stdout.read(), process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        code = process.returncode
        if code not in (0, 5):
            raise SystemExit(f"bench_stream: {arguments}: {code}\n{errors}")
        digest = hashlib.sha256()
        for shard in sorted(out.glob("*.safetensors")):
            digest.update(shard.read_bytes() if shard.stat().st_size < 1 << 30 else b"")
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(f"{out}.work", ignore_errors=True)
        report = json.loads(output) if code == 0 else {}
        return {
            "code": code,
            "peak": usage.ru_maxrss * 1024,
            "report": report,
            "bytes": digest.hexdigest(),
        }

    def overlap(self) -> None:
        print("\noverlap of the dense forward with statistics (seconds; medians)")
        print(f"{'':<34} {'both':>7} {'compute':>8} {'I/O':>7} {'ratio':>6} (quartiles)")
        for what, name, options, blocks, windows, seqlen, rate in (
            ("compute dominates, 16 x 256 tokens", "middle", MIDDLE, 8, 16, 256, ()),
            ("I/O dominates, 1 x 8 tokens", "deep", WIDE, 16, 1, 8, ()),
            ("the same, disk held to 0.5 GB/s", "deep", WIDE, 16, 1, 8, (0.5,)),
            ("1 x 256 tokens, 0.5 GB/s", "deep", WIDE, 16, 1, 256, (0.5,)),
        ):
            # What a disk of known rate takes hardly varies.
            rounds = self.rounds if rate else 5 * self.rounds
            arguments = (windows, seqlen, self.dir / "cache", rounds, *rate)
            done = subprocess.run(
                ["build/release/bin/stream_bench", self.model(name, options, blocks)]
                + [str(x) for x in arguments],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            r = json.loads(done.stdout)
            print(
                f"{what:<34} {r['both']:7.2f} {r['compute']:8.2f} {r['io']:7.2f} {r['ratio']:6.3f}"
                f" ({r['quartiles'][0]:.3f}-{r['quartiles'][1]:.3f})"
            )

    def memory(self) -> None:
        print("\npeak RSS against depth and calibration windows")
        short = ("--seqlen", 64, "--probe", "false")
        peaks = {}
        for blocks in (8, 80):
            model = self.model(f"narrow{blocks}", NARROW, blocks)
            peaks[blocks] = self.run(model, "--nsamples", 4, *short)["peak"]
            print(f"{blocks:3} blocks, 4 windows    {peaks[blocks] / MIB:6.0f} MiB")
        many = self.run(self.dir / "narrow8", "--nsamples", 64, *short)["peak"]
        print(f"  8 blocks, 64 windows   {many / MIB:6.0f} MiB")
        print(
            f"ratios {peaks[80] / peaks[8]:.3f} (depth), {many / peaks[8]:.3f} (windows)"
        )

    def smallest_budget(self, model: Path, *flags: object) -> int:
        """MiB that a refused run says it would fit into."""
        done = subprocess.run(
            [PROGRAM, "plan", "--model", model, "--ram-budget", "1MiB"] + [str(f) for f in flags],
            stderr=subprocess.PIPE,
            text=True,
        )
        size, unit = re.search(r"would fit into ([\d.]+) (\w+)", done.stderr).groups()
        return math.ceil(float(size) * {"MiB": 1, "GiB": 1024}[unit]) + 1

    def budgets(self) -> None:
        print("\nbudgets, from too little to plenty (4 blocks of 17 M parameters)")
        model = self.model("sweep", MIDDLE, 4)
        flags = ("--nsamples", 32, "--seqlen", 128, "--probe", "false")
        smallest = self.smallest_budget(model, *flags)
        print(f"{'budget':>9} {'peak RSS':>10} {'planned':>9} {'seconds':>8}  settings")
        seen = set()
        for factor in (0.25, 0.5, 0.99, 1.0, 1.02, 1.04, 1.07, 1.1, 2):
            mib = math.ceil(smallest * factor)
            result = self.run(model, "--ram-budget", f"{mib}MiB", *flags)
            if result["code"] == 5:
                print(f"{mib:5} MiB    refused before the first read")
                continue
            seen.add(result["bytes"])
            plan = result["report"]["plan"]
            settings = plan["plan"]["settings"]
            kept = f"{settings['targets_in_ram']}+{settings['inputs_in_ram']} windows in RAM"
            print(
                f"{mib:5} MiB {result['peak'] / MIB:6.0f} MiB {plan['ram']['planned'] / MIB:5.0f} MiB"
                f" {result['report']['totals']['wall_seconds']:8.1f}  {settings['slots']} blocks,"
                f" {kept}, targets {settings['targets']}"
            )
            if result["peak"] > mib * MIB:
                raise SystemExit("bench_stream: a budget was exceeded")
        if len(seen) != 1:
            raise SystemExit("bench_stream: budgets changed the output")
        print("every output byte for byte the same")

    def planned(self, large: bool) -> None:
        print("\nplanned against measured")
        print(f"{'':<38} {'memory':>22} {'ratio':>6} {'time':>17} {'ratio':>6}")
        cases = [
            ("17 M a block, half-block", "sweep", MIDDLE, 4, (16, 256)),
            ("17 M a block, whole block, 1 GiB", "sweep", MIDDLE, 4, (16, 256, "--window", "block", "--ram-budget", "1GiB")),
            ("67 M a block (fp32), prune only", "wide", WIDE, 8, (8, 256, "--window", "none")),
            ("4 M a block, 80 blocks, 300 MiB", "narrow80", NARROW, 80, (4, 64, "--ram-budget", "300MiB")),
        ]
        if large:
            cases += [
                ("878 M a block (72B), half-block", "large", LARGE, 2, (4, 64)),
                ("878 M a block (72B), prune only, 6 GiB", "large", LARGE, 2, (4, 64, "--window", "none", "--ram-budget", "6GiB")),
            ]
        for what, name, options, blocks, (nsamples, seqlen, *flags) in cases:
            result = self.run(
                self.model(name, options, blocks), "--nsamples", nsamples, "--seqlen", seqlen, *flags
            )
            plan = result["report"]["plan"]
            ram, seconds = plan["ram"], plan["seconds"]
            print(
                f"{what:<38} {ram['planned'] / MIB:7.0f} ->{result['peak'] / MIB:7.0f} MiB"
                f" {result['peak'] / ram['planned']:6.2f}"
                f" {seconds['planned']:6.1f} ->{seconds['measured']:6.1f} s {seconds['ratio']:6.2f}"
            )
            for stage, value in plan["stages"].items():
                print(
                    f"    {stage:<34} {'':>22} {'':>6} {value['planned']:6.1f} ->{value['measured']:6.1f} s"
                    f" {value['ratio'] or 0:6.2f}"
                )


def main() -> None:
    """Every table, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("runs/bench_stream"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--only", choices=("overlap", "memory", "budgets", "planned"))
    arguments = parser.parse_args()
    arguments.dir.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.dir, arguments.rounds)
    print(f"{os.cpu_count()} cores, {date.today()}")
    try:
        if arguments.only in (None, "overlap"):
            bench.overlap()
        if arguments.only in (None, "memory"):
            bench.memory()
        if arguments.only in (None, "budgets"):
            bench.budgets()
        if arguments.only in (None, "planned"):
            bench.planned(arguments.large)
    finally:
        shutil.rmtree(arguments.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
