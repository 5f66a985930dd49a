"""Which variables a job receives: some of the submitting shell's, those of a private file, no more.

A batch script is kept by the scheduler and in the store, and shown by `plan --sbatch`; so nothing
that looks like a credential is ever written to one. The ranks read such values themselves.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.credentials import hide_in_addresses, looks_secret

# Where programs and libraries are found, who the user is, how text is encoded. No variable that
# usually holds a credential: tokens reach a job through files the job reads itself.
_NAMES = frozenset(
    {
        "CONDA_PREFIX",
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "PATH",
        "SHELL",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
    }
)
# Settings of the site's network and of numerical libraries.
_PREFIXES = ("LC_", "NCCL_", "GLOO_", "UCX_", "FI_", "MKL_", "OMP_", "DS_ACCELERATOR")
# Facts of this machine, which mean nothing on another one.
_LOCAL_NAMES = frozenset(
    {"CUDA_VISIBLE_DEVICES", "TMPDIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"}
)
PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What is decided for each job, rank or attempt, and must not come from a file for all of them.
_OURS = ("SLURM_", "SBATCH_", "ORCHESTRATE_", "LD_", "PYTHON")
_OURS_WHOLE = frozenset({"PATH", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})


class EnvFileError(ValueError):
    """A file of variables cannot be used; the message names it, the line and the remedy."""


def passed_on(
    environ: Mapping[str, str], *, also: Sequence[str] = (), same_machine: bool = False
) -> dict[str, str]:
    """The part of `environ` that a job may see, in sorted order.

    Values with control characters are left out, whatever their name: they could not be written on
    one line of a script.

    Args:
        also: further names, or `PREFIX_*`; what looks like a credential, by its name or as part of
            an address, stays behind all the same.
    """
    names = _NAMES | _LOCAL_NAMES if same_machine else _NAMES
    wanted = names | {name for name in also if not name.endswith("*")}
    prefixes = (*_PREFIXES, *(name[:-1] for name in also if name.endswith("*")))
    return {
        name: environ[name]
        for name in sorted(environ)
        if (name in wanted or name.startswith(prefixes))
        and _NAME.fullmatch(name)
        and not looks_secret(name)
        and environ[name].isprintable()
        and hide_in_addresses(environ[name]) == environ[name]
    }


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of a file of lines `NAME=VALUE`; empty ones and `#` comments are passed over.

    Nothing is expanded or executed: the value is the rest of the line, without quotes around it.

    Raises:
        EnvFileError: the file is not there or not private to this user, or a line is not of that
            form or sets what is not for it to set. No message quotes a value.
    """
    variables = {}
    for number, line in enumerate(_private_text(path).splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not _NAME.fullmatch(name):
            raise EnvFileError(f"{path}:{number}: a line NAME=VALUE is expected")
        if name in _OURS_WHOLE or name.startswith(_OURS):
            raise EnvFileError(f"{path}:{number}: {name} is set for each job and not by a file")
        if not value.isprintable():
            raise EnvFileError(f"{path}:{number}: the value of {name} has a control character")
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        variables[name] = value[1:-1] if quoted else value
    return variables


def _private_text(path: Path) -> str:
    """The text of a file that nobody else can read or could have written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, encoding="utf-8") as stream:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise EnvFileError(f"{path}: a plain file of your own is expected")
            if found.st_mode & 0o077:
                mode = stat.S_IMODE(found.st_mode)
                raise EnvFileError(f"{path}: others can open it (mode {mode:o}): chmod 600 {path}")
            return stream.read()
    except OSError as error:
        raise EnvFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EnvFileError(f"{path}: is not text in UTF-8") from error
