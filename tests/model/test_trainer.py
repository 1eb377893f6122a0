"""transformers' Trainer, used as it is."""

import json
import warnings

import pytest
import torch
from helpers.prompted import attached
from transformers import Trainer, TrainerCallback, TrainingArguments, pipeline

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model, tiny_tokenizer
from softprompt_zoo.testing.subject import DECODER_LENGTH, Subject, random_text
from softprompt_zoo.training import PromptTrainer

CASES = [
    ("bert", "prompt_tuning"),
    ("llama", "prefix_tuning"),
    pytest.param("llama", "prompt_tuning", marks=pytest.mark.slow),
    pytest.param("t5", "prefix_tuning", marks=pytest.mark.slow),
]


def rows(architecture, count=16):
    found = []
    for seed in range(count):
        text = random_text(9, seed)[0]
        labels = random_text(DECODER_LENGTH, seed + 1)[0] if architecture == "t5" else text
        found.append({"input_ids": text, "attention_mask": torch.ones_like(text), "labels": labels})
    return found


def trainer(model, folder, architecture, steps, callbacks=(), **options):
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **{"learning_rate": 1e-2, "save_steps": 2, "logging_steps": 1, **options},
    )
    return Trainer(
        model, arguments, train_dataset=rows(architecture), eval_dataset=rows(architecture, 4), callbacks=[*callbacks]
    )


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_resume_is_exact_and_checkpoints_are_small(architecture, method, tmp_path):
    options = {"dropout": 0.2, "reparameterization": "mlp", "reparameterization_size": 8} if "prefix" in method else {}
    straight = attached(architecture, method, **options)
    trainer(straight, tmp_path / "straight", architecture, 6).train()

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= 4

    trainer(attached(architecture, method, **options), tmp_path / "resumed", architecture, 6, [Stop()]).train()
    checkpoint = tmp_path / "resumed" / "checkpoint-4"
    backbone = sum(p.numel() for p in tiny_model(architecture).parameters()) * 4
    assert (checkpoint / "model.safetensors").stat().st_size < backbone
    assert not [key for key in json.loads((checkpoint / "softprompt_zoo.json").read_text()) if "lm_head" in key]
    resumed = attached(architecture, method, **options)
    trainer(resumed, tmp_path / "resumed", architecture, 6).train(resume_from_checkpoint=str(checkpoint))
    for key, value in straight.prompts.state_dict().items():
        assert torch.equal(resumed.prompts.state_dict()[key], value), key
    text = random_text(9, 99)
    loaded = Subject(architecture, zoo.load(tiny_model(architecture), tmp_path / "resumed" / "checkpoint-6"))
    assert torch.equal(loaded.logits(text), Subject(architecture, resumed.eval()).logits(text))


def test_resume_is_silent_about_the_backbone(tmp_path, caplog):
    model = attached("llama", "prompt_tuning")
    trainer(model, tmp_path, "llama", 2).train()
    caplog.clear()
    trainer(attached("llama", "prompt_tuning"), tmp_path, "llama", 4).train(resume_from_checkpoint=True)
    assert "missing keys" not in caplog.text


def test_the_best_model_comes_back(tmp_path):
    model = attached("llama", "prefix_tuning")
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    options |= {"metric_for_best_model": "loss", "greater_is_better": True}  # the first checkpoint, not the last
    training = trainer(model, tmp_path, "llama", 6, **options)
    training.train()
    best = Subject("llama", zoo.load(tiny_model("llama"), training.state.best_model_checkpoint))
    text = random_text(9, 99)
    assert torch.equal(Subject("llama", model.eval()).logits(text), best.logits(text))
    losses = [entry["eval_loss"] for entry in training.state.log_history if "eval_loss" in entry]
    assert training.state.best_metric == max(losses)
    assert losses[-1] != max(losses), "the last checkpoint must be another one, or this test shows nothing"


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_in_the_trainer(use_reentrant, tmp_path):
    plain = attached("llama", "prefix_tuning")
    trainer(plain, tmp_path / "plain", "llama", 3).train()
    saving = attached("llama", "prefix_tuning")
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    trainer(saving, tmp_path / "saving", "llama", 3, **options).train()
    for key, value in plain.prompts.state_dict().items():
        torch.testing.assert_close(saving.prompts.state_dict()[key], value, atol=1e-5, rtol=1e-4)


