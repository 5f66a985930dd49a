"""Errors as a person reads them: exit code and text, without a traceback."""

from __future__ import annotations

from cluster.batch import RequestError
from cluster.contract import SchedulerError
from cluster.fsio import DamagedFile
from cluster.snapshot import SnapshotError
from orchestrator.errors import RecipeErrors, Refused
from orchestrator.naming import UnknownName
from tracking.backend import AskedWrongly, TrackingError

FAILED = 1
INVALID_INPUT = 2
SITE_PROBLEM = 3


def describe(error: Exception) -> tuple[int, str]:
    """Exit code and message of an error that ended a command."""
    if isinstance(error, RecipeErrors):
        return INVALID_INPUT, str(error)
    if isinstance(error, UnknownName | RequestError | Refused | AskedWrongly):
        return INVALID_INPUT, f"error: {error}"
    if isinstance(error, SchedulerError | SnapshotError | TrackingError):
        return SITE_PROBLEM, f"error: {error}"
    if isinstance(error, DamagedFile):
        remedy = "restore it from a copy, or move it away if what it tells can be missed"
        return SITE_PROBLEM, f"error: {error}\n  {remedy}"
    if isinstance(error, OSError):
        return SITE_PROBLEM, f"error: {_os_error(error)}"
    name = type(error).__name__
    return FAILED, f"error: unexpected {name}: {_first_line(error)} (--debug shows the traceback)"


def _os_error(error: OSError) -> str:
    """What the system said, with the file; most often a full disk or a missing permission."""
    what = error.strerror or _first_line(error)
    return f"{error.filename}: {what}" if error.filename else what


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
