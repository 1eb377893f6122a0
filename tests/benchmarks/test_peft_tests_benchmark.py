"""PEFT's own tests as a benchmark: how an outcome is judged, and that no test is left out."""

import pytest

pytest.importorskip("peft")

HERE = "tests/test_cpt.py::test_it[case]"


@pytest.fixture
def command(benchmark):
    return benchmark("peft_tests")


@pytest.mark.parametrize(
    ("outcome", "message", "kind"),
    [
        ("passed", "", "passed"),
        ("skipped", "Skipped: not applicable: looks inside", "not applicable"),
        ("skipped", "Skipped: of PEFT's own", "skipped by PEFT"),
        ("failed", "Failed: DID NOT RAISE ValueError", "works where PEFT refuses"),
        ("failed", "softprompt_zoo.errors.UnsupportedError: this model has no …", "no way here"),
        ("failed", "AssertionError: assert UnsupportedError", "failed"),
        ("failed", "", "failed"),
    ],
)
def test_an_outcome_is_judged(command, outcome, message, kind):
    assert command.judged({HERE: (outcome, message)})[HERE].kind == kind


def test_the_table_counts_every_test_once_and_names_each_that_did_not_pass(command):
    theirs = command.judged({HERE: ("passed", "")})
    ours = command.judged({HERE: ("failed", "AssertionError: 1 | 2"), HERE.replace("case", "other"): ("passed", "")})
    table = command.page(theirs, ours)
    assert "| `test_cpt` | 1 | 0 | 1 | 0 | 0 | 0 | 1 | 0 |" in table
    assert "| all | 1 | 0 | 1 | 0 | 0 | 0 | 1 | 0 |" in table
    assert "| test_it: AssertionError: 1 \\| 2 | 1 |" in table


@pytest.mark.parametrize(("ours", "status"), [(("passed", ""), 0), (("failed", "AssertionError"), 1)])
def test_the_command_fails_if_a_test_does(command, monkeypatch, tmp_path, ours, status):
    monkeypatch.setattr(command, "fetch", lambda folder, version: tmp_path)
    monkeypatch.setattr(command.hub, "build", lambda cache: None)
    monkeypatch.setattr(command, "run", lambda *args: {HERE: ours if "softprompt_zoo" in args else ("passed", "")})
    assert command.main(["--results", str(tmp_path)]) == status
    assert (tmp_path / "table.md").exists()


def test_there_is_a_limit_to_what_there_is_no_way_for(command, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "fetch", lambda folder, version: tmp_path)
    monkeypatch.setattr(command.hub, "build", lambda cache: None)
    refused = {"a": ("failed", "softprompt_zoo.errors.UnsupportedError: no"), "b": ("passed", "")}
    monkeypatch.setattr(command, "run", lambda *args: refused)
    assert command.main(["--results", str(tmp_path), "--most", "1"]) == 0
    assert command.main(["--results", str(tmp_path), "--most", "0"]) == 1


def test_the_stand_ins_hub_builds_a_model_and_its_tokenizer(command, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "peft-internal-testing/tiny-random-OPTForCausalLM"
    monkeypatch.setattr(command.hub, "MODELS", {name: command.hub.MODELS[name]})
    command.hub.build(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)
    ids = tokenizer("Grüße, 世界", return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == "Grüße, 世界"
    assert model(ids).logits.shape == (*ids.shape, len(tokenizer))
