"""Which run, stage and recipe a person means: ids may be shortened, near misses are named."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from orchestrator.errors import nearest
from orchestrator.groups import collapsed
from orchestrator.store import Store

_SHIPPED = Path(__file__).parents[1] / "recipes"


class UnknownName(Exception):
    """Nothing, or more than one thing, has the name that was given."""


def find_run(store: Store, text: str | None) -> str:
    """The run meant by an id, a part of one, `latest` or nothing.

    Raises:
        UnknownName: there is no such run, or several; the message lists them or the nearest.
    """
    ids = store.run_ids()
    if not ids:
        raise UnknownName(
            f"no runs in {store.root} yet: start one with `orchestrate submit RECIPE`"
        )
    found = store.resolve_run(text or "latest")
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownName(f"{text!r} may be any of {len(found)} runs:\n  " + "\n  ".join(found))
    raise UnknownName(f"no run {text!r} in {store.root}: {nearest(str(text), ids[::-1])}")


def find_stage(store: Store, run_id: str, text: str) -> str:
    """The stage of a run meant by its name or the beginning of it. Raises UnknownName."""
    names = [str(entry["name"]) for entry in store.read_plan(run_id)["stages"]]
    if text in names:
        return text
    found = [name for name in names if name.startswith(text)] if text else names
    if len(found) == 1:
        return found[0]
    if found:
        shown = "\n  ".join(collapsed(found))
        raise UnknownName(f"which stage of {run_id}? `{run_id}:STAGE` with one of\n  {shown}")
    raise UnknownName(f"run {run_id} has no stage {text!r}: {nearest(text, names)}")


def find_target(store: Store, text: str | None) -> tuple[str, str | None]:
    """`RUN[:STAGE]` as the full id and the full stage name, or None where no stage was named.

    Raises:
        UnknownName: no such run or stage.
    """
    run, colon, stage = (text or "").partition(":")
    run_id = find_run(store, run or None)
    return run_id, find_stage(store, run_id, stage) if colon else None


def find_recipe(text: str) -> Path:
    """The recipe file: a path, or the name of a recipe that comes with the package."""
    path = Path(text)
    if path.exists():
        return path
    name = text.removeprefix("recipes/").removesuffix(".yaml")
    shipped = _SHIPPED / f"{name}.yaml"
    return shipped if shipped.is_file() else path


def shipped_recipes() -> list[tuple[str, str]]:
    """Name and first sentence of description of each recipe that comes with the package."""
    return [(path.stem, _about(path)) for path in sorted(_SHIPPED.glob("*.yaml"))]


def _about(path: Path) -> str:
    """The first sentence of the comment a recipe opens with, behind the command line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in takewhile(_is_comment, lines)]
    words = " ".join(line for line in comment if not line.startswith("orchestrate "))
    return words.strip().partition(". ")[0].removesuffix(".") + "." if words else ""


def _is_comment(line: str) -> bool:
    return line.startswith("#")
