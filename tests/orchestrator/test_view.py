"""What a person sees: tables in a pipe and on a terminal, progress lines and bars."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import fsio
from cluster.contract import Phase
from orchestrator.checkup import Check
from orchestrator.decision import Status
from orchestrator.endings import Decided
from orchestrator.explain import Told
from orchestrator.live import Lines, display, share
from orchestrator.status import RunStatus, StageStatus, read_status
from orchestrator.status_view import details, progress_text, status_view
from orchestrator.view import checks_view, duration, emit, names, runs_view, short_job, table
from tests.orchestrator.fabricated import FAILED, FabricatedRun, FakeExecutor

PROGRESS = {
    "phase": "train",
    "step": 480,
    "steps": 960,
    "epoch": 61,
    "epochs": 200,
    "loss": 4.1312,
    "clips_per_second": 38.25,
    "seconds_left": 1102.0,
    "data_wait_share": 0.031,
}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FabricatedRun:
    monkeypatch.setenv("ORCHESTRATE_STORE", str(tmp_path / "store"))
    return FabricatedRun(tmp_path / "store")


def seen(run: FabricatedRun, executor: FakeExecutor, stream: io.StringIO | None = None) -> str:
    stream = stream or io.StringIO()
    emit(status_view(read_status(run.run_id, run.store, executor)), stream)
    return stream.getvalue()


def a_stage(status: Status, step: int = 0) -> StageStatus:
    progress = {"step": step, "steps": 100, "phase": "train"}
    return StageStatus(name="pretrain", kind="pretrain", status=status, key="k", progress=progress)


def a_run(*stages: StageStatus) -> RunStatus:
    values = dict.fromkeys(("run_id", "recipe", "executor", "user", "host", "store"), "x")
    return RunStatus(created_at=0.0, stages=stages, **values)


def test_progress_says_how_far_how_well_how_fast_and_how_long() -> None:
    assert progress_text(PROGRESS) == (
        "train  epoch 61/200  step 480/960  loss 4.131  38.2 clips/s  18:22 left  data wait 3%"
    )


def test_progress_leaves_out_what_is_not_known() -> None:
    unknown = {**dict.fromkeys(PROGRESS), "phase": "index", "step": 3, "steps": 9}
    assert progress_text(unknown) == "index  step 3/9"
    assert progress_text(None) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(7, "0:07"), (723.4, "12:03"), (3723, "1:02:03"), (0.2, "0:00")]
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_local_job_ids_are_shortened_and_others_kept() -> None:
    assert short_job("0a1b2c3d-4711-998877.3") == "4711.3"
    assert short_job("481230") == "481230"
    assert short_job(None) == "-"


def test_in_a_pipe_there_are_no_colours_and_no_broken_lines(run: FabricatedRun) -> None:
    job = run.submitted("pretrain")
    run.started("pretrain", end={**FAILED, "message": "x" * 300})
    text = seen(run, FakeExecutor(phases={job: Phase.GONE}))
    assert "\x1b" not in text
    assert "x" * 300 in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_failed_run_shows_cause_evidence_and_the_next_command(run: FabricatedRun) -> None:
    job = run.submitted("pretrain")
    run.started("pretrain", end=FAILED)
    log = run.stage("pretrain").logs / f"{job}_0_log.out"
    log.write_text("boom\n")
    run.submitted("probe")
    lines = seen(run, FakeExecutor()).splitlines()
    assert lines[0].startswith("demo-0123abcd  failed  fake  ann@login1  ")
    assert lines[1].split() == ["stage", "status", "job", "attempts", "details"]
    assert lines[2].split() == ["pretrain", "failed", job, "1"]
    assert lines[3].split(maxsplit=4)[:2] == ["probe", "blocked"]
    assert lines[3].endswith("pretrain failed")
    assert lines[-4:] == [
        "pretrain failed: the stage's code raised an error on n14 rank 0: KeyError: 'label'",
        "    second line",
        f"  see:  {log}",
        "  next: orchestrate logs demo-0123abcd:pretrain --rank 0",
    ]


def test_a_terminal_gets_colours_and_whole_commands(run: FabricatedRun) -> None:
    run.submitted("pretrain")
    run.started("pretrain", end=FAILED)
    text = seen(run, FakeExecutor(), Terminal())
    assert "\x1b[" in text
    assert "orchestrate logs demo-0123abcd:pretrain --rank 0\n" in text


def test_text_from_outside_cannot_style_or_steer_the_terminal(run: FabricatedRun) -> None:
    run.submitted("pretrain")
    run.started("pretrain", end={**FAILED, "message": "[red]not markup[/] \x1b[2J"})
    text = seen(run, FakeExecutor())
    assert "[red]not markup[/]" in text
    assert "\x1b" not in text


def test_a_running_stage_shows_progress_and_a_waiting_one_what_it_waits_for(
    run: FabricatedRun,
) -> None:
    first, second = run.submitted("pretrain"), run.submitted("probe")
    run.started("pretrain")
    fsio.write_json(run.stage("pretrain").progress_file, PROGRESS)
    phases = {first: Phase.RUNNING, second: Phase.PENDING}
    text = seen(run, FakeExecutor(phases=phases, reasons={second: "Dependency"}))
    assert "epoch 61/200  step 480/960" in text
    assert "waiting  51   -         after pretrain\n" in text


def test_an_unreachable_scheduler_is_said_above_the_table(run: FabricatedRun) -> None:
    run.submitted("pretrain")
    text = seen(run, FakeExecutor(down=True))
    assert "Unable to contact slurm controller" in text.splitlines()[1]


def test_a_succeeded_stage_shows_its_numbers() -> None:
    stage = replace(a_stage(Status.SUCCEEDED), metrics={"top1": 0.51234, "chance": 0.1})
    assert details(stage) == "top1 0.5123  chance 0.1"


def test_runs_are_listed_with_how_much_of_them_is_finished() -> None:
    stream = io.StringIO()
    run = a_run(a_stage(Status.SUCCEEDED), replace(a_stage(Status.RUNNING), name="probe"))
    emit(runs_view([run]), stream)
    assert stream.getvalue().splitlines()[1].split()[:3] == ["x", "running", "1/2"]


def test_columns_that_say_nothing_are_left_out() -> None:
    stream = io.StringIO()
    emit(table(["a", "b", "c"], [["1", "-", ""], ["2", "-", "x"]]), stream)
    assert stream.getvalue() == "a  c\n1\n2  x\n"


def lines_of(clock: Callable[[], float], *runs: RunStatus) -> list[str]:
    stream = io.StringIO()
    lines = Lines(stream, every_seconds=10.0, clock=clock)
    for run in runs:
        lines.show(run)
    return stream.getvalue().splitlines()


def test_elsewhere_than_on_a_terminal_only_changes_are_printed() -> None:
    running = [a_run(a_stage(Status.RUNNING, step)) for step in (1, 1, 2)]
    found = lines_of(lambda: 0.0, *running, a_run(a_stage(Status.SUCCEEDED)))
    assert found == ["pretrain: running  train  step 1/100", "pretrain: succeeded"]


def test_progress_is_printed_again_after_a_while() -> None:
    times = iter([0.0, 5.0, 12.0])
    runs = [a_run(a_stage(Status.RUNNING, step)) for step in (1, 2, 3)]
    found = lines_of(lambda: next(times), *runs)
    assert found == ["pretrain: running  train  step 1/100", "pretrain: running  train  step 3/100"]


def test_a_terminal_shows_a_bar_for_each_stage() -> None:
    stream = Terminal()
    with display(stream) as show:
        show(a_run(a_stage(Status.RUNNING, 50), replace(a_stage(Status.WAITING), name="probe")))
    last = stream.getvalue()
    assert "pretrain" in last
    assert "probe" in last
    assert "━" in last


def test_the_bar_follows_the_steps_and_is_full_at_the_end() -> None:
    assert share(a_stage(Status.RUNNING, 25)) == 0.25
    assert share(a_stage(Status.SUCCEEDED, 25)) == 1.0
    assert share(replace(a_stage(Status.WAITING), progress=None)) == 0.0


def some_parts(*statuses: Status, steps: int = 0) -> list[StageStatus]:
    """The parts of `index-k400` and the stage they are parts of."""
    progress = {"phase": "index", "step": steps, "steps": 100, "seconds_left": 60.0}
    parts = [
        StageStatus(
            name=f"index-k400/part-{n:03}",
            kind="index_part",
            status=status,
            key=f"{n}",
            job_id=f"123_{n}",
            attempts=1,
            progress=progress if status is Status.RUNNING else None,
            told=Told(reason="out of memory") if status is Status.FAILED else Told(),
            part_of="index-k400",
        )
        for n, status in enumerate(statuses)
    ]
    names = tuple(part.name for part in parts)
    whole = StageStatus(
        name="index-k400", kind="index", status=Status.WAITING, key="w", job_id="124", after=names
    )
    return [*parts, whole]


def shown(run: RunStatus) -> str:
    stream = io.StringIO()
    emit(status_view(run), stream)
    return stream.getvalue()


def test_the_parts_of_a_stage_are_one_line() -> None:
    stages = some_parts(*[Status.SUCCEEDED] * 12, *[Status.RUNNING] * 4, steps=25)
    lines = shown(a_run(*stages)).splitlines()[2:]
    assert lines == [
        "index-k400/part-*  running  123_0..123_15  16        "
        "16 parts: 12 succeeded, 4 running  index  step 100/400  1:00 left",
        "index-k400         waiting  124            -         after index-k400/part-*",
    ]


def test_the_trouble_of_many_parts_fills_no_screen() -> None:
    text = shown(a_run(*some_parts(*[Status.FAILED] * 40, Status.SUCCEEDED)))
    assert text.count("out of memory") == 1
    assert "index-k400/part-* failed: out of memory" in text
    parts = some_parts(*[Status.FAILED] * 40)
    different = [replace(part, told=Told(reason=f"of {part.name}")) for part in parts[:-1]]
    text = shown(a_run(*different, parts[-1]))
    assert "index-k400/part-002 failed: of index-k400/part-002\n" in text
    assert text.endswith("\n37 more in trouble: orchestrate why x --store x\n")


def test_forty_broken_stages_and_two_hundred_parts_stay_readable() -> None:
    cells = [
        replace(
            a_stage(Status.FAILED), name=f"finetune/{n}", told=Told(reason=f"{n}", next=f"see {n}")
        )
        for n in range(39)
    ]
    lines = shown(a_run(*some_parts(*[Status.RUNNING] * 200), *cells)).splitlines()
    assert len(lines) == 2 + 2 + 39 + 5 * 2 + 1


def test_stages_that_were_cancelled_together_are_told_together() -> None:
    told = Told(reason="by bob", next="orchestrate resume x")
    cancelled = [replace(a_stage(Status.CANCELLED), name=name, told=told) for name in ("a", "b")]
    assert shown(a_run(*cancelled)).endswith(
        "a, b cancelled: by bob\n  next: orchestrate resume x\n"
    )


def test_what_was_lost_decided_and_excluded_is_shown() -> None:
    decision = Decided(
        attempt="s001r002", action="stop", policy="counted", reason="3 attempts in a row"
    )
    failed = replace(a_stage(Status.FAILED), decision=decision, told=Told(reason="a rank hangs"))
    waits = replace(
        a_stage(Status.WAITING), name="probe", excluded=("n07",), lost_seconds=182, attempts=2
    )
    text = shown(a_run(failed, waits))
    (line,) = [line for line in text.splitlines() if line.startswith("probe")]
    assert line.split() == ["probe", "waiting", "2", "3:02", "without", "n07"]
    assert "\n  policy: tried again while it gets on, but stopped (3 attempts in a row)\n" in text


def test_an_error_of_many_lines_is_cut_on_the_screen() -> None:
    told = Told(reason="it broke", more="\n".join(f"line {n}" for n in range(30)))
    text = shown(a_run(replace(a_stage(Status.FAILED), told=told)))
    assert "\n    line 7\n    ... 22 more lines\n" in text
    assert "line 8" not in text


def test_a_line_is_printed_when_the_parts_together_change() -> None:
    stream = io.StringIO()
    now = [0.0]
    lines = Lines(stream, every_seconds=10, clock=lambda: now[0])
    for finished in range(4):
        stages = some_parts(*[Status.SUCCEEDED] * finished, *[Status.WAITING] * (3 - finished))
        lines.show(a_run(*stages))
        now[0] += 4
    assert stream.getvalue().splitlines() == [
        "index-k400/part-*: waiting  3 parts: 3 waiting",
        "index-k400: waiting  after index-k400/part-*",
        "index-k400/part-*: succeeded  3 parts: 3 succeeded",
    ]


def test_a_fan_in_does_not_fill_the_screen() -> None:
    assert names(["a", "b", "c"]) == "a, b, c"
    assert names(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert names([]) == ""
    parts = [f"index-k400/part-{n:03}" for n in range(16)]
    assert names(["pretrain", *parts, "probe"]) == "pretrain, index-k400/part-*, probe"
    assert names(parts[:1]) == "index-k400/part-000"


def test_80_columns_fold_texts_and_leave_names_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    said = "a long text that goes on and on " * 4
    checks = [Check(name="node packages", state="warning", found=said, advice=said)]
    shown = io.StringIO()
    columns = ["stage", "kind", "action", "nodes x ranks", "time", "after", "key", "why"]
    row = ["index-motion", "index", "resume", "1 x 1", "24:00:00", "pretrain", "0123abcd", said]
    for view in (checks_view(checks), table(columns, [row])):
        stream = Terminal()
        emit(view, stream)
        lines = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
        assert max(map(len, lines.splitlines())) <= 80
        shown.write(lines)
    for whole in ("node packages", "warning", "advice", "index-motion", "resume", "24:00:00"):
        assert whole in shown.getvalue()
    assert shown.getvalue().count("goes") == 3 * 4
    assert "0123abcd" not in shown.getvalue()
