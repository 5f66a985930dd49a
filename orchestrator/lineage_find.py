"""Which stages or files a person means who asks for a lineage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cluster import fsio
from orchestrator.naming import UnknownName, find_stage, find_target
from orchestrator.store import Store
from tracking.ancestry import Ancestry

_HEX = re.compile(r"[0-9a-f]{6,64}")
_REGISTERED = "models:/"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The items meant; `digest` where it was one version of what an item made."""

    ids: tuple[str, ...]
    digest: str = ""


def find_items(store: Store, ancestry: Ancestry, text: str) -> Asked:
    """The items that a person names by run, stage, key, folder, file, digest or registered model.

    Raises:
        UnknownName: the store has nothing of that name; the message has what was tried.
        TrackingError: a registered model was named; MLflow does not have it or cannot be asked.
    """
    if text.startswith(_REGISTERED):
        return _registered(store, ancestry, text)
    run, colon, stage = text.partition(":")
    if len(store.resolve_run(run or "latest")) == 1:
        run_id = store.resolve_run(run or "latest")[0]
        return _of_run(store, ancestry, run_id, find_stage(store, run_id, stage) if colon else None)
    if Path(text).exists():
        return _of_path(store, ancestry, Path(text).resolve())
    if text in ancestry.items:
        return Asked(ids=(text,))
    if _HEX.fullmatch(text):
        return _of_digest(ancestry, text, f"{text} is no stage key and no digest")
    try:
        return _of_run(store, ancestry, *find_target(store, text))
    except UnknownName as error:
        if colon or store.resolve_run(text):
            raise
        raise UnknownName(
            f"{text!r} is no file or folder, no stage, and no key or digest (6 to 64 hexadecimal"
            f" digits); {error}"
        ) from error


def _of_run(store: Store, ancestry: Ancestry, run_id: str, stage: str | None) -> Asked:
    entries = store.read_plan(run_id)["stages"]
    wanted = [
        str(entry["stage"])
        for entry in entries
        if (stage is None and not entry.get("part_of")) or entry["name"] == stage
    ]
    ids = tuple(id for id in dict.fromkeys(wanted) if id in ancestry.items)
    if not ids:
        raise UnknownName(f"nothing of {run_id}{f':{stage}' if stage else ''} was submitted yet")
    return Asked(ids=ids)


def _of_path(store: Store, ancestry: Ancestry, path: Path) -> Asked:
    made = {Path(one.path).resolve(): one for item in ancestry.items.values() for one in item.makes}
    if path in made:
        return _of_digest(ancestry, made[path].sha256, str(path))
    if f"file:{path}" in ancestry.items:
        return Asked(ids=(f"file:{path}",))
    stages = store.stages.resolve()
    if path.is_relative_to(stages) and path != stages:
        name = path.relative_to(stages).parts[0]
        if name in ancestry.items:
            return Asked(ids=(name,))
    if not path.is_file():
        raise UnknownName(f"{path} is no stage of {store.root}")
    digest = fsio.sha256_file(path)
    return _of_digest(ancestry, digest, f"{path} (SHA-256 {digest}) was neither made nor taken")


def _of_digest(ancestry: Ancestry, digest: str, otherwise: str) -> Asked:
    keys = [item.id for item in ancestry.items.values() if item.key.startswith(digest)]
    if keys:
        return Asked(ids=tuple(keys))
    ids = ancestry.with_digest(digest)
    if not ids:
        raise UnknownName(f"{otherwise} in this store")
    return Asked(ids=tuple(ids), digest=digest)


def _registered(store: Store, ancestry: Ancestry, text: str) -> Asked:
    """Only MLflow knows what name and alias stand for; the digest then leads into the store."""
    from orchestrator.interface import tracking_uri
    from tracking.backend import connect_to_ask
    from tracking.registry import digest_of_model

    newest = store.run_ids()[-1:]
    uri = tracking_uri(store, newest[0] if newest else None)
    digest = digest_of_model(connect_to_ask(uri), text)
    return _of_digest(ancestry, digest, f"{text} (SHA-256 {digest}) was neither made nor taken")
