"""The programs that scripts/bench_gpu.py runs: of a package, or of the release build."""

import fnmatch
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent


def find_program() -> Path:
    """In a package its launcher, in the source tree what the release build made."""
    for program in (ROOT / "coppice.sh", ROOT / "build/release/bin/coppice"):
        if program.exists():
            return program
    raise SystemExit(f"bench_gpu: no coppice.sh and no build/release/bin/coppice in {ROOT}")


def command_of(name: str) -> list[Path]:
    """Of a program that was built beside it: "bin/ops_bench"."""
    if (ROOT / "coppice.sh").exists():
        return [ROOT / "coppice.sh", "--exec", ROOT / name]
    return [ROOT / "build/release" / name]


def gpu_tests() -> list[list[Path]]:
    """The commands of the test programs of gpu_tests.txt that are there."""
    folder = command_of("tests")[-1]
    lines = (SCRIPTS / "gpu_tests.txt").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    names = sorted(path.name for path in folder.glob("*_test"))
    wanted = [n for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in patterns)]
    return [command_of(f"tests/{name}") for name in wanted]
