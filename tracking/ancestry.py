"""What came from what, over all runs of a store: ancestors, descendants, picture and page; pure."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tracking import lineage
from tracking.stagefiles import State

Direction = Literal["up", "down"]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A file that a stage left: an artifact with its digest."""

    name: str
    kind: str
    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One input: the artifact of another item, with the digest that it had when it was read.

    `sha256` is empty before the stage has a result. `outdated` says that the source has something
    else by now.
    """

    slot: str
    source: str
    artifact: str
    sha256: str = ""
    outdated: bool = False


@dataclass(frozen=True, kw_only=True)
class Number:
    """A reported number: a row of a report, and the stage it is of."""

    stage: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Item:
    """A stage of the store, or a file from outside of it.

    Attributes:
        id: name of the stage's folder; `file:<path>` for a file.
        name: `RUN:STAGE` as `orchestrate status` calls it; the path of a file.
        kind: kind of the stage, or `file`.
        state: what the stage's files say.
        names: all names, where several runs have the stage.
        code: version of the code that made the result, `+dirty` where it was changed.
        about: facts for people, such as the name of a dataset or the checkpoint.
        numbers: rows, if it is a report.
    """

    id: str
    name: str
    kind: str
    state: str
    key: str = ""
    folder: str = ""
    names: tuple[str, ...] = ()
    code: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    takes: tuple[Taken, ...] = ()
    makes: tuple[Made, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    numbers: tuple[Number, ...] = ()


class Ancestry:
    """All items of a store, by id, with the ways between them."""

    def __init__(self, items: Iterable[Item], digest: str = "") -> None:
        """Take all items of a store.

        Args:
            items: the items.
            digest: of what one of them made (or its beginning): ways down from that item then lead
                to those only that took exactly this.
        """
        self.items = {item.id: item for item in items}
        narrow = self.with_digest(digest) if digest else []
        self._takers: dict[str, list[str]] = {}
        for item in self.items.values():
            for one in item.takes:
                other = one.source in narrow and not one.sha256.startswith(digest)
                known = self._takers.setdefault(one.source, [])
                if item.id not in known and (not other or not one.sha256):
                    known.append(item.id)

    def with_digest(self, digest: str) -> list[str]:
        """The items that made or were a file of this digest, also where they have another now."""
        makers = [
            item.id
            for item in self.items.values()
            if any(one.sha256.startswith(digest) for one in item.makes)
        ]
        read = [
            one.source
            for item in self.items.values()
            for one in item.takes
            if one.sha256.startswith(digest)
        ]
        return list(dict.fromkeys([*makers, *read]))

    def sources(self, id: str) -> list[str]:
        """What an item takes from."""
        return list(dict.fromkeys(one.source for one in self.items[id].takes))

    def takers(self, id: str) -> list[str]:
        """What takes from an item."""
        return self._takers.get(id, [])

    def next(self, direction: Direction) -> Callable[[str], list[str]]:
        """One step up (to sources) or down (to takers)."""
        return self.sources if direction == "up" else self.takers

    def reached(self, start: Sequence[str], direction: Direction) -> list[Item]:
        """Everything up or down from some items, without them, sources before their takers."""
        step, seen = self.next(direction), set(start)
        todo = list(start)
        while todo:
            new = [other for other in step(todo.pop()) if other not in seen]
            seen.update(new)
            todo.extend(new)
        return self.ordered(seen - set(start))

    def ordered(self, ids: Iterable[str]) -> list[Item]:
        """These items, sources before their takers."""
        wanted, done = set(ids), dict[str, Item]()

        def visit(id: str) -> None:
            for source in self.sources(id):
                if source in wanted and source not in done:
                    visit(source)
            done[id] = self.items[id]

        for id in self.items:
            if id in wanted and id not in done:
                visit(id)
        return list(done.values())

    def around(self, start: Sequence[str], directions: Sequence[Direction]) -> list[Item]:
        """Some items with all that is up or down from them, sources before their takers."""
        reached = [item.id for way in directions for item in self.reached(start, way)]
        return self.ordered([*start, *reached])

    def redone(self, start: Sequence[str]) -> list[Item]:
        """The stages that would have to run again if these items were wrong, in order."""
        below = [item.id for item in self.reached(start, "down")]
        return [item for item in self.ordered([*start, *below]) if item.kind != "file"]


def as_json(ancestry: Ancestry, start: Sequence[str], shown: Sequence[Item]) -> dict[str, Any]:
    """Plain data: the items asked for, above and below them, and all that was found of each."""
    return {
        "found": list(start),
        "ancestors": [item.id for item in ancestry.reached(start, "up")],
        "descendants": [item.id for item in ancestry.reached(start, "down")],
        "redo": [item.id for item in ancestry.redone(start)],
        "items": [asdict(item) for item in shown],
    }


def as_svg(items: Sequence[Item]) -> str:
    """The items from left to right, coloured by state."""
    return lineage.as_svg(_nodes(items))


def _nodes(items: Sequence[Item]) -> list[lineage.Node]:
    """The boxes of the picture; a box is named after the stage, with the run where names meet."""
    short = {item.id: _short(item) for item in items}
    meet = {name for name in short.values() if list(short.values()).count(name) > 1}
    names = {id: _named(id, name, items) if name in meet else name for id, name in short.items()}
    return [
        lineage.Node(
            name=names[item.id],
            kind=item.kind,
            key=item.key,
            folder=Path(item.folder),
            state=State(name=item.state),
            upstream=tuple(
                names[source]
                for source in dict.fromkeys(one.source for one in item.takes)
                if source in names
            ),
            metrics=item.metrics,
        )
        for item in items
    ]


def _short(item: Item) -> str:
    return Path(item.name).name if item.kind == "file" else item.name.rpartition(":")[2]


def _named(id: str, name: str, items: Sequence[Item]) -> str:
    """A name that no other box has: the item's own, else with its id."""
    full = next(item.name for item in items if item.id == id)
    alike = sum(item.name == full for item in items)
    return full if alike == 1 else f"{name} {id}"


