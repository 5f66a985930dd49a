"""Walks through the MLflow UI in headless Chromium as a person would and takes pictures.

    python -m tests.tracking.browse <store> <run_id> <folder for the pictures> [<registered model>]

shows a pipeline run of an embedded store; the test of the UI uses the same walk.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import fsio

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# In a container without user namespaces, a GPU or a way to the internet.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_MODE = "workflowType=machine_learning"  # the UI's pages for training runs
_PATIENCE_MS = 30_000


def find_chromium() -> str | None:
    """The browser of this machine, if there is one."""
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


@dataclass
class Walk:
    """What was seen: the text of each page, by name, and where its picture is."""

    page: Page
    server: str
    folder: Path
    texts: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)

    def visit(self, name: str, path: str, *expected: str) -> None:
        """Open a page below the server's root, wait for these texts and keep what it shows."""
        self.page.goto(f"{self.server}/{path}{'&' if '?' in path else '?'}{_MODE}")
        self.keep(name, *expected)

    def keep(self, name: str, *expected: str) -> None:
        """Wait for these texts on the page that is open and keep what it shows."""
        for text in expected:
            self.page.get_by_text(text, exact=True).first.wait_for(timeout=_PATIENCE_MS)
        self._close_assistant()
        self.page.wait_for_timeout(500)  # charts are drawn after their page is
        self.texts[name] = self.page.inner_text("body")
        self.pictures[name] = self.folder / f"mlflow-{name}.png"
        self.page.screenshot(path=self.pictures[name])

    def _close_assistant(self) -> None:
        button = self.page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
        if button.count():
            button.first.click()
            button.first.wait_for(state="hidden", timeout=_PATIENCE_MS)


@contextmanager
def browser_page(width: int = 1440, height: int = 900) -> Iterator[Page]:
    """A page of a fresh headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(_FLAGS))
        try:
            yield browser.new_page(viewport={"width": width, "height": height})
        finally:
            browser.close()


def stage_records(store: Path, run_id: str) -> dict[str, Mapping[str, Any]]:
    """tracking.json of every delivered stage of a pipeline run, by stage name."""
    plan = fsio.read_json(store / "runs" / run_id / "plan.json")
    found: dict[str, Mapping[str, Any]] = {}
    for entry in plan["stages"]:
        record = fsio.read_json_or_none(store / "stages" / entry["stage"] / "tracking.json")
        if record is not None:
            found[entry["name"]] = {**record, "kind": entry["kind"]}
    return found


def walk_through(server: str, store: Path, run_id: str, folder: Path, registered: str = "") -> Walk:
    """Look at a pipeline: run table, parent, curves, a consumer, its figures and the model.

    Args:
        server: URL of the MLflow UI.
        store: the store whose runs it shows.
        run_id: a pipeline run in it that was delivered.
        folder: takes the pictures, `mlflow-<page>.png`.
        registered: a registered model to look at too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stages = stage_records(store, run_id)
    parent = fsio.read_json(store / "runs" / run_id / "mlflow.json")
    root = f"#/experiments/{parent['experiment_id']}"
    with browser_page() as page:
        walk = Walk(page, server, folder)
        _look_at_table(walk, root, run_id)
        url = f"{root}/runs/{parent['parent_run_id']}"
        walk.visit("parent", url, "Child runs", "Description")
        walk.visit("pipeline", f"{url}/artifacts/pipeline.svg", "pipeline.svg")
        for name, record in stages.items():
            if record["kind"] in ("index", "report"):
                continue
            url = f"{root}/runs/{record['mlflow_run_id']}"
            _look_at_stage(walk, url, name, record, registered)
    return walk


def _look_at_table(walk: Walk, root: str, run_id: str) -> None:
    """The run table with the pipeline's stages unfolded."""
    walk.visit("runs", f"{root}/runs", run_id)
    walk.page.locator("button[data-component-id*='runnamecellrenderer']").first.click()
    walk.keep("nested", run_id)
    for view in ("stages", "results"):
        walk.page.goto("about:blank")  # else only the part behind # changes, and the view stays
        walk.visit(view, f"{root}/runs?viewStateShareKey={view}", "probe")


def _look_at_stage(
    walk: Walk, url: str, name: str, record: Mapping[str, Any], registered: str
) -> None:
    label = name.replace("/", "-")
    walk.visit(label, url, "Parent run", name)
    upstream = walk.page.get_by_role("link", name=re.compile(r"\.encoder$"))
    if upstream.count():
        with walk.page.expect_popup() as opened:  # the UI opens links of a description beside it
            upstream.first.click()
        target = opened.value.url.partition("#")[2]
        opened.value.close()
        walk.visit(f"upstream-{label}", f"#{target}", "About this run")
    if record["kind"] in ("pretrain", "finetune"):
        walk.visit(f"curves-{label}", f"{url}/model-metrics", "Step")
    if record["kind"] == "pretrain" and record.get("system_offset"):
        walk.visit(f"system-{label}", f"{url}/system-metrics", "cpu_utilization_percentage")
    figures = [one.removeprefix("outputs/") for one in record["files"] if one.endswith(".png")]
    for figure in figures[:1]:
        walk.visit(f"figures-{label}", f"{url}/artifacts/{figure}", figure)
    for model in record["models"].values():
        page = f"{url.partition('/runs/')[0]}/models/{model}"
        walk.visit(f"model-{label}", page, "Source run")
    if record["models"] and registered:
        walk.visit("registered", f"#/models/{registered}", registered)


def main(argv: list[str]) -> int:
    """Take the pictures of a pipeline run of an embedded store."""
    from tracking import server

    store, run_id, folder, registered = Path(argv[0]), argv[1], Path(argv[2]), argv[3:]
    with server.running(server.default_uri(store), store, port=server.free_port()) as running:
        walk = walk_through(running.url, store, run_id, folder, *registered)
    print("\n".join(str(path) for path in walk.pictures.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
