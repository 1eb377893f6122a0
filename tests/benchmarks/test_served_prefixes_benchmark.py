"""The benchmark of serving prefixes: its bank, its table, and what it says where there is no vLLM."""

import importlib.util

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
    measured = {"seconds": {"a prompt each": [2.0, 3.0], "no prompt": [2.0, 2.0]}, "requests": 4}
    rows = module.compared(measured["seconds"], "no prompt", "{:.1f} s")
    assert rows == [["a prompt each", "2.5 s", "1.25", "1.00 to 1.50"], ["no prompt", "2.0 s", "1.00", ""]]
    write_all()
    assert "other than generate" in (tmp_path / "table.md").read_text()
    assert module.differences([[1], [2], "400: gone"], [[1], [3], [4]]) == 2


def test_without_vllm_its_experiments_are_named(benchmark, tmp_path, monkeypatch):
    module = benchmark("served_prefixes")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    runner, _ = module.make(module.Settings(work=str(tmp_path)), tmp_path)
    assert runner.missing("server") == "vllm is not installed"
    assert runner.missing("reference") is None
