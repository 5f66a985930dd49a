"""Code snapshots: what is in them, stored once, never changed by later edits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import snapshot
from cluster.snapshot import SnapshotError, take
from tests.cluster.bench import REPOSITORY


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small git tree with the package in a folder of its own."""
    root = tmp_path / "tree"
    package = root / "src" / "cluster"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("VALUE = 1\n")
    (package / "tool.sh").write_text("#!/bin/sh\n")
    (package / "tool.sh").chmod(0o755)
    (root / "link").symlink_to("src")
    (root / ".gitignore").write_text("*.log\n__pycache__/\n")
    (root / "big.log").write_text("ignored")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def files(folder: str) -> set[str]:
    root = Path(folder)
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}


def test_a_clean_tree_is_named_by_its_commit(tree: Path, tmp_path: Path) -> None:
    taken = take(tmp_path / "code", source=tree / "src")
    assert taken.version == git(tree, "rev-parse", "--short", "HEAD").strip()
    assert not taken.dirty
    assert Path(taken.path).name == "src"
    assert files(taken.path) == {"cluster/__init__.py", "cluster/tool.sh"}
    root = Path(taken.path).parent
    assert (root / "link").is_symlink()
    assert not (root / "big.log").exists() and not (root / ".git").exists()
    assert os.access(Path(taken.path) / "cluster" / "tool.sh", os.X_OK)


def test_edits_and_new_files_are_part_of_it(tree: Path, tmp_path: Path) -> None:
    clean = take(tmp_path / "code", source=tree / "src")
    (tree / "src" / "cluster" / "__init__.py").write_text("VALUE = 2\n")
    edited = take(tmp_path / "code", source=tree / "src")
    assert edited.version == clean.version + "+dirty" and edited.dirty
    assert edited.digest != clean.digest
    (tree / "src" / "cluster" / "new.py").write_text("x = 1\n")
    new = take(tmp_path / "code", source=tree / "src")
    assert "cluster/new.py" in files(new.path)
    (tree / "src" / "cluster" / "tool.sh").unlink()
    assert "cluster/tool.sh" not in files(take(tmp_path / "code", source=tree / "src").path)
    (tree / "src" / "cluster" / "tool.sh").write_text("#!/bin/sh\n")
    assert not os.access(
        Path(take(tmp_path / "code", source=tree / "src").path) / "cluster" / "tool.sh", os.X_OK
    )


def test_later_edits_never_reach_a_stored_copy(tree: Path, tmp_path: Path) -> None:
    source = tree / "src" / "cluster" / "__init__.py"
    first = take(tmp_path / "code", source=tree / "src")
    with source.open("a") as stream:
        stream.write("VALUE = 3\n")
    stored = Path(first.path) / "cluster" / "__init__.py"
    assert stored.read_text() == "VALUE = 1\n"
    assert stored.stat().st_mode & 0o222 == 0
    assert stored.stat().st_ino != source.stat().st_ino


def test_the_same_code_is_stored_once(tree: Path, tmp_path: Path) -> None:
    first = take(tmp_path / "code", source=tree / "src")
    before = sorted((tmp_path / "code").iterdir())
    git(tree, "commit", "-q", "--allow-empty", "-m", "second")
    second = take(tmp_path / "code", source=tree / "src")
    assert (first.path, first.digest) == (second.path, second.digest)
    assert sorted((tmp_path / "code").iterdir()) == before


def test_a_store_inside_the_tree_is_left_out(tree: Path) -> None:
    store = tree / "store"
    take(store / "code", exclude=(store,), source=tree / "src")
    (store / "huge").write_text("x")
    taken = take(store / "code", exclude=(store,), source=tree / "src")
    assert not taken.dirty
    assert not (Path(taken.path).parent / "store").exists()


def test_hundreds_of_megabytes_of_new_files_are_refused(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MAX_UNTRACKED_BYTES", 1000)
    (tree / "small.bin").write_bytes(b"0" * 300)
    take(tmp_path / "code", source=tree / "src")
    (tree / "clips.bin").write_bytes(b"0" * 900)
    with pytest.raises(SnapshotError, match=r"largest: clips.bin.*gitignore"):
        take(tmp_path / "code", source=tree / "src")


def test_an_installed_package_is_stored_without_git(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    for package in ("cluster", "recipes", "numpy"):
        (site / package / "__pycache__").mkdir(parents=True)
        (site / package / "__init__.py").write_text("")
        (site / package / "__pycache__" / "x.pyc").write_text("")
    taken = take(tmp_path / "code", source=site)
    assert files(taken.path) == {"cluster/__init__.py", "recipes/__init__.py"}
    assert not taken.dirty and taken.version


def test_an_environment_inside_a_git_tree_is_not_taken_for_it(tree: Path, tmp_path: Path) -> None:
    site = tree / ".venv" / "site-packages"
    (site / "cluster").mkdir(parents=True)
    (site / "cluster" / "__init__.py").write_text("installed = True\n")
    taken = take(tmp_path / "code", source=site)
    assert files(taken.path) == {"cluster/__init__.py"}


def test_this_project_is_stored_once_and_can_be_imported(tmp_path: Path) -> None:
    taken = take(tmp_path / "code")
    assert take(tmp_path / "code").path == taken.path
    command = [sys.executable, "-P", "-c", "import cluster.epilogue as e; print(e.__file__)"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": taken.path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(taken.path)
    assert not done.stdout.startswith(str(REPOSITORY / "cluster"))
