"""Who may include whom: reads every #include of ours and prints the offending line.

usage: include_rule_test.py SOURCE_DIR
"""

import re
import sys
from pathlib import Path

PACKAGES = ("pipeline", "configs", "stages", "storage", "tests")
MAY_INCLUDE = {
    "storage": {"storage"},
    "stages": {"stages"},
    "configs": {"configs", "stages", "storage"},
    "pipeline": {"pipeline", "configs", "stages", "storage"},
    "tests": set(PACKAGES),
}
TORCH = re.compile(r"(ATen|torch|c10)/")
CUDA_ALLOWED = ("stages/ops/", "pipeline/device/")
FAMILIES = re.compile(
    r"\b(llama|mistral|qwen2|qwen3|qwen3_moe|opt|bert|mixtral)\b", re.IGNORECASE
)
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')


def faults_of(path: Path, relative: str) -> list[str]:
    """Every broken rule of one file, as printable lines."""
    package = relative.split("/")[0]
    faults = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"{relative}:{number}: {line.strip()}"
        found = INCLUDE.match(line)
        if found:
            target = found.group(1).split("/")[0]
            if target in PACKAGES and target not in MAY_INCLUDE[package]:
                faults.append(f"{where}  <- {package} may not include {target}")
            if package == "storage" and TORCH.match(found.group(1)):
                faults.append(f"{where}  <- storage never sees a tensor")
            if "torch/torch.h" in found.group(1) and package != "tests":
                faults.append(f"{where}  <- use the smallest ATen header")
        if package == "tests":
            continue
        code = line.split("//")[0]
        if re.search(r"cuda", code, re.IGNORECASE) and not relative.startswith(
            CUDA_ALLOWED
        ):
            if "cuda:" not in code and 'rfind("cuda' not in code:
                faults.append(
                    f"{where}  <- only stages/ops and pipeline/device know CUDA"
                )
        if FAMILIES.search(code):
            faults.append(
                f"{where}  <- a family's name belongs in configs/architectures"
            )
    return faults


def main() -> int:
    """Checks the whole tree."""
    root = Path(sys.argv[1])
    faults, seen = [], 0
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in {".h", ".cpp", ".cu"}:
                seen += 1
                faults += faults_of(path, str(path.relative_to(root)))
    print("\n".join(faults) or f"{seen} files keep the include rule")
    return 1 if faults or seen == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
