"""What a recipe says of its videos; torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from recipes.config import Strict


def expand(text: str) -> Path:
    """A path as a person writes it: `~` is the home folder, relative means relative to here."""
    return Path(text).expanduser().absolute()


class _Data(Strict):
    """What every source of videos has.

    Indexing fails when more than `max_bad_share` of the listed videos is missing or unusable; below
    that they are excluded and counted.
    """

    name: str = Field(min_length=1, description="name shown in tables")
    version: int = Field(1, ge=1, description="raise it after the files changed: indexed anew")
    max_bad_share: float = Field(0.01, ge=0.0, le=1.0, description="limit of unusable videos")

    def identity_files(self) -> list[Path]:
        """Files whose content belongs to the identity of the data set; they need not exist."""
        return []


class SyntheticData(_Data):
    """Small videos the project draws and encodes itself; the classes are directions of motion.

    `motion`: a textured star over noise redrawn each frame: motion alone tells the class, and
    next-step prediction has to learn it. `static`: the same star over a still background and with
    colours of its own per video, where a low prediction loss is reached without any motion.
    Defaults are the sizes with which the separation was measured (1,500 + 600 videos of 20 frames).
    """

    format: Literal["synthetic"] = "synthetic"
    name: str = Field("synthetic", min_length=1)
    variant: Literal["motion", "static"] = "motion"
    size: int = Field(32, ge=16, le=256, multiple_of=2, description="side in pixels")
    frames: int = Field(20, ge=4, le=256)
    train: int = Field(1500, ge=4, description="training videos, classes in turn")
    test: int = Field(600, ge=4, description="test videos, classes in turn")
    classes: Literal[2, 4] = Field(4, description="2: left, right; 4: also up, down")
    seed: int = Field(0, ge=0, description="seed of the drawing")


class IndexOptions(Strict):
    """How closely the files are looked at, and by how many jobs.

    `full` decodes every file; `demux` reads only its packets, which is many times faster and misses
    damage inside them and wrong random access: such files are then read from their first frame.
    """

    mode: Literal["full", "demux"] = "full"
    shards: int = Field(1, ge=1, le=1000, description="jobs of a SLURM array that share the work")


class PrepareOptions(Strict):
    """Re-encoding to small files that decode fast and allow exact random access.

    `needed` re-encodes only what the index could not pass for random access (AVI with B-frames, a
    codec or rotation the decoder does not know, an edit list); `all` re-encodes every video. The
    default quality is x264's own, which the field's scripts for resizing data sets leave as it is
    (such as mmaction2's); with 18, 128 px files are 1.6 times as large and cost 1.2 times as much
    to read.
    """

    files: Literal["needed", "all"] = "needed"
    short_side: Literal[128, 256] = 256
    gop: int = Field(12, ge=1, le=250, description="frames between key frames")
    crf: int = Field(
        23, ge=0, le=40, description="x264 quality, smaller is better; its own default"
    )
    shards: int = Field(1, ge=1, le=1000, description="jobs of a SLURM array that share the work")


# Endings of the containers the index reads.
VIDEO_ENDINGS = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts"),
    *(".m2ts", ".flv", ".wmv", ".asf", ".ogv"),
)


def _as_tuple(value: Any) -> Any:
    """A list of YAML is no tuple to strict validation behind the validator of a recipe's `data`."""
    return tuple(value) if isinstance(value, list) else value


def _delimiter(value: str) -> str:
    """A tab may be written as a command line can."""
    value = "\t" if value == "\\t" else value
    if len(value) != 1 or value.isalnum() or value in "_./\"'\r\n":
        raise ValueError(
            "one character that paths are not made of, such as `,`, `;` or ` `, or \\t"
        )
    return value


Delimiter = Annotated[str, AfterValidator(_delimiter)]
Extensions = Annotated[
    tuple[Annotated[str, Field(pattern=r"^\.[^/]+$")], ...], BeforeValidator(_as_tuple)
]


class _Files(_Data):
    """Videos of somebody's own; links that lead out of the root are refused unless allowed here.

    What the index cannot pass for random access (AVI with B-frames above all) is re-encoded by
    default; `prepare: null` leaves all files as they are.
    """

    follow_links: bool = Field(False, description="allow links to files outside the root")
    decoder: Literal["decord", "pyav", "torchcodec"] = "decord"
    index: IndexOptions = IndexOptions()
    prepare: PrepareOptions | None = PrepareOptions()


class FolderData(_Files):
    """One folder per class: `<root>/<class>/**/<video>`, or `<root>/<train|test>/<class>/...`.

    With `split: hash` a group of videos goes to test when its hash says so, which never changes as
    files come and go; `group` is a regular expression whose first group, searched in the path
    relative to the root, names the scene that must stay on one side (default: each file its own).
    """

    format: Literal["folder"] = "folder"
    root: str = Field(min_length=1)
    split: Literal["hash", "subfolders"] = "hash"
    test_share: float = Field(0.25, ge=0.0, lt=1.0)
    group: str | None = None
    extensions: Extensions = VIDEO_ENDINGS

    @field_validator("group")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        import re

        try:
            if value is not None and re.compile(value).groups < 1:
                raise ValueError("needs one group in parentheses that names the scene")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


Column = Literal["path", "label", "split", "group", "n_frames", "-"]


class CsvData(_Files):
    """A list of videos: by default a csv whose header names path, label, split, group.

    Only path is required. Paths are relative to `root` (default: the folder of the list). Without
    a split column the videos of `file` are for training and those of `test_file` for testing; an
    empty label means unlabeled. `columns` names the cells of a list without a header; `n_frames`
    and `-` are read over, because the index counts frames itself. With a blank as delimiter a
    path may contain blanks.
    """

    format: Literal["csv"] = "csv"
    file: str = Field(min_length=1)
    test_file: str | None = Field(None, description="second list; relative to the folder of file")
    root: str | None = None
    delimiter: Delimiter = Field(",", description="one character, or \\t for a tab")
    columns: Annotated[tuple[Column, ...] | None, BeforeValidator(_as_tuple)] = Field(
        None, description="of a list without a header"
    )
    suffix: str = Field("", description="ending that the list leaves out, such as .avi")

    @field_validator("columns")
    @classmethod
    def _one_path(cls, value: tuple[Column, ...] | None) -> tuple[Column, ...] | None:
        named = [name for name in value or () if name != "-"]
        if value is not None and (len(named) != len(set(named)) or "path" not in named):
            raise ValueError("needs path once and every other name at most once")
        return value

    def files(self) -> dict[str, Path]:
        """The lists by the split they stand for where they do not name one themselves."""
        first = expand(self.file)
        if self.test_file is None:
            return {"train": first}
        return {"train": first, "test": first.parent / Path(self.test_file).expanduser()}

    def identity_files(self) -> list[Path]:
        """The lists themselves."""
        return list(self.files().values())


class MultiCameraData(_Files):
    """Several cameras film the same instances: a csv with one line for each camera's video of one.

    Columns: instance, camera, path; where there are any: class, split, start_frame, n_frames and
    one of offset_frames and offset_seconds. Frame `start_frame + offset + t` shows moment t.
    """

    format: Literal["multicamera"] = "multicamera"
    file: str = Field(min_length=1, description="the manifest")
    root: str | None = Field(None, description="default: the folder of the manifest")
    delimiter: Delimiter = Field(",", description="one character, or \\t for a tab")

    def identity_files(self) -> list[Path]:
        """The manifest."""
        return [expand(self.file)]


class UCF101Data(_Files):
    """UCF101 as unpacked from its two archives below `root`: `UCF-101/` and `ucfTrainTestlist/`.

    A file is found whatever the case of its name and folder, and with another ending.
    """

    format: Literal["ucf101"] = "ucf101"
    name: str = Field("UCF101", min_length=1)
    root: str = Field(min_length=1)
    videos: str = Field("UCF-101", description="folder of the class folders, relative to root")
    lists: str = Field("ucfTrainTestlist", description="folder of the lists, relative to root")

    def identity_files(self) -> list[Path]:
        """Class index and the lists of the three splits."""
        folder = expand(self.root) / Path(self.lists).expanduser()
        splits = [f"{part}list0{n}.txt" for n in (1, 2, 3) for part in ("train", "test")]
        return [folder / name for name in ("classInd.txt", *splits)]


class HMDB51Data(_Files):
    """HMDB51: `<root>/<videos>/<class>/<name>.avi` and the folder of the 153 split files."""

    format: Literal["hmdb51"] = "hmdb51"
    name: str = Field("HMDB51", min_length=1)
    root: str = Field(min_length=1)
    videos: str = Field(".", description="folder of the class folders, relative to root")
    lists: str = Field("testTrainMulti_7030_splits", description="relative to root")

    def identity_files(self) -> list[Path]:
        """The split files that are there; on a machine without them, their folder."""
        folder = expand(self.root) / Path(self.lists).expanduser()
        found = sorted(folder.glob("*_test_split[123].txt"))
        return found or [folder]


class KineticsData(_Files):
    """Kinetics-400, -600 or -700: csv lists and `<videos>/<split>/<class>/<id>_<start>_<end>.mp4`.

    Class folders may have any name or be absent, and a file may be called `<id>` alone. The
    validation list is the test part, as everywhere in the literature: the labels of the original
    test list were withheld. Every copy lacks some videos, hence the larger `max_bad_share`; how
    many is recorded. Most copies are mp4 with key frames far apart, which can be read at random,
    hence no preparation by default.
    """

    format: Literal["kinetics"] = "kinetics"
    name: str = Field("Kinetics-400", min_length=1)
    max_bad_share: float = Field(0.1, ge=0.0, le=1.0)
    root: str = Field(min_length=1)
    videos: str = Field(".", description="folder of the split folders, relative to root")
    train_list: str | None = Field("annotations/train.csv", description="relative to root")
    test_list: str | None = Field("annotations/val.csv", description="relative to root")
    extensions: Extensions = (".mp4", ".mkv", ".webm")
    prepare: PrepareOptions | None = None

    @model_validator(mode="after")
    def _one_list(self) -> KineticsData:
        if self.train_list is None and self.test_list is None:
            raise ValueError("give train_list, test_list or both")
        return self

    def identity_files(self) -> list[Path]:
        """The csv lists that are used."""
        names = [name for name in (self.train_list, self.test_list) if name is not None]
        return [expand(self.root) / Path(name).expanduser() for name in names]


DataConfig = Annotated[
    SyntheticData | FolderData | CsvData | MultiCameraData | UCF101Data | HMDB51Data | KineticsData,
    Field(discriminator="format"),
]
