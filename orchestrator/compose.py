"""The only user of Hydra: a recipe file, groups and overrides become one tree."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import recipes
from orchestrator.errors import RecipeError, RecipeErrors
from orchestrator.interpolate import allowed_resolvers
from orchestrator.source import read_source
from orchestrator.source_map import Origin, SourceMap

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.defaults_list import DefaultsList
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

COMMAND_LINE = "command line"
SHIPPED_GROUPS = Path(recipes.__file__).parent / "conf"


def compose_recipe(path: Path, overrides: Sequence[str] = ()) -> SourceMap:
    """Compose a recipe file with the groups it names and overrides in Hydra's grammar.

    Groups are looked up beside the recipe, in a `conf` folder beside it, and among those that come
    with this package, in that order.

    Raises:
        RecipeErrors: the file, a group or an override is wrong.
    """
    label = read_source(path).label
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from orchestrator.hydra_faults import explain

    parsed = _parse(overrides)
    loader = _loader(path)
    with allowed_resolvers(), warnings.catch_warnings():
        # A defaults list without `_self_` means that the recipe has the last word, as it should.
        warnings.simplefilter("ignore", UserWarning)
        try:
            config, defaults = _compose(loader, parsed)
        except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:
            base = partial(_base, loader)
            raise RecipeErrors([explain(error, loader, parsed, label, base)]) from error
        except RecursionError as error:
            expected = "a defaults list that ends: this one leads back to itself"
            fault = RecipeError(path="defaults", file=label, expected=expected)
            raise RecipeErrors([fault]) from error
    raw = OmegaConf.to_container(config, resolve=False)
    if not isinstance(raw, dict):
        raise TypeError(f"Hydra composed {type(raw).__name__}, expected a mapping")
    origins = _origins(loader, defaults, label)
    return SourceMap(raw={str(key): value for key, value in raw.items()}, origins=origins)


def _loader(path: Path) -> ConfigLoaderImpl:
    """Hydra's loader for one recipe file.

    It is used without the application that Hydra builds around it: no global state, no search for
    plug-ins, none of Hydra's own settings, and a quarter of the time. The result is that of
    `hydra.compose` (a test compares them).
    """
    from hydra import version
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
    from hydra._internal.core_plugins.structured_config_source import StructuredConfigSource
    from hydra._internal.sources_registry import SourcesRegistry

    from orchestrator.hydra_source import GuardedSource

    version.setbase("1.3")
    for source in (GuardedSource, StructuredConfigSource):
        SourcesRegistry.instance().register(source)
    search_path = ConfigSearchPathImpl()
    search_path.append("main", f"guarded://{path.absolute()}")
    for folder in (path.absolute().parent / "conf", SHIPPED_GROUPS):
        if folder.is_dir():
            search_path.append("groups", f"guarded://{folder}")
    search_path.append("schema", "structured://")
    return ConfigLoaderImpl(search_path)


def _compose(
    loader: ConfigLoaderImpl, overrides: Sequence[Override]
) -> tuple[DictConfig, DefaultsList]:
    from hydra._internal.config_repository import CachingConfigRepository
    from hydra._internal.defaults_list import create_defaults_list
    from omegaconf import OmegaConf

    from orchestrator.hydra_source import PRIMARY

    repository = CachingConfigRepository(loader.repository)
    defaults = create_defaults_list(
        repository, PRIMARY, list(overrides), prepend_hydra=False, skip_missing=False
    )
    config = loader._compose_config_from_defaults_list(defaults.defaults, repository)
    # Without a leading + an override changes what is there; it never adds.
    OmegaConf.set_struct(config, True)
    loader._apply_overrides_to_config(defaults.config_overrides, config)
    return config, defaults


def _base(loader: ConfigLoaderImpl) -> DictConfig:
    """The recipe without overrides, to find the name that one may have meant."""
    return _compose(loader, [])[0]


def _origins(loader: ConfigLoaderImpl, defaults: DefaultsList, label: str) -> dict[str, Origin]:
    """Where each path was written last, in the order in which Hydra merges."""
    from orchestrator.hydra_source import find_source

    origins = {"": Origin(file=label)}
    for default in defaults.defaults:
        source = find_source(loader, default.config_path or "")
        if source is not None:
            prefix = f"{default.package}." if default.package else ""
            for path, line in source.lines.items():
                origins[f"{prefix}{path}"] = Origin(file=source.label, line=line)
    for override in defaults.config_overrides:
        origins[override.key_or_group] = Origin(file=COMMAND_LINE)
    return origins


def _parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides one by one, so that each wrong one is reported."""
    if not overrides:
        return []
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, parsed, faults = OverridesParser.create(), [], []
    for text in overrides:
        try:
            override = parser.parse_overrides([text])[0]
            fault = _refused(override)
        except HydraException:
            fault = "an override such as `seed=1`, `+new.key=1`, `~key` or `cluster=slurm`"
        if fault:
            faults.append(RecipeError(file=COMMAND_LINE, value=text, expected=fault))
        else:
            parsed.append(override)
    if faults:
        raise RecipeErrors(faults)
    return parsed


def _refused(override: Override) -> str:
    if not override.key_or_group:
        return "a key before the `=`"
    if override.is_sweep_override():
        return "one value; a list is written key=[a,b], text with a comma key='a,b'"
    if override.is_hydra_override() or override.key_or_group == "hydra":
        return "a key of the recipe: settings of Hydra itself are not used here"
    return ""
