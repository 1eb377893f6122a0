"""The matrix of methods, models, promises, and operations: its cells can be red, and its pages say why."""

import dataclasses
from types import SimpleNamespace

import pytest

import softprompt_zoo as zoo
from softprompt_zoo.methods import BUILTINS
from softprompt_zoo.model import resolve as resolve_module
from softprompt_zoo.model.resolve import BARE
from softprompt_zoo.testing.models import MORE_MODELS
from softprompt_zoo.testing.operations import OPERATIONS
from softprompt_zoo.testing.subject import Subject

pytest.importorskip("peft")

PADDING = "3: rows do not depend on padding or other rows, side left"
MERGED = "9: merged equals trained"
EFFECT = "2: disabled gives the base model"
MASKS = "masks of four dimensions"


@pytest.fixture
def matrix(benchmark):
    return benchmark("matrix")


PARTS = [
    ("promise", 2 * len(MORE_MODELS)),
    *(pytest.param(*part, marks=pytest.mark.slow) for part in (("promise", 10), ("operation", 29))),
]
"""Groups of cells, and how many cells there are per tested one: two on each model; the slow tests have more."""


@pytest.mark.parametrize("architecture", MORE_MODELS)
@pytest.mark.parametrize(("group", "every"), PARTS)
def test_a_part_of_our_cells(matrix, architecture, group, every):
    """Run a fixed part of the cells, with each operation on different models.

    The command runs all cells, including those that compile, which take seconds. If a part has only two promises, both
    may be refused.
    """
    start = list(MORE_MODELS).index(architecture) * every // len(MORE_MODELS)
    titles = [title for title in matrix.operations(group) if not title.startswith("compiled")]
    found = [(method, title) for method in BUILTINS for title in titles][start % every :: every]
    cells = {cell: matrix.run_cell("softprompt_zoo", architecture, *cell) for cell in found}
    assert not {cell: result for cell, result in cells.items() if result[0] in ("wrong", "error")}
    assert len(cells) < 5 or group == "operation" or any(status == "right" for status, _ in cells.values())


def test_every_check_of_both_suites_is_a_row(matrix):
    promises, operations = matrix.operations("promise"), matrix.operations("operation")
    assert {title.split(":")[0] for title in promises} == {str(number) for number in range(1, 12)}
    assert {title.split(",")[0].replace(" ", "_") for title in operations} == set(OPERATIONS)
    assert "attention implementations, implementation flex_attention" in operations
    assert matrix.operations() == promises | operations


@pytest.mark.parametrize("operation", [PADDING, MERGED, EFFECT])
def test_ours_is_right(matrix, operation):
    assert matrix.run_cell("softprompt_zoo", "llama", "prefix_tuning", operation) == ("right", "")


def test_pefts_padding_is_wrong_and_what_it_lacks_is_not_held_against_it(matrix):
    status, reason = matrix.run_cell("PEFT", "llama", "prompt_tuning", PADDING)
    assert (status, reason[:5]) == ("wrong", "row 1")
    assert matrix.run_cell("PEFT", "llama", "prompt_tuning", MERGED)[0] == "not defined"
    assert matrix.run_cell("PEFT", "llama", "prompt_tuning", EFFECT)[0] == "right"


def test_what_is_not_defined_is_told_from_what_is_refused(matrix):
    generation = "4: generation gives what a forward gives"
    assert matrix.run_cell("softprompt_zoo", "bert", "prompt_tuning", generation)[0] == "not defined"
    status, reason = matrix.run_cell("softprompt_zoo", "bert", "cpt", EFFECT)
    assert status == "refused"
    assert "AutoModelForCausalLM" in reason
    status, reason = matrix.run_cell("softprompt_zoo", "bert", "prompt_tuning", MASKS)
    assert (status, "pass the 2-D mask" in reason) == ("refused", True)
    flex = "attention implementations, implementation flex_attention"
    assert matrix.run_cell("softprompt_zoo", "gpt2", "prefix_tuning", flex)[0] == "not defined"


def test_a_dropped_prompt_turns_cells_red(matrix, monkeypatch):
    resolve = resolve_module.resolve

    def dropped(*args):
        return dataclasses.replace(resolve(*args), selection=BARE)

    monkeypatch.setattr(resolve_module, "resolve", dropped)
    for operation in (EFFECT, "sequence classification"):
        status, reason = matrix.run_cell("softprompt_zoo", "llama", "prefix_tuning", operation)
        assert (status, reason) == ("wrong", "the prompt has no effect")


def test_an_exception_is_an_error_with_its_reason(matrix, monkeypatch):
    monkeypatch.setattr(Subject, "merge", lambda self: {}["nothing"])
    status, reason = matrix.run_cell("softprompt_zoo", "llama", "prompt_tuning", MERGED)
    assert (status, reason) == ("error", "KeyError: 'nothing'")


def test_the_command_writes_a_table_and_a_page(matrix, tmp_path, monkeypatch):
    groups = {"promise": [EFFECT, PADDING], "operation": [MASKS]}
    groups = {group: {title: matrix.operations()[title] for title in titles} for group, titles in groups.items()}
    groups[""] = groups["promise"] | groups["operation"]
    monkeypatch.setattr(matrix, "operations", lambda group="": groups[group])
    only = ["--results", str(tmp_path), "--methods", "prompt_tuning,cpt"]
    for name in ("llama", "bert", "llama-operations", "bert-operations"):
        only += ["--only", name]
    matrix.main(only)
    table, page = ((tmp_path / name).read_text("utf-8") for name in ("table.md", f"{tmp_path.name}.html"))
    assert "2 models of" in table
    assert f"| {EFFECT} | 3 of 3 (1) |" in table
    assert f"| {MASKS} | 2 of 2 (2) |" in table
    assert "| cpt | bert |" in table
    assert page.count('title="1. 2: disabled gives the base model: right.') >= 4
    assert zoo.__name__ in page
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.glob("*.json"))
    matrix.main(only)
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.glob("*.json")) == before


def test_measuring_again_keeps_the_other_library_and_names_what_got_worse(benchmark, tmp_path, monkeypatch):
    again = benchmark("matrix_again")
    name, kept = "llama", ["wrong", "PEFT's"]
    was_right, was_wrong = ("softprompt_zoo|prompt_tuning|" + title for title in (PADDING, EFFECT))
    before = {was_right: ["right", ""], was_wrong: ["wrong", "1 is not 2"], f"PEFT|prompt_tuning|{EFFECT}": kept}
    runner = SimpleNamespace(result=lambda _: before, run_of=lambda *_: {}, store=SimpleNamespace(save=None))
    saved = {}
    runner.store.save = lambda name, run, result: saved.update({name: result})
    monkeypatch.setattr(again.matrix, "make", lambda *_: (runner, None))
    settings = again.parse(["--day", "2026-11-29", "--results", str(tmp_path)])

    monkeypatch.setattr(again.matrix, "run_cell", lambda *_: ("right", ""))
    _, changes, counts = again._measure((name, settings))
    assert [(change.cell, change.is_worse) for change in changes] == [(f"llama|{was_wrong}", False)]
    assert counts == {"right": 2}
    assert saved[name][f"PEFT|prompt_tuning|{EFFECT}"] == kept

    monkeypatch.setattr(again.matrix, "run_cell", lambda *_: ("refused", "no"))
    _, changes, _ = again._measure((name, settings))
    assert {change.cell: change.is_worse for change in changes} == {
        f"llama|{was_right}": True,
        f"llama|{was_wrong}": False,
    }
    assert again._measure((name, SimpleNamespace(**{**vars(settings), "part": 2})))[2] == {"refused": 1}
