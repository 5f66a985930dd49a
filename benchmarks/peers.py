"""The same chain of four stages by orchestrate and by five others, in good times and in bad.

    python benchmarks/peers.py [--out benchmarks/results] [--envs FOLDER] [--only PEER ...]

pretrain, then probe, finetune and retrieval; each runs `peer_chains/stage.py` for 3 s with one
fake GPU, on a private SLURM of its own with two nodes for each tool and each case. The others are
installed with pip, each into an environment of its own below `--envs` (a temporary folder without
it), in the versions below; one that cannot be installed is said so. Ours runs a stage kind
`script`, added to a copy of the sources as docs/extending.md says, so that all of it takes part:
plan, claims, snapshot of the code, verified inputs, epilogue.

Scheduler commands are counted by a folder of wrappers ahead in PATH, on the nodes too. All tools
keep their defaults, and what a case does is the same for all; see `peer_cases.py`. Takes about
twenty minutes on an idle machine, most of it Snakemake's polling.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peer_cases import CASES, Outcome, Setting

from tests.slurm_cluster import PrivateSlurm, missing_for_accounting, missing_programs

REPOSITORY = Path(__file__).resolve().parents[1]
CHAINS = REPOSITORY / "benchmarks" / "peer_chains"
COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "srun", "sinfo")
Results = dict[tuple[str, str], Outcome | str]
CATALOG_LINE = (
    '    "script": Entry(\n'
    '        "recipes.stages.script.config:ScriptConfig", "recipes.stages.script.run:run"\n'
    "    ),\n"
)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A tool, pinned.

    Attributes:
        name: also of its environment; its programs are first in PATH.
        packages: for pip; none for ours.
        submit: the command that submits the chain.
        prepare: a command that sets the folder up.
        child: submits the probe alone after the parent has failed; `{parent}` is its job id.
        blocks: whether the command stays until the chain has ended.
        note: what has to be known to make it work.
    """

    name: str
    packages: tuple[str, ...] = ()
    submit: tuple[str, ...]
    prepare: tuple[str, ...] = ()
    child: tuple[str, ...] = ()
    blocks: bool = False
    note: str = ""


SNAKEMAKE = ("snakemake", "--executor", "slurm", "-j", "10", "--quiet", "all")
PEERS = (
    Peer(
        name="orchestrate",
        submit=("python", "-m", "orchestrator.cli", "submit", "chain.yaml"),
        child=("python", "-m", "orchestrator.cli", "resume", "latest", "--stage", "probe"),
        note="full records, code snapshot and input checks",
    ),
    Peer(
        name="submitit",
        packages=("submitit==1.5.4",),
        submit=("python", "submitit_chain.py"),
        child=("python", "submitit_chain.py", "probe", "{parent}"),
        note="hand-written chain",
    ),
    Peer(
        name="nemo-run",
        packages=("nemo-run==0.11.1", "leptonai==0.26.6"),
        submit=("python", "nemo_chain.py"),
        note="fails at import without the older leptonai",
    ),
    Peer(name="dawgz", packages=("dawgz==2.7.0",), submit=("python", "dawgz_chain.py")),
    Peer(
        name="gwf",
        packages=("gwf==1.7.2",),
        prepare=("gwf", "config", "set", "backend", "slurm"),
        submit=("gwf", "run"),
        child=("gwf", "run", "probe"),
    ),
    Peer(
        name="snakemake",
        packages=("snakemake==9.27.1", "snakemake-executor-plugin-slurm==2.8.0"),
        submit=SNAKEMAKE,
        child=(*SNAKEMAKE[:-2], "--quiet", "all", "--", "probe.json"),
        blocks=True,
        note="with its SLURM plugin; stays alive",
    ),
)