SLOWER = [pytest.param(method, marks=pytest.mark.slow) for method in ("prompt_tuning", "p_tuning")]


@pytest.mark.filterwarnings("ignore:a prompt of the method .* asks for learning rates:UserWarning")
@pytest.mark.parametrize("method", ["prefix_tuning", "multitask_prompt_tuning", *SLOWER])
def test_accumulated_steps_equal_one_large_batch(method, tmp_path):
    results = []
    for batch, accumulate in ((4, 1), (1, 4)):
        model = attached("llama", method)
        training = _accumulating(model, tmp_path / str(batch), batch, accumulate)
        training.train()
        results.append(model.prompts.state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, atol=1e-5, rtol=1e-4)


def test_batches_with_other_shares_of_first_labels_weigh_by_their_other_labels():
    model = attached("llama", "prompt_tuning").eval()
    texts = [random_text(length, length) for length in (3, 9)]
    means = [model(input_ids=text, labels=text).loss.detach() for text in texts]
    counted = torch.tensor(2 + 8)
    sums = [model(input_ids=text, labels=text, num_items_in_batch=counted).loss for text in texts]
    torch.testing.assert_close(sum(sums), (2 * means[0] + 8 * means[1]) / 10)
    one_label = texts[0][:, :1]  # Trainer counts no labels in it, so there is nothing to weight it by
    mean = model(input_ids=one_label, labels=one_label).loss
    for number in (0, torch.tensor(4)):
        loss = model(input_ids=one_label, labels=one_label, num_items_in_batch=number).loss
        torch.testing.assert_close(loss, mean / (1 + int(number)))


