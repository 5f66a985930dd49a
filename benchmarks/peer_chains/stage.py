"""One stage of the chain, the same for all: `stage.py NAME OUT [IN...]`; torch-free.

`settings.json` beside this file says how long a stage takes and which one fails. Work done is
kept in `OUT.progress`, so a stage that is started again goes on. What happened is in `events`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
STEP_SECONDS = 0.1


def main(name: str, out: Path, inputs: list[Path]) -> int:
    """Check the inputs, work, write the output."""
    settings = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))
    tell(name, "start")
    missing = [str(path) for path in inputs if not path.exists()]
    if missing:
        tell(name, "no input")
        print(f"{name}: {missing} missing", file=sys.stderr)
        return 1
    kept = Path(f"{out}.progress")
    first = int(kept.read_text(encoding="utf-8")) if kept.exists() else 0
    for step in range(first, round(settings["seconds"] / STEP_SECONDS)):
        time.sleep(STEP_SECONDS)
        kept.write_text(str(step + 1), encoding="utf-8")
    if settings["fails"] == name:
        tell(name, "fail")
        return 1
    out.write_text(json.dumps({"stage": name}), encoding="utf-8")
    tell(name, "done")
    return 0


def tell(name: str, what: str) -> None:
    """One file an event: nodes share no file they could append to safely."""
    folder = HERE / "events"
    folder.mkdir(exist_ok=True)
    now = time.time()
    (folder / f"{now:.6f}-{os.getpid()}-{os.environ.get('SLURM_JOB_ID')}.json").write_text(
        json.dumps({"stage": name, "what": what, "at": now}), encoding="utf-8"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), [Path(word) for word in sys.argv[3:]]))
