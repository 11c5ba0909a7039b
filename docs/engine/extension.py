"""The Python-Markdown extension that makes the site's pages: everything in `walk` and `blocks`.

It is an extension of Markdown and not of MkDocs, so that whatever reads `mkdocs.yml` builds the same pages.
"""

from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from pymdownx.blocks import BlocksExtension

from docs.engine.blocks import Break, Difference, Excerpt, Figure, Live, register
from docs.engine.walk import State, Step, Walk


class SiteExtension(BlocksExtension):
    """All blocks, formulas, facts, and axes in prose."""

    def extendMarkdownBlocks(self, md: Markdown, block_mgr: Any) -> None:  # noqa: N802
        """Register all blocks."""
        md.walk_state = State()  # type: ignore[attr-defined]
        for block in (Walk, Step, Figure, Break, Difference, Excerpt, Live):
            block_mgr.register(block, self.getConfigs())
        register(md)

    def reset(self) -> None:
        """Clear the state of the previous page."""
        if hasattr(self, "md"):
            self.md.walk_state = State()


def makeExtension(**options: Any) -> Extension:  # noqa: N802
    """Return the extension; Python-Markdown calls this."""
    return SiteExtension(**options)
