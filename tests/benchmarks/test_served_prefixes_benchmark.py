"""The benchmark of serving prefixes: its bank, its table, and what it says without vLLM."""

import importlib.util
import time

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model


def test_the_bank_has_users_of_every_method_and_others(benchmark, tmp_path, monkeypatch):
    module = benchmark("prefix_bank")
    sizes = {"cpt": {"token_ids": (5, 6, 7, 8), "token_types": (1, 2, 3, 4)}}
    for name, options in module.METHODS.items():
        changed = {option: 2 if option == "num_virtual_tokens" else value for option, value in options.items()}
        monkeypatch.setitem(module.METHODS, name, sizes.get(name, changed))
    model = tiny_model("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    module.make_bank(tmp_path / "bank", model, users=7, prompts=20)
    reader = zoo.PrefixReader(tmp_path / "bank")
    assert len(list(reader.names())) == 20
    stamps = {reader.find(f"user-{index}").stamp for index in range(7)}
    assert len(stamps) == 7
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())
    assert not hasattr(model, "prompts")


def test_the_table_says_what_was_measured(benchmark, tmp_path):
    module = benchmark("served_prefixes")
    _, write_all = module.make(module.Settings(work=str(tmp_path)), tmp_path)
    write_all()
    assert "other than generate" in (tmp_path / "table.md").read_text()
    assert module.differences([[1], [2], "400: gone"], [[1], [3], [4]]) == 2


def test_speed_is_compared_with_requests_that_differ_in_nothing_but_their_prompts(benchmark):
    speed = benchmark("prefix_speed")
    kinds = speed.Kinds.of(["alice", "bob"], [1, 3], [[5, 6], [7, 8], [9, 10, 11, 12], [13, 14, 15, 16]])
    assert kinds.rows == {
        "a prompt each": [("alice", [5, 6]), ("bob", [7, 8])],
        "no prompt": [(None, [5, 6]), (None, [7, 8])],
        "as many tokens more of text": [(None, [5, 6, 9]), (None, [7, 8, 13, 14, 15])],
    }
    asked = []
    found = kinds.throughput(lambda rows, length: asked.append(rows), 2)
    assert asked == [*kinds.rows.values()] * 2
    assert found["tokens"] == 2
    assert [len(found["processor"][kind]) for kind in kinds.rows] == [2, 2, 2]
    found = kinds.first_token(lambda rows, length: asked.append((rows, length)))
    assert asked[6:9] == [([row], 1) for row in [*kinds.rows["a prompt each"], kinds.rows["no prompt"][0]]]
    assert {*map(len, found["processor"].values())} == {speed.ROUNDS}


def test_processor_time_is_that_of_the_work(benchmark):
    speed = benchmark("prefix_speed")
    passed, used = speed.cost(lambda: time.sleep(0.3))
    assert passed >= 0.3 > 0.15 > used
    rows = speed.compared({"slow": [2.0, 3.0], "base": [2.0, 2.0]}, "base", "{:.1f} s")
    assert rows == [["slow", "2.5 s", "1.25", "1.00 to 1.50"], ["base", "2.0 s", "1.00", ""]]
    assert speed.side_by_side(rows, rows)[0] == [*rows[0], *rows[0][1:]]


def test_without_vllm_its_experiments_are_named(benchmark, tmp_path, monkeypatch):
    module = benchmark("served_prefixes")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    runner, _ = module.make(module.Settings(work=str(tmp_path)), tmp_path)
    assert runner.missing("server") == "vllm is not installed"
    assert runner.missing("reference") is None
