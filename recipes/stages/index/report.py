"""Writes what an index found: the list of the excluded, a page to read, a figure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import fsio
from recipes.data.decoder_versions import ADVICE, decoder_versions
from recipes.stages.index.config import IndexConfig
from recipes.stages.index.look import decoder_of, mode_of

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 30  # rows of a table on the page; all are in excluded.csv
_SHOWN_CLASSES = 50
_UNCHECKED = (
    "Only the packets of each file were read (`data.index.mode: demux`). Not checked: damage "
    "inside the packets, whether the decoder can open the file at all, whether random access gives "
    "the right frames where no doubt was seen. Files with a doubt are read from their first frame."
)
_LIMIT = (
    "Every file was decoded once in order, with damage as an error, and read by index by the "
    "decoder of the data set. Damage that leaves a valid stream behind (VP8, VP9, AV1 and HEVC "
    "decode almost any bytes) cannot be seen in the file itself."
)


def write_excluded(excluded: pd.DataFrame, path: Path) -> None:
    """The rows that cannot be used, as a csv with their reasons."""
    text = excluded[["path", "label", "split", "mendable", "reason"]].to_csv(index=False)
    fsio.write_text(path, text)


def old_decoders() -> list[str]:
    """A warning for each installed decoder whose FFmpeg is known to lack fixes."""
    return [
        f"{name} {found.version} carries FFmpeg {found.ffmpeg}, which {ADVICE}"
        for name, found in decoder_versions().items()
        if found.known_old
    ]


def write_report(path: Path, config: IndexConfig, table: pd.DataFrame) -> None:
    """A page in Markdown: what there is, what is excluded and why, what is slow to read."""
    usable = table[table["verdict"] != "reject"]
    excluded = table[table["verdict"] == "reject"]
    seconds = float(usable["duration"].sum())
    lines = [
        f"# {config.data.name}",
        "",
        f"{len(table):,} videos are listed, {len(usable):,} can be used ({seconds / 3600:.2f} h), "
        f"{len(excluded):,} cannot.",
        "",
        _UNCHECKED if mode_of(config) == "demux" else _LIMIT,
        "",
        *_sequential(usable),
        *_reasons("Excluded, and why", excluded),
        *_splits(table),
        *_classes(usable),
        *_decoders(decoder_of(config)),
    ]
    fsio.write_text(path, "\n".join(lines).rstrip() + "\n")


def _sequential(usable: pd.DataFrame) -> list[str]:
    slow = usable[usable["verdict"] == "sequential"]
    if slow.empty:
        return []
    mean = float(slow["frames"].mean())
    return [
        f"{len(slow):,} files are read from their first frame for every clip, since random access "
        f"to them is not reliable: on average half of {mean:.0f} frames are decoded for nothing. "
        "`data.prepare={files: needed}` re-encodes them once.",
        "",
        *_reasons("Read from the first frame, and why", slow),
    ]


def _reasons(title: str, rows: pd.DataFrame) -> list[str]:
    if rows.empty:
        return []
    found: dict[tuple[str, bool], list[str]] = {}
    for path, reason, mendable in zip(rows["path"], rows["reason"], rows["mendable"], strict=True):
        found.setdefault((kind_of(reason), bool(mendable)), []).append(path)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        f"## {title}",
        "",
        "| files | `prepare` can mend it | reason | first |",
        "|---|---|---|---|",
        *(
            f"| {len(files):,} | {'yes' if mends else 'no'} | {_cell(kind)} | {_cell(files[0])} |"
            for (kind, mends), files in ordered[:_SHOWN]
        ),
        *([f"| ... | | {len(found) - _SHOWN} more reasons | |"] if len(found) > _SHOWN else []),
        "",
    ]


def kind_of(reason: str) -> str:
    """A reason without what is different in every file: numbers become N."""
    return re.sub(r"(?<![A-Za-z\d.])-?\d+(\.\d+)?\b", "N", reason)


def _cell(text: object) -> str:
    return str(text).replace("|", "/")


def _splits(table: pd.DataFrame) -> list[str]:
    rows = ["## Splits", "", "| split | listed | can be used | missing |", "|---|---|---|---|"]
    for split, part in table.groupby("split"):
        usable = int((part["verdict"] != "reject").sum())
        missing = int((part["reason"] == "missing").sum())
        rows.append(f"| {split} | {len(part):,} | {usable:,} | {missing:,} |")
    return [*rows, ""]


def _classes(usable: pd.DataFrame) -> list[str]:
    labels = usable["label"].unique()
    if not 0 < len(labels) <= _SHOWN_CLASSES:
        return []
    counts = usable.groupby(["label", "split"]).size().unstack(fill_value=0)
    head = " | ".join(str(split) for split in counts.columns)
    return [
        "## Classes",
        "",
        f"| class | {head} |",
        "|---" * (len(counts.columns) + 1) + "|",
        *(
            f"| {_cell(label or 'unlabeled')} | "
            + " | ".join(f"{int(count):,}" for count in row)
            + " |"
            for label, row in zip(counts.index, counts.to_numpy(), strict=True)
        ),
        "",
    ]


def _decoders(used: str) -> list[str]:
    found = [
        f"{'**' if name == used else ''}{name} {one.version}{'**' if name == used else ''} "
        f"(FFmpeg {one.ffmpeg})"
        for name, one in decoder_versions().items()
    ]
    return [f"Decoders: {', '.join(found)}.", *(f"Warning: {line}." for line in old_decoders())]


def save_figure(table: pd.DataFrame, name: str, folder: Path) -> None:
    """Videos of each class by split, and how long they are."""
    from matplotlib.figure import Figure

    usable = table[table["verdict"] != "reject"]
    counts = usable.groupby(["label", "split"]).size().unstack(fill_value=0)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    bottom = None
    for split in counts.columns:
        left.bar(range(len(counts)), counts[split], bottom=bottom, label=str(split))
        bottom = counts[split] if bottom is None else bottom + counts[split]
    left.set(title=f"{name}: {len(usable)} videos, {len(counts)} classes", ylabel="videos")
    if len(counts) <= 20:
        left.set_xticks(range(len(counts)), [str(label) for label in counts.index], rotation=60)
    else:
        left.set_xlabel("class, in alphabetical order")
    left.legend()
    right.hist(usable["duration"], bins=40)
    right.set(title="duration", xlabel="seconds", ylabel="videos")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "videos.png", dpi=120)
