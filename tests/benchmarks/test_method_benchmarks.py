"""The benchmarks of methods, E2E, and ablations on tiny models: what is kept, shown, and named as missing."""

import dataclasses
import statistics

import pytest
import torch
from helpers.benchmark_data import save_benchmark_data
from transformers import PreTrainedTokenizerFast

import softprompt_zoo as zoo
from softprompt_zoo.training.data import Row

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_benchmark_data(tmp_path_factory)


def arguments(**options):
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def methods(benchmark, folders, tmp_path, monkeypatch):
    module = benchmark("methods")
    # A tiny model writes nothing that can be parsed.
    written = lambda model, tokenizer, prompts: [f" q {n} ?\nAnswer: a {n}" for n in range(len(prompts))]  # noqa: E731
    monkeypatch.setattr(benchmark("self_study"), "write_answers", written)
    given = arguments(**folders, steps=2, rows=4, seeds=2, threads=1, text_tokens=700, conversations=2, questions=4)
    module.call = lambda *more: module.main([*given, "--results", str(tmp_path), *more])
    return module


@pytest.fixture
def e2e(benchmark, folders, tmp_path):
    module = benchmark("e2e")
    sizes = {"final_steps": 2, "search_steps": 1, "seeds": 2, "final_rows": 3, "search_rows": 2, "batch_size": 2}
    given = arguments(data=f"{folders['data']}/e2e_nlg", model=folders["model"], threads=1, **sizes)
    module.call = lambda *more: module.main([*given, "--results", str(tmp_path), *more])
    return module


@pytest.fixture
def ablations(benchmark, folders, tmp_path):
    module = benchmark("ablations")
    sizes = {"steps": 1, "encoder_steps": 1, "encoder_seeds": 2, "rows": 3, "encoder_rows": 4}
    given = arguments(**folders, threads=1, **sizes)
    module.call = lambda *more: module.main([*given, "--results", str(tmp_path), *more])
    yield module
    if module.shared_prefix.NAME in zoo.list_methods():
        zoo.unregister(module.shared_prefix.NAME)


def call(module, *more):
    """Run a command; return its message about what could not be run."""
    try:
        module.call(*more)
    except SystemExit as stop:
        return str(stop.code)
    return ""


def only_two_methods(monkeypatch):
    """Hide all other installed methods."""
    shown, everything = {"prompt_tuning", "prefix_tuning", "shared_prefix"}, zoo.list_methods
    monkeypatch.setattr(zoo, "list_methods", lambda: [name for name in everything() if name in shown])


def reasons():
    """Return the reasons for which an experiment may not have run."""
    heads = "p_tuning_v2" in zoo.list_methods()
    return ("is not installed", *(() if heads else ("train_head trains no head in this version",)))


def counted(module, monkeypatch):
    done = []
    step = module.Trainer.step
    monkeypatch.setattr(module.Trainer, "step", lambda self, batch: done.append(1) or step(self, batch))
    return done


# What is kept


@pytest.mark.parametrize(
    "name", ["methods", *(pytest.param(name, marks=pytest.mark.slow) for name in ("e2e", "ablations"))]
)
def test_a_command_that_was_stopped_goes_on_where_it_was(name, request, tmp_path, monkeypatch, capsys):
    """All experiments of installed methods run, and the others are named."""
    module = request.getfixturevalue(name)
    first = call(module)
    table = (tmp_path / "table.md").read_text("utf-8")
    assert table in capsys.readouterr().out
    assert all(problem.endswith(reasons()) for problem in first.splitlines()[1:]), first
    files = sorted(path.name for path in tmp_path.glob("*.json"))
    assert files
    done = counted(module, monkeypatch)
    assert call(module) == first
    assert not done
    assert (tmp_path / "table.md").read_text("utf-8") == table

    removed = {"methods": "films-prefix_tuning", "e2e": "final-lora", "ablations": "prefix_tuning-1"}[name]
    gone = next(tmp_path.glob(f"{removed}-*.json"))
    gone.unlink()
    call(module, "--table")
    assert not done
    call(module)
    assert done
    assert sorted(path.name for path in tmp_path.glob("*.json")) == files


