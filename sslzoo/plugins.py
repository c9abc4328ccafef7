"""Who is installed, and what does each offer? Builds a plugin manager, and from it a catalogue of named parts.

Loading is explicit: `load()` returns a manager, importing sslzoo loads nothing. Environment: `SSLZOO_PLUGINS=vit,ijepa`
loads only these installed plugins; `SSLZOO_TRACE=1` prints every hook call.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from sslzoo import hooks
from sslzoo.errors import PluginError, did_you_mean, nearest, shown

# Every family, and the word for one part of it. A hook `sslzoo_FAMILY` offers its parts; `sslzoo new WORD` begins one.
FAMILIES: Mapping[str, str] = {
    "datasets": "dataset",
    "views": "view",
    "masks": "mask",
    "encoders": "encoder",
    "predictors": "predictor",
    "targets": "target",
    "losses": "loss",
    "optimizers": "optimizer",
    "probes": "probe",
}


@dataclass(frozen=True)
class Part:
    """A named part, and the plugin it comes from."""

    name: str
    family: str
    make: Any  # the class
    plugin: str
    version: str

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (self.make.__doc__ or "").strip().split("\n")[0]

    @property
    def label(self) -> str:
        """Name, plugin and version, for messages."""
        return f"{self.name!r} (plugin {self.plugin} {self.version})"


@dataclass(frozen=True)
class Plugin:
    """An installed plugin or a plugin file."""

    name: str
    version: str
    origin: str  # distribution or file
    hooks: tuple[str, ...]


@dataclass(frozen=True)
class Catalogue:
    """Every part of every loaded plugin, by family and name; and the folders of recipes."""

    parts: Mapping[str, Mapping[str, Part]]
    plugins: Mapping[str, Plugin]
    recipes: tuple[Path, ...]
    manager: pluggy.PluginManager = field(repr=False)

    def find(self, family: str, name: str) -> Part:
        """The part of this name.

        Raises:
            PluginError: there is none; names the nearest and all that are installed.
        """
        family_parts = self.parts[family]
        if name not in family_parts:
            raise PluginError(missing(family, name, family_parts))
        return family_parts[name]


def missing(family: str, name: str, parts: Mapping[str, Part]) -> str:
    """The message for a part that is not installed."""
    close, found = did_you_mean(name, parts), nearest(name, parts)
    if found:
        close = close.replace("?", f" (plugin {parts[found].plugin})?")
    return f"no {singular(family)} is called {shown(name)}{close}\ninstalled: {', '.join(sorted(parts)) or 'none'}"


def singular(family: str) -> str:
    """`masks` -> `mask`, `losses` -> `loss`, `datasets` -> `data set`."""
    spelled = {"datasets": "data set", "targets": "target generator", "masks": "mask sampler"}
    return spelled.get(family, FAMILIES.get(family, family))


def raised_in(make: Any, error: BaseException) -> str:
    """Where in a part's own code an error arose, ` (FILE, line N, in CALL)`: its last line there; or nothing."""
    homes, make = set(), inspect.unwrap(make)
    for one in inspect.getmro(make) if isinstance(make, type) else (make,):
        module = sys.modules.get(getattr(one, "__module__", ""))
        top = getattr(module, "__name__", "").partition(".")[0]
        file = getattr(module, "__file__", None)
        if file and top not in ("torch", "typing"):
            homes.add(Path(file))
            package = Path(getattr(sys.modules.get(top), "__file__", None) or file)
            homes |= {package.parent} if package.name == "__init__.py" and top != "sslzoo" else set()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path in homes or not homes.isdisjoint(path.parents):
            return f" ({path}, line {frame.lineno}, in {frame.name})"
    return ""


@contextmanager
def exit_raises() -> Iterator[None]:
    """Inside, `os._exit`, which nothing can catch, raises SystemExit; child processes may end by it."""
    end, own = os._exit, os.getpid()

    def told(code: int) -> None:
        if os.getpid() != own:
            end(code)
        raise SystemExit(f"os._exit({code}), which ends the whole run without a word")

    os._exit = told  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = end


def load(files: Sequence[Path | str] = ()) -> pluggy.PluginManager:
    """Every installed plugin, then the given plugin files, checked against the hook specifications.

    Nothing of a run is loaded: `load_encoder` does that.

    Raises:
        PluginError: a plugin cannot be imported, has a hook that does not exist, or shares its name with another.
    """
    if isinstance(files, str | Path):
        _refuse_run(Path(files))
        raise PluginError(f"found {str(files)!r}; a list of plugin files is wanted: [{str(files)!r}]")
    manager = pluggy.PluginManager("sslzoo")
    manager.add_hookspecs(hooks)
    if os.environ.get("SSLZOO_TRACE", "") not in ("", "0"):
        manager.trace.root.setwriter(lambda text: sys.stderr.write(text))
        manager.enable_tracing()
    for entry in _installed():
        _register(manager, _import(entry), entry.name)
    for file in files:
        module = _import_file(Path(file).resolve())
        _register(manager, module, str(file))
        if not manager.get_hookcallers(module):
            raise PluginError(f"plugin {file} offers nothing: a function marked @hookimpl is wanted, as sslzoo_masks")
    return manager


