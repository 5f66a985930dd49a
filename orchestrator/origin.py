"""What a stage is part of, read from the files of its submission and its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import fsio
from orchestrator.store import StageDir, Store
from recipes.contract import Origin


def origin_of(stage: StageDir, submission: int, spec: Mapping[str, Any]) -> Origin:
    """Recipe, run, name, key and code of a stage; what was not recorded stays empty."""
    intent = stage.intent(submission) or {}
    run_id = str(intent.get("run_id", ""))
    run = Store(stage.path.parent.parent).run_dir(run_id) / "run.json"
    recorded = (fsio.read_json_or_none(run) if run_id else None) or {}
    code = recorded.get("code", {})
    # A later submission of the run may have brought other code.
    same = bool(code) and code["path"] == intent.get("code")
    return Origin(
        recipe=str(recorded.get("recipe", "")),
        run=run_id,
        stage=str(intent.get("stage", "")),
        key=str(spec["key"]),
        code=Path(intent.get("code") or "").name,
        version=str(code["version"]) if same else "",
    )
