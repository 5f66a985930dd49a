"""Log files of a stage: found, ordered, merged, and followed while they grow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import Refused
from orchestrator.logs import (
    LogFile,
    LogLine,
    Wanted,
    attempt_named,
    find_logs,
    follow,
    pattern,
    read_lines,
)


def write(folder: Path, name: str, text: str) -> None:
    with (folder / name).open("a") as stream:
        stream.write(text)


def texts(lines: list[LogLine]) -> list[str]:
    return [f"{line.rank}:{line.text}" for line in lines]


def collect(
    folder: Path,
    steps: list[Callable[[], None]],
    last: int | None = None,
    wanted: Wanted | None = None,
) -> list[LogLine]:
    """Follow while `steps` happen, one in each pause; done when none is left."""
    left = list(steps)

    def sleep(seconds: float) -> None:
        left.pop(0)()

    def find() -> list[LogFile]:
        return find_logs(folder)

    return list(follow(find, lambda: not left, wanted, last=last, sleep=sleep))


def test_only_log_files_are_found_job_by_job_and_rank_by_rank(tmp_path: Path) -> None:
    names = ["9_1_log.out", "9_0_log.out", "10_0_log.out", "10_10_log.out", "10_2_log.out"]
    for name in [*names, "10_submission.sh", "10_0_log.txt", "notes.md"]:
        write(tmp_path, name, "x\n")
    found = [log.path.name for log in find_logs(tmp_path)]
    assert found == ["9_0_log.out", "9_1_log.out", "10_0_log.out", "10_2_log.out", "10_10_log.out"]


def test_jobs_are_read_in_the_order_of_their_submission(tmp_path: Path) -> None:
    for name in ("7_0_log.out", "3_0_log.out", "local_0_log.out"):
        write(tmp_path, name, "x\n")
    found = [log.job for log in find_logs(tmp_path, jobs=("7", "local", "3"))]
    assert found == ["7", "local", "3"]


def test_a_rank_can_be_picked(tmp_path: Path) -> None:
    for rank in range(3):
        write(tmp_path, f"local_{rank}_log.out", "x\n")
    assert [log.rank for log in find_logs(tmp_path, rank=1)] == [1]


def test_a_stage_that_wrote_nothing_has_no_logs(tmp_path: Path) -> None:
    assert find_logs(tmp_path / "logs") == []


def test_files_are_merged_in_reading_order(tmp_path: Path) -> None:
    write(tmp_path, "4_1_log.out", "other rank\n")
    write(tmp_path, "4_0_log.out", "one\ntwo")
    lines = list(read_lines(find_logs(tmp_path)))
    assert texts(lines) == ["0:one", "0:two", "1:other rank"]


def test_only_the_last_lines_are_read_when_asked(tmp_path: Path) -> None:
    write(tmp_path, "4_0_log.out", "one\ntwo\nthree\n")
    assert texts(list(read_lines(find_logs(tmp_path), last=2))) == ["0:two", "0:three"]


def test_bytes_that_are_no_text_and_redrawn_bars_do_not_stop_the_reader(tmp_path: Path) -> None:
    (tmp_path / "4_0_log.out").write_bytes(b"\xff\xfe\n10%\r20%\r\nend\r\n")
    assert texts(list(read_lines(find_logs(tmp_path)))) == ["0:\ufffd\ufffd", "0:20%", "0:end"]


def test_following_survives_appending_new_ranks_and_a_requeue_as_a_new_job(tmp_path: Path) -> None:
    write(tmp_path, "4_0_log.out", "start\n")
    lines = collect(
        tmp_path,
        [
            lambda: write(tmp_path, "4_0_log.out", "half a "),
            lambda: write(tmp_path, "4_0_log.out", "line\n"),
            lambda: write(tmp_path, "4_1_log.out", "late rank\n"),
            lambda: write(tmp_path, "5_0_log.out", "requeued as another job\n"),
            lambda: write(tmp_path, "4_0_log.out", "last words"),
        ],
    )
    assert texts(lines) == [
        "0:start",
        "0:half a line",
        "1:late rank",
        "0:requeued as another job",
        "0:last words",
    ]


def test_following_a_stage_that_has_no_folder_yet_waits_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "logs"

    def appear() -> None:
        folder.mkdir()
        write(folder, "local_0_log.out", "hello\n")

    assert texts(collect(folder, [lambda: None, appear])) == ["0:hello"]


def test_following_starts_over_when_a_file_was_truncated(tmp_path: Path) -> None:
    write(tmp_path, "4_0_log.out", "first attempt\n")

    def truncate() -> None:
        (tmp_path / "4_0_log.out").write_text("new\n")

    lines = collect(tmp_path, [truncate])
    assert texts(lines) == ["0:first attempt", "0:new"]


def test_following_can_start_with_the_last_lines(tmp_path: Path) -> None:
    write(tmp_path, "4_0_log.out", "one\ntwo\nthree\nunfinished")
    lines = collect(tmp_path, [lambda: write(tmp_path, "4_0_log.out", " line\nfour\n")], last=1)
    assert texts(lines) == ["0:three", "0:unfinished line", "0:four"]


def test_following_filters_before_it_takes_the_last_lines(tmp_path: Path) -> None:
    begin = "orchestrate: attempt s001r00{} of pretrain\n"
    write(tmp_path, "4_0_log.out", begin.format(0) + "loss 0\n" + begin.format(1))
    write(tmp_path, "4_0_log.out", "loss 1\nloss 2\nother\nother\n")
    wanted = Wanted(attempt="s001r001", pattern=pattern("loss"))
    lines = collect(
        tmp_path, [lambda: write(tmp_path, "4_0_log.out", "other\nloss 3\n")], 1, wanted
    )
    assert texts(lines) == ["0:loss 2", "0:loss 3"]


def test_following_a_finished_stage_prints_it_and_ends(tmp_path: Path) -> None:
    write(tmp_path, "4_0_log.out", "all\n")
    assert texts(collect(tmp_path, [])) == ["0:all"]


def two_attempts(folder: Path) -> None:
    """A job that was requeued and its successor, two ranks each; every log is appended to."""
    for rank in (0, 1):
        for job, attempts in (("7", ("s001r000", "s001r001")), ("9", ("s001r002",))):
            for attempt in attempts:
                text = f"orchestrate: attempt {attempt}: rank {rank} of 2\nloss {attempt[-1]}\n"
                write(folder, f"{job}_{rank}_log.out", text)
    write(folder, "7_0_log.out", "orchestrate: attempt s001r001 ended with exit code 75\n")


@pytest.mark.parametrize("attempt", ["s001r000", "s001r001", "s001r002"])
def test_an_attempt_can_be_picked_wherever_its_lines_are(tmp_path: Path, attempt: str) -> None:
    two_attempts(tmp_path)
    logs = find_logs(tmp_path, jobs=("7", "9"))
    found = texts(list(Wanted(attempt=attempt).last(logs, None)))
    assert [text for text in found if "loss" in text] == [
        f"0:loss {attempt[-1]}",
        f"1:loss {attempt[-1]}",
    ]
    assert ("0:orchestrate: attempt s001r001 ended" in str(found)) is (attempt == "s001r001")


def test_only_matching_lines_are_shown_and_of_them_the_last(tmp_path: Path) -> None:
    two_attempts(tmp_path)
    logs = find_logs(tmp_path, rank=1, jobs=("7", "9"))
    wanted = Wanted(pattern=pattern("loss [0-9]"))
    assert texts(list(wanted.last(logs, None))) == ["1:loss 0", "1:loss 1", "1:loss 2"]
    assert texts(list(wanted.last(logs, 1))) == ["1:loss 1", "1:loss 2"]


def test_an_attempt_or_expression_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s001r000").mkdir()
    assert attempt_named(tmp_path, 1) == "s001r000"
    assert attempt_named(tmp_path, None) is None
    with pytest.raises(Refused, match=r"there were 1 attempts \(s001r000\)"):
        attempt_named(tmp_path, 2)
    with pytest.raises(Refused, match="is no regular expression"):
        pattern("(")