def catalogue(files: Sequence[Path | str] = ()) -> Catalogue:
    """Loads plugins and collects what they offer.

    Raises:
        PluginError: as `load`; or two plugins offer one name.
    """
    manager, entries = load(files), {entry.name: entry for entry in entry_points(group="sslzoo")}
    plugins = {
        name: _describe(manager, name, module, entries.get(name))
        for name, module in manager.list_name_plugin()
        if isinstance(module, ModuleType)
    }
    parts = {family: _collect(manager, family, plugins) for family in FAMILIES}
    folders = tuple(Path(folder) for folder in manager.hook.sslzoo_recipes())
    return Catalogue(parts, plugins, folders, manager)


def _collect(manager: pluggy.PluginManager, family: str, plugins: Mapping[str, Plugin]) -> dict[str, Part]:
    hook, parts = f"sslzoo_{family}", {}
    for plugin in plugins.values():
        for name, make in _offers(manager, hook, plugin).items():
            if name in parts:
                raise PluginError(
                    f"two plugins offer the {singular(family)} {name!r}: {parts[name].plugin} and {plugin.name}\n"
                    "rename one, or load only some with SSLZOO_PLUGINS=name,name"
                )
            parts[name] = Part(name, family, make, plugin.name, plugin.version)
    return parts


def _offers(manager: pluggy.PluginManager, hook: str, plugin: Plugin) -> dict[str, Any]:
    """What one plugin returns for a hook; asked alone, so that its name goes with its parts."""
    if hook not in plugin.hooks:
        return {}
    others = [module for name, module in manager.list_name_plugin() if name != plugin.name]
    try:
        found = manager.subset_hook_caller(hook, others)()
    except Exception as error:
        raise PluginError(f"plugin {plugin.name}: {hook}() failed: {type(error).__name__}: {error}") from error
    if not found:  # pluggy leaves None out
        raise PluginError(f"plugin {plugin.name}: {hook}() returned nothing; a mapping of classes by name is wanted")
    if not isinstance(found[0], Mapping):
        what = f"{hook}() returned {shown(found[0])}; a mapping of classes by name is wanted"
        raise PluginError(f"plugin {plugin.name}: {what}")
    for name, make in found[0].items():
        if not isinstance(make, type) or not isinstance(name, str):
            raise PluginError(f"plugin {plugin.name}: {hook}() gives {shown(make)} for {name!r}; a class is wanted")
    return dict(found[0])


def _installed() -> list[EntryPoint]:
    found = sorted(entry_points(group="sslzoo"), key=lambda entry: entry.name)
    wanted = os.environ.get("SSLZOO_PLUGINS")
    if wanted is None:
        return found
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    known = {entry.name for entry in found}
    for name in names:
        if name not in known:
            close = did_you_mean(name, known)
            raise PluginError(f"SSLZOO_PLUGINS: no plugin is called {name!r}{close}\ninstalled: {', '.join(known)}")
    return [entry for entry in found if entry.name in names]


def _register(manager: pluggy.PluginManager, module: ModuleType, name: str) -> None:
    if manager.has_plugin(name):
        raise PluginError(f"two plugins are called {name!r}; each needs its own name")
    try:
        manager.register(module, name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        specs = [hook for hook in vars(hooks) if hook.startswith("sslzoo_")]
        wrong = str(error)
        unknown = next((word.strip("'\"") for word in wrong.split() if word.strip("'\"").startswith("sslzoo_")), "")
        raise PluginError(
            f"plugin {name}: {wrong}{did_you_mean(unknown, specs) if unknown not in specs else ''}"
        ) from error


def _import(entry: EntryPoint) -> ModuleType:
    try:
        with exit_raises():
            return entry.load()
    except (Exception, SystemExit) as error:
        origin = f" (from {entry.dist.name} {entry.dist.version})" if entry.dist else ""
        raise PluginError(f"plugin {entry.name}{origin} cannot be imported: {type(error).__name__}: {error}") from error


def _refuse_run(path: Path) -> None:
    """Whoever asks a run folder for plugins wants its encoder."""
    if (path / "recipe.yaml").is_file():
        raise PluginError(
            f"{path} is a run folder, not a plugin file; sslzoo.load_encoder({str(path)!r}) is its encoder"
        )


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        _refuse_run(path)
        raise PluginError(f"no plugin file {path}")
    name = f"sslzoo_file_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin file {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that loader workers can pickle its classes
    try:
        with exit_raises():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"plugin file {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _describe(manager: pluggy.PluginManager, name: str, module: ModuleType, entry: EntryPoint | None) -> Plugin:
    offered = tuple(sorted(caller.name for caller in manager.get_hookcallers(module) or ()))
    if entry is not None and entry.dist:
        return Plugin(name, entry.dist.version, entry.dist.name, offered)
    content = Path(module.__file__).read_bytes() if module.__file__ else b""
    return Plugin(name, hashlib.sha256(content).hexdigest()[:12], str(module.__file__), offered)
