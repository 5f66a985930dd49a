"""The only module that imports submitit: its sbatch text and its sbatch call around our command."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor as SubmititExecutor
from submitit.slurm.slurm import _make_sbatch_string

from cluster.contract import SchedulerError
from cluster.inside import SLURM_CLIENT

# What a site sets in everybody's shell to choose a default; everything else of sbatch's input
# variables would silently win over the script, as these do where the recipe says otherwise.
_SITE_DEFAULTS = ("ACCOUNT", "CONSTRAINT", "PARTITION", "QOS", "RESERVATION")


class CommandSubmission(SubmititExecutor):  # type: ignore[misc]
    """submitit's executor for one command of ours instead of a pickled function.

    No pickle is written, so a submitter killed at any point leaves a job that works; the throttle
    of 0.2 s between submissions, made for arrays of strangers, is not paid.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, Any], *, tasks: int = 0) -> None:
        """`tasks` is the number of jobs of an array, 0 for a job by itself."""
        super().__init__(folder=folder)
        self.update_parameters(**parameters)
        self._tasks = tasks

    @classmethod
    def affinity(cls) -> int:
        """Always able: scripts are also rendered where no srun is installed."""
        return 2

    def render(self, command: str) -> str:
        """The script that `submit` hands over."""
        return str(self._make_submission_file_text(command, uid=""))

    def submit_command(self, command: str) -> str:
        """Run sbatch; the job id.

        Raises:
            SchedulerError: sbatch failed; the message carries what it said.
        """
        try:
            # submitit prints sbatch's complaint before it raises it.
            with contextlib.redirect_stderr(io.StringIO()):
                job = self._submit_command(command)
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            cause = error.__cause__
            code = getattr(cause, "returncode", "none")
            for unused in Path(self.folder).glob(".submission_file_*.sh"):
                unused.unlink(missing_ok=True)
            raise SchedulerError(f"sbatch: exit code {code}: {str(error).strip()}") from error
        script = Path(job.paths.submission_file)
        script.chmod(0o600)
        for link in script.parent.glob(".submission_file_*.sh"):
            if link.is_symlink() and link.resolve() == script.resolve():
                link.unlink()
        return str(job.job_id)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        """Logs of an array's tasks go where the array's folder has a link with their number."""
        if not self._tasks:
            return str(super()._make_submission_file_text(command, uid))
        folder = self.folder / "%a"
        values = {**self.parameters, "map_count": self._tasks}
        return str(_make_sbatch_string(command=command, folder=folder, **values))

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        dropped = [name for name in sorted(os.environ) if self._overrides(name)]
        unset = [word for name in dropped for word in ("-u", name)]
        command = ["sbatch", str(submission_file_path)]
        return ["env", *unset, *command] if unset else command

    def _overrides(self, name: str) -> bool:
        """Whether a variable of the shell would change what the script says."""
        if name.startswith("SLURM_"):
            return name not in SLURM_CLIENT
        if not name.startswith("SBATCH_"):
            return False
        option = name.removeprefix("SBATCH_")
        extra = self.parameters.get("additional_parameters") or {}
        stated = option.lower() in self.parameters or option.lower() in extra
        return option not in _SITE_DEFAULTS or stated
