"""A record of parity is stale if it lacks a comparison that the tests make, or holds one above its bar."""

import json
from pathlib import Path
from typing import Any

from conftest import stale

KEY = ("every setting", "logits", "float32")


def record(folder: Path, **changes: Any) -> Path:
    row = {"what": KEY[0], "of": KEY[1], "dtype": KEY[2], "comparisons": 3, "largest": 2e-7, "bar": 5e-6, **changes}
    (folder / "llama-parity.json").write_text(json.dumps({"rows": [row]}))
    return folder


def test_a_record_that_lacks_a_comparison_is_stale(tmp_path: Path) -> None:
    made = {"llama": {KEY: {"comparisons": 1, "largest": 9e-7, "bar": 5e-6}}}
    assert stale(made, record(tmp_path)) == []
    assert stale({}, record(tmp_path)) == []
    assert len(stale(made, record(tmp_path, what="something else"))) == 1
    assert len(stale(made, record(tmp_path, bar=1e-3))) == 1
    assert len(stale(made, record(tmp_path, largest=6e-6))) == 1
    assert len(stale(made, record(tmp_path, largest=float("nan")))) == 1
    assert len(stale({"mamba": made["llama"]}, record(tmp_path))) == 1
