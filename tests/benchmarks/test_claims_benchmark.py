"""The benchmark of papers' claims, on a tiny model: what a method is compared with, resuming, and verdicts."""

import json

import pytest
import torch
from helpers import installed_plugins
from helpers.benchmark_data import save_benchmark_data

INSTALLED = {"dept", "ct_kv"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_benchmark_data(tmp_path_factory)


@pytest.fixture
def claims(benchmark, folders, tmp_path, tmp_path_factory, monkeypatch):
    """Return the benchmark, with two of the methods in `plugins/` installed."""
    monkeypatch.setenv("SOFTPROMPT_ZOO_PLUGINS", ",".join(INSTALLED))
    installed_plugins.install(tmp_path_factory.mktemp("installed"), monkeypatch)
    module = benchmark("claims")
    sizes = {"steps": 2, "rows": 4, "seeds": 2, "threads": 1}
    given = [part for name, value in {**folders, **sizes}.items() for part in (f"--{name}", str(value))]
    module.call = lambda *more: module.main([*given, "--results", str(tmp_path), *more])
    return module


def call(module, *more):
    """Run the command; return its message about what could not be run."""
    try:
        module.call(*more)
    except SystemExit as stop:
        return str(stop.code)
    return ""


def results(folder, name):
    return [json.loads(path.read_text("utf-8"))["result"] for path in sorted(folder.glob(f"{name}-????????????.json"))]


@pytest.mark.slow
def test_a_command_that_was_stopped_goes_on_where_it_was(claims, tmp_path, monkeypatch):
    """Installed methods run; missing ones are named."""
    problems = call(claims)
    absent = {name for name, entry in claims.ENTRIES.items() if entry.method not in INSTALLED}
    timed = {claim.entry for claim in claims.CLAIMS if claim.key == claims.CPU_SECONDS}
    missing = {line.partition(":")[0] for line in problems.splitlines()[1:]}
    assert missing == absent | {f"paired-{name}" for name in absent & timed}
    assert problems.count("is not installed") == len(missing)
    table = (tmp_path / "table.md").read_text("utf-8")
    assert "| dept: saves over 20% of the time" in table
    done = []
    step = claims.Trainer.step
    monkeypatch.setattr(claims.Trainer, "step", lambda self, batch: done.append(1) or step(self, batch))
    assert call(claims) == problems
    assert not done
    assert (tmp_path / "table.md").read_text("utf-8") == table
    next(tmp_path.glob("adept-*.json")).unlink()
    call(claims)
    assert len(done) == 2


def test_what_stands_beside_a_method_trains_as_many_numbers(claims, tmp_path):
    """Both sides train on the same films, and for each seed, because CT-KV's examples differ by seed."""
    assert call(claims, "--only", "prefix_tuning-beside-ct_kv") == ""
    ours, plain = results(tmp_path, "ct_kv"), results(tmp_path, "prefix_tuning-beside-ct_kv")
    assert len(ours) == len(plain) == 2
    assert {result["trained"] for result in ours} == {result["trained"] for result in plain}
    assert all(result["before_loss"] != result["loss"] for result in ours)
    assert not any("before_loss" in result for result in plain)


def test_it_is_shown_the_films_that_it_is_trained_on(claims, folders, monkeypatch):
    seen = {}
    fit = claims.Trainer.fit

    def watched(self, rows, collate, seed, name):
        config = self.model.prompts["default"].config
        shown = [config.encode(bench.tokenizer(), *pair)["input_ids"] for pair in config.examples]
        seen[name] = (shown, [[*row.text, *row.target] for row in rows])
        return fit(self, rows, collate, seed, name)

    monkeypatch.setattr(claims.Trainer, "fit", watched)
    bench = claims.Bench(claims.Settings(**folders, steps=1, rows=2))
    bench.trained("ct_kv")(0)
    assert seen["ct_kv"][0] == seen["ct_kv"][1]


@pytest.mark.parametrize(
    ("lowest", "highest", "least", "verdict"),
    [
        (0.01, 0.2, 0.0, "holds here"),
        (-0.2, -0.01, 0.0, "does not"),
        (-0.1, 0.2, 0.0, "not at this size"),
        (0.05, 0.15, 0.2, "does not"),
        (0.15, 0.25, 0.2, "not at this size"),
        (0.0, 0.0, 0.0, "does not"),
    ],
)
def test_a_verdict_is_of_the_whole_interval(claims, lowest, highest, least, verdict):
    assert claims.verdict(lowest, highest, least) == verdict


def test_the_time_that_is_saved_is_a_part_of_the_other_sides(claims):
    saving = claims.Saving(section="", title="", measure="cpu_seconds", ours=None, theirs=None)
    assert saving.statistic(1.5, 2.0) == 0.25


def test_a_claim_is_measured_as_the_results_say(claims, folders, tmp_path):
    """Two seeds of two rows, computed by hand: a gain of 0.4 with a standard error of 0.1 over the rows."""
    runner, _ = claims.make(claims.Settings(seeds=2, **folders), tmp_path)
    claim = next(claim for claim in claims.CLAIMS if claim.entry == "adept" and claim.against == "dept")
    for seed in range(2):
        for name, losses in {"adept": [1.0, 1.0], "dept": [1.3, 1.5]}.items():
            run = runner.run_of(name, seed)
            runner.store.save(name, run, {"loss": losses, "dtype": "float32", "trained": 1})
    line = claims.claim_line(runner, claim)
    assert line[1:] == ("+0.400 (loss, 1.400 to 1.000)", "+0.100 to +0.700", "holds here", "2", "float32")
    assert torch.tensor([0.3, 0.5]).std() / 2**0.5 == pytest.approx(0.1)


def test_time_is_that_of_the_same_steps_by_turns(claims, tmp_path, monkeypatch):
    """Both sides take equally many steps, the first of them untimed, and each side goes first in turn."""
    taken = []
    step = claims.Trainer.step

    def watched(self, batch):
        taken.append((self.model.prompts["default"].method, batch["input_ids"].tolist()))
        return {**step(self, batch), "cpu_seconds": float(len(taken))}

    monkeypatch.setattr(claims.Trainer, "step", watched)
    assert call(claims, "--only", "paired-dept", "--seeds", "1") == ""
    methods, ids = zip(*taken, strict=True)
    assert methods[:4] == ("prompt_tuning", "dept", "dept", "prompt_tuning")
    assert ids[::2] == ids[1::2]
    [found] = results(tmp_path, "paired-dept")
    assert found["own_cpu_seconds"] == [3.0, 6.0, 7.0, 10.0]
    assert found["beside_cpu_seconds"] == [4.0, 5.0, 8.0, 9.0]