def test_a_failed_run_is_named_and_the_others_go_on(methods, tmp_path, monkeypatch):
    train = methods.Trainer.fit

    def fit(self, rows, collate, seed, name):
        if name == "prompt_tuning":
            raise RuntimeError("out of memory")
        return train(self, rows, collate, seed, name)

    monkeypatch.setattr(methods.Trainer, "fit", fit)
    problems = call(methods, "--only", "films-prompt_tuning", "--only", "films-prefix_tuning")
    assert problems == "not run:\nfilms-prompt_tuning, seed 0: RuntimeError: out of memory"
    assert len(list(tmp_path.glob("films-prefix_tuning-*.json"))) == 2


def test_a_name_chooses_one_experiment_and_what_it_needs(methods, tmp_path):
    assert call(methods, "--only", "films-prefix_tuning") == ""
    names = {path.name.rpartition("-")[0] for path in tmp_path.glob("*.json")}
    assert names == {"films-untrained", "films-prefix_tuning"}


def test_names_and_beginnings_choose_what_can_be_run_with_its_needs(methods, tmp_path):
    def experiment(name, method="prompt_tuning", needs=()):
        return methods.Experiment(name=name, measure=dict, options=dict, methods=(method,), needs=needs)

    study = ("text-study",)
    listed = [
        experiment("text-study"),
        experiment("text-half", needs=study),
        experiment("text-quarter", needs=study),
        experiment("other-study"),
        experiment("other-half", method="not_published_yet", needs=("other-study",)),
    ]
    runner = methods.Runner(tmp_path, {}, listed)

    def chosen(*only):
        return [found.name for found in runner.chosen(only)]

    assert chosen("text-quarter") == ["text-study", "text-quarter"]
    assert chosen("text") == ["text-study", "text-half", "text-quarter"]
    assert chosen("other-half") == ["other-half"]
    assert chosen() == [found.name for found in listed]


def test_a_wrong_name_is_refused(methods, capsys):
    with pytest.raises(SystemExit):
        methods.call("--only", "filmz")
    assert (
        "no experiment begins with 'filmz'; there are encoder-p_tuning_v2, films-untrained" in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["methods", "e2e", "ablations"])
def test_missing_data_is_named(name, benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark(name).main(["--data", str(tmp_path)])
    assert f"there is no {tmp_path}" in capsys.readouterr().err


# What is missing


@pytest.mark.parametrize(
    ("name", "experiment", "method"),
    [
        ("methods", "films-p_tuning", "p_tuning"),
        ("methods", "films-llama_adapter", "llama_adapter"),
        ("methods", "encoder-p_tuning_v2", "p_tuning_v2"),
        ("methods", "context-cpt", "cpt"),
        ("methods", "multitask", "multitask_prompt_tuning"),
        ("methods", "cartridge-quarter", "cartridge"),
        ("e2e", "search-prefix-24-adapter-10", "llama_adapter"),
        ("ablations", "domains-p_tuning_v2", "p_tuning_v2"),
        ("ablations", "llama_adapter-10", "llama_adapter"),
    ],
)
def test_a_missing_method_is_named(name, experiment, method, request, monkeypatch, capsys):
    module = request.getfixturevalue(name)
    only_two_methods(monkeypatch)
    assert f"{experiment}: {method} is not installed" in call(module, "--only", experiment)
    out = capsys.readouterr().out
    assert f"missing: {experiment}: {method} is not installed" in out
    assert f"| {method} is not installed |" in out


def test_a_head_that_is_not_trained_is_named(ablations, monkeypatch):
    """If heads are not trained yet, or a method cannot train one, the numbers would be those of a random head."""
    monkeypatch.setattr(ablations, "has_head", lambda model: False)
    monkeypatch.setattr(ablations.Trainer, "fit", lambda *args: pytest.fail("trained without a head"))
    problems = call(ablations, "--only", "domains-prompt_tuning")
    assert "domains-prompt_tuning, seed 0: MissingError: train_head trains no head in this version" in problems


# What is measured


def test_the_gain_has_the_standard_errors_of_arithmetic(benchmark):
    common = benchmark("common")
    ours, theirs = [[1.0, 2.0, 4.0], [2.0, 2.0, 6.0]], [1.0, 1.0, 1.0]
    found = common.estimate([[seed, theirs] for seed in ours], lambda a, b: a - b)
    rows = [0.5, 1.0, 4.0]  # each row's difference, averaged over the seeds
    assert found.value == pytest.approx(statistics.mean(rows))
    assert found.over_rows == pytest.approx(statistics.stdev(rows) / 3**0.5)
    assert found.over_seeds == pytest.approx(statistics.stdev([4 / 3, 7 / 3]) / 2**0.5)
    assert found.error == max(found.over_rows, found.over_seeds)
    assert found.errors == pytest.approx(found.value / found.error)
    assert common.estimate([[ours[0], theirs]], lambda a, b: a - b).over_seeds is None


def test_a_difference_of_losses_is_per_token(benchmark):
    """A row with more tokens weighs more, as in the loss shown beside the difference."""
    common = benchmark("common")
    ours, theirs = ({"losses": losses, "tokens": [1, 3]} for losses in ([2.0, 1.0], [1.0, 1.5]))
    assert common.loss_difference([ours], [theirs]).value == pytest.approx((1 * 1.0 - 3 * 0.5) / 4)


def test_a_share_is_of_the_gap_that_can_be_closed(methods):
    quarter = next(comparison for comparison in methods.comparisons() if comparison.best)
    assert quarter.statistic(1.5, 3.0, 1.0) == pytest.approx(0.75)
    loss, accuracy = methods.comparisons()[1], methods.comparisons()[0]
    assert loss.statistic(1.0, 3.0) == 2.0
    assert accuracy.statistic(0.75, 0.5) == 0.25


def test_labels_are_measured_as_the_model_predicts_them(benchmark, folders):
    """Compare with each row by itself, without padding."""
    common = benchmark("common")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders["model"])
    labels = common.Labels(tokenizer, "Review: {input}\nMood:", {"negative": " negative", "positive": " positive"})
    model = common.load_language_model(folders["model"])
    examples = [
        common.Example("r", "positive"),
        common.Example("r s t u v", "negative"),
        common.Example("r s", "positive"),
    ]
    rows = labels.rows(examples)
    found = labels.measure(model, rows)
    words = [labels.ids["negative"], labels.ids["positive"]]
    for row, loss, right in zip(rows, found["loss"], found["accuracy"], strict=True):
        with torch.no_grad():
            predicted = model(input_ids=torch.tensor([row.text])).logits[0, -1].log_softmax(-1)
        assert loss == pytest.approx(-float(predicted[row.target[0]]), abs=1e-4)
        assert right == float(words[int(predicted[words].argmax())] == row.target[0])
    with pytest.raises(ValueError, match="expected one of the label words"):
        labels.measure(model, [Row([5, 6], [7])])


