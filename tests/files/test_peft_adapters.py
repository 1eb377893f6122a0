"""Prompts on a model that has a PEFT adapter: both train, both are saved, and each can be switched off by itself."""

import copy
import textwrap

import peft
import pytest
import torch
from helpers.adapted_models import TEXT, WAYS, adapted, change_config, inside, lora, prompted, run, train
from helpers.products import in_turns
from transformers import Trainer, TrainingArguments

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import random_text


@WAYS
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_both_train_and_the_base_keeps_its_bits(way, method):
    model = prompted(method, way=way)
    before = {name: parameter.clone() for name, parameter in inside(model).named_parameters()}
    train(model)
    for name, parameter in inside(model).named_parameters():
        is_trained = "lora_" in name or name.startswith("prompts.")
        assert parameter.requires_grad == is_trained, name
        assert torch.equal(parameter, before[name]) != is_trained, name


@WAYS
@in_turns(method=["prompt_tuning", "prefix_tuning"], architecture=["llama", "bert", "t5"])
def test_each_is_switched_off_alone(way, architecture, method):
    model = prompted(method, architecture, way)
    only_lora = run(lora(architecture, way).eval())
    both = run(model)
    assert (both - only_lora).abs().max() > 1e-3
    with inside(model).prompts.disabled():
        assert torch.equal(run(model), only_lora)
    plain = zoo.get_method(method)(tiny_model(architecture).eval(), num_virtual_tokens=4)
    plain.prompts.load_state_dict(inside(model).prompts.state_dict())
    only_prompt = run(plain)
    if way == "wrapped":
        with model.disable_adapter():
            assert_equal(run(model), only_prompt, "without the LoRA")
    else:
        model.disable_adapters()
        assert_equal(run(model), only_prompt, "without the LoRA")
        model.enable_adapters()
    assert_equal(run(model), both, "both again")


def test_a_merged_lora_leaves_the_prompt_working():
    model = prompted()
    both = run(model)
    model.merge_adapter()
    assert_equal(run(model), both, "merged")
    model.unmerge_adapter()
    assert_equal(run(model), both, "unmerged")
    merged = model.merge_and_unload()
    assert "default" in merged.prompts
    assert_equal(run(merged), both, "unloaded")
    assert not adapted(merged)
    base = zoo.detach(merged)
    assert (run(base) - both).abs().max() > 1e-3


@WAYS
def test_generate_sees_both(way):
    model = prompted(way=way)
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    generated = model.generate(input_ids=TEXT, attention_mask=torch.ones_like(TEXT), **options)
    with torch.no_grad():
        whole = model(input_ids=generated.sequences[:, :-1]).logits[:, TEXT.shape[1] - 1 :]
    assert_equal(torch.stack(generated.logits, dim=1), whole, "steps")


@WAYS
def test_detach_gives_back_what_came(way):
    model = lora(way=way).eval()
    expected, kind, keys = run(model), type(model), list(model.state_dict())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    zoo.get_method("prefix_tuning")(model, num_virtual_tokens=4)
    assert (run(model) - expected).abs().max() > 1e-3
    assert zoo.detach(model) is model
    assert type(model) is kind
    assert list(model.state_dict()) == keys
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
    assert torch.equal(run(model), expected)


@WAYS
@pytest.mark.parametrize("onto", ["plain", "wrapped", "injected"])
def test_one_directory_holds_both(way, onto, tmp_path):
    model = prompted(way=way)
    train(model)
    expected = run(model.eval())
    model.save_pretrained(tmp_path)
    base = tiny_model("llama") if onto == "plain" else lora(way=onto)
    loaded = zoo.load(base.eval(), tmp_path)
    assert loaded is base
    assert_equal(run(loaded), expected, "loaded")
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    trainable = zoo.load(tiny_model("llama"), tmp_path, trainable=True)
    names = {n for n, p in trainable.named_parameters() if p.requires_grad}
    assert names == {*adapted(trainable), *(n for n, _ in trainable.named_parameters() if n.startswith("prompts."))}


@WAYS
def test_peft_loads_the_adapter_from_its_folder(way, tmp_path):
    model = prompted(way=way)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "adapters" / "default").eval()
    with inside(model).prompts.disabled():
        assert_equal(run(loaded), run(model), "the LoRA in PEFT")
    if way == "wrapped":
        loaded = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path).eval()
        with inside(model).prompts.disabled():
            assert_equal(run(loaded), run(model), "the LoRA from where PEFT keeps it")


def test_a_fresh_process_loads_both(fresh_processes, tmp_path):
    model = prompted()
    model.save_pretrained(tmp_path / "saved")
    torch.save(run(model), tmp_path / "expected.pt")
    script = f"""
        import torch
        import softprompt_zoo as zoo
        from softprompt_zoo.testing import tiny_model
        from softprompt_zoo.testing.subject import random_text
        model = zoo.load(tiny_model("llama"), {str(tmp_path / "saved")!r})
        with torch.no_grad():
            logits = model(input_ids=random_text(9, 1)).logits
        expected = torch.load({str(tmp_path / "expected.pt")!r})
        assert (logits - expected).abs().max() < 1e-5, (logits - expected).abs().max()
    """
    fresh_processes.run(textwrap.dedent(script), tmp_path)


def rows():
    return [{"input_ids": ids[0], "labels": ids[0]} for ids in (random_text(9, seed) for seed in range(8))]


def arguments(folder, **more):
    options = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2}
    return TrainingArguments(folder, report_to="none", use_cpu=True, disable_tqdm=True, **{**options, **more})


