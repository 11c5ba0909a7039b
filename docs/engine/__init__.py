"""The renderer of the site: MkDocs calls `hooks`, Markdown calls `extension`, and these use the rest."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""

PAGES = ROOT / "docs" / "pages"
"""The pages, in Markdown."""

RECORDS = ROOT / "docs" / "records"
"""What was measured once, by a command that stands beside it, and is kept."""

CACHE = ROOT / ".cache" / "site"
"""What was prepared. It is no place that `mkdocs serve` watches: to write there starts no build."""