_STYLE = (
    "body{font-family:sans-serif;font-size:14px;margin:2em;color:#24292f}"
    "table{border-collapse:collapse}td,th{border:1px solid #d0d7de;padding:4px 8px;"
    "text-align:left;vertical-align:top}code{font-size:12px}svg{max-width:100%;height:auto}"
)


def as_html(title: str, ancestry: Ancestry, ids: Sequence[str], items: Sequence[Item]) -> str:
    """A page that stands by itself: the picture, what would be redone, and a table of the items.

    Args:
        title: its heading.
        ancestry: what the items are of.
        ids: what was asked for.
        items: what is shown.
    """
    every = {item.id: item.name for item in ancestry.items.values()}
    rows = "\n".join(_row(item, every) for item in items)
    names = ", ".join(html.escape(item.name) for item in ancestry.redone(ids)) or "nothing"
    head = "<th>" + "</th><th>".join(_COLUMNS) + "</th>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1>\n{as_svg(items)}"
        f"<p>If it was wrong, these would have to run again: {names}.</p>\n"
        f"<table><tr>{head}</tr>\n{rows}\n</table></body></html>\n"
    )


_COLUMNS = ("name", "kind", "state", "code", "takes", "made", "numbers", "about")


def _row(item: Item, names: Mapping[str, str]) -> str:
    takes = [
        f"{html.escape(f'{one.slot}: {names.get(one.source, one.source)}')}"
        f" <code>{one.sha256[:12]}</code>" + (" (outdated)" if one.outdated else "")
        for one in item.takes
    ]
    made = [f"{html.escape(one.name)} <code>{one.sha256[:12]}</code>" for one in item.makes]
    metrics = lineage.key_metrics(item.metrics).items()
    numbers = [f"{html.escape(name)} {lineage.figure(value)}" for name, value in metrics]
    numbers += [html.escape(one.text) for one in item.numbers]
    about = [html.escape(f"{name}: {text}") for name, text in item.about.items()]
    cells = [html.escape("\n".join(item.names or (item.name,))).replace("\n", "<br>")]
    cells += [html.escape(item.kind), item.state, html.escape(item.code)]
    cells += ["<br>".join(parts) for parts in (takes, made, numbers, about)]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
