"""How large everything is that scripts/bench_gpu.py measures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How large everything is: of the real bench, or of --tiny."""

    model: tuple[str, ...] = ("--like", "qwen2.5-72b", "--vocab", "1024")
    whole_model: tuple[str, ...] = ("--like", "qwen2.5-72b")
    second_model: tuple[str, ...] = ("--like", "llama-3.1-8b", "--vocab", "1024", "--blocks", "4")
    hidden: int = 8192
    ffn: int = 29568
    cube: int = 8192
    windows: int = 128
    seqlen: int = 2048
    many_windows: tuple[int, ...] = (1024, 512, 256)
    product_seconds: float = 1.0
    second_windows: int = 32
    second_seqlen: int = 512
    vram_budget: str | None = "24GiB"
    # Without one hidden states go to the disk, and the bench would measure that.
    ram_budget: str = "90GiB"
    # Seconds that a step is thought to take where nothing like it was measured yet.
    kernels_seconds: float = 15
    models_seconds: float = 40
    run_seconds: float = 60
    reference_seconds: float = 40
    second_seconds: float = 60
    plan_seconds: float = 30


SMALL = ("--hidden", "128", "--ffn", "352", "--heads", "4", "--kv-heads", "2", "--head-dim", "32")
TINY = Sizes(
    model=("--like", "qwen2.5-72b", "--vocab", "512", *SMALL),
    whole_model=("--like", "qwen2.5-72b", "--vocab", "2048", *SMALL),
    second_model=("--like", "llama-3.1-8b", "--vocab", "512", "--blocks", "4", *SMALL),
    hidden=128,
    ffn=352,
    cube=256,
    windows=16,
    seqlen=64,
    many_windows=(64, 32),
    product_seconds=0.05,
    second_windows=64,
    second_seqlen=64,
    vram_budget=None,
    ram_budget="2GiB",
    kernels_seconds=1,
    models_seconds=1,
    run_seconds=1,
    reference_seconds=1,
    second_seconds=1,
    plan_seconds=1,
)
