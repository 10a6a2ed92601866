"""Seconds, memory, and the limits of the device."""

import contextlib
import gc
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

LEAST, MOST = 5, 200  # repeats


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def repeat(
    run: Callable[[], object], seconds: float, device: torch.device, exactly: int | None = None
) -> list[float]:
    """Seconds of every repeat, ascending; the device is waited for before and after each.

    Of `exactly` so many, after one warm-up, or of as many as the seconds allow, after two.
    """

    def timed() -> float:
        wait(device)
        before = time.perf_counter()
        results = run()
        wait(device)
        elapsed = time.perf_counter() - before
        del results
        return elapsed

    timed()
    if exactly is not None:
        return sorted(timed() for _ in range(exactly))
    timed()
    times, start = [], time.perf_counter()
    while len(times) < LEAST or (len(times) < MOST and time.perf_counter() - start < seconds):
        times.append(timed())
    return sorted(times)


def begin_peak(device: torch.device) -> None:
    """Frees what can be freed, and starts a new measurement of the peak.

    Without a GPU, on other systems than Linux, the peak remains that since the process began.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> dict[str, int | str]:
    """The most memory that the process had, or PyTorch's allocator on a GPU."""
    if device.type == "cuda":
        return {"peak_mib": torch.cuda.max_memory_reserved(device) >> 20, "peak_of": "pool"}
    return {"peak_mib": resident_kib() >> 10, "peak_of": "resident"}


def resident_kib() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest >> 10 if sys.platform == "darwin" else largest  # bytes there, else KiB


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def ceilings(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """What a large matrix product reaches in TFLOP/s, and a large copy in GB/s (read and written).

    Each is that of the fastest repeat.
    """
    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else 2048
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    product = torch.empty_like(left)
    seconds = repeat(lambda: torch.matmul(left, right, out=product), 0.5, device)[0]
    tflops = 2 * size**3 / seconds / 1e12
    del left, right, product

    count = (2**30 if on_gpu else 2**28) // dtype.itemsize
    source = torch.ones(count, dtype=dtype, device=device)
    target = torch.empty_like(source)
    seconds = repeat(lambda: target.copy_(source), 0.5, device)[0]
    return {"matmul_tflops": tflops, "copy_gb_s": 2 * count * dtype.itemsize / seconds / 1e9}
