"""The lineage of a stage, a file or a run as trees on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from tracking.ancestry import Ancestry, Direction, Item, Taken
from tracking.lineage import figure, key_metrics

_SHOWN_METRICS = 3
_DIGEST = 12
_TITLES = {"up": "came from", "down": "went into"}


def lineage_view(
    ancestry: Ancestry, ids: Sequence[str], directions: Sequence[Direction]
) -> RenderableType:
    """A tree for each item and direction, and what would have to run again if it was wrong."""
    parts: list[RenderableType] = []
    for direction in directions:
        roots = _roots(ancestry, ids, direction)
        parts.append(Text(_TITLES[direction] if len(directions) > 1 else "", style="bold"))
        seen = set[str]()
        for root in roots:
            tree = Tree(_line(ancestry.items[root]))
            _grow(tree, ancestry, root, direction, seen)
            parts.append(tree)
    if "down" in directions:
        parts.append(Text(_redo(ancestry.redone(ids))))
    return Group(*(part for part in parts if not isinstance(part, Text) or part.plain))


def _roots(ancestry: Ancestry, ids: Sequence[str], direction: Direction) -> list[str]:
    """Where the trees begin: of several stages of a run, those that no other tree will show."""
    back = ancestry.takers if direction == "up" else ancestry.sources
    roots = [id for id in ids if not set(back(id)) & set(ids)]
    return roots if len(ids) > 1 else list(ids)


def _grow(tree: Tree, ancestry: Ancestry, id: str, direction: Direction, seen: set[str]) -> None:
    seen.add(id)
    for other in ancestry.next(direction)(id):
        item = ancestry.items[other]
        taken = (ancestry.items[id] if direction == "up" else item).takes
        source = other if direction == "up" else id
        edges = [one for one in taken if one.source == source]
        label, known = _line(item, edges), other in seen
        branch = tree.add(label.append("  (see above)", style="dim") if known else label)
        pair = (ancestry.items[id], item)
        report, stage = pair if direction == "up" else pair[::-1]
        for row in _rows(report, stage):
            branch.add(Text(row))
        if not known:
            _grow(branch, ancestry, other, direction, seen)


def _rows(report: Item, stage: Item) -> Iterator[str]:
    """The rows of a report that are of a stage it takes; one of another run has a longer name."""
    names = {name.partition(":")[2] for name in stage.names}
    names |= {f"run:{name}" for name in stage.names}
    for number in report.numbers:
        if number.stage in names:
            yield f"row: {number.text}"


def _line(item: Item, edges: Sequence[Taken] = ()) -> Text:
    text = Text()
    slots = ", ".join(dict.fromkeys(one.slot for one in edges))
    text.append(f"{slots}: " if slots else "", style="dim")
    text.append(item.name, style="bold")
    text.append(f"  {item.kind}", style="cyan")
    if item.state not in ("succeeded", "there"):
        text.append(f"  {item.state}", style="yellow")
    shown = list(key_metrics(item.metrics).items())[:_SHOWN_METRICS]
    for words in (
        *(f"{name} {figure(value)}" for name, value in shown),
        *(f"{name} {item.about[name]}" for name in ("dataset", "version") if name in item.about),
        *([f"code {item.code}"] if item.code else []),
    ):
        text.append(f"  {words}")
    for edge in edges:
        text.append(f"  {edge.artifact} {edge.sha256[:_DIGEST]}".rstrip(), style="dim")
        if edge.outdated:
            text.append(" (has been made anew since)", style="yellow")
    if not edges:
        for made in item.makes:
            text.append(f"  {made.name} {made.sha256[:_DIGEST]}", style="dim")
    if item.about.get("checkpoint"):
        text.append(f"  checkpoint {item.about['checkpoint']}", style="dim")
    return text


def _redo(items: Sequence[Item]) -> str:
    if not items:
        return "if it was wrong: no stage has taken it"
    runs = {name.partition(":")[0] for item in items for name in item.names}
    names = ", ".join(item.name for item in items)
    stages = "1 stage" if len(items) == 1 else f"{len(items)} stages"
    of = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    return f"if it was wrong, run again {stages} of {of}, in order: {names}"
