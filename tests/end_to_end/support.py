"""What the end-to-end tests share: the program, small models, tokens, comparisons."""

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import h5py
import numpy as np
from safetensors import safe_open

PROGRAM = os.environ["COPPICE_PROGRAM"]
SOURCE = Path(os.environ["COPPICE_SOURCE"])
GOLDEN = SOURCE / "tests" / "golden"


class ProgramTest(unittest.TestCase):
    """A directory of its own, and the program."""

    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(prefix="test.", dir=Path.cwd()))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def coppice(self, *arguments, expect=0, **kwargs):
        """Runs the program and checks its exit code; returns the finished process.

        `seconds` of what it returns says how long that took.
        """
        start = time.monotonic()
        done = subprocess.run(
            [PROGRAM, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=self.dir,
            timeout=280,
            **kwargs,
        )
        done.seconds = time.monotonic() - start
        self.assertEqual(
            done.returncode, expect, f"{arguments}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def model(self, name="llama_fp32"):
        """A copy of a golden model that the test may damage."""
        target = self.dir / name
        if not target.exists():
            shutil.copytree(GOLDEN / name, target)
            (target / "golden.safetensors").unlink()
        return target

    def tokens(self, count, name="tokens.h5", vocab=61, seed=0):
        """Random token ids as an HDF5 file."""
        path = self.dir / name
        with h5py.File(path, "w") as file:
            file["input_ids"] = np.random.default_rng(seed).integers(
                0, vocab, count, dtype=np.int32
            )
        return path

    def kill_after(self, arguments, lines, seconds):
        """Kills a process so long after so many lines; whether it was still running."""
        process = subprocess.Popen(
            [PROGRAM, *map(str, arguments)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=self.dir,
        )  # fmt: skip
        for _ in range(lines):
            process.stderr.readline()
        time.sleep(seconds)
        process.kill()
        process.communicate()
        return process.returncode == -signal.SIGKILL

    def continued_after_kills(self, arguments, rounds, seconds, name="killed"):
        """Of every round the name of an output that was killed three times, continued and finished.

        arguments(output, resume) starts or continues it; `seconds` is what it takes undisturbed:
        each kill comes at a moment drawn from most of that.
        """
        seed = random.randrange(10**6)
        print(f"seed {seed}")
        draw = random.Random(seed)
        kills = 0
        for round_number in range(rounds):
            output, resume = f"{name}{round_number}", False
            for _ in range(3):
                moment = draw.uniform(0, 0.8 * seconds)
                kills += self.kill_after(arguments(output, resume), 0, moment)
                resume = True
            self.coppice(*arguments(output, resume))
            yield output
        self.assertGreater(kills, 0, "nothing was killed before its end")

    def run_arguments(self, model, dataset, output, **keys):
        """`coppice run` with small defaults; keys replace or add flags."""
        flags = {"nsamples": 8, "seqlen": 32, "lr": 1e-3, "epochs": 2}
        flags |= {"probe": "false"} | keys
        arguments = ["run", "--model", model, "--dataset", dataset, "-o", output]
        for key, value in flags.items():
            if value is True:
                arguments.append("--" + key.replace("_", "-"))
            elif value is not False:
                arguments += ["--" + key.replace("_", "-"), value]
        return arguments


def tensors(directory):
    """Every tensor of a checkpoint: name -> (dtype, shape, bytes)."""
    found = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        for name, info in header.items():
            if name == "__metadata__":
                continue
            begin, end = info["data_offsets"]
            found[name] = (
                info["dtype"],
                tuple(info["shape"]),
                data[8 + length + begin : 8 + length + end],
            )
    return found


def as_float(tensor):
    """(dtype, shape, bytes) as a float32 array."""
    dtype, shape, data = tensor
    if dtype == "BF16":
        wide = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    return (
        np.frombuffer(data, {"F32": np.float32, "F16": np.float16}[dtype])
        .astype(np.float32)
        .reshape(shape)
    )


def shards(directory):
    """Name -> bytes of every shard and of the index."""
    return {
        p.name: p.read_bytes()
        for p in Path(directory).iterdir()
        if "safetensors" in p.name
    }


def report(directory):
    """coppice_report.json."""
    return json.loads((Path(directory) / "coppice_report.json").read_text())


__all__ = [
    "ProgramTest",
    "tensors",
    "as_float",
    "shards",
    "report",
    "safe_open",
    "GOLDEN",
    "PROGRAM",
    "SOURCE",
]
