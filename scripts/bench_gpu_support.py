"""What scripts/bench_gpu.py stands on: processes with a limit, memory of the device, steps, a table."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from measuring_steps import write_atomically

REFUSED = 5  # coppice's exit code for what does not fit
LINES_SHOWN = 6


class StepError(Exception):
    """Why a step has no result. The others go on."""


class Skipped(Exception):
    """Why a step was not tried."""


@dataclass(frozen=True)
class Finished:
    """One process, as the kernel counts it."""

    code: int
    seconds: float
    peak_rss_bytes: int
    output: str
    errors: str

    def says(self) -> str:
        return "\n".join(self.errors.strip().splitlines()[-LINES_SHOWN:])


class Deadline:
    """When all of it has to be over."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    def demand(self, seconds: float) -> None:
        """A step that would be cut off is not begun."""
        if self.left() < seconds:
            raise Skipped(f"needs about {seconds:.0f} s, {max(0.0, self.left()):.0f} s are left")


class Processes:
    """Runs programs one at a time; none outlives the deadline, nor this script."""

    def __init__(self, deadline: Deadline):
        self.deadline = deadline
        self.child: int | None = None

    def kill(self) -> None:
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGKILL)

    def run(
        self, command: list[object], is_to_be_killed: Callable[[], bool] = lambda: False
    ) -> Finished:
        """Waits for it; asks every few milliseconds whether it is to be killed."""
        if self.deadline.left() <= 0:
            raise Skipped("no time is left")
        words = [str(word) for word in command]
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            begin = time.monotonic()
            try:
                process = subprocess.Popen(words, stdout=output, stderr=errors)
            except OSError as error:
                raise StepError(f"{words[0]}: {error.strerror}") from error
            self.child = process.pid
            try:
                status, usage = self.wait(process.pid, is_to_be_killed)
            except BaseException:
                self.kill()
                os.wait4(process.pid, 0)
                process.returncode = -signal.SIGKILL
                raise
            finally:
                self.child = None
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - begin
            output.seek(0)
            errors.seek(0)
            return Finished(
                process.returncode,
                seconds,
                usage.ru_maxrss * 1024,
                output.read(),
                errors.read(),
            )

    def wait(self, child: int, is_to_be_killed: Callable[[], bool]) -> tuple:
        while True:
            reaped, status, usage = os.wait4(child, os.WNOHANG)
            if reaped:
                return status, usage
            if self.deadline.left() < 0:
                raise StepError("stopped: the time of the whole bench is over")
            if is_to_be_killed():
                self.kill()
            time.sleep(0.002)


class DeviceMemory:
    """The most that nvidia-smi saw in use while it was entered; None where it is not there."""

    def __init__(self, index: int | None):
        self.index = index
        self.peak_bytes: int | None = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        self.peak_bytes = None
        command = [
            *("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"),
            *("-i", str(self.index), "-lms", "100"),
        ]
        try:
            if self.index is None:
                raise FileNotFoundError
            sampler = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except FileNotFoundError:
            yield
            return
        reader = threading.Thread(target=self.read, args=(sampler.stdout,))
        reader.start()
        try:
            yield
        finally:
            sampler.terminate()
            reader.join()
            sampler.communicate()

    def read(self, lines: Iterator[str]) -> None:
        for line in lines:
            if line.strip().isdigit():
                self.peak_bytes = max(self.peak_bytes or 0, int(line) << 20)


@dataclass
class Result:
    """What a step found: rows for a person, data for a program."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    data: dict = field(default_factory=dict)


class Report:
    """bench_gpu.json and bench_gpu.md, written anew after every step."""

    def __init__(self, folder: Path, head: dict):
        self.folder = folder
        self.head = head
        self.steps: dict[str, dict] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def step(self, name: str, make: Callable[[], Result]) -> None:
        print(f"== {name}", file=sys.stderr, flush=True)
        begin = time.monotonic()
        status, why, result = "done", "", Result()
        try:
            result = make()
        except Skipped as error:
            status, why = "skipped", str(error)
        except StepError as error:
            status, why = "failed", str(error)
        except (KeyError, ValueError, OSError) as error:  # a report of another shape, say
            status, why = "failed", f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - begin
        print(f"   {status}, {seconds:.1f} s {why}", file=sys.stderr, flush=True)
        self.steps[name] = {
            "status": status,
            "why": why,
            "seconds": seconds,
            "rows": result.rows,
            **result.data,
        }
        self.write()

    def has_failed(self) -> bool:
        return any(step["status"] == "failed" for step in self.steps.values())

    def write(self) -> None:
        document = {**self.head, "steps": self.steps}
        write_atomically(self.folder / "bench_gpu.json", json.dumps(document, indent=1) + "\n")
        write_atomically(self.folder / "bench_gpu.md", self.table())

    def table(self) -> str:
        lines = ["| step | what | value |", "|---|---|---|"]
        for name, step in self.steps.items():
            rows = step["rows"] if step["status"] == "done" else [(step["status"], step["why"])]
            for what, value in rows:
                text = " ".join(value.split()).replace("|", "\\|")
                lines.append(f"| {name} | {what} | {text} |")
        return "\n".join(lines) + "\n"