def test_the_loss_of_rows_is_the_models_own(benchmark, folders):
    common = benchmark("common")
    model = common.load_language_model(folders["model"])
    rows = [Row([5, 6, 7], [8, 9]), Row([10], [11, 12, 13, 14])]
    losses = common.target_losses(model, rows, 0)
    for row, loss in zip(rows, losses, strict=True):
        labels = torch.tensor([[-100] * len(row.text) + row.target])
        with torch.no_grad():
            own = model(input_ids=torch.tensor([row.text + row.target]), labels=labels).loss
        assert loss == pytest.approx(float(own), abs=1e-4)
    assert common.target_mean(losses, rows) == pytest.approx((2 * losses[0] + 4 * losses[1]) / 6)


def test_infix_tokens_stand_between_input_and_output(ablations, folders):
    """A prompt made of words acts in the slots like those words in the text."""
    common = ablations.common
    model = common.load_language_model(folders["model"])
    texts, targets, words = [[5, 6, 7], [8]], [[20, 21], [22]], [30, 31]
    plain = [Row(text + words, target) for text, target in zip(texts, targets, strict=True)]
    expected = common.target_losses(model, plain, 0)
    prompted = zoo.get_method("prompt_tuning")(model, num_virtual_tokens=2)
    with torch.no_grad():
        embedded = prompted.get_input_embeddings()(torch.tensor(words))
        prompted.prompts["default"].learned.embeddings.copy_(embedded)
    rows = [Row([*text, 0, 0], target) for text, target in zip(texts, targets, strict=True)]
    found = common.target_losses(prompted, rows, 0, inputs=lambda rows: ablations.slots(rows, 2))
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_prompts_part_of_attention_is_what_words_get(ablations, folders):
    """A prefix of real words gets as much attention as the words themselves get from the text after them."""
    model = ablations.load_language_model(folders["model"], attn_implementation="eager")
    words, text = [30, 31, 32], [5, 6, 7, 8]
    with torch.no_grad():
        weights = model(input_ids=torch.tensor([words + text]), output_attentions=True).attentions
    expected = [float(layer[0, :, 3:, :3].sum(dim=-1).mean()) for layer in weights]
    model = zoo.get_method("prefix_tuning")(model, num_virtual_tokens=3)
    prompt = model.prompts["default"]
    with torch.no_grad():
        states = model.prompts.backbone.keys_values(torch.tensor(words))
        prompt.learned.start_from(states)
    found = ablations.attention_split(model, [Row(text[:2], text[2:])], 0)
    assert found["prompt_part"] == pytest.approx(expected, abs=1e-4)
    assert "gate" not in found


