"""Table of scripts/bench_io.sh: medians over rounds, and the medians of the rounds' ratios."""

import json
import statistics
import sys

MIB = 2**20
# What it is called, our measurement, fio's measurement.
ROWS = [
    ("read a checkpoint, registered", "read", "read"),
    ("  the same, not registered", "read-plain", "read"),
    ("  the same, pread on 4 threads", "read-pread", "read"),
    ("write shards", "shards", "shards"),
    ("write the cache, raw", "cache-raw", "cache"),
    ("  the same beside direct fio", "cache-raw", "shards"),
    ("write the cache, compressed", "cache-compressed", "cache"),
]


def line_of_fio(path):
    """One line of results out of fio's JSON, in the form in which io_bench prints its own."""
    with open(path) as file:
        text = file.read()
    job = json.loads(text[text.index("{") :])["jobs"][0]
    moved = max((job["read"], job["write"]), key=lambda side: side["io_bytes"])
    seconds = moved["io_bytes"] / moved["bw_bytes"]
    cpu_seconds = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
    return f"bytes={moved['io_bytes']} seconds={seconds:.4f} cpu_seconds={cpu_seconds:.4f}"


def read_results(path):
    """(who, what) → list of rounds, each {bytes, seconds, cpu_seconds, features}."""
    results = {}
    with open(path) as file:
        for line in file:
            who, what, *fields = line.split()
            results.setdefault((who, what), []).append(dict(f.split("=", 1) for f in fields))
    return results


def rate(measured):
    return int(measured["bytes"]) / float(measured["seconds"]) / MIB


def cpu_per_gib(rounds):
    return statistics.median(float(r["cpu_seconds"]) / int(r["bytes"]) * 2**30 for r in rounds)


def main():
    if sys.argv[1] == "--fio":
        print(line_of_fio(sys.argv[2]))
        return
    results = read_results(sys.argv[1])
    print(f"{'':32} {'ours':>6} {'fio':>6}  {'ratio':>5} {'(least, most)':>13}  {'CPU s/GiB':>9} {'fio':>6}")
    for name, mine, theirs in ROWS:
        ours, fio = results[("ours", mine)], results[("fio", theirs)]
        ratios = [rate(o) / rate(f) for o, f in zip(ours, fio)]
        print(
            f"{name:32} {statistics.median(map(rate, ours)):6.0f} {statistics.median(map(rate, fio)):6.0f}  "
            f"{statistics.median(ratios):5.2f} {f'({min(ratios):.2f}, {max(ratios):.2f})':>13}  "
            f"{cpu_per_gib(ours):9.3f} {cpu_per_gib(fio):6.3f}"
        )
    print(f"MiB/s, medians of {len(ours)} rounds; ratios within a round. Features:")
    for (who, what), rounds in results.items():
        if who == "ours":
            print(f"  {what}: {rounds[0]['features'].replace(',', ', ')}")


main()