@WAYS
def test_trainer_resumes_both_exactly(way, tmp_path):
    whole = prompted(way=way)
    Trainer(model=whole, args=arguments(tmp_path / "a"), train_dataset=rows()).train()
    resumed = prompted(way=way)
    Trainer(model=resumed, args=arguments(tmp_path / "b"), train_dataset=rows()).train(
        resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2")
    )
    start = dict(inside(prompted(way=way)).named_parameters())
    for (name, one), (_, other) in zip(
        inside(whole).named_parameters(), inside(resumed).named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
        assert torch.equal(one, start[name]) == (not one.requires_grad), name


@WAYS
def test_the_best_model_comes_back(way, tmp_path):
    model = prompted(way=way)
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    options |= {"learning_rate": 3.0, "metric_for_best_model": "eval_loss", "lr_scheduler_type": "constant"}
    trainer = Trainer(model=model, args=arguments(tmp_path, **options), train_dataset=rows(), eval_dataset=rows()[:2])
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert not best.endswith("-4"), "the last one is the best: the test shows nothing"
    expected = zoo.load(tiny_model("llama"), best)
    assert_equal(run(model.eval()), run(expected.eval()), "the best")


def test_another_adapter_that_does_not_fit_leaves_the_model_alone(tmp_path):
    prompted(way="injected").save_pretrained(tmp_path)
    change_config(tmp_path, r=3)
    base = tiny_model("llama")
    before = {name: p.clone() for name, p in base.named_parameters()}
    with pytest.raises(zoo.BackboneMismatchError, match="does not fit this model: tensor"):
        zoo.load(base, tmp_path)
    assert list(base.state_dict()) == list(before)
    assert not hasattr(base, "prompts")


def test_an_index_cannot_lead_out_of_the_directory(tmp_path):
    prompted(way="injected").save_pretrained(tmp_path)
    from softprompt_zoo.files import weight_adapter_files

    with pytest.raises(zoo.CheckpointError, match="expected adapters/"):
        weight_adapter_files.read(tmp_path, {"default": "../elsewhere"})


def test_a_prompt_of_pefts_own_is_refused():
    config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model("llama"), config)
    with pytest.raises(zoo.UnsupportedError, match="one of PEFT's own prompts"):
        zoo.get_method("prompt_tuning")(model)


def test_tasks_through_the_wrapper_are_refused_and_work_inside():
    model = zoo.get_method("multitask_prompt_tuning")(lora().eval(), num_tasks=2, num_virtual_tokens=3)
    task = torch.tensor([1])
    with pytest.raises(zoo.UnsupportedError, match="does not pass task_ids on"):
        model(input_ids=TEXT, task_ids=task)
    assert run(inside(model), task_ids=task).shape[1] == TEXT.shape[1]


def test_rows_with_prompts_of_their_own_through_the_wrapper():
    model = prompted()
    model.prompts.add("other", "prefix_tuning", num_virtual_tokens=3)
    batch = torch.cat([TEXT, TEXT, TEXT])
    with torch.no_grad():
        rows = model(input_ids=batch, prompts=["default", "other", None]).logits
        alone = [model(input_ids=TEXT, prompts=[name]).logits[0] for name in ("default", "other", None)]
    assert_equal(rows, torch.stack(alone), "rows")


def test_copies_and_pickles_keep_both():
    model = prompted()
    twin = copy.deepcopy(model)
    assert_equal(run(twin), run(model), "copy")
    assert type(twin) is type(model)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_smollm2_with_a_lora_and_a_prompt(method, fresh_processes, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from softprompt_zoo.embedded import resolve_model
    from softprompt_zoo.examples import demo_data, read_examples

    folder = resolve_model("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [f"{example.input} {example.target}" for example in read_examples(demo_data() / "train.jsonl")][:120]

    def load():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model = zoo.get_method(method)(peft.get_peft_model(load(), config), num_virtual_tokens=8)
    before = {name: p.clone() for name, p in inside(model).named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for step in range(30):
        batch = tokenizer(texts[4 * step : 4 * step + 4], return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    for name, parameter in inside(model).named_parameters():
        if parameter.requires_grad:
            assert not torch.equal(parameter, before[name]), name
    model.eval()
    batch = tokenizer(texts[:3], return_tensors="pt", padding=True)
    with torch.no_grad():
        both = model(**batch).logits
        with model.prompts.disabled():
            lora_alone = model(**batch).logits
        with model.disable_adapter():
            prompt_alone = model(**batch).logits
    model.save_pretrained(tmp_path / "saved")
    torch.save((dict(batch), both, lora_alone, prompt_alone), tmp_path / "expected.pt")
    script = f"""
        import peft, torch
        from transformers import AutoModelForCausalLM
        import softprompt_zoo as zoo
        batch, both, lora_alone, prompt_alone = torch.load({str(tmp_path / "expected.pt")!r})
        saved = {str(tmp_path / "saved")!r}
        def load():
            return AutoModelForCausalLM.from_pretrained({folder!r}, dtype=torch.float32)
        def check(model, expected):
            with torch.no_grad():
                logits = model.eval()(**batch).logits
            keep = batch["attention_mask"].bool()
            assert (logits - expected)[keep].abs().max() <= 1e-5 * expected.abs().max()
        model = zoo.load(load(), saved)
        check(model, both)
        with model.prompts.disabled():
            check(model, lora_alone)
        check(peft.PeftModel.from_pretrained(load(), saved + "/adapters/default"), lora_alone)
        model.disable_adapters()
        check(model, prompt_alone)
    """
    fresh_processes.run(textwrap.dedent(script), tmp_path)
