"""The sizes that a model's page can show."""

import functools
from typing import Any

from allformers.models.registry import READING_ORDER


@functools.cache
def presets(module: str) -> dict[str, Any]:
    """The configurations of a model's presets by name, the small one first; nothing for other modules."""
    entry = next((entry for entry in READING_ORDER if entry.module == module), None)
    makers = entry.load().format.config_class.presets() if entry else {}
    return {name: make() for name, make in makers.items()}
