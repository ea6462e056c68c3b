"""Steps of a long measurement: records of what is done, and the program that does it.

A step leaves OUT/records/<step>.json with the settings it was made with; one that was interrupted is
continued. Used by findings.py, liar_smollm2.py and liar_minilm.py.
"""

import contextlib
import csv
import fcntl
import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TextIO

from quickstart_summary import duration, read_json

INTERRUPTED = 130
LOG_LINES_SHOWN = 15
SAID = {"perplexity": 2, "fidelity": 3}  # of a step's result, with so many digits


class MeasuringError(Exception):
    """What is wrong and what to do about it."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


class Interrupted(Exception):
    """Somebody asked to stop; everything that is done is kept."""


def file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MeasuringError(f"{path}: {error.strerror}", 3) from error


def model_hash(model: Path) -> str:
    """Of config.json and all weights."""
    weights = sorted(model.glob("*.safetensors"))
    if not weights:
        raise MeasuringError(f"{model}: no *.safetensors: give --model a checkpoint", 3)
    hashes = [file_hash(path) for path in (model / "config.json", *weights)]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def write_atomically(path: Path, content: str) -> None:
    """A reader sees the old file or the new one, even after a power failure."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def finite(value: object) -> float | None:
    """Reports write null for what is not finite, tables leave cells empty."""
    if value is None or value == "":
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def machine() -> str:
    """Processor, cores in use, memory, system."""
    cores = len(os.sched_getaffinity(0))
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [s for s in info.read_text().splitlines() if s.startswith("model name")]
        name = names[0].partition(":")[2].strip() if names else name
    return f"{cores} cores of {name}, {gibibytes:.0f} GiB, {platform.system()}"


# --- records


class Records:
    """What is finished, and what was begun, one small JSON file a step."""

    def __init__(self, folder: Path, settings: dict):
        self.folder = folder
        self.settings = settings
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.json")):
            there = read_json(path)["settings"]
            if there != settings:
                said = "; ".join(
                    f"{key}: there {there.get(key)}, now {settings.get(key)}"
                    for key in sorted(there.keys() | settings.keys())
                    if there.get(key) != settings.get(key)
                )
                raise MeasuringError(
                    f"{folder.parent} was made with other settings: {said}\n"
                    "give --out another folder, or remove this one"
                )
        # Windows are cut before the first step has a record.
        if not self.path("settings").exists():
            self.write("settings", [], {})

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def begin(self, name: str, arguments: list[str]) -> dict | None:
        """The result of a finished step. None: it is to be made, or to be continued."""
        path = self.path(name)
        if path.exists():
            record = read_json(path)
            if record["arguments"] != arguments:
                raise MeasuringError(
                    f"{path}: made with other arguments:\n"
                    f"  there {shlex.join(record['arguments'])}\n  now   {shlex.join(arguments)}\n"
                    "remove it, and what lies in work/ under its name, to make it again"
                )
            return record["result"]
        # Before the work: what lies in work/ is only continued with the same arguments.
        self.write(name, arguments, None)
        return None

    def finish(self, name: str, arguments: list[str], result: dict) -> dict:
        self.write(name, arguments, result)
        return read_json(self.path(name))["result"]

    def write(self, name: str, arguments: list[str], result: dict | None) -> None:
        record = {
            "settings": self.settings,
            "arguments": arguments,
            "machine": machine(),
            "date": date.today().isoformat(),
            "result": result,
        }
        write_atomically(self.path(name), json.dumps(record, indent=1) + "\n")

    def all(self) -> dict[str, dict]:
        return {path.stem: read_json(path) for path in sorted(self.folder.glob("*.json"))}


# --- the program


@dataclass(frozen=True)
class Took:
    """What one process took, as the kernel counts it."""

    seconds: float
    peak_rss_bytes: int


class Program:
    """Runs coppice. A signal to this script stops it in order, once."""

    def __init__(self, path: Path, logs: Path, lock: int):
        self.path = path
        self.logs = logs
        self.lock = lock  # the program holds it, too: a script that is killed leaves it running
        self.child: int | None = None
        self.is_stopped = False
        logs.mkdir(parents=True, exist_ok=True)

    def on_signal(self, number: int, _frame: object) -> None:
        """Between two processes little happens: the next one is not started."""
        if not self.is_stopped and self.child is not None:
            os.kill(self.child, signal.SIGTERM)
        self.is_stopped = True

    def __call__(self, name: str, arguments: list[str]) -> Took:
        """What it says goes to logs/NAME.log."""
        if self.is_stopped:
            raise Interrupted
        log = self.logs / f"{name}.log"
        command = [str(self.path), *arguments]
        begin = time.monotonic()
        with log.open("a", encoding="utf-8") as file:
            print(f"$ {shlex.join(command)}", file=file, flush=True)
            code, peak_rss_bytes = self.wait_for(command, file)
        if self.is_stopped or code == INTERRUPTED:
            raise Interrupted
        if code != 0:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
            raise MeasuringError(
                f"coppice ended with code {code}; the end of {log}:\n{tail}", max(code, 1)
            )
        return Took(time.monotonic() - begin, peak_rss_bytes)

    def wait_for(self, command: list[str], log: TextIO) -> tuple[int, int]:
        """Exit code and peak memory."""
        try:
            # A process group of its own: Ctrl-C would reach it a second time, and kill it.
            process = subprocess.Popen(
                command, stdout=log, stderr=log, process_group=0, pass_fds=[self.lock]
            )
        except OSError as error:
            raise MeasuringError(f"{self.path}: {error.strerror}", 3) from error
        self.child = process.pid
        if self.is_stopped:  # while it was started
            os.kill(self.child, signal.SIGTERM)
        _, status, usage = os.wait4(self.child, 0)
        self.child = None
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_maxrss * 1024

