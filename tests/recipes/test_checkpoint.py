"""What is committed names all its files; any damage is found and the checkpoint before used."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import fsio
from recipes.contract import InputError
from recipes.engine import checkpoint, shards
from recipes.engine.checkpoint import MANIFEST
from recipes.engine.shards import Stored
from tests.recipes.checkpoint_files import SHARDS, newest_step, write


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    folder.mkdir(mode=0o700)
    return folder


def test_a_committed_checkpoint_names_size_and_digest_of_every_file(store):
    path = write(store, 12)
    manifest = fsio.read_json(path / "manifest.json")
    assert path.name == "step_000000012"
    assert (manifest["schema_version"], manifest["step"], manifest["world_size"]) == (2, 12, 2)
    assert len(manifest["digest"]) == 64
    assert manifest["files"] == {
        (name := shards.file_name(rank)): {
            "bytes": (path / name).stat().st_size,
            "sha256": fsio.sha256_file(path / name),
        }
        for rank in range(2)
    }
    assert sorted(p.name for p in path.iterdir()) == [MANIFEST, *sorted(SHARDS)]
    assert {p.stat().st_mode & 0o777 for p in path.iterdir()} == {0o600}
    assert path.stat().st_mode & 0o777 == 0o700


def truncate(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, max(0, int(path.stat().st_size * share) - 1))


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap_ranks(path: Path) -> None:
    first, second = (path.parent / name for name in SHARDS)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def swap(path: Path) -> None:
    older = path.parent.parent / checkpoint.name_of(1) / path.name
    path.write_bytes(older.read_bytes().ljust(path.stat().st_size)[: path.stat().st_size])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated to nothing": truncate(0),
    "truncated to 10 %": truncate(0.1),
    "truncated to half": truncate(0.5),
    "truncated to 99.9 %": truncate(0.999),
    "one bit flipped": flip_bit,
    "missing": Path.unlink,
    "of another step": swap,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [*SHARDS, MANIFEST])
def test_damage_to_any_file_is_found_named_set_aside_and_the_one_before_used(
    store, caplog, file, damage
):
    for step in (1, 2):
        write(store, step)
    DAMAGES[damage](store / "step_000000002" / file)
    assert newest_step(store) == 1
    assert file in caplog.text
    assert (store / "step_000000002.bad1").is_dir()
    assert newest_step(store) == 1, "and again, without it"


@pytest.mark.parametrize("file", [SHARDS[0], MANIFEST])
def test_a_file_that_cannot_be_read_now_is_not_taken_for_damaged(store, monkeypatch, file):
    for step in (1, 2):
        write(store, step)
    real = Path.open

    def away(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == file:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return real(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", away)
        with pytest.raises(OSError, match=rf"Stale file handle.*{file}"):
            checkpoint.newest(store)
    assert newest_step(store) == 2


def test_what_cannot_be_removed_is_left_lying_and_told(store, monkeypatch, caplog):
    write(store, 1)
    checkpoint.begin(store, 2)

    def away(path: Path) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(shutil, "rmtree", away)
    checkpoint.sweep(store)
    assert "step_000000002.tmp could not be removed" in caplog.text
    assert newest_step(store) == 1


def test_swapped_rank_files_are_found(store, caplog):
    for step in (1, 2):
        write(store, step)
    swap_ranks(store / "step_000000002" / SHARDS[0])
    assert newest_step(store) == 1
    assert f"{SHARDS[0]} differs from what was saved" in caplog.text


def test_a_file_that_does_not_belong_is_refused(store, caplog):
    for step in (1, 2):
        write(store, step)
    (store / "step_000000002" / "shard_00009.safetensors").write_bytes(b"x")
    assert newest_step(store) == 1
    assert "shard_00009.safetensors does not belong" in caplog.text


def test_a_checkpoint_under_the_name_of_another_step_is_refused(store, caplog):
    for step in (1, 2):
        write(store, step)
    (store / "step_000000002").rename(store / "step_000000009")
    assert newest_step(store) == 1
    assert "is of step 2" in caplog.text


def test_when_all_are_damaged_it_is_an_error_and_stays_one(store):
    for step in (1, 2):
        write(store, step)
        flip_bit(store / checkpoint.name_of(step) / SHARDS[0])
    for _ in range(2):
        with pytest.raises(InputError, match=r"every checkpoint is damaged.*start again"):
            checkpoint.newest(store)


def test_nothing_saved_yet_is_no_error(store):
    assert checkpoint.newest(store) is None
    assert checkpoint.newest(store / "absent") is None
    checkpoint.sweep(store / "absent")


def test_the_newest_is_by_step_and_pointers_and_times_mean_nothing(store):
    write(store, 7, keep=9)
    write(store, 100, keep=9)
    write(store, 30, keep=9)
    (store / "latest").write_text("step_000000030")
    os.utime(store / "step_000000100", (0, 0))
    assert newest_step(store) == 100


def test_multiples_of_keep_every_are_kept_for_good(store):
    for step in range(1, 10):
        write(store, step, keep=2, keep_every=3)
    assert checkpoint.steps(store) == [3, 6, 8, 9]


def test_a_file_that_is_not_what_its_rank_wrote_is_not_committed(store):
    folder = checkpoint.begin(store, 1)
    layout = {"weight/0/layer": Stored("U8", (4,), 0, 4)}
    written = shards.write(folder / SHARDS[0], layout, memoryview(b"abcd"), {})
    checkpoint.note_written(folder, 0, written)
    os.truncate(folder / SHARDS[0], written.bytes - 1)
    with pytest.raises(OSError, match=f"{SHARDS[0]} has .* bytes, written were"):
        checkpoint.commit(store, 1, {}, ranks=1, keep=2)
    assert newest_step(store) is None


def test_a_rank_that_left_no_word_is_missed(store):
    checkpoint.begin(store, 1)
    with pytest.raises(FileNotFoundError, match=r"shard_00000\.done\.json"):
        checkpoint.commit(store, 1, {}, ranks=2, keep=2)
    assert newest_step(store) is None


def test_only_the_newest_are_kept(store):
    for step in range(1, 6):
        write(store, step, keep=2)
    assert checkpoint.steps(store) == [4, 5]
    assert sorted(path.name for path in store.iterdir()) == ["step_000000004", "step_000000005"]


def test_damaged_ones_set_aside_are_kept_for_people(store):
    for step in (1, 2):
        write(store, step)
    flip_bit(store / "step_000000002" / SHARDS[0])
    checkpoint.newest(store)
    write(store, 2)
    flip_bit(store / "step_000000002" / SHARDS[0])
    checkpoint.newest(store)
    assert sorted(path.name for path in store.glob("*.bad*")) == [
        "step_000000002.bad1",
        "step_000000002.bad2",
    ]


@pytest.mark.parametrize("where", ["", "step_000000001", f"step_000000001/{SHARDS[0]}"])
def test_what_others_could_have_written_is_not_loaded(store, where):
    write(store, 1)
    path = store / where
    for mode in (0o720, 0o702):
        path.chmod(mode)
        with pytest.raises(InputError, match=r"can be written by others.*chmod go-w"):
            checkpoint.newest(store)
    path.chmod(0o700)
    assert newest_step(store) == 1


def test_a_symbolic_link_is_not_followed(store, tmp_path):
    write(store, 1)
    shard = store / "step_000000001" / SHARDS[0]
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        checkpoint.newest(store)


def test_what_another_user_wrote_is_not_loaded(store, monkeypatch):
    write(store, 1)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(InputError, match=r"belongs to user id \d+, not to you \(4711\)"):
        checkpoint.newest(store)
