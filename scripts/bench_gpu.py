"""Measures coppice on one GPU with checkpoints of published shapes; see bench_gpu.sh."""

import argparse
import hashlib
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from datetime import date
from functools import cached_property
from pathlib import Path

from bench_gpu_programs import command_of, find_program, gpu_tests
from bench_gpu_sizes import TINY, Sizes
from bench_gpu_support import (
    REFUSED,
    Deadline,
    DeviceMemory,
    Finished,
    Processes,
    Report,
    Result,
    Skipped,
    StepError,
)
from measuring_steps import machine

SCRIPTS = Path(__file__).resolve().parent
GIB = 1 << 30
QUERY = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]


def weights_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors*")):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def tera(flop_per_second: float) -> str:
    rate = flop_per_second / 1e12
    return f"{rate:.0f} TFLOP/s" if rate >= 10 else f"{rate:.3f} TFLOP/s"


def gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB"


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"


def rows_of_run(data: dict, plain_rate: float | None) -> list[tuple[str, str]]:
    """Of what `Bench.measured` kept: times by stage, shares, memory."""
    blocks = data["blocks"]
    rows = [("wall", f"{data['wall_seconds']:.1f} s, {data['tokens_per_second']:.0f} tokens/s")]
    for name, stage in data["stages"].items():
        text = f"{stage['seconds'] / blocks:.2f} s a block"
        if stage["flop"]:
            rate = stage["flop"] / stage["seconds"]
            text += f", {tera(rate)}"
            if plain_rate:
                text += f", {100 * rate / plain_rate:.1f} % of the plain product"
        rows.append((name, text))
    rows.append(("waited for I/O", f"{100 * data['waited_share']:.1f} % of the wall time"))
    device = f"{gib(data['peak_device_bytes'])} by the report"
    if data["seen_device_bytes"] is not None:
        device += f", {gib(data['seen_device_bytes'])} by nvidia-smi"
    rows.append(("peak device memory", f"{device}; {data['budget']}"))
    rows.append(("peak RSS", gib(data["peak_rss_bytes"])))
    return rows


