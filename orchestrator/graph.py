"""The graph of a recipe: edges from input references, their kinds, order and cycles; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from orchestrator.errors import nearest
from orchestrator.references import GraphFault, Reference, parse_reference
from recipes.contract import ArtifactKind, InputSlot

_SUFFIXES: dict[str, ArtifactKind] = {".safetensors": "encoder", ".parquet": "dataset"}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A stage as the graph sees it: its references by slot and what its kind declares."""

    name: str
    inputs: Mapping[str, tuple[str, ...]]
    slots: Mapping[str, InputSlot]
    outputs: Mapping[str, ArtifactKind]


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One artifact that goes into a slot; `upstream` is None for what is not in the recipe."""

    reference: Reference
    upstream: str | None
    artifact: str
    kind: ArtifactKind


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with an input: at which stage and slot."""

    stage: str
    slot: str
    value: str | None
    expected: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Edges by stage and slot, and the names in an order in which every upstream comes first."""

    edges: Mapping[str, Mapping[str, tuple[Edge, ...]]] = field(default_factory=dict)
    order: tuple[str, ...] = ()

    def upstream(self, name: str) -> tuple[str, ...]:
        """Stages that must finish before this one, each once."""
        found = [e.upstream for edges in self.edges[name].values() for e in edges if e.upstream]
        return tuple(dict.fromkeys(found))


def connect(nodes: Sequence[Node]) -> tuple[Graph, list[Fault]]:
    """Find the upstream of every input, check artifact kinds and order the stages.

    Ties keep the order of `nodes`. With faults, the graph holds what could be connected.
    """
    known = {node.name: node for node in nodes}
    faults: list[Fault] = []
    edges: dict[str, dict[str, tuple[Edge, ...]]] = {}
    for node in nodes:
        edges[node.name] = {}
        for slot, texts in node.inputs.items():
            found, wrong = _connect_slot(node, slot, texts, known)
            edges[node.name][slot] = tuple(found)
            faults += wrong
        faults += _missing_slots(node)
    graph = Graph(edges=edges, order=())
    order, cycle = _order([node.name for node in nodes], graph)
    if cycle:
        faults.append(_cycle_fault(cycle, graph))
    return Graph(edges=edges, order=tuple(order)), faults


def _missing_slots(node: Node) -> Iterable[Fault]:
    for slot, declared in node.slots.items():
        if declared.required and not node.inputs.get(slot):
            kinds = " or ".join(declared.kinds)
            count = "one or more artifacts" if declared.many else "an artifact"
            expected = f"an input `{slot}`: {count} of kind {kinds}"
            yield Fault(stage=node.name, slot=slot, value=None, expected=expected)


def _connect_slot(
    node: Node, slot: str, texts: Sequence[str], known: Mapping[str, Node]
) -> tuple[list[Edge], list[Fault]]:
    declared = node.slots.get(slot)
    if declared is None:
        hint = nearest(slot, list(node.slots)) or "this kind takes no inputs"
        expected = "an input this kind of stage has"
        return [], [Fault(stage=node.name, slot=slot, value=slot, expected=expected, hint=hint)]
    found: list[Edge] = []
    faults = []
    for text in texts:
        try:
            found += _edges(parse_reference(text), node, declared, known)
        except GraphFault as fault:
            faults.append(
                Fault(
                    stage=node.name,
                    slot=slot,
                    value=text,
                    expected=fault.expected,
                    hint=fault.hint,
                )
            )
    if len(found) > 1 and not declared.many:
        expected = f"one artifact for `{slot}`, not {len(found)}"
        value = ", ".join(texts)
        faults.append(Fault(stage=node.name, slot=slot, value=value, expected=expected))
    return list({(e.upstream, e.reference.text, e.artifact): e for e in found}.values()), faults


def _edges(
    reference: Reference, node: Node, slot: InputSlot, known: Mapping[str, Node]
) -> list[Edge]:
    if reference.file:
        return [
            Edge(reference=reference, upstream=None, artifact="", kind=_file_kind(reference, slot))
        ]
    if reference.model:
        if "encoder" not in slot.kinds:
            kinds = " or ".join(slot.kinds)
            raise GraphFault(f"a stage: a registered model is an encoder and cannot be the {kinds}")
        return [Edge(reference=reference, upstream=None, artifact="encoder", kind="encoder")]
    if reference.run:
        artifact = reference.artifact
        kind = _guess_kind(artifact, slot)
        return [Edge(reference=reference, upstream=None, artifact=artifact, kind=kind)]
    names = _matches(reference.stage, node.name, known)
    artifact = reference.artifact
    found = []
    for name in names:
        outputs: dict[str, ArtifactKind] = {**known[name].outputs, "result": "result"}
        if artifact not in outputs:
            raise GraphFault(
                f"an artifact that `{name}` leaves: {', '.join(outputs)}",
                nearest(artifact, list(outputs)),
            )
        if outputs[artifact] not in slot.kinds:
            raise GraphFault(
                f"an artifact of kind {' or '.join(slot.kinds)}: "
                f"`{name}.{artifact}` is of kind {outputs[artifact]}",
                _fitting(known[name], slot),
            )
        exact = Reference(text=f"{name}.{artifact}", stage=name, artifact=artifact)
        found.append(
            Edge(reference=exact, upstream=name, artifact=artifact, kind=outputs[artifact])
        )
    return found


def _fitting(upstream: Node, slot: InputSlot) -> str:
    fitting = [name for name, kind in upstream.outputs.items() if kind in slot.kinds]
    return f"did you mean `{upstream.name}.{fitting[0]}`?" if fitting else ""


def _matches(pattern: str, own: str, known: Mapping[str, Node]) -> list[str]:
    """Stages a name or pattern means; a pattern never means the stage it stands in."""
    if "*" in pattern:
        depth = pattern.count("/")
        found = [n for n in known if n.count("/") == depth and fnmatchcase(n, pattern) and n != own]
        if not found:
            raise GraphFault(
                f"a pattern that some stage matches: {pattern!r} matches none", _names(known)
            )
        return found
    if pattern in known:
        return [pattern]
    inside = [name for name in known if name.startswith(f"{pattern}/")]
    if inside:
        raise GraphFault(
            f"one cell of `{pattern}`, which has a matrix",
            f"name a cell such as `{inside[0]}`, or all of them as `{pattern}/*`",
        )
    raise GraphFault("the name of a stage in this recipe", nearest(pattern, list(known)))


def _names(known: Mapping[str, Node]) -> str:
    return f"stages: {', '.join(list(known)[:12])}"


def _file_kind(reference: Reference, slot: InputSlot) -> ArtifactKind:
    """What a file is, by its suffix; the slot must take that kind."""
    for suffix, kind in _SUFFIXES.items():
        if reference.file.endswith(suffix) and kind in slot.kinds:
            return kind
    suffixes = [suffix for suffix, kind in _SUFFIXES.items() if kind in slot.kinds]
    if not suffixes:
        raise GraphFault(f"a stage: a file cannot be the {' or '.join(slot.kinds)} here")
    raise GraphFault(f"a file that ends in {' or '.join(suffixes)}")


def _guess_kind(artifact: str, slot: InputSlot) -> ArtifactKind:
    """Kind of another run's artifact by its name; the planner compares it with that run."""
    for kind in slot.kinds:
        if kind == artifact:
            return kind
    return slot.kinds[0]


def _order(names: Sequence[str], graph: Graph) -> tuple[list[str], list[str]]:
    """Topological order by depth-first search; the names of a cycle if there is one."""
    done: dict[str, None] = {}
    for start in names:
        stack = [(start, iter(graph.upstream(start)))] if start not in done else []
        open_names = [start]
        while stack:
            name, pending = stack[-1]
            following = next((n for n in pending if n not in done), None)
            if following is None:
                done[name] = None
                stack.pop()
                open_names.pop()
            elif following in open_names:
                return [], open_names[open_names.index(following) :]
            else:
                stack.append((following, iter(graph.upstream(following))))
                open_names.append(following)
    return list(done), []


def _cycle_fault(cycle: Sequence[str], graph: Graph) -> Fault:
    """A cycle, told at the input that closes it."""
    first, follower = cycle[0], cycle[1 % len(cycle)]
    slot = next(
        slot
        for slot, edges in graph.edges[first].items()
        if any(edge.upstream == follower for edge in edges)
    )
    chain = " needs ".join([*cycle, first])
    return Fault(
        stage=first,
        slot=slot,
        value=chain,
        expected="stages that do not wait for each other in a circle",
    )
