"""Which variables of the submitting shell a job receives; everything else stays behind."""

from __future__ import annotations

from collections.abc import Mapping

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


def passed_on(environ: Mapping[str, str], *, same_machine: bool = False) -> dict[str, str]:
    """The part of `environ` that a job may see, in sorted order.

    Values with control characters are left out, whatever their name: they could not be written on
    one line of a script.
    """
    names = _NAMES | _LOCAL_NAMES if same_machine else _NAMES
    return {
        name: environ[name]
        for name in sorted(environ)
        if (name in names or name.startswith(_PREFIXES)) and environ[name].isprintable()
    }
