"""MkDocs hooks, called while it builds; nothing has to be run before it.

    mkdocs serve
    mkdocs build --strict

Its Markdown extension, the package that it explains and what it prepares are this checkout's, also where another one
is installed.
"""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import Abort
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("allformers", "docs/engine")
WATCHED = (*SOURCES, "docs/theme", "docs/records")

_imported: dict[Path, int] = {}
"""When each source file had last been changed as this process imported the modules."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put this checkout first, and have Markdown use its extension."""
    if not _imported:
        use_this_checkout()
    config.markdown_extensions.insert(0, "docs.engine.extension")
    config.mdx_configs["pymdownx.snippets"]["base_path"] = [str(ROOT)]
    return config


def use_this_checkout() -> None:
    """Import from here, and forget modules that come from elsewhere."""
    sys.path.insert(0, str(ROOT))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("allformers", "docs")]:
        del sys.modules[name]
    _imported.update(_sources())


def _sources() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for folder in SOURCES for path in (ROOT / folder).rglob("*.py")}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Prepare what is stale, and add the pages and files that are made."""
    prepare = importlib.import_module("docs.engine.prepare")
    exercises = importlib.import_module("docs.engine.exercises")
    prepare.main()
    for address, text in exercises.pages().items():
        files.append(File.generated(config, address, content=text))
    for address, text in importlib.import_module("docs.engine.facts").one_files().items():
        files.append(File.generated(config, address, content=text))
    for address, path in prepare.files().items():
        files.append(File.generated(config, address, abs_src_path=str(path)))
    return files


def on_serve(server: Any, config: MkDocsConfig, builder: Callable[[], None]) -> Any:
    """Watch what the pages are made from, but not Python's caches: to fill them is no change.

    A page is built in this process, which remembers what it has computed. Once a source file has changed, what this
    process has imported is no longer what there is, and another one builds.
    """

    def build() -> None:
        if _sources() == _imported:
            builder()
        else:
            command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config.config_file_path)]
            if subprocess.run([*command, "--site-dir", config.site_dir]).returncode:
                raise Abort("The site could not be built")

    server.builder = build
    for folder in _folders():
        server.watch(str(folder), recursive=False)
    return server


def _folders() -> Iterator[Path]:
    for name in WATCHED:
        yield ROOT / name
        yield from (path for path in (ROOT / name).rglob("*/") if path.is_dir() and path.name != "__pycache__")