# --- steps


class Steps:
    """What OUT/records, OUT/work, OUT/reports and OUT/logs hold, and how the program makes it.

    `names`: how paths are called where arguments are shown.
    """

    def __init__(self, out: Path, program: Program, settings: dict, names: dict[Path, str]):
        self.out = out
        self.program = program
        self.names = {out: "OUT", **names}
        self.work = out / "work"
        self.reports = out / "reports"
        for folder in (self.work, self.reports):
            folder.mkdir(parents=True, exist_ok=True)
        self.records = Records(out / "records", settings)

    def once(self, name: str, arguments: list[str], make: Callable[[], dict]) -> dict:
        """The result of a step, made unless it is there."""
        named = self.without_paths(arguments)
        result = self.records.begin(name, named)
        if result is not None:
            return result
        print(f"== {name}", flush=True)
        begin = time.monotonic()
        result = self.records.finish(name, named, make())
        said = "".join(
            f"{key} {result[key]:.{digits}f}, " for key, digits in SAID.items() if key in result
        )
        print(f"   {said}{duration(time.monotonic() - begin)}", flush=True)
        return result

    def without_paths(self, arguments: list[str]) -> list[str]:
        """As records and tables show them: where files lie is nobody's business."""
        shown = []
        for argument in arguments:
            for path, name in self.names.items():
                if argument == str(path) or argument.startswith(f"{path}/"):
                    argument = name + argument[len(str(path)) :]
            shown.append(argument)
        return shown

    def command(self, arguments: list[str]) -> str:
        return shlex.join(["coppice", *self.without_paths(arguments)])

    def make_or_continue(self, name: str, arguments: list[str]) -> Took:
        """What writes work/NAME."""
        out, work = self.work / name, self.work / f"{name}.work"
        is_begun = any(work.rglob("journal.bin"))
        if not is_begun:
            self.discard(name)  # what was killed before its journal was there
        return self.program(
            name, [*arguments, "-o", str(out), *(["--resume"] if is_begun else [])]
        )

    def checkpoint(self, name: str, arguments: list[str]) -> dict:
        """Makes work/NAME by `run` or `retrain` unless it is complete; returns its report."""
        out = self.work / name
        report = out / "coppice_report.json"
        if not (report.exists() and (out / "model.safetensors.index.json").exists()):
            self.make_or_continue(name, arguments)
        shutil.copyfile(report, self.reports / f"{name}.json")
        return read_json(report)

    def discard(self, name: str) -> None:
        for path in (self.work / name, self.work / f"{name}.work"):
            shutil.rmtree(path, ignore_errors=True)

    def evaluate(
        self, name: str, directory: Path, text: Path, seqlen: int, max_windows: int
    ) -> dict:
        """The perplexity of a checkpoint on a text."""
        flags = ["--text", str(text), "--seqlen", str(seqlen), "--max-windows", str(max_windows)]
        return self.said_by_eval(name, directory, flags)

    def said_by_eval(self, name: str, directory: Path, flags: list[str]) -> dict:
        """Of a checkpoint; it is kept in reports."""
        result = self.reports / f"{name}.eval.json"
        scratch = self.work / "eval"
        shutil.rmtree(scratch, ignore_errors=True)
        written = ["--json", str(result), "--work-dir", str(scratch)]
        self.program(f"{name}.eval", ["eval", str(directory), *flags, *written])
        return read_json(result)

    def swept(self, name: str, arguments: list[str]) -> tuple[list[dict], Took]:
        """The lines of a sweep's table."""
        took = self.make_or_continue(name, arguments)
        source = self.work / name / "sweep.csv"
        shutil.copyfile(source, self.reports / f"{name}.sweep.csv")
        with source.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file)), took


# --- one at a time


@contextlib.contextmanager
def locked(out: Path) -> Iterator[int]:
    """Two at work in one folder would take each other's work for their own."""
    file = os.open(out / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file
    except BlockingIOError:
        raise MeasuringError(
            f"{out}: another script, or a coppice that one started, is at work there"
        ) from None
    finally:
        os.close(file)


@contextlib.contextmanager
def program_in(out: Path, path: Path) -> Iterator[Program]:
    """The program, for the one script that works in `out`; signals to the script stop it."""
    out.mkdir(parents=True, exist_ok=True)
    with locked(out) as lock:
        program = Program(path.resolve(), out / "logs", lock)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, program.on_signal)
        yield program


def exit_code(what: str, measure: Callable[[], None]) -> int:
    """Of a script: says what went wrong, or that it was stopped."""
    try:
        measure()
    except MeasuringError as error:
        print(f"{what}: {error}", file=sys.stderr)
        return error.code
    except Interrupted:
        print(f"{what}: stopped; the same command continues", file=sys.stderr)
        return INTERRUPTED
    return 0
