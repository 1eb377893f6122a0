"""The benchmark of training runs that share their batches: its ratios, and both sides on a tiny model."""

import json

import pytest
from helpers.tiny_runs import save_tiny


@pytest.fixture(scope="module")
def together(benchmark):
    return benchmark("together")


def side(seconds, peak, loss):
    times = {"wall_seconds": seconds, "processor_seconds": seconds}
    return {**times, "peak_bytes": peak, "losses": [[loss, 2.0]]}


def test_ratios_are_of_the_sides_of_one_round(together):
    rounds = [
        {"one after the other": side(4.0, 2 * 2**30, 1.0), "together": side(2.0, 3 * 2**30, 1.25)},
        {"one after the other": side(6.0, 2 * 2**30, 1.0), "together": side(1.5, 5 * 2**30, 1.0)},
        {"one after the other": side(5.0, 2 * 2**30, 1.0), "together": side(5.0, 3 * 2**30, 1.0)},
    ]
    time, _, peak = [line.cells() for line in together.lines(rounds)]
    assert time[1:] == ["5.00", "2.00", "0.50 (0.25 to 1.00)"]
    assert peak[1:] == ["2.00", "3.00", "1.50 (1.50 to 2.50)"]
    assert "differ by at most 0.2500" in together.table(together.Settings(), rounds)


@pytest.mark.slow
def test_both_sides_have_the_same_losses_and_are_kept(together, tmp_path, capsys):
    model = save_tiny(tmp_path / "model")
    small = ["--model", str(model), "--dtype", "float32", "--trials", "2", "--steps", "2", "--rounds", "1"]
    for expected in ("done: rates", "kept: rates"):
        together.main([*small, "--results", str(tmp_path / "results")])
        assert expected in capsys.readouterr().out
    [file] = (tmp_path / "results").glob("*.json")
    result = json.loads(file.read_text("utf-8"))["result"]
    assert together.largest_difference([result]) < 1e-5
    assert all(result[side]["wall_seconds"] > 0 for side in together.SIDES)
