"""The command that compares this checkout's speed with another commit's, on a tiny model."""

import json

import pytest


@pytest.fixture(scope="module")
def ratios(benchmark):
    return benchmark("ratios")


def result_of(there, here):
    return {"forward": {"there": there, "here": here}}


def test_a_ratio_counts_where_three_turns_of_four_are_slower(ratios):
    [steady] = ratios.ratios([result_of([1.0, 2.0, 4.0], [1.1, 2.2, 4.4]), result_of([1.0], [1.1])])
    assert steady.quartiles == pytest.approx((1.1, 1.1, 1.1))
    assert (steady.there, steady.here) == (1.5, pytest.approx(1.65))
    assert steady.is_slower(3.0)
    assert not steady.is_slower(12.0)
    [noisy] = ratios.ratios([result_of([1.0, 1.0, 1.0], [0.9, 1.1, 1.2])])
    assert noisy.quartiles[1] == pytest.approx(1.1)
    assert not noisy.is_slower(3.0)


@pytest.mark.slow
def test_both_sides_are_timed_kept_and_shown(ratios, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ratios, "unpack", lambda commit, folder: ratios.copy_package(folder))
    arguments = ["--model", "tiny", "--rounds", "1", "--repeats", "1", "--results", str(tmp_path)]
    ratios.main([*arguments, "--allow", "100000"])
    [file] = tmp_path.glob("*.json")
    found = json.loads(file.read_text("utf-8"))["result"]
    assert set(found) >= {"import", "attach a prefix, first in a process, of which imports", "16 rows, 16 prefixes"}
    for seconds in found.values():
        assert all(value > 0 for value in (*seconds["there"], *seconds["here"])), found
    assert "kept:" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="slower:\nimport"):
        ratios.main([*arguments, "--allow", "-100"])
    assert "kept: turns-tiny, seed 0" in capsys.readouterr().out
    assert "| slower |" in (tmp_path / "table.md").read_text("utf-8")


def test_a_commit_that_is_not_there_is_named(ratios, tmp_path, capsys):
    with pytest.raises(SystemExit):
        ratios.main(["--against", "no-such-commit", "--results", str(tmp_path)])
    assert "--against no-such-commit" in capsys.readouterr().err
