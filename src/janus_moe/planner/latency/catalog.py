"""Models by name: the facts that ship with this package, and checkpoint folders."""

from __future__ import annotations

from janus_moe.errors import ConfigError
from janus_moe.planner.latency import facts
from janus_moe.planner.latency.checkpoint import facts_of_folder, folder_of
from janus_moe.planner.latency.models import ModelFacts


def model_names() -> tuple[str, ...]:
    """The models with facts in this package."""
    return facts.names("models")


def model_facts(name: str) -> ModelFacts:
    """Facts by name, by Hugging Face id, or from a folder with a config.json; "bundled" is the
    model of this package. Raises ConfigError that lists the known names.
    """
    folder = folder_of(name)
    if folder is not None:
        return facts_of_folder(folder)
    for known in model_names():
        found: ModelFacts = facts.load("models", known, ModelFacts)
        if name.lower() in {known, *(alias.lower() for alias in found.aliases)}:
            return found
    raise ConfigError(
        f"there are no facts about model {name!r}; known are {', '.join(model_names())}, "
        "or give a folder with a config.json"
    )
