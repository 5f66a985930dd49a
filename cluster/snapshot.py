"""The code a job runs: a snapshot of the working tree, stored once per digest, read-only."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import fsio

PACKAGES = ("orchestrator", "cluster", "tracking", "recipes")
MAX_UNTRACKED_BYTES = 200 * 1024**2
_DISTRIBUTION = "orchestrate-video-ssl"
_READ_ONLY = 0o400


class SnapshotError(RuntimeError):
    """The code cannot be stored; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Stored code.

    Attributes:
        path: the folder that goes to PYTHONPATH.
        digest: SHA-256 over names, modes and contents.
        version: for people: `9c1e4a7`, `9c1e4a7+dirty`, or the installed version.
        dirty: whether the working tree differs from its commit.
    """

    path: str
    digest: str
    version: str
    dirty: bool


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """What to store: files relative to `root`; the packages lie in `packages`, also relative."""

    root: Path
    packages: Path
    files: tuple[Path, ...]
    version: str
    dirty: bool


def take(folder: Path, exclude: Sequence[Path] = (), source: Path | None = None) -> Snapshot:
    """Store the code that is running now below `folder`, unless it is there already.

    Contents are copied once into `folder/blobs` and linked from there, never from the working tree,
    so that nothing a person edits later changes what a waiting job will run.

    Args:
        folder: `<store>/code`.
        exclude: folders inside the working tree that are not code, such as the store.
        source: the folder that holds the packages; by default where this package was imported from.

    Raises:
        SnapshotError: more than 200 MB of untracked files, or a file that cannot be read.
    """
    source = source or Path(__file__).resolve().parents[1]
    excluded = [path.resolve() for path in (*exclude, folder)]
    tree = _git_tree(source, excluded) or _installed_tree(source)
    try:
        entries = {path: _blob_name(tree.root / path) for path in tree.files}
        digest = _digest(entries)
        target = folder / digest[:16]
        if not target.exists():
            _store(folder, target, tree, entries)
    except OSError as error:
        raise SnapshotError(f"cannot store the code: {error}") from error
    return Snapshot(
        path=str(target / tree.packages), digest=digest, version=tree.version, dirty=tree.dirty
    )


def _git_tree(source: Path, excluded: Sequence[Path]) -> _Tree | None:
    """The working tree the packages are tracked in; None where they were installed instead."""
    marker = source / "cluster" / "__init__.py"
    if _git(source, "ls-files", "--error-unmatch", str(marker)) is None:
        return None
    top = _git(source, "rev-parse", "--show-toplevel")
    tracked = _git(source, "ls-files", "-z", "--full-name", "--cached", ":/")
    untracked = _git(
        source, "ls-files", "-z", "--full-name", "--others", "--exclude-standard", ":/"
    )
    if top is None or tracked is None or untracked is None:
        return None
    root = Path(top.strip())
    known = list(_present(root, tracked, excluded))
    others = list(_present(root, untracked, excluded))
    _refuse_large(root, others)
    commit = (_git(source, "rev-parse", "--short", "HEAD") or "nocommit").strip()
    dirty = bool(others) or _git(source, "diff", "--quiet", "HEAD", "--") is None
    return _Tree(
        root=root,
        packages=source.relative_to(root.resolve()),
        files=tuple(sorted({*known, *others})),
        version=f"{commit}+dirty" if dirty else commit,
        dirty=dirty,
    )


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command; None where it fails, git or a repository included."""
    command = ["git", "-C", str(folder), *arguments]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode == 0:
            return os.fsdecode(done.stdout)
    return None


def _present(root: Path, names: str, excluded: Sequence[Path]) -> Iterator[Path]:
    """Files and links of a `-z` list that exist and are code; submodules are folders, left out."""
    base = root.resolve()
    for name in names.split("\0"):
        path = base / name
        if name and not any(path.is_relative_to(folder) for folder in excluded):
            with contextlib.suppress(FileNotFoundError):
                mode = path.lstat().st_mode
                if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
                    yield Path(name)


def _refuse_large(root: Path, others: Sequence[Path]) -> None:
    sizes = {path: (root / path).lstat().st_size for path in others}
    total = sum(sizes.values())
    if total > MAX_UNTRACKED_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise SnapshotError(
            f"{root}: {total / 1024**2:.0f} MB of untracked files would be stored as code"
            f" (largest: {largest}): add data and outputs to .gitignore"
        )


def _installed_tree(source: Path) -> _Tree:
    files = [
        path.relative_to(source)
        for package in PACKAGES
        for path in sorted((source / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    version = "unknown"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version(_DISTRIBUTION)
    return _Tree(root=source, packages=Path(), files=tuple(files), version=version, dirty=False)


def _blob_name(path: Path) -> str:
    """Digest of the content, marked where the file is a link or may be executed."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return fsio.sha256_text(str(path.readlink())) + "l"
    return fsio.sha256_file(path) + ("x" if mode & stat.S_IXUSR else "")


def _digest(entries: dict[Path, str]) -> str:
    whole = hashlib.sha256()
    for path, blob in sorted(entries.items()):
        whole.update(os.fsencode(path) + b"\0" + blob.encode() + b"\n")
    return whole.hexdigest()


def _store(folder: Path, target: Path, tree: _Tree, entries: dict[Path, str]) -> None:
    """Build the snapshot aside and rename it into place; whoever comes second drops theirs."""
    blobs = fsio.make_dir(folder / "blobs")
    building = folder / f".{target.name}.{secrets.token_hex(4)}"
    try:
        for path, name in entries.items():
            place = building / path
            fsio.make_dir(place.parent)
            if name.endswith("l"):
                place.symlink_to((tree.root / path).readlink())
            else:
                _link(_blob(blobs, name, tree.root / path), place)
        with contextlib.suppress(OSError):
            building.rename(target)
        if not target.is_dir():
            raise OSError(f"{target} could not be created")
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _link(blob: Path, place: Path) -> None:
    """Share the stored copy; where the file system has no hard links, copy it once more."""
    try:
        os.link(blob, place)
    except OSError:
        shutil.copy(blob, place)


def _blob(blobs: Path, name: str, source: Path) -> Path:
    """The stored copy of a file's content.

    Raises:
        SnapshotError: the file changed while it was read.
    """
    blob = blobs / name
    if blob.exists():
        return blob
    temporary = blobs / f".{name}.{secrets.token_hex(4)}"
    shutil.copyfile(source, temporary)
    if fsio.sha256_file(temporary) != name.rstrip("x"):
        temporary.unlink()
        raise SnapshotError(f"{source} changed while it was stored: submit again")
    temporary.chmod(_READ_ONLY | (0o100 if name.endswith("x") else 0))
    temporary.replace(blob)
    return blob
