"""The command that measures a bank, on banks of a few prompts."""

import json

import pytest

pytest.importorskip("peft")
pytest.importorskip("lmdb")

FEW = {"prompts": 40, "prefixes": 33, "served": 35, "batches": 4, "readers": 2, "seconds": 1}


@pytest.mark.slow
def test_everything_is_measured_kept_and_shown(benchmark, tmp_path):
    module = benchmark("bank")
    banks = tmp_path / "banks"
    arguments = [part for name, value in FEW.items() for part in (f"--{name}", str(value))]
    arguments += ["--results", str(tmp_path / "results"), "--banks", str(banks)]
    module.main(arguments)
    results = {path.stem.rpartition("-")[0]: json.loads(path.read_text()) for path in tmp_path.glob("results/*.json")}
    assert set(results) == {"prompts", "prefixes", "served", "peft", "replace"}
    shown = (tmp_path / "results" / "table.md").read_text()
    assert "32 random ones ready, of 40 prompts" in shown
    assert "an engine opens the bank of 35 prefixes of one token" in shown
    assert "| reads of half an entry | 0 | 0 |" in shown
    assert (banks / "prompts-40").is_dir()
    module.main([*arguments, "--keep", "0"])
    assert not banks.exists()
    assert (tmp_path / "results" / "table.md").read_text() == shown


def test_a_bank_is_filled_on_from_where_it_was(benchmark, tmp_path, monkeypatch):
    module = benchmark("bank")
    monkeypatch.setattr(module, "SHAPES", {**module.SHAPES, "num_hidden_layers": 2})
    monkeypatch.setattr(module, "AT_ONCE", 3)
    bench = module.Bench(module.Settings(banks=str(tmp_path)))
    path, model = bench.fill("prefixes", 4)
    first = module.zoo.PromptBank(path, model)["u3"].merged_tokens(model.prompts.backbone)
    (tmp_path / "prefixes-4").rename(tmp_path / "prefixes-7")
    path, _ = bench.fill("prefixes", 7)
    bank = module.zoo.PromptBank(path, model)
    assert len(bank) == 7
    again = bank["u3"].merged_tokens(model.prompts.backbone)
    assert (again.sites["decoder"].keys[0] == first.sites["decoder"].keys[0]).all()
    assert (
        bank["u6"].merged_tokens(model.prompts.backbone).sites["decoder"].keys[0] != again.sites["decoder"].keys[0]
    ).any()
