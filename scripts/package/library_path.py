"""Prints the LD_LIBRARY_PATH that a package's programs want here; see coppice.sh.

usage: library_path.py PACKAGE

The package's own libraries, those of the torch that this Python has, and, where the system's
libstdc++ is older than what the programs were linked with, the package's. Never both: what is newer
serves both. Ends with 2 and a reason where the programs cannot run.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

LDCONFIG = ("/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig")


class Refusal(Exception):
    """What is missing, and what to do."""


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def check_glibc(needed: str, what: str) -> None:
    here = os.confstr("CS_GNU_LIBC_VERSION") or "unknown"
    if numbers(here) < numbers(needed):
        raise Refusal(f"{what} glibc {needed} or newer, here is {here}: build on this machine")


def torch_folder(built_with: str) -> Path:
    """Of the installed package; it is not imported, which would take seconds."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        raise Refusal(
            f"{sys.executable} has no torch; give COPPICE_PYTHON a Python that has torch {built_with}"
        )
    folder = Path(found.submodule_search_locations[0])
    text = (folder / "version.py").read_text()
    match = re.search(r"__version__\s*(?::[^=]*)?=\s*['\"]([^'\"]+)", text)
    version = match[1] if match else "of unknown version"
    if version.partition("+")[0] != built_with.partition("+")[0]:
        raise Refusal(
            f"built with torch {built_with}, but {folder} is {version}; "
            f"give COPPICE_PYTHON a Python that has torch {built_with}"
        )
    return folder


def torch_libraries(folder: Path, needed: list[str]) -> list[Path]:
    """Where `needed` lie: torch's own folder, and those of the NVIDIA packages beside it."""
    folders = [folder / "lib", *sorted((folder.parent / "nvidia").glob("*/lib"))]
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    folders += [path for path in (cuda / "lib64", cuda / "lib") if path.is_dir()]
    used = []
    for name in needed:
        at = next((path for path in folders if (path / name).exists()), None)
        if at is None:
            looked = ", ".join(map(str, folders))
            raise Refusal(f"no {name} of torch in {looked}: a torch with CUDA is needed")
        if at not in used:
            used.append(at)
    return used


def system_libstdcxx() -> Path | None:
    for program in LDCONFIG:
        try:
            done = subprocess.run([program, "-p"], capture_output=True, text=True)
        except OSError:
            continue
        match = re.search(r"libstdc\+\+\.so\.6 \(libc6,x86-64[^)]*\) => (\S+)", done.stdout)
        return Path(match[1]) if match else None
    return None


def is_new_enough(library: Path | None, symbol_version: str) -> bool:
    if library is None or not library.exists():
        return False
    return symbol_version.encode() + b"\0" in library.read_bytes()


def library_path(package: Path) -> str:
    needs = json.loads((package / "package.json").read_text())
    check_glibc(needs["glibc"], "the programs need")
    torch = torch_libraries(torch_folder(needs["torch"]), needs["from_torch"])
    folders = [package / "lib", *torch]
    if not is_new_enough(system_libstdcxx(), needs["libstdcxx"]):
        check_glibc(
            needs["glibc_of_libstdcxx"],
            f"the system's libstdc++ has no {needs['libstdcxx']}, and the package's needs",
        )
        folders.insert(0, package / "lib" / "libstdcxx")
    return ":".join(map(str, folders))


def main() -> int:
    try:
        print(library_path(Path(sys.argv[1]).resolve()))
    except (Refusal, OSError) as error:
        print(f"coppice.sh: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
