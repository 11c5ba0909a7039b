"""The sizes that a model's page can show."""

import functools
from typing import Any

from allformers.models.registry import READING_ORDER


@functools.cache
def presets(module: str) -> dict[str, Any]:
    """Return the configurations of a model's presets by name, the small one first; none for other modules."""
    entry = next((entry for entry in READING_ORDER if entry.module == module), None)
    return {size.name.replace("-", "_"): size.config for size in entry.sizes()} if entry else {}
