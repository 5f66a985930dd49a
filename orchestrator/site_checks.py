"""What a submission asks of its site: files that jobs need, how GPUs are asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.contract import Executor, GpuRequest
from cluster.environment import EnvFileError, read_env_file
from cluster.site import read_profile
from orchestrator.errors import RecipeError, RecipeErrors

if TYPE_CHECKING:
    from orchestrator.schema import Recipe

_NOT_HERE = (
    "jobs would wait in the queue and fail; if compute nodes have it and this machine has not, add "
    "`on_login_node: false` to cluster.env"
)


def check_files(recipe: Recipe) -> None:
    """Look for the files of `cluster.env` and `cluster.env_file` where jobs are submitted.

    On a machine without sbatch a recipe of a cluster is only planned or shown, and nothing is
    looked for.

    Raises:
        RecipeErrors: a file is missing, or one with credentials is not private.
    """
    from orchestrator.env_schema import files_of

    faults: list[RecipeError] = []
    cluster = recipe.cluster
    submits = cluster.executor != "slurm" or shutil.which("sbatch") is not None
    if cluster.env is not None and cluster.env.on_login_node and submits:
        for key, path in files_of(cluster.env).items():
            if not path.exists():
                at = ("cluster", "env", key)
                faults.append(recipe.sources.fault(at, "a file that exists", str(path), _NOT_HERE))
    if cluster.env_file is not None and submits:
        try:
            read_env_file(Path(cluster.env_file))
        except EnvFileError as error:
            expected = "a file of NAME=VALUE lines that only you can read"
            faults.append(recipe.sources.fault(("cluster", "env_file"), expected, str(error)))
    if faults:
        raise RecipeErrors(faults)


def gpu_request(executor: Executor, store: Path) -> GpuRequest:
    """What `gpu_request: auto` means: what `doctor --job` found to work here, else gpus-per-node.

    That one is understood by every SLURM since 19.05, whether or not its GPUs have types. The
    controller is asked for its name only where there is a profile at all.
    """
    from cluster.slurm import SlurmExecutor

    if isinstance(executor, SlurmExecutor) and any((store / "sites").glob("*.json")):
        profile = read_profile(store, executor.cluster())
        if profile is not None and profile.gpu_request is not None:
            return profile.gpu_request
    return "gpus-per-node"
