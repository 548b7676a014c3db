"""Models by name: the configs that ship with this package, and folders with a config.json.

Configs are read by `janus_moe.families`; weights are not looked at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from janus_moe.bundled import BUNDLED, BUNDLED_FOLDER
from janus_moe.errors import CheckpointError, ConfigError
from janus_moe.families import describe_model
from janus_moe.planner.latency import facts
from janus_moe.spec import ModelSpec, Spec


class KnownModel(Spec, frozen=True):
    """A model that ships with this package.

    title: what reports call it.
    source: where the config is from.
    config: the keys of its config.json that say what it is.
    aliases: other names, such as Hugging Face ids.
    note: what the config leaves out; "" means nothing.
    """

    title: str
    source: str
    config: dict[str, Any]
    aliases: tuple[str, ...] = ()
    note: str = ""

    @property
    def spec(self) -> ModelSpec:
        return msgspec.structs.replace(describe_model(self.config).spec, name=self.title)


class ServeSource(NamedTuple):
    """A model as `janus serve` is told of it.

    model: folder or Hugging Face id
    obstacles: why the engine cannot serve it, as clauses; empty means that it can
    """

    model: str
    obstacles: tuple[str, ...]


def serve_source(name: str) -> ServeSource:
    """Returns what `janus serve` takes for a name that `find_model` knows."""
    folder = folder_of(name)
    if folder is not None:
        model = name if name == BUNDLED else str(folder)
        return ServeSource(model, describe_model(_config_of(folder)).obstacles)
    known = _known_model(name)
    ids = [alias for alias in known.aliases if "/" in alias]
    asked = [one for one in ids if one.lower() == name.lower()]
    obstacles = describe_model(known.config).obstacles
    if not ids:
        return ServeSource(name, (*obstacles, "no checkpoint of it is published"))
    return ServeSource((asked or ids)[0], obstacles)


def model_names() -> tuple[str, ...]:
    """The models that ship with this package."""
    return facts.names("models")


def find_model(name: str) -> ModelSpec:
    """A model by name, by Hugging Face id, or from a folder with a config.json.

    "bundled" is the model of this package. Raises ConfigError that lists the known names.
    """
    folder = folder_of(name)
    if folder is not None:
        description = describe_model(_config_of(folder))
        return msgspec.structs.replace(description.spec, name=folder.name)
    return _known_model(name).spec


def _known_model(name: str) -> KnownModel:
    for known in model_names():
        found: KnownModel = facts.load("models", known, KnownModel)
        if name.lower() in {known, *(alias.lower() for alias in found.aliases)}:
            return found
    raise ConfigError(
        f"there are no facts about model {name!r}; known are {', '.join(model_names())}, "
        "or give a folder with a config.json"
    )


def folder_of(name: str) -> Path | None:
    """The checkpoint folder that a name means; None means none."""
    if name == BUNDLED:
        return BUNDLED_FOLDER
    path = Path(name)
    return path if (path / "config.json").is_file() else None


def _config_of(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(raw).__name__}")
    return raw
