"""Writes what a prepare stage did: a manifest, the list of the excluded, a page to read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import fsio
from recipes.stages.prepare.config import PrepareConfig
from recipes.stages.prepare.one import settings_of

if TYPE_CHECKING:
    import pandas as pd

_MANIFEST = ("path", "sha256", "bytes", "frames", "source_path", "source_sha256", "source_bytes")
_SHOWN = 30  # rows of a table on the page; all are in excluded.csv


def write_manifest(rows: pd.DataFrame, config: PrepareConfig, path: Path) -> None:
    """One JSON line a prepared file: what it is, what it was made from and how."""
    settings = settings_of(config.options)
    files = rows[rows["prepared"]].drop_duplicates("path")
    known = files[[*_MANIFEST]].rename(columns={"source_path": "source"}).to_dict("records")
    lines = [
        json.dumps({**line, "settings": settings}, ensure_ascii=False, sort_keys=True)
        for line in known
    ]
    fsio.write_text(path, "".join(line + "\n" for line in lines))


def write_excluded(excluded: pd.DataFrame, path: Path) -> None:
    """The rows that cannot be used, as a csv with their reasons."""
    text = excluded[["path", "label", "split", "reason"]].to_csv(index=False)
    fsio.write_text(path, text)


def write_report(
    path: Path,
    config: PrepareConfig,
    before: pd.DataFrame,
    rows: pd.DataFrame,
    metrics: Mapping[str, float],
) -> None:
    """A page in Markdown: settings, what was done and why, what could not be used."""
    lines = [
        f"# {config.data.name}, prepared",
        "",
        *_settings(config),
        "",
        *_done(metrics),
        "",
        *_table("Why files were prepared", _reasons(before, rows)),
        *_table("Files that were not prepared or cannot be used", _failures(rows)),
    ]
    fsio.write_text(path, "\n".join(lines).rstrip() + "\n")


def _settings(config: PrepareConfig) -> list[str]:
    import av

    options = config.options
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    return [
        f"H.264 in MP4 by PyAV {av.__version__} (libavcodec {codec}): preset veryfast, tune "
        f"fastdecode, crf {options.crf}, a key frame every {options.gop} frames, no B-frames, "
        f"short side {options.short_side} pixels or that of the source if smaller, upright, "
        "constant frame rate, no sound. Frame i is frame i of the source. Each file was decoded as "
        f"a whole and read by index with {config.decoder}."
    ]


def _done(metrics: Mapping[str, float]) -> list[str]:
    count = {name: f"{int(value):,}" for name, value in metrics.items()}
    kept = f"{int(metrics['videos'] - metrics['prepared']):,}"
    return [
        "| | |",
        "|---|---|",
        f"| listed | {count['listed']} |",
        f"| encoded | {count['encoded']} |",
        f"| taken from the cache | {count['reused']} |",
        f"| used as they are | {kept} |",
        f"| cannot be used | {count['excluded']} |",
        f"| prepared video | {metrics['hours']:.2f} h |",
        f"| bytes before | {count['bytes_before']} |",
        f"| bytes after | {count['bytes_after']} |",
        f"| processor time | {metrics['cpu_hours']:.2f} h |",
    ]


def _reasons(before: pd.DataFrame, rows: pd.DataFrame) -> list[tuple[str, int]]:
    known = before.drop_duplicates("path").set_index("path")
    sources = rows.loc[rows["prepared"], "source_path"].drop_duplicates()
    chosen = known.loc[sources]
    texts = chosen["reason"].where(chosen["reason"] != "", "all files were asked for")
    return Counter(texts).most_common(_SHOWN)


def _failures(rows: pd.DataFrame) -> list[tuple[str, int]]:
    troubled = rows[~rows["prepared"] & (rows["reason"] != "")]
    return Counter(
        f"{verdict}: {reason}"
        for verdict, reason in zip(troubled["verdict"], troubled["reason"], strict=True)
    ).most_common(_SHOWN)


def _table(title: str, counts: list[tuple[str, int]]) -> list[str]:
    if not counts:
        return []
    rows = [f"| {count:,} | {text.replace('|', '/')} |" for text, count in counts]
    return [f"## {title}", "", "| files | reason |", "|---|---|", *rows, ""]