def test_the_shared_prefix_gives_every_layer_the_same(ablations, folders):
    ablations.make(ablations.Settings(data=folders["data"], threads=1), None)
    model = zoo.get_method("shared_prefix")(ablations.load_language_model(folders["model"]), num_virtual_tokens=3)
    site = model.prompts["default"].place(model.prompts.backbone).tokens.sites["decoder"]
    assert all(torch.equal(keys, site.keys[0]) for keys in site.keys)
    assert all(torch.equal(values, site.values[0]) for values in site.values)
    assert not torch.equal(site.keys[0], site.values[0])


def test_lora_and_ours_get_the_same_batches(e2e, monkeypatch):
    seen = []
    step = e2e.Trainer.step
    monkeypatch.setattr(e2e.Trainer, "step", lambda self, batch: seen.append(batch) or step(self, batch))
    call(e2e, "--only", "search-lora-0.001", "--only", "search-prefix-40-0.02")
    assert len(seen) == 2
    assert seen[0].keys() == seen[1].keys()
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


def test_the_best_of_the_search_is_trained_in_the_end(e2e, tmp_path, folders, monkeypatch):
    only_two_methods(monkeypatch)
    settings = e2e.Settings(data=f"{folders['data']}/e2e_nlg", model=folders["model"], threads=1)
    bench = e2e.Bench(settings)
    runner = bench.runner = e2e.Runner(tmp_path, {}, bench.experiments())
    losses = {"search-lora-0.003": 0.5, "search-prefix-40-0.04": 0.5, "search-prefix-20": 0.25}
    for name in runner.experiments:
        if name.startswith("search") and runner.missing(name) is None:
            runner.store.save(name, runner.run_of(name, 0), {"loss": losses.get(name, 1.0)})
    assert bench.best_candidate() == "prefix-20"
    assert runner.experiments["final-prompts"].options()["rate"] == 0.04
    assert runner.experiments["final-lora"].options()["rate"] == 0.003


def test_the_picture_shows_what_is_there(ablations, tmp_path, monkeypatch):
    only_two_methods(monkeypatch)
    call(ablations, "--table")
    empty = (tmp_path / ablations.PICTURE).read_bytes()
    assert empty.startswith(b"\x89PNG")
    call(ablations, "--only", "prefix_tuning-20")
    assert (tmp_path / ablations.PICTURE).read_bytes() != empty


def test_a_recipe_that_takes_long_is_made_smaller_and_the_table_says_so(methods, folders, tmp_path, monkeypatch):
    monkeypatch.setitem(methods.SMALLER, "prompt_tuning", {"steps": 7})
    bench = methods.Bench(methods.Settings(**folders))
    assert bench.recipe("prompt_tuning") == dataclasses.replace(zoo.get_method("prompt_tuning").recipe, steps=7)
    assert bench.recipe("prefix_tuning") == zoo.get_method("prefix_tuning").recipe
    table = methods.table(methods.make(bench.settings, tmp_path)[0], bench.settings)
    assert f"prompt_tuning: 7 steps (recipe: {zoo.get_method('prompt_tuning').recipe.steps})" in table


def test_results_depend_on_what_they_say_they_do(methods, folders, tmp_path):
    settings = methods.Settings(**folders)
    runner, _ = methods.make(settings, tmp_path)
    runner.store.save("films-prefix_tuning", runner.run_of("films-prefix_tuning", 0), {"loss": [1.0]})
    assert runner.result("films-prefix_tuning") == {"loss": [1.0]}
    assert runner.result("films-prefix_tuning", 1) is None

    def again(**changes):
        return methods.make(dataclasses.replace(settings, **changes), tmp_path)[0].result("films-prefix_tuning")

    assert again(seeds=9) == {"loss": [1.0]}
    assert again(steps=3) is None
    assert again(rows=7) is None
