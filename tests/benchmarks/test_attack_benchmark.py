"""The command that attacks the package: it tells faults from right results."""

import os
import signal
import time

import pytest

pytest.importorskip("peft")


def _changes_nothing(choose, place):
    return str(choose.random()), "right"


def _raises(choose, place):
    raise KeyError("raw")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_case_tells_how_it_ended(benchmark, tmp_path, monkeypatch):
    attack = benchmark("attack")
    cases = {
        "right": _changes_nothing,
        "raw error": _raises,
        "crash": lambda choose, place: os.kill(os.getpid(), signal.SIGKILL),
        "hang": lambda choose, place: time.sleep(90),
    }
    monkeypatch.setattr(attack, "CAMPAIGNS", cases)
    for kind in ("right", "raw error", "crash"):
        assert attack.attempt(kind, 0, 0, tmp_path)[1] == kind
    monkeypatch.setattr(attack, "PATIENCE", 0.5)
    assert attack.attempt("hang", 0, 0, tmp_path)[1] == "hang"
    monkeypatch.setattr(attack, "PATIENCE", 60)
    first, second = (attack.attempt("right", 3, number, tmp_path) for number in (5, 5))
    assert first == second != attack.attempt("right", 4, 5, tmp_path)
    counts, faults = attack.run("raw error", 0, 0.2, tmp_path)
    assert counts["raw error"] == len(faults) >= 1
    assert "--seed 0 --only raw error --case 0: KeyError: 'raw'" in faults[0]
