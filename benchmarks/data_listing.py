"""Listing a copy of Kinetics: 240,000 videos found, matched with the lists and checked.

    python benchmarks/data_listing.py --out benchmarks/results

The files are empty: no video is opened before the listing is done. Calls of the file system are
counted with strace where it is installed.
"""

from __future__ import annotations

import os
import shutil
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
from data_videos import Line, at_most, benchmark, in_turns, milliseconds, ratio

from recipes.data import kinetics
from recipes.data.config import KineticsData
from recipes.data.confine import refusals
from recipes.data.listing import find_files

CLASSES = 400
LETTERS = string.ascii_letters + string.digits + "-_"


def write_copy(root: Path, count: int) -> None:
    """Lists of `count` segments and an empty file for 98 % of them, in folders of classes."""
    rng = np.random.default_rng(0)
    names = rng.choice(list(LETTERS), (count, 11))
    starts = rng.integers(0, 300, count)
    (root / "annotations").mkdir(parents=True)
    for split, share in (("train", 0.92), ("val", 0.08)):
        lines = ["label,youtube_id,time_start,time_end,split,is_cc"]
        for number in range(CLASSES):
            (root / split / f"class number {number}").mkdir(parents=True)
        first = 0 if split == "train" else count - round(count * share)
        for number in range(first, first + round(count * share)):
            label, start = f"class number {number % CLASSES}", int(starts[number])
            name = "".join(names[number])
            lines.append(f"{label},{name},{start},{start + 10},{split},0")
            if number % 50:
                (root / split / label / f"{name}_{start:06d}_{start + 10:06d}.mp4").touch()
        (root / "annotations" / f"{split}.csv").write_text("\n".join(lines) + "\n")


def list_all(root: Path) -> int:
    """What the index does before it opens a video."""
    listing = kinetics.scan(KineticsData(root=str(root)), root)
    refused = refusals(listing.root, [row.path for row in listing.rows], follow_links=False)
    return len(listing.rows) - len(refused)


def naive(root: Path) -> int:
    """Every path resolved and looked at by itself, once its name is known."""
    paths = [path for path in root.rglob("*.mp4") if path.is_file()]
    top = root.resolve()
    return sum(path.resolve().is_relative_to(top) for path in paths)


def calls_of_the_file_system(root: Path) -> int | None:
    """System calls on files that a listing makes, less those of an empty process."""
    if shutil.which("strace") is None:
        return None
    counts = []
    for work in ("", f"data_listing.list_all(__import__('pathlib').Path({str(root)!r}))"):
        out = root / "strace.txt"
        command = ["strace", "-f", "-c", "-e", "trace=%file,getdents64", "-o", str(out)]
        program = [sys.executable, "-c", f"import data_listing; {work}"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        subprocess.run([*command, *program], check=True, env=environment)
        counts.append(int(out.read_text().splitlines()[-1].split()[3]))
    return counts[1] - counts[0]


def measure(folder: Path, small: bool) -> list[tuple[str, list[Line]]]:
    """Seconds and calls for one copy."""
    root, count = folder / "kinetics", 4_000 if small else 240_000
    write_copy(root, count)
    seconds = in_turns(
        {
            "ours": lambda: list_all(root),
            "find": lambda: find_files(root, lambda name: name.endswith(".mp4"), False),
            "naive": lambda: naive(root),
        },
        3,
    )
    lines = [
        Line(
            what="found, matched, checked",
            figure=milliseconds(seconds, "ours", 1) / 1000,
            unit="s",
            detail="two csv lists read; one row a segment",
        ),
        Line(
            what="of it finding the files",
            figure=milliseconds(seconds, "find", 1) / 1000,
            unit="s",
        ),
        Line(
            what="faster than finding and resolving each file",
            figure=ratio(seconds, "naive", "ours"),
            detail="rglob, is_file, resolve, without lists",
        ),
    ]
    calls = calls_of_the_file_system(root)
    if calls is not None:
        lines.append(
            at_most("calls of the file system a file", calls / count, 0.1, "", f"{calls} calls")
        )
    return [(f"{count} segments in {2 * CLASSES} folders", lines)]


if __name__ == "__main__":
    benchmark(__doc__ or "", measure, "data_listing")
