"""The config source through which Hydra reads our files: guarded and confined to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.errors import RecipeError, RecipeErrors
from orchestrator.source import Source, read_source

PRIMARY = "__recipe__"


class GuardedSource(ConfigSource):  # type: ignore[misc]  # Hydra ships no types
    """`guarded://<folder>`, or `guarded://<file>`: that file is the primary config.

    Nothing outside the folder is read, and every file passes the guards of `read_source`.
    """

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        place = Path(self.path)
        self._primary = None if place.is_dir() else place
        self._root = (place if place.is_dir() else place.parent).resolve()
        self._loaded: dict[str, Source] = {}

    @staticmethod
    def scheme() -> str:
        """How a search path names this source."""
        return "guarded"

    def available(self) -> bool:
        """Whether the folder is there."""
        return self._root.is_dir()

    def is_group(self, config_path: str) -> bool:
        """Whether there is a folder of that name."""
        folder = self._inside(config_path)
        return folder is not None and folder.is_dir()

    def is_config(self, config_path: str) -> bool:
        """Whether there is a file of that name."""
        if config_path.removesuffix(".yaml") == PRIMARY:
            return self._primary is not None
        return self._file(config_path) is not None

    def load_config(self, config_path: str) -> ConfigResult:
        """Read one file. Raises RecipeErrors where the guards refuse it."""
        source = self.read(config_path)
        if source is None:
            raise ConfigLoadError(f"Config not found: {config_path}")
        try:
            config = OmegaConf.create(_parse(source.text))
        except OmegaConfBaseException as error:
            fault = RecipeError(
                file=source.label, value=str(error).splitlines()[0], expected="plain values"
            )
            raise RecipeErrors([fault]) from error
        return ConfigResult(
            config=config,
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=ConfigSource._get_header_dict(source.text[:512]),
        )

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Names of groups and configs in a folder of this source."""
        folder = self._inside(config_path)
        found: list[str] = []
        for entry in folder.iterdir() if folder is not None and folder.is_dir() else ():
            name = f"{config_path}/{entry.name}" if config_path else entry.name
            if entry.is_dir() or entry.suffix == ".yaml":
                self._list_add_result(found, name, entry.name, results_filter)
        return sorted(set(found))

    def read(self, config_path: str) -> Source | None:
        """Text and lines of a file, read once; None where there is none of that name."""
        name = config_path.removesuffix(".yaml")
        if name not in self._loaded:
            file = self._primary if name == PRIMARY else self._file(name)
            if file is None:
                return None
            self._loaded[name] = source = read_source(file)
            _refuse_hydra(source)
        return self._loaded[name]

    def _file(self, config_path: str) -> Path | None:
        file = self._inside(self._normalize_file_name(config_path))
        return file if file is not None and file.is_file() else None

    def _inside(self, name: str) -> Path | None:
        place = (self._root / name).resolve()
        return place if place.is_relative_to(self._root) else None


def _parse(text: str) -> Any:
    """As `OmegaConf.load` reads YAML, with the parser in C; duplicates are refused before."""
    import yaml
    from omegaconf._utils import get_yaml_loader

    rules = get_yaml_loader()
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader = type("Loader", (fast,), {"yaml_implicit_resolvers": rules.yaml_implicit_resolvers})
    return yaml.load(text, Loader=loader)  # noqa: S506  (a subclass of the safe loader)


def find_source(loader: ConfigLoader, config_path: str) -> Source | None:
    """The file of ours from which Hydra takes a config; None for what comes with Hydra."""
    for source in loader.get_sources():
        if isinstance(source, GuardedSource):
            found = source.read(config_path)
            if found is not None:
                return found
    return None


def _refuse_hydra(source: Source) -> None:
    if "hydra" in source.lines:
        fault = RecipeError(
            path="hydra",
            file=source.label,
            line=source.lines["hydra"],
            expected="no settings of Hydra itself: only its composition is used here",
            hint="remove the key",
        )
        raise RecipeErrors([fault])
