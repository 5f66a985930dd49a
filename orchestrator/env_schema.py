"""Models of `cluster.env`: where the Python of the ranks comes from, one model for each kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from cluster.contract import PythonEnvironment
from recipes.config import Strict
from recipes.data.config import expand


def one_line(text: str) -> str:
    """A newline in a value would end a line of the batch script and begin a command."""
    if not text.isprintable() or len(text) > 256:
        raise ValueError("text of at most 256 characters in one line, without control characters")
    return text


def _place(text: str) -> str:
    return str(expand(one_line(text)))


def _bind(text: str) -> str:
    """`SOURCE[:TARGET[:OPTIONS]]`; the command line of a container gives commas a meaning."""
    source, colon, rest = one_line(text).partition(":")
    if not source.startswith(("/", "~")) or "," in source or text.count(":") > 2:
        raise ValueError("SOURCE, SOURCE:TARGET or SOURCE:TARGET:OPTIONS, with absolute paths")
    if rest and not rest.startswith("/"):
        raise ValueError("an absolute path as the target")
    return f"{Path(source).expanduser()}{colon}{rest}"


def _image(text: str) -> str:
    """A path as a person writes it, or the name of an image in a registry as enroot takes it."""
    if text.startswith(("/", "~", "./", "../")) or text.endswith(".sqsh"):
        return _place(text)
    return one_line(text)


def _program(text: str) -> str:
    """A path as a person writes it, or a name that is looked for in PATH."""
    return _place(text) if "/" in text else one_line(text)


def _module(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/+@=-]{0,127}", text):
        raise ValueError("the name of a module, such as cuda/12.4")
    return text


def _option(text: str) -> str:
    if not re.match(r"--?[A-Za-z]", text):
        raise ValueError("an option in one word, such as --overlay=/path")
    return one_line(text)


Line = Annotated[str, Field(min_length=1), AfterValidator(one_line)]
Place = Annotated[str, Field(min_length=1), AfterValidator(_place)]
Bind = Annotated[str, Field(min_length=1), AfterValidator(_bind)]
Program = Annotated[str, Field(min_length=1), AfterValidator(_program)]
Image = Annotated[str, Field(min_length=1), AfterValidator(_image)]
Module = Annotated[str, AfterValidator(_module)]
Option = Annotated[str, AfterValidator(_option)]


class _Environment(Strict):
    """What every kind takes."""

    load: tuple[Module, ...] = Field((), description="modules to load before anything else")
    init: Place | None = Field(
        None, description="file that defines `module`; default: looked for in the usual places"
    )
    python: Program | None = Field(
        None, description="program of the ranks; default: that of the kind"
    )
    host_python: Program | None = Field(
        None,
        description="Python 3.11 of the nodes, for what runs outside the environment; default: "
        "the one that submits",
    )
    on_login_node: bool = Field(
        True, description="false: its files are on compute nodes only and not looked for here"
    )


class VenvSpec(_Environment):
    """A virtual environment, on a file system that the nodes share."""

    kind: Literal["venv"]
    path: Place = Field(description="its folder")


class CondaSpec(_Environment):
    """A conda environment, by name or by folder."""

    kind: Literal["conda"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")] | None = None
    prefix: Place | None = Field(None, description="its folder, in place of a name")
    sh: Place | None = Field(
        None, description="conda's etc/profile.d/conda.sh; a prefix alone is used without conda"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> CondaSpec:
        if (self.name is None) == (self.prefix is None):
            raise ValueError("either name or prefix")
        if self.name is not None and self.sh is None and not self.load:
            raise ValueError("with a name also sh, or the module in load that brings conda")
        return self


class ModulesSpec(_Environment):
    """Environment modules, for the Python that submits or for one of theirs."""

    kind: Literal["modules"]
    load: tuple[Module, ...] = Field(description="modules, loaded in this order")

    @field_validator("load")
    @classmethod
    def _not_empty(cls, load: tuple[str, ...]) -> tuple[str, ...]:
        if not load:
            raise ValueError("at least one module")
        return load


class ApptainerSpec(_Environment):
    """A container of Apptainer or Singularity; the image needs Python 3.11 and our dependencies."""

    kind: Literal["apptainer"]
    image: Place = Field(description="a .sif file or a folder made by `apptainer build --sandbox`")
    bind: tuple[Bind, ...] = Field(
        (), description="further SOURCE[:TARGET[:OPTIONS]]; the store and the data are mounted"
    )
    nv: bool | None = Field(None, description="NVIDIA GPUs; default: where the job has any")
    program: Literal["apptainer", "singularity"] = "apptainer"
    args: tuple[Option, ...] = Field((), description="further options of `apptainer exec`")


class PyxisSpec(_Environment):
    """A container of enroot through SLURM's pyxis plugin; it needs what one of Apptainer needs."""

    kind: Literal["pyxis"]
    image: Image = Field(description="a .sqsh file, or an image such as nvcr.io#nvidia/pytorch:TAG")
    mounts: tuple[Bind, ...] = Field(
        (), description="further SOURCE[:TARGET[:FLAGS]]; the store and the data are mounted"
    )
    args: tuple[Option, ...] = Field((), description="further options of srun")


EnvSpec = Annotated[
    VenvSpec | CondaSpec | ModulesSpec | ApptainerSpec | PyxisSpec, Field(discriminator="kind")
]


def environment_of(spec: EnvSpec, data: Sequence[str]) -> PythonEnvironment:
    """As an executor takes it; `data` are folders and files besides the store that jobs read."""
    common = PythonEnvironment(
        kind=spec.kind,
        python=spec.python,
        host_python=spec.host_python,
        load=spec.load,
        init=spec.init,
    )
    match spec:
        case VenvSpec():
            return replace(common, place=spec.path)
        case CondaSpec():
            return replace(common, place=spec.prefix or spec.name or "", conda_sh=spec.sh)
        case ModulesSpec():
            return common
        case ApptainerSpec():
            binds = (*spec.bind, *data)
            chosen = replace(common, place=spec.image, binds=binds, arguments=spec.args)
            return replace(chosen, program=spec.program, gpus=spec.nv)
        case PyxisSpec():
            binds = (*spec.mounts, *data)
            return replace(common, place=spec.image, binds=binds, arguments=spec.args)


def files_of(spec: EnvSpec) -> dict[str, Path]:
    """The files it is made of, by the key that names them."""
    texts = {"init": spec.init, "host_python": spec.host_python}
    match spec:
        case VenvSpec():
            texts["path"] = f"{spec.path}/bin/python"
        case CondaSpec():
            texts |= {"sh": spec.sh, "prefix": spec.prefix}
        case ApptainerSpec():
            texts["image"] = spec.image
        case PyxisSpec() if spec.image.startswith("/"):
            texts["image"] = spec.image
        case _:
            pass
    return {key: Path(text) for key, text in texts.items() if text is not None and "/" in text}
