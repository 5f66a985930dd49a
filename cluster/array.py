"""Pure: an array of jobs as submitit's parameters; one script that looks up which task it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster import batch
from cluster.batch import RequestError, check_text
from cluster.contract import ArrayRequest, ExitCode, JobRequest

_TASK = "SLURM_ARRAY_TASK_ID"


def parameters(array: ArrayRequest, passed_on: Mapping[str, str]) -> dict[str, Any]:
    """The keyword arguments of submitit for an array, as `batch.parameters` gives those of a job.

    SLURM replaces `%a` in the names of log files by the number of the task: the array's folder has
    a link of that name to the log folder of each.

    Raises:
        RequestError: a value no script may hold, or tasks that differ in more than they may.
    """
    first = _common(array.tasks)
    values = batch.parameters(replace(first, log_dir=array.folder), passed_on)
    at_once = first.resources.parts_at_once
    limit = f"%{at_once}" if at_once else ""
    numbers = ranges(_number(task) for task in array.tasks)
    values["additional_parameters"]["array"] = numbers + limit
    values["setup"] = [*_choice(array.tasks), *values["setup"]]
    return values


def _common(tasks: Sequence[JobRequest]) -> JobRequest:
    """A task that speaks for all of them. Raises RequestError."""
    if not tasks:
        raise RequestError("tasks: an array needs at least one job")
    first = tasks[0]
    for task in tasks:
        own = replace(first, target=task.target, log_dir=task.log_dir, task=task.task)
        if own != task:
            raise RequestError(f"task {task.task} of {first.name}: is not the job the others are")
    if len({_number(task) for task in tasks}) < len(tasks):
        raise RequestError(f"tasks of {first.name}: two have the same number")
    return first


def _number(task: JobRequest) -> int:
    if task.task is None or task.task < 0:
        raise RequestError(f"task of {task.name}: {task.task}; a number from 0 is needed")
    return task.task


def _choice(tasks: Iterable[JobRequest]) -> list[str]:
    """Shell lines that set `target` for the task that runs."""
    lines = [f'case "${_TASK}" in']
    for task in tasks:
        words = shlex.join(check_text("target", word) for word in task.target)
        lines.append(f"  {task.task}) target=({words}) ;;")
    unknown = f'echo "orchestrate: no task ${_TASK} in this script" >&2; exit'
    return [*lines, f"  *) {unknown} {int(ExitCode.CONFIGURATION)} ;;", "esac"]


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as SLURM writes them: 0, 1, 2, 5 is `0-2,5`."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{low}-{high}" if high > low else str(low) for low, high in spans)


def grouped(job_ids: Iterable[str]) -> list[str]:
    """Ids of jobs with the tasks of one array together: 7_0, 7_1, 7_3, 9 is `7_[0-1,3]`, `9`."""
    arrays: dict[str, list[int]] = {}
    for job_id in job_ids:
        array, _, task = job_id.partition("_")
        arrays.setdefault(array, []).extend([int(task)] if task else [])
    return [f"{array}_[{ranges(tasks)}]" if tasks else array for array, tasks in arrays.items()]