class Bench:
    """The scratch folder, the program, and what earlier steps found."""

    def __init__(self, args: argparse.Namespace, sizes: Sizes, scratch: Path):
        self.args = args
        self.sizes = sizes
        self.dir = scratch
        self.deadline = Deadline(60 * args.minutes)
        self.processes = Processes(self.deadline)
        self.program = find_program()
        index = re.fullmatch(r"cuda:(\d+)", args.device)
        self.memory = DeviceMemory(int(index[1]) if index else None)
        self.plain_rate: float | None = None
        self.runs: dict[str, dict] = {}  # what `measured` kept, by the step's name

    # --- models and runs

    def model(self, name: str, *options: object) -> Path:
        path = self.dir / name
        if path.exists():
            return path
        command = [sys.executable, SCRIPTS / "make_synthetic.py", path, *options]
        done = self.processes.run(command)
        if done.code != 0:
            raise StepError(f"make_synthetic ended with code {done.code}: {done.says()}")
        return path

    def blocks(self, count: int) -> Path:
        most = max(self.sizes.windows, *self.sizes.many_windows)
        tokens = most * self.sizes.seqlen
        return self.model(f"model{count}", *self.sizes.model, "--blocks", count, "--tokens", tokens)

    def discard(self, *paths: Path) -> None:
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)

    def arguments(self, model: Path, windows: int, seqlen: int, *flags: object) -> list[object]:
        dataset = model / "tokens.h5"
        return [
            *("--model", model, "--dataset", dataset, "--device", self.args.device),
            *("--nsamples", windows, "--seqlen", seqlen, "--lr", "1e-4"),
            *("--ram-budget", self.sizes.ram_budget, *flags),
        ]

    def refusal(self, arguments: list[object]) -> str | None:
        """What a plan says does not fit, if something does not."""
        out = self.dir / "planned"
        done = self.processes.run(
            [self.program, "plan", *arguments, "-o", out, "--probe", "false", "--json"]
        )
        if done.code not in (0, REFUSED):
            raise StepError(f"plan ended with code {done.code}: {done.says()}")
        return done.says() if done.code == REFUSED else None

    def budget_flags(self, arguments: list[object]) -> tuple[list[str], str]:
        """The budget, unless a plan says that this does not fit into it."""
        budget = self.sizes.vram_budget
        if budget is None:
            return [], "no budget"
        flags = ["--vram-budget", budget]
        if self.refusal([*arguments, *flags]) is None:
            return flags, f"budget {budget}"
        return [], f"no budget: {budget} was refused"

    def run(self, out: Path, arguments: list[object], **kwargs: object) -> Finished:
        command = [self.program, "run", "--quiet", "--json", *arguments, "-o", out]
        return self.processes.run(command, **kwargs)

    def measured(self, name: str, model: Path, windows: int, seqlen: int, *flags: object) -> dict:
        """One run; its output is removed."""
        arguments = self.arguments(model, windows, seqlen, "--probe", "false", *flags)
        budget_flags, budget = self.budget_flags(arguments)
        out = self.dir / "out"
        with self.memory.watched():
            done = self.run(out, [*arguments, *budget_flags])
        self.discard(out, Path(f"{out}.work"))
        if done.code != 0:
            raise StepError(f"coppice run ended with code {done.code}: {done.says()}")
        report = json.loads(done.output)
        totals = report["totals"]
        wall = totals["wall_seconds"]
        self.runs[name] = {
            "blocks": len(report["blocks"]),
            "tokens": windows * seqlen,
            "wall_seconds": wall,
            "process_seconds": done.seconds,
            "tokens_per_second": windows * seqlen / wall,
            "stages": totals["stages"],
            "waited_share": totals["compute_waited_for_io_seconds"] / wall,
            "peak_device_bytes": totals["peak_device_bytes"],
            "seen_device_bytes": self.memory.peak_bytes,
            "budget": budget,
            "peak_rss_bytes": done.peak_rss_bytes,
            "kept": [w["kept"] for block in report["blocks"] for w in block["windows"]],
            "report": report,
        }
        return self.runs[name]

    # --- steps, in their order

    def gpu(self) -> Result:
        if self.memory.index is None:
            raise Skipped(f"--device {self.args.device}: no GPU is used")
        done = self.processes.run([*QUERY, "-i", self.memory.index])
        if done.code != 0:
            raise StepError(f"nvidia-smi ended with code {done.code}: {done.says()}")
        name, driver, memory = [part.strip() for part in done.output.strip().split(",")]
        return Result(
            [("GPU", f"{name}, {memory}, driver {driver}")],
            {"name": name, "driver": driver, "memory": memory},
        )

    def tests(self) -> Result:
        commands = gpu_tests()
        if not commands:
            raise Skipped("no test programs of gpu_tests.txt are there")
        passed = skipped = 0
        failures = []
        for command in commands:
            self.deadline.demand(10)
            done = self.processes.run([*command, "--gtest_brief=1"])
            passed += sum(map(int, re.findall(r"^\[  PASSED  \] (\d+) test", done.output, re.M)))
            skipped += sum(map(int, re.findall(r"^\[  SKIPPED \] (\d+) test", done.output, re.M)))
            if done.code != 0:
                failed = re.findall(r"^\[  FAILED  \] (\S+?),? ", done.output, re.M)
                failures.append(f"{command[-1].name} ({done.code}): {' '.join(failed) or done.says()}")
        if failures:
            raise StepError("; ".join(failures))
        text = f"{passed} passed in {len(commands)} programs, {skipped} skipped"
        return Result([("tests", text)], {"passed": passed, "skipped": skipped})

    def torch_says(self, what: str) -> dict:
        done = self.processes.run(
            [
                *(sys.executable, SCRIPTS / "gpu_rates.py", what, "--device", self.args.device),
                *("--size", self.sizes.cube, "--rows", 2 * self.sizes.seqlen),
                *("--hidden", self.sizes.hidden, "--ffn", self.sizes.ffn),
                *("--seconds", self.sizes.product_seconds),
            ]
        )
        if done.code != 0:
            raise StepError(f"gpu_rates {what} ended with code {done.code}: {done.says()}")
        return json.loads(done.output)

    def products(self) -> Result:
        rates = self.torch_says("products")
        self.plain_rate = rates["cube"]["flop_per_second"]
        rows = []
        for name, rate in rates.items():
            shape = " x ".join(map(str, rate["shape"]))
            rows.append((f"{name}, {shape}, bf16", tera(rate["flop_per_second"])))
        return Result(rows, {"products": rates})

    def kernels(self) -> Result:
        """Ours beside the same made of ATen's operations."""
        self.deadline.demand(self.sizes.kernels_seconds)
        shape = (str(2 * self.sizes.seqlen), str(self.sizes.hidden))
        done = self.processes.run([*command_of("bin/ops_bench"), self.args.device, *shape])
        if done.code != 0:
            raise StepError(f"ops_bench ended with code {done.code}: {done.says()}")
        results = json.loads(done.output)
        rows = []
        for result in results:
            text = f"{1e3 * result['seconds']:.3g} ms, {result['bytes'] / result['seconds'] / 1e9:.3g} GB/s"
            if aten := result.get("aten_seconds"):
                text += f"; of ATen {1e3 * aten:.3g} ms: {aten / result['seconds']:.2f} times"
            rows.append((f"{result['op']}, {' x '.join(shape)}", text))
        return Result(rows, {"kernels": results})

    def models(self) -> Result:
        self.deadline.demand(self.sizes.models_seconds)
        for count in (2, 4):
            self.blocks(count)
        shape = " ".join(self.sizes.model)
        return Result([("checkpoints", f"2 and 4 blocks of {shape}")])

    def half_blocks(self, count: int) -> Result:
        self.deadline.demand(self.sizes.run_seconds * count / 2)
        name = f"{count} blocks"
        data = self.measured(name, self.blocks(count), self.sizes.windows, self.sizes.seqlen)
        rows = rows_of_run(data, self.plain_rate)
        if count == 4 and "2 blocks" in self.runs:
            more = (data["wall_seconds"] - self.runs["2 blocks"]["wall_seconds"]) / 2
            data["seconds_of_one_more_block"] = more
            rows.append(("one more block", f"{more:.2f} s; eighty of them {hours(80 * more)}"))
        kept = sorted(set(data["kept"]))
        rows.append(("kept", ", ".join(f"{k}: {data['kept'].count(k)}" for k in kept)))
        return Result(rows, data)

    def sparsegpt(self) -> Result:
        self.deadline.demand(self.sizes.run_seconds / 2)
        data = self.measured(
            *("sparsegpt", self.blocks(2), self.sizes.windows, self.sizes.seqlen),
            *("--prune-method", "sparsegpt", "--window", "none"),
        )
        return Result(rows_of_run(data, self.plain_rate), data)

    def sparsegpt_reference(self) -> Result:
        """Ours and the paper's algorithm on one gate_proj and one down_proj."""
        self.deadline.demand(self.sizes.reference_seconds)
        reference = self.torch_says("sparsegpt")
        rows, ours = [], {}
        for name, theirs in reference.items():
            data = self.measured(
                # More tokens than columns, or the Gram matrix is damped more than the reference's.
                *(f"sparsegpt {name}", self.blocks(2), self.sizes.windows // 4, self.sizes.seqlen),
                *("--prune-method", "sparsegpt", "--window", "none"),
                *("--targets", f"re:.*{name}.*"),
            )
            seconds = data["stages"]["prune"]["seconds"] / data["blocks"]
            ours[name] = {"seconds": seconds}
            ratio = f", {theirs['seconds'] / seconds:.2f} times" if seconds > 0 else ""
            rows.append(
                (name, f"ours {seconds:.2f} s, plain PyTorch {theirs['seconds']:.2f} s{ratio}")
            )
        return Result(rows, {"ours": ours, "reference": reference})

    def same_bytes(self) -> Result:
        """Twice undisturbed, once killed and continued."""
        self.deadline.demand(self.sizes.second_seconds)
        windows, seqlen = self.sizes.second_windows, self.sizes.second_seqlen
        options = (*self.sizes.second_model, "--tokens", windows * seqlen)
        model = self.model("second", *options)
        arguments = self.arguments(model, windows, seqlen, "--probe", "false")
        hashes, seconds, report = {}, 0.0, {}
        for name in ("first", "again"):
            done = self.run(self.dir / name, arguments)
            if done.code != 0:
                raise StepError(f"{name}: coppice run ended with code {done.code}: {done.says()}")
            seconds, report = done.seconds, json.loads(done.output)
            hashes[name] = weights_hash(self.dir / name)
            self.discard(self.dir / name, self.dir / f"{name}.work")
        killed_at = self.killed_and_continued(self.dir / "killed", arguments)
        hashes["killed"] = weights_hash(self.dir / "killed")
        self.discard(self.dir / "killed", self.dir / "killed.work", model)
        data = {"sha256": hashes, "shards_when_killed": killed_at, "seconds": seconds}
        data["report"] = report
        different = [name for name, value in hashes.items() if value != hashes["first"]]
        if different:
            raise StepError(f"other bytes than the first run's: {', '.join(different)}: {hashes}")
        what = f"{' '.join(self.sizes.second_model)}, {windows} x {seqlen} tokens, {seconds:.1f} s"
        blocks = len(report["blocks"])
        for name, stage in report["totals"]["stages"].items():
            what += f", {name} {stage['seconds'] / blocks:.2f} s a block"
        rows = [
            ("twice the same run", f"equal byte for byte ({what})"),
            (f"killed with {killed_at} shards there, continued", "equal byte for byte"),
        ]
        return Result(rows, data)

    def killed_and_continued(self, out: Path, arguments: list[object]) -> int:
        """How many shards were there when it was killed."""

        def shards() -> int:
            return len(list(out.glob("*.safetensors")))

        for _ in range(3):  # a short run may end first
            self.discard(out, Path(f"{out}.work"))
            done = self.run(out, arguments, is_to_be_killed=lambda: shards() > 1)
            if done.code == -signal.SIGKILL:
                break
        else:
            raise StepError("three runs ended before they could be killed")
        killed_at = shards()
        done = self.run(out, [*arguments, "--resume"])
        if done.code != 0:
            raise StepError(f"--resume ended with code {done.code}: {done.says()}")
        return killed_at

    def whole_model(self) -> Result:
        """The plan of all blocks, from headers and holes."""
        self.deadline.demand(self.sizes.plan_seconds)
        model = self.model("whole", *self.sizes.whole_model, "--headers-only", "--tokens", 1)
        arguments = self.arguments(model, self.sizes.windows, self.sizes.seqlen)
        note = "its output counted"
        if refused := self.refusal(arguments):
            if "disk for the output" not in refused and "disk for hidden states" not in refused:
                raise StepError(f"refused: {refused}")
            # This disk is too small for the output: as a sweep of one recipe that writes none.
            arguments += ["--vary", "lr=1e-4", "--outputs", "none"]
            note = "its output not counted: this disk has no room for it"
        command = [self.program, "plan", *arguments, "-o", self.dir / "planned", "--json"]
        done = self.processes.run(command)
        if done.code != 0:
            raise StepError(f"plan ended with code {done.code}: {done.says()}")
        plan = json.loads(done.output)
        # Holes are read at no disk's rate: those reads are counted at that of real shards.
        rate = self.read_rate()
        reads = plan["bytes_read"] / rate
        rows = [
            ("planned", f"{note}; {self.sizes.windows} x {self.sizes.seqlen} tokens"),
            ("compute", hours(plan["compute_seconds"])),
            ("reads alone", f"{hours(reads)} for {gib(plan['bytes_read'])} at {rate / 1e9:.2f} GB/s"),
            ("the night", hours(max(plan["compute_seconds"], reads))),
            ("memory", f"{gib(plan['ram']['bytes'])} RAM, {gib(plan['device']['bytes'])} on the device"),
        ]
        return Result(rows, {"plan": plan, "real_read_bytes_per_second": rate, "note": note})

    def read_rate(self) -> float:
        """Bytes a second, as a plan probes it on a checkpoint that is no hole."""
        arguments = self.arguments(self.blocks(2), self.sizes.windows, self.sizes.seqlen)
        command = [self.program, "plan", *arguments, "-o", self.dir / "planned", "--json"]
        done = self.processes.run(command)
        if done.code != 0:
            raise StepError(f"plan ended with code {done.code}: {done.says()}")
        return json.loads(done.output)["rates"]["read_bytes_per_second"]

    def many_windows(self) -> Result:
        """As many windows of text as time and disk allow."""
        if "2 blocks" not in self.runs:
            raise Skipped("needs the time that the run of 2 blocks took, which has no result")
        self.discard(self.dir / "model4", self.dir / "whole")
        model, tried = self.blocks(2), []
        before = self.runs["2 blocks"]
        for windows in self.sizes.many_windows:
            seconds = before["process_seconds"] * windows * self.sizes.seqlen / before["tokens"]
            if self.deadline.left() < 1.3 * seconds + 10:
                left = f"{self.deadline.left():.0f} s are left"
                tried.append(f"{windows} windows need about {seconds:.0f} s, {left}")
                continue
            if refused := self.refusal(self.arguments(model, windows, self.sizes.seqlen)):
                tried.append(f"{windows} windows do not fit: {refused}")
                continue
            data = self.measured(f"{windows} windows", model, windows, self.sizes.seqlen)
            rows = [("windows", str(windows)), *rows_of_run(data, self.plain_rate)]
            rows += [("not run", why) for why in tried]
            return Result(rows, data)
        raise Skipped("; ".join(tried))

    @cached_property
    def steps(self) -> dict:
        """In order of what should not be missing when time runs out."""
        return {
            "gpu": self.gpu,
            "tests": self.tests,
            "products": self.products,
            "kernels": self.kernels,
            "models": self.models,
            "half-blocks, 2 blocks": lambda: self.half_blocks(2),
            "half-blocks, 4 blocks": lambda: self.half_blocks(4),
            "sparsegpt, 2 blocks": self.sparsegpt,
            "same bytes": self.same_bytes,
            "whole model, planned": self.whole_model,
            "sparsegpt beside plain PyTorch": self.sparsegpt_reference,
            "half-blocks, more text": self.many_windows,
        }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench_gpu"))
    parser.add_argument("--dir", type=Path, help="scratch, 35 GB free; the system's, if absent")
    parser.add_argument("--device", help="cuda:0, with --tiny cpu")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", help="steps whose names contain this")
    args = parser.parse_args()
    if args.device is None:
        args.device = "cpu" if args.tiny else "cuda:0"
    return args


def check_device(device: str) -> None:
    """A bench of an hour on the wrong device helps nobody."""
    if device == "cpu":
        return
    found = shutil.which("nvidia-smi") and subprocess.run(QUERY, capture_output=True).returncode == 0
    if not found:
        raise SystemExit(
            f"bench_gpu: --device {device}: nvidia-smi finds no GPU here; "
            "--tiny goes through all steps on the processor"
        )


def main() -> int:
    args = parse_arguments()
    check_device(args.device)
    head = {
        "command": "scripts/bench_gpu.sh " + " ".join(sys.argv[1:]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "python": platform.python_version(),
        "device": args.device,
        "tiny": args.tiny,
    }
    report = Report(args.out, head)
    if args.dir:
        args.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench_gpu.", dir=args.dir) as scratch:
        bench = Bench(args, TINY if args.tiny else Sizes(), Path(scratch))

        def stop(*_: object) -> None:
            bench.processes.kill()
            raise SystemExit(130)

        signal.signal(signal.SIGTERM, stop)
        try:
            for name, step in bench.steps.items():
                if args.only is None or args.only in name or name in ("gpu", "models"):
                    report.step(name, step)
        finally:
            print(f"\n{head['machine']}; {args.device}; {head['date']}\n\n{report.table()}")
    print(f"{args.out / 'bench_gpu.json'} has the same, and every run's report")
    return 1 if report.has_failed() else 0


if __name__ == "__main__":
    sys.exit(main())