def install(peer: Peer, envs: Path) -> str:
    """Make the tool's environment; why it cannot be, else nothing."""
    place = envs / peer.name
    if not peer.packages or (place / "installed").exists():
        return ""
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    command = [place / "bin" / "pip", "install", "--quiet", *peer.packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return done.stderr.strip().splitlines()[-1]
    (place / "installed").touch()
    return ""


def setting(peer: Peer, cluster: PrivateSlurm, envs: Path, folder: Path) -> Setting:
    """A folder with the chain in it, and an environment that counts what is asked of SLURM."""
    folder.mkdir()
    for path in CHAINS.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    programs = Path(sys.executable).parent if not peer.packages else envs / peer.name / "bin"
    shims = _shims(folder, cluster)
    home = folder / "home"
    home.mkdir()
    env = {
        **cluster.env,
        "PATH": f"{shims}:{programs}:{cluster.env['PATH']}",
        "HOME": str(home),
        "USER": "root",
        "NEMORUN_HOME": str(home / "nemo"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }
    if not peer.packages:
        env |= _ours(folder)
    made = Setting(
        cluster=cluster,
        folder=folder,
        env=env,
        submit=peer.submit,
        child=peer.child,
        blocks=peer.blocks,
    )
    made.set(seconds=3.0)
    if peer.prepare:
        subprocess.run(peer.prepare, cwd=folder, env=env, check=True, capture_output=True)
    return made


def _shims(folder: Path, cluster: PrivateSlurm) -> Path:
    """Programs that note their name and become the real ones.

    They also say where this cluster's configuration is, which jobs of Snakemake lose.
    """
    shims = folder / "shims"
    shims.mkdir()
    for name in COMMANDS:
        real = shutil.which(name, path=cluster.env["PATH"])
        script = shims / name
        note = f'echo {name} >> "{folder}/commands"; export SLURM_CONF="{cluster.conf}"'
        script.write_text(f'#!/bin/sh\n{note}\nexec {real} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return shims


def _ours(folder: Path) -> dict[str, str]:
    """A copy of the sources with the stage kind `script`."""
    source = folder / "source"
    for package in ("orchestrator", "cluster", "tracking", "recipes"):
        shutil.copytree(
            REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copytree(CHAINS / "ours", source / "recipes" / "stages" / "script")
    catalog = source / "recipes" / "catalog.py"
    text = catalog.read_text(encoding="utf-8")
    head = "STAGES: dict[str, Entry] = {\n"
    catalog.write_text(text.replace(head, head + CATALOG_LINE), encoding="utf-8")
    recipe = folder / "chain.yaml"
    script = str(folder / "stage.py")
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("STAGE", script), encoding="utf-8")
    # Byte code is written once, as an installed package has it.
    subprocess.run([sys.executable, "-m", "compileall", "-q", source], check=False)
    return {"PYTHONPATH": str(source), "ORCHESTRATE_STORE": str(folder / "store")}


def run_case(
    peer: Peer, case: Callable[[Setting], Outcome], settings: Mapping[str, object], envs: Path
) -> Outcome | str:
    """One tool in one case, on a cluster of its own; what stood in the way, if it did not run."""
    with PrivateSlurm(**settings, shares=(envs,)) as cluster:
        folder = cluster.shared / "chain"
        try:
            return case(setting(peer, cluster, envs, folder))
        except (TimeoutError, subprocess.SubprocessError) as error:
            output = folder / "output"
            said = output.read_text(encoding="utf-8").strip() if output.exists() else ""
            return f"did not run: {' '.join([*said.splitlines()[-1:], str(error)])[:200]}"


# -- table -------------------------------------------------------------------------------------


def table(results: Results, loads: str) -> str:
    """All results as Markdown."""
    peers = [peer for peer in PEERS if any(name == peer.name for name, _ in results)]
    lines = [
        "# The same chain by orchestrate and by others",
        "",
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs, {loads},"
        " SLURM 22.05.8, `python benchmarks/peers.py`. Four stages of 3 s, two after each other;"
        " each case once.",
        "",
        "| tool | submit returns | chain done | scheduler commands | |",
        "|---|---|---|---|---|",
    ]
    for peer in peers:
        happy = results.get((peer.name, "happy"), "not run")
        version = ", ".join(peer.packages).replace("==", " ") or peer.name
        lines.append(f"| {version} | {_times(happy, peer)} | {peer.note} |")
    for name, case in CASES.items():
        if not any(known == name for _, known in results):
            continue
        lines += ["", f"## {case.title}", "", case.text, ""]
        for peer in peers:
            outcome = results.get((peer.name, name), "not run")
            told = outcome if isinstance(outcome, str) else outcome.told()
            lines.append(f"- **{peer.name}**: {told}")
    return "\n".join(lines) + "\n"


def _times(outcome: Outcome | str, peer: Peer) -> str:
    if isinstance(outcome, str):
        return f"{outcome} | | "
    returned = "stays" if peer.blocks else f"{outcome.submit_seconds:.2f} s"
    counted = ", ".join(f"{n} {name}" for name, n in sorted(Counter(outcome.commands).items()))
    done = f"{outcome.done_seconds:.1f} s" if outcome.done_seconds else "never"
    return f"{returned} | {done} | {counted}"


def main() -> int:
    """Install, run all cases, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--resume", action="store_true", help="keep what has been run")
    parser.add_argument("--envs", type=Path, help="folder of environments, kept")
    parser.add_argument("--only", nargs="*", default=[peer.name for peer in PEERS])
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    if missing := missing_programs() + missing_for_accounting():
        print(f"missing: {', '.join(missing)}; see .ci/apt.sh", file=sys.stderr)
        return 3
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "peers.jsonl"
    if not options.resume:
        kept.unlink(missing_ok=True)
    peers = [peer for peer in PEERS if peer.name in options.only]
    with tempfile.TemporaryDirectory(prefix="peers-") as temporary:
        envs = (options.envs or Path(temporary)).absolute()
        envs.mkdir(parents=True, exist_ok=True)
        for peer in peers:
            _run_peer(peer, options.cases, envs, kept)
    text = table(read_results(kept), _loads(kept))
    print(text)
    (options.out / "peers.md").write_text(text, encoding="utf-8")
    return 0


def _run_peer(peer: Peer, cases: Sequence[str], envs: Path, kept: Path) -> None:
    """Run what is not kept yet; each result is one line, so that nothing is lost by a stop."""
    refusal = install(peer, envs)
    for name in cases:
        if (peer.name, name) in read_results(kept):
            continue
        result: Outcome | str = f"cannot be installed: {refusal}"
        if not refusal:
            result = run_case(peer, CASES[name].run, CASES[name].settings, envs)
        value = result if isinstance(result, str) else asdict(result)
        line = {"peer": peer.name, "case": name, "load": os.getloadavg()[0], "result": value}
        with kept.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        told = result if isinstance(result, str) else result.told()
        print(f"{peer.name}, {name}: {told}", flush=True)


def _loads(kept: Path) -> str:
    """How busy the machine was, in the good times that are timed and in the others."""
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    timed = [line["load"] for line in lines if line["case"] == "happy"] or [0.0]
    whole = [line["load"] for line in lines]
    return (
        f"load {min(timed):.0f} to {max(timed):.0f} where it is timed, else"
        f" {min(whole):.0f} to {max(whole):.0f}"
    )


def read_results(kept: Path) -> Results:
    """All results so far, by tool and case."""
    text = kept.read_text(encoding="utf-8") if kept.exists() else ""
    found: Results = {}
    for line in map(json.loads, text.splitlines()):
        value = line["result"]
        result = value if isinstance(value, str) else Outcome(**value)
        found[line["peer"], line["case"]] = result
    return found


if __name__ == "__main__":
    sys.exit(main())
