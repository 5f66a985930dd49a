"""How busy the node of rank 0 is: processors, memory and GPUs, under the names MLflow gives them.

Sampled in the outbox's process into `system.jsonl` of the stage and delivered from there, so that
what a dead server missed is not lost.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from cluster import fsio

FILE = "system.jsonl"
INTERVAL_SECONDS = 10.0
_SMI_SECONDS = 8.0
_SMI = (
    "nvidia-smi",
    "--query-gpu=index,utilization.gpu,memory.used,memory.total,power.draw",
    "--format=csv,noheader,nounits",
)


class Sampler:
    """A thread that appends one line every `interval` seconds until it is stopped."""

    def __init__(self, stage_dir: Path, attempt: str, interval: float = INTERVAL_SECONDS) -> None:
        self._path = stage_dir / FILE
        self._attempt, self._interval = attempt, interval
        self._stopped = threading.Event()
        self._gpus = True
        # One step a sample, on from where an earlier attempt ended.
        steps = (int(line["step"]) + 1 for _, line in fsio.read_json_lines(self._path))
        self._step = max(steps, default=0)
        self._ticks = _processor_ticks()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)

    def start(self) -> Sampler:
        """Begin; the first sample comes after one interval."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End before the next sample."""
        self._stopped.set()
        self._thread.join(_SMI_SECONDS)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self._sample()
            except OSError:  # a full disk or an absent file server: the next sample may be kept
                continue

    def _sample(self) -> None:
        busy, total = _processor_ticks()
        before_busy, before_total = self._ticks
        self._ticks = busy, total
        values = {
            "system/cpu_utilization_percentage": round(
                100 * (busy - before_busy) / max(1, total - before_total), 1
            ),
            **_memory(),
            **(self._of_gpus() if self._gpus else {}),
        }
        line = {"step": self._step, "time": time.time(), "attempt": self._attempt}
        fsio.append_json_line(self._path, {**line, "metrics": values})
        self._step += 1

    def _of_gpus(self) -> Mapping[str, float]:
        """Of the GPUs of this node, whichever the job uses where no control group hides the others;
        without the program that tells, never asked again."""
        try:
            done = subprocess.run(_SMI, capture_output=True, text=True, timeout=_SMI_SECONDS)
        except FileNotFoundError:
            self._gpus = False
            return {}
        except subprocess.TimeoutExpired:
            return {}
        return gpu_values(done.stdout) if done.returncode == 0 else {}


def _processor_ticks() -> tuple[int, int]:
    """Ticks of all processors, busy and in all, since the machine started; see proc(5)."""
    words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    ticks = [int(word) for word in words[1:9]]  # guests are counted as users already
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # without idle and waiting for a disk


def _memory() -> dict[str, float]:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    used = kib["MemTotal"] - kib["MemAvailable"]
    return {
        "system/system_memory_usage_megabytes": round(used * 1024 / 1e6, 1),
        "system/system_memory_usage_percentage": round(100 * used / kib["MemTotal"], 1),
    }


def gpu_values(table: str) -> dict[str, float]:
    """What `nvidia-smi --query-gpu` said, by name; what a GPU does not tell (`[N/A]`) is left out.

    Columns: index, utilization (percent), memory used and in all (MiB), power (W).
    """
    values: dict[str, float] = {}
    for row in table.splitlines():
        cells = [_number(cell) for cell in row.split(",")]
        if len(cells) != 5 or cells[0] is None:
            continue
        gpu = f"system/gpu_{cells[0]:.0f}"
        used, total = cells[2], cells[3]
        share = 100 * used / total if used is not None and total else None
        found = {
            f"{gpu}_utilization_percentage": cells[1],
            f"{gpu}_memory_usage_megabytes": None if used is None else used * 1.048576,
            f"{gpu}_memory_usage_percentage": share,
            f"{gpu}_power_usage_watts": cells[4],
        }
        values |= {name: round(value, 1) for name, value in found.items() if value is not None}
    return values


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
