"""Attack the package with damaged files, kills, full disks, failing stores and strange arguments.

Run from the repository root::

    python benchmarks/attack.py --minutes 10

Each case depends only on the seed, the campaign and the number of the case, so options such as
`--seed 0 --only files --case 17` reproduce a fault. The exit code is 1 if there is a fault. See benchmarks/README.md.
"""

import argparse
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers

from attacks.banks import banks
from attacks.calls import calls, threads
from attacks.common import CLEAR, RAW, RIGHT, SAME, Case, Outcome, describe
from attacks.files import damage, make_sources, supply
from attacks.lives import command, life
from attacks.saving import saving

CAMPAIGNS: dict[str, Case] = {
    "files": damage,
    "supply": supply,
    "saving": saving,
    "bank": banks,
    "calls": calls,
    "threads": threads,
    "life": life,
    "command": command,
}
HANG, CRASH = "hang", "crash"
PATIENCE = 60
"""Seconds after which a case counts as hanging."""
GOOD = (CLEAR, SAME, RIGHT)


def attempt(campaign: str, seed: int, number: int, place: Path) -> Outcome:
    """Run one case in its own process, which may crash or hang."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        try:
            torch.manual_seed(0)
            found = CAMPAIGNS[campaign](random.Random(f"{seed} {campaign} {number}"), place)
        except BaseException as error:
            found = describe(error), RAW
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    is_ready = bool(select.select([reading], [], [], PATIENCE)[0])
    answer = os.read(reading, 65536) if is_ready else b""
    os.close(reading)
    if not is_ready:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if answer:
        what, kind = json.loads(answer)
        return what, kind
    return f"signal {os.WTERMSIG(status)}" if is_ready else f"after {PATIENCE} s", CRASH if is_ready else HANG


def run(campaign: str, seed: int, seconds: float, place: Path) -> tuple[Counter[str], list[str]]:
    """Run the cases of a campaign, one after another, until the time is up.

    Returns:
        The number of cases by outcome, and a line for each fault.
    """
    counts: Counter[str] = Counter()
    faults = []
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        what, kind = attempt(campaign, seed, number, place)
        counts[kind] += 1
        if kind not in GOOD:
            faults.append(f"{kind}: --seed {seed} --only {campaign} --case {number}: {what}")
        number += 1
    return counts, faults


def main() -> int:
    """Run the campaigns and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all campaigns together")
    parser.add_argument("--only", choices=CAMPAIGNS, help="one campaign")
    parser.add_argument("--case", type=int, help="one case of it")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    place = Path(tempfile.mkdtemp(prefix="zoo-attack-"))
    try:
        make_sources(place)
        if options.case is not None and options.only:
            what, kind = attempt(options.only, options.seed, options.case, place)
            print(f"{kind}: {what}")
            return int(kind not in GOOD)
        names = [options.only] if options.only else list(CAMPAIGNS)
        results = {name: run(name, options.seed, 60 * options.minutes / len(names), place) for name in names}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print("| campaign | tried | clear error | same | right | faults |\n|---|---:|---:|---:|---:|---|")
    for name, (counts, _) in results.items():
        found = ", ".join(f"{kind} {count}" for kind, count in counts.items() if kind not in GOOD) or "0"
        print(f"| {name} | {counts.total()} | {counts[CLEAR]} | {counts[SAME]} | {counts[RIGHT]} | {found} |")
    faults = [fault for _, lines in results.values() for fault in lines]
    print("\n".join(faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
