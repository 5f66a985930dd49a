"""Which log files a stage has, read as one text, or followed across requeues while it grows."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import Refused

# One file a rank, `<job id>_<rank>_log.out`, as submitit names them; the local executor writes
# `local` for the job.
_NAME = re.compile(r"(?P<job>[A-Za-z0-9]+(?:_\d+)?)_(?P<rank>\d+)_log\.(?P<stream>out|err)")
_CHUNK_BYTES = 1 << 20
# What every rank writes when an attempt begins (orchestrator.entry), and the job when it ends.
_ATTEMPT = re.compile(r"orchestrate: attempt (s\d+r\d+)\b")


@dataclass(frozen=True, kw_only=True)
class LogFile:
    """One rank's log of one job; requeues of the job append to it."""

    path: Path
    job: str
    rank: int
    stream: str


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One line of a log, without its end."""

    rank: int
    text: str


def find_logs(folder: Path, *, rank: int | None = None, jobs: Sequence[str] = ()) -> list[LogFile]:
    """Log files of a stage in reading order: job by job, in each rank 0 first.

    Args:
        folder: the stage's `logs` folder; it need not exist yet.
        rank: only this rank; None for all.
        jobs: the stage's job ids in the order they were submitted. Files of jobs that are not
            listed come first, by number where the id is one.
    """
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and (rank is None or int(match["rank"]) == rank):
            found.append(
                LogFile(
                    path=path, job=match["job"], rank=int(match["rank"]), stream=match["stream"]
                )
            )
    order = {job: n for n, job in enumerate(jobs)}

    def reading_order(log: LogFile) -> tuple[int, int, str, int, bool]:
        number = int(log.job) if log.job.isdecimal() else -1
        return order.get(log.job, -1), number, log.job, log.rank, log.stream == "err"

    return sorted(found, key=reading_order)


def read_lines(logs: Iterable[LogFile], last: int | None = None) -> Iterator[LogLine]:
    """Lines of the files, one file after the other; with `last`, only that many of each file."""
    for log in logs:
        with log.path.open(encoding="utf-8", errors="replace", newline="\n") as stream:
            lines: Iterable[str] = stream if last is None else deque(stream, maxlen=last)
            for line in lines:
                yield LogLine(rank=log.rank, text=_clean(line))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which lines a person wants: of one attempt, and such as match; None for all."""

    attempt: str | None = None
    pattern: re.Pattern[str] | None = None

    def of(
        self, lines: Iterable[LogLine], current: dict[int, str] | None = None
    ) -> Iterator[LogLine]:
        """Of these lines the wanted ones. In each rank's log a line says which attempt begins.

        `current` keeps the attempt of each rank from one call to the next.
        """
        current = {} if current is None else current
        for line in lines:
            if match := _ATTEMPT.match(line.text):
                current[line.rank] = match[1]
            mine = self.attempt is None or current.get(line.rank) == self.attempt
            if mine and (self.pattern is None or self.pattern.search(line.text)):
                yield line

    def last(self, logs: Iterable[LogFile], count: int | None) -> Iterator[LogLine]:
        """Of each file the wanted lines, or the last of them."""
        for log in logs:
            lines = self.of(read_lines([log]))
            yield from lines if count is None else deque(lines, maxlen=count)


def attempt_named(folder: Path, number: int | None) -> str | None:
    """Id of the attempt with that number, from 1; None for None. Raises Refused: no such one."""
    if number is None:
        return None
    ids = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if number > len(ids):
        raise Refused(f"--attempt {number}: there were {len(ids)} attempts ({', '.join(ids)})")
    return ids[number - 1]


def pattern(text: str | None) -> re.Pattern[str] | None:
    """The regular expression a person gave. Raises Refused: it is none."""
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise Refused(f"--grep {text!r} is no regular expression: {error}") from None


@dataclass(kw_only=True)
class _Tail:
    """How far one file has been read, and the piece of a line that is not ended yet."""

    log: LogFile
    offset: int = 0
    rest: bytes = b""

    def read(self) -> Iterator[LogLine]:
        """Lines that were ended since the last call; starts over where the file got shorter."""
        with self.log.path.open("rb") as stream:
            if stream.seek(0, 2) < self.offset:
                self.offset, self.rest = 0, b""
            stream.seek(self.offset)
            while chunk := stream.read(_CHUNK_BYTES):
                self.offset += len(chunk)
                *whole, self.rest = (self.rest + chunk).split(b"\n")
                for line in whole:
                    yield self._line(line)

    def flush(self) -> Iterator[LogLine]:
        """The unfinished line at the end, if there is one."""
        if self.rest:
            yield self._line(self.rest)
            self.rest = b""

    def _line(self, raw: bytes) -> LogLine:
        return LogLine(rank=self.log.rank, text=_clean(raw.decode(errors="replace")))


@dataclass(kw_only=True)
class _Tails:
    """All files of a stage as they appear; the files of requeued and new jobs join later."""

    find: Callable[[], list[LogFile]]
    tails: dict[Path, _Tail] = field(default_factory=dict)

    def read(self) -> Iterator[LogLine]:
        for lines in self.read_each():
            yield from lines

    def read_each(self) -> Iterator[Iterator[LogLine]]:
        """The lines of each file that were ended since the last call."""
        for log in self.find():
            yield self.tails.setdefault(log.path, _Tail(log=log)).read()

    def flush(self) -> Iterator[LogLine]:
        for tail in self.tails.values():
            yield from tail.flush()


def follow(
    find: Callable[[], list[LogFile]],
    done: Callable[[], bool],
    wanted: Wanted | None = None,
    *,
    last: int | None = None,
    interval_seconds: float = 0.5,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[LogLine]:
    """Yield the lines of a stage's files as they come, until the stage is done and all is read.

    Args:
        find: lists the files; asked again each time, since requeues and new jobs bring new ones.
        done: whether nothing will be written any more; asked before the last reading, so that what
            was written up to then is not missed.
        wanted: which lines; None for all.
        last: start with so many of the wanted lines of each file that is there; None for all.
        interval_seconds: pause between readings.
        sleep: the clock, for tests.
    """
    tails, wanted = _Tails(find=find), wanted or Wanted()
    attempts: dict[int, str] = {}
    for lines in tails.read_each() if last is not None else ():
        yield from deque(wanted.of(lines, attempts), maxlen=last)
    finished = False
    while not finished:
        finished = done()
        yield from wanted.of(tails.read(), attempts)
        if not finished:
            sleep(interval_seconds)
    yield from wanted.of(tails.flush(), attempts)


def _clean(line: str) -> str:
    """A line without its end; of a bar redrawn with carriage returns, what it showed last."""
    return line.rstrip("\r\n").rpartition("\r")[2]