def _accumulating(model, folder, batch, accumulate):
    arguments = TrainingArguments(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        optim="sgd",  # Adam's steps hardly depend on the size of the gradients
        max_grad_norm=0.0,
        learning_rate=0.1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    return Trainer(model, arguments, train_dataset=rows("llama"))


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning"])
def test_label_smoothing_is_the_base_models_formula_on_our_logits(method, tmp_path):
    """Trainer computes it from the logits of the text, which do not include the last virtual token's prediction."""
    model, factor = attached("llama", method), 0.2
    batch = [row["input_ids"] for row in rows("llama", 2)]

    def smoothed(one):
        with torch.no_grad():
            logs = one(torch.stack(batch)).logits[:, :-1].log_softmax(-1)
        labels = torch.stack(batch)[:, 1:, None]
        return float(-(1 - factor) * logs.gather(-1, labels).mean() - factor * logs.mean())

    expected = smoothed(model.eval())
    training = trainer(model, tmp_path, "llama", 1, label_smoothing_factor=factor, save_strategy="no")
    training.train_dataset = training.train_dataset[:2]  # one batch, in any order
    training.train()
    assert training.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert smoothed(tiny_model("llama")) != pytest.approx(expected, rel=1e-2)


def test_a_methods_own_loss_without_labels_is_warned_of(tmp_path):
    """Label smoothing hides the labels from the model, so such a method would be trained on a different loss."""
    method = zoo.get_method("cpt")
    options = {"token_ids": (5, 11, 12, 6, 21, 7), "token_types": (1, 2, 2, 3, 4, 0)}
    model = method(tiny_model("llama"), **options)
    with pytest.warns(UserWarning, match=r"'default' \(cpt\) has its own training loss.*labels.*smooths"):
        trainer(model, tmp_path, "llama", 1, label_smoothing_factor=0.1, save_strategy="no").train()
    text = random_text(5, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(text, labels=text)
        with torch.no_grad():
            model(text)
        model.eval()(text)


def test_a_column_of_prompts_per_row(tmp_path):
    model = attached("llama", "prompt_tuning")
    model.prompts.add("other", "prompt", num_virtual_tokens=2)
    other = model.prompts["other"].learned.embeddings.detach().clone()
    first = model.prompts["default"].learned.embeddings.detach().clone()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, learning_rate=1e-2, report_to="none", use_cpu=True, save_strategy="no"
    )
    data = [{**row, "prompts": 1} for row in rows("llama")]
    Trainer(model, arguments, train_dataset=data).train()
    assert not torch.equal(model.prompts["other"].learned.embeddings, other)
    assert torch.equal(model.prompts["default"].learned.embeddings, first)


def test_recipes_become_training_arguments(tmp_path):
    for name in zoo.list_methods():
        method = zoo.get_method(name)
        arguments, recipe = method.training_arguments(str(tmp_path), max_steps=7), method.recipe
        assert arguments.max_steps == 7
        assert (arguments.learning_rate, arguments.weight_decay) == (recipe.learning_rate, recipe.weight_decay)
        assert (arguments.lr_scheduler_type, arguments.warmup_steps) == (recipe.schedule, recipe.warmup_steps)
        assert (arguments.optim, arguments.per_device_train_batch_size) == (recipe.optimizer, recipe.batch_size)
        assert recipe.source


def test_another_recipe_takes_the_place_of_the_methods_own(tmp_path):
    recipe = zoo.Recipe(learning_rate=0.5, steps=3, batch_size=2, optimizer="adafactor")
    arguments = zoo.get_method("prompt").training_arguments(str(tmp_path), recipe=recipe, max_steps=4)
    assert (arguments.learning_rate, arguments.max_steps, arguments.optim) == (0.5, 4, "adafactor")


def test_epochs_are_not_cut_short_by_the_recipes_steps(tmp_path):
    method, model = zoo.get_method("prompt_tuning"), attached("llama", "prompt_tuning")
    options = {"use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "num_train_epochs": 2}
    training = Trainer(model, method.training_arguments(str(tmp_path), **options), train_dataset=rows("llama"))
    training.train()
    assert training.state.global_step == 2 * 16 / 8
    assert method.training_arguments(str(tmp_path), max_steps=5, **options).max_steps == 5


def test_the_prompt_trainer_is_trainer_where_there_is_one_rate(tmp_path):
    results = []
    for kind in (Trainer, PromptTrainer):
        model = attached("llama", "prefix_tuning", reparameterization="mlp", reparameterization_size=8)
        options = {"weight_decay": 0.1, "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
        arguments = zoo.get_method("prefix_tuning").training_arguments(str(tmp_path), max_steps=3, **options)
        kind(model=model, args=arguments, train_dataset=rows("llama")).train()
        results.append(model.prompts.state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, atol=1e-6, rtol=1e-5)


def test_the_prompt_trainer_trains_what_stands_beside_the_prompt(tmp_path):
    model = attached("llama", "prompt_tuning")
    norm = model.model.norm.weight.requires_grad_(True)
    before = norm.detach().clone()
    arguments = zoo.get_method("prompt").training_arguments(str(tmp_path), max_steps=2, use_cpu=True, disable_tqdm=True)
    PromptTrainer(model=model, args=arguments, train_dataset=rows("llama")).train()
    assert not torch.equal(norm, before)


def test_the_prompt_trainer_says_that_there_is_no_prompt(tmp_path):
    arguments = zoo.get_method("prompt").training_arguments(str(tmp_path), max_steps=1, use_cpu=True)
    with pytest.raises(zoo.UnsupportedError, match="LlamaForCausalLM has no prompts to train; attach one"):
        PromptTrainer(model=tiny_model("llama"), args=arguments, train_dataset=rows("llama")).train()


def test_pipelines_take_the_model():
    tokenizer = tiny_tokenizer()
    options = {"max_new_tokens": 5, "do_sample": False}
    model = attached("llama", "prefix_tuning")
    ids = tokenizer("w5 w6 w7", return_tensors="pt")

    def generate(one):
        run = pipeline("text-generation", model=one, tokenizer=tokenizer)
        return run("w5 w6 w7", return_tensors=True, **options)[0]["generated_token_ids"]

    assert generate(model) == model.generate(**ids, **options)[0].tolist()
    assert generate(model) != generate(tiny_model("llama"))
    fill = pipeline("fill-mask", model=attached("bert", "prompt_tuning"), tokenizer=tokenizer)
    plain = pipeline("fill-mask", model=tiny_model("bert"), tokenizer=tokenizer)
    assert fill("w5 [mask] w7")[0]["score"] != plain("w5 [mask] w7")[0]["score"]
