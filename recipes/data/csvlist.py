"""Lists the videos of a csv file with the columns path, label, split and group."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from recipes.contract import InputError
from recipes.data.config import CsvData, expand
from recipes.data.listing import SPLITS, Listing, VideoRow, make_listing, read_list


def scan(config: CsvData, output_dir: Path, workers: int = 1) -> Listing:
    """List the rows of the csv; nothing is written.

    Raises:
        InputError: the file is missing, has no column `path`, or a row is wrong; with its line.
    """
    file = expand(config.file)
    root = file.parent if config.root is None else expand(config.root)
    return make_listing(root, parse(read_list(file), str(file), config.delimiter))


def parse(text: str, where: str, delimiter: str = ",") -> list[VideoRow]:
    """The rows of a csv with header; `where` names it in errors."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    if "path" not in (reader.fieldnames or ()):
        raise InputError(
            f"{where}: needs a header with the column path, and label, split, group as there are; "
            f"found {', '.join(reader.fieldnames or ['nothing'])}"
        )
    rows = []
    for raw in reader:
        cells = {key: (value or "").strip() for key, value in raw.items() if isinstance(key, str)}
        split = cells.get("split") or "train"
        if None in raw or not cells["path"] or split not in SPLITS:
            raise InputError(
                f"{where}, line {reader.line_num}: expected a path, a split out of "
                f"{', '.join(SPLITS)} and no more cells than the header; found {raw}"
            )
        group = cells.get("group") or cells["path"]
        rows.append(
            VideoRow(path=cells["path"], label=cells.get("label", ""), split=split, group=group)
        )
    return rows
