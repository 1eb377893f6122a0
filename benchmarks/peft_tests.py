"""Run PEFT's own tests of prompts against PEFT and against this library under PEFT's names, and print a table.

Run from the repository root; pip fetches the source of the installed version of PEFT, which includes its tests::

    pip install -e ".[test,peft-tests]"
    python benchmarks/peft_tests.py

Writes `table.md`. Exits with 1 if a test fails here, or if more than `--most` tests have no equivalent here.
See benchmarks/README.md.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from common import markdown, versions, write
from peft_suite import hub
from peft_suite.not_applicable import NO_WAY

ROOT = Path(__file__).parents[1]
PLUGINS = ("softprompt-zoo-cartridge", "softprompt-zoo-llama-adapter")
FILES = (
    "test_decoder_models",
    "test_encoder_decoder_models",
    "test_feature_extraction_models",
    "test_seq_classifier",
    "test_cpt",
    "test_cartridge",
    "test_adaption_prompt",
    "test_multitask_prompt_tuning",
    "test_tuners_utils",
    "test_lora_conversion",
    "test_initialization",
)
"""PEFT's files that contain tests of prompts."""
PASSED, MORE, NOT_APPLICABLE, NO_WAY_HERE, FAILED, SKIPPED = (
    "passed",
    "works where PEFT refuses",
    "not applicable",
    "no way here",
    "failed",
    "skipped by PEFT",
)
REFUSALS = ("softprompt_zoo.errors.UnsupportedError", "UnsupportedError")
DID_NOT = ("Failed: DID NOT RAISE", "Failed: DID NOT WARN")
MARK = "Skipped: not applicable: "

Outcomes = Mapping[str, tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one test."""

    kind: str
    reason: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Fetch and run PEFT's tests, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "peft-tests", help="where PEFT's source goes")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "peft_tests")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--most", type=int, default=30, help="allowed number of tests without an equivalent here")
    parser.add_argument("-k", dest="expression", default="", help="run a part, selected like pytest's -k")
    settings = parser.parse_args(arguments)
    source = fetch(settings.folder, importlib.metadata.version("peft"))
    hub.build(settings.folder / "hub")
    verdicts = {
        library: judged(run(source, settings.folder, library, settings.processes, settings.expression))
        for library in ("peft", "softprompt_zoo")
    }
    table = page(verdicts["peft"], verdicts["softprompt_zoo"])
    if not settings.expression:
        write(settings.results / "table.md", table)
    print(table)
    counts = Counter(verdict.kind for verdict in verdicts["softprompt_zoo"].values())
    return int(counts[FAILED] > 0 or counts[NO_WAY_HERE] > settings.most or not counts[PASSED])


def fetch(folder: Path, version: str) -> Path:
    """Let pip download PEFT's source, unless it is already there; return its folder."""
    source = folder / f"peft-{version}"
    if not (source / "tests" / "__init__.py").exists():
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, f"peft=={version}"], check=True)
        with tarfile.open(folder / f"peft-{version}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        (source / "tests" / "__init__.py").touch()  # the tests import each other
    return source


def run(source: Path, folder: Path, library: str, processes: int, expression: str) -> Outcomes:
    """Run the tests in a separate process; return the outcome and the message of each test."""
    outcomes = folder / f"{library}.json"
    outcomes.unlink(missing_ok=True)
    paths = [ROOT / "benchmarks", ROOT, *(ROOT / "plugins" / plugin for plugin in PLUGINS)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    files = [f"tests/{file}.py" for file in FILES]
    own = ["-p", "peft_suite.collection", "--behind", library, "--outcomes", str(outcomes)]
    plain = ["-q", "-o", "addopts=", "-W", "ignore", "-p", "no:cacheprovider", "--tb=line", "-n", str(processes)]
    chosen = ["-k", expression] if expression else []
    subprocess.run(
        [sys.executable, "-m", "pytest", *plain, *own, *chosen, *files], cwd=source, env=environment, check=False
    )
    found: dict[str, tuple[str, str]] = json.loads(outcomes.read_text("utf-8"))
    return found


def judged(outcomes: Outcomes) -> dict[str, Verdict]:
    """Turn outcomes into verdicts."""
    return {test: verdict(test, *outcome) for test, outcome in outcomes.items()}


def verdict(test: str, outcome: str, message: str) -> Verdict:
    """Judge one test."""
    if outcome == "passed":
        return Verdict(PASSED)
    if outcome == "skipped":
        is_ours = message.startswith(MARK)
        return Verdict(NOT_APPLICABLE, message.removeprefix(MARK)) if is_ours else Verdict(SKIPPED)
    if message.startswith(DID_NOT):
        return Verdict(MORE, _name(test))
    first = message.splitlines()[0] if message else ""
    if _name(test) in NO_WAY:
        return Verdict(NO_WAY_HERE, NO_WAY[_name(test)])
    if first.startswith(REFUSALS):
        return Verdict(NO_WAY_HERE, first.partition(": ")[2])
    return Verdict(FAILED, f"{_name(test)}: {first}")


def page(theirs: Mapping[str, Verdict], ours: Mapping[str, Verdict]) -> str:
    """Return the page with the tables, in Markdown."""
    lines = []
    for file in (*FILES, ""):
        counts = [
            Counter(verdict.kind for test, verdict in verdicts.items() if file in test) for verdicts in (theirs, ours)
        ]
        if not file or sum(counts[1].values()):
            of_peft = [str(counts[0][kind]) for kind in (PASSED, FAILED)]
            of_us = [str(counts[1][kind]) for kind in (PASSED, MORE, NOT_APPLICABLE, NO_WAY_HERE, FAILED)]
            lines.append([f"`{file}`" if file else "all", *of_peft, *of_us, str(counts[1][SKIPPED])])
    kinds = (PASSED, MORE, NOT_APPLICABLE, NO_WAY_HERE, FAILED)
    heads = ["PEFT's file", "PEFT: passed", "failed", *(f"here: {PASSED}", *kinds[1:]), SKIPPED]
    found = ", ".join(f"{name} {version}" for name, version in versions("peft", "transformers", "torch").items())
    parts = [f"{found}.", markdown(heads, lines)]
    for kind in (MORE, NOT_APPLICABLE, NO_WAY_HERE, FAILED):
        tests: dict[str, int] = defaultdict(int)
        for test, one in ours.items():
            if one.kind == kind:
                tests[f"`{_name(test)}`: {one.reason}" if kind == NOT_APPLICABLE else one.reason] += 1
        rows = [[reason.replace("|", "\\|"), str(count)] for reason, count in sorted(tests.items())]
        if rows:
            parts.append(f"{kind[0].upper()}{kind[1:]}:\n\n{markdown(['what', 'tests'], rows)}")
    return "\n\n".join(parts) + "\n"


def _name(test: str) -> str:
    return test.rpartition("::")[2].partition("[")[0]


if __name__ == "__main__":
    sys.exit(main())
