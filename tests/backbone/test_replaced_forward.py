"""A forward set on the model itself, before or after attaching, keeps wrapping the prompted forward."""

import copy
import functools
import inspect
import pickle
import types

import pytest
import torch
from helpers.products import in_turns
from transformers import BertConfig, BertForSequenceClassification, DebertaV2Config, DebertaV2ForSequenceClassification

import softprompt_zoo as zoo
from softprompt_zoo.backbone import replaced_forward
from softprompt_zoo.model.attachment import is_attached
from softprompt_zoo.testing import tiny_model

TEXT = torch.arange(5, 23).view(2, 9)
SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def bert_classifier():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SMALL)).eval()


def deberta_classifier():
    torch.manual_seed(0)
    return DebertaV2ForSequenceClassification(DebertaV2Config(**SMALL, max_position_embeddings=64)).eval()


def hooked(model):
    """Add the hooks that `from_pretrained` puts on a model on several devices."""
    from accelerate import dispatch_model

    return dispatch_model(model, {"": "cpu"}, force_hooks=True)


def hooked_everywhere(model):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for name, module in model.named_modules():
        if name.startswith("prompts") or isinstance(module, torch.nn.ModuleList):
            continue
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    return model


def compiled(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def autocast(model):
    """Wrap the forward as `Accelerator.prepare` does under mixed precision, but in full precision."""
    model._original_forward = model.forward
    if hasattr(model.forward, "__func__"):
        wrapped = torch.autocast("cpu", enabled=False)(model.forward.__func__)
        model.forward = types.MethodType(wrapped, model)
    else:
        model.forward = torch.autocast("cpu", enabled=False)(model.forward)
    return model


def patched(model):
    """Put another function in place of the class's forward, as fused losses do."""
    base = BertForSequenceClassification

    def other(self, *args, **kwargs):
        return base.forward(self, *args, **kwargs)

    model.forward = types.MethodType(other, model)
    return model


def around(model):
    inside = model.forward
    model.forward = lambda *args, **kwargs: inside(*args, **kwargs)
    return model


def in_part(model):
    model.forward = functools.partial(model.forward, output_attentions=False)
    return model


class Timed:
    def __init__(self, forward):
        self.inside = forward

    def __call__(self, *args, **kwargs):
        return self.inside(*args, **kwargs)


def in_object(model):
    model.forward = Timed(model.forward)
    return model


def hooked_twice(model):
    return compiled(hooked(around(model)))


REPLACEMENTS = [hooked, hooked_everywhere, compiled, autocast, patched, around, in_part, in_object, hooked_twice]


def attach(model, method):
    torch.manual_seed(1)
    zoo.get_method(method)(model, num_virtual_tokens=3)
    with torch.no_grad():
        for parameter in model.prompts.parameters():
            parameter.normal_()
    return model


def run(model, by_name=False):
    """Return outputs and gradients for all that the prompted forward adds: head, first label, cut states, prompts."""
    inputs = {"input_ids": TEXT}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = TEXT[:, :4]
    elif "For" in type(model).__name__:
        inputs["labels"] = torch.tensor([0, 1]) if hasattr(model, "classifier") else TEXT
    output = (model.forward if by_name else model)(**inputs)
    trained = [parameter for parameter in model.prompts.parameters() if parameter.requires_grad]
    total = sum(value.double().sum() for value in output.values() if isinstance(value, torch.Tensor))
    gradients = torch.autograd.grad(total, trained, allow_unused=True)
    assert all(gradient is not None for gradient in gradients)
    return [value for value in output.values() if isinstance(value, torch.Tensor)] + list(gradients)


def check(make, method, replace, is_first, by_name=False):
    base = replace(make())
    inputs = {"input_ids": TEXT, **({"decoder_input_ids": TEXT} if base.config.is_encoder_decoder else {})}
    expected = run(attach(make(), method))
    model = attach(replace(make()), method) if is_first else replace(attach(make(), method))
    given = run(model, by_name)
    assert [tensor.shape for tensor in given] == [tensor.shape for tensor in expected]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(given, expected, strict=True))
    shown = inspect.signature(model.forward).parameters
    assert ("input_ids" in shown) == ("prompts" in shown)  # otherwise Trainer drops that column
    zoo.detach(model)
    assert model.__dict__["forward"].__class__ is base.__dict__["forward"].__class__
    assert torch.equal(model(**inputs)[0], base(**inputs)[0])
    assert not any(replaced_forward.is_prompted(place.value) for place in replaced_forward._innermost(model))


@pytest.fixture(autouse=True)
def not_traced():
    """Turn off the slow compiler: it is not needed to see whether torch.compile calls the prompted forward."""
    with torch.compiler.set_stance("force_eager"):
        yield


MODELS = {
    "bert_classifier": (bert_classifier, "p_tuning_v2"),
    "deberta_classifier": (deberta_classifier, "p_tuning_v2"),
    "llama": (functools.partial(tiny_model, "llama"), "prompt_tuning"),
    "t5": (functools.partial(tiny_model, "t5"), "prompt_tuning"),
    "bloom": (functools.partial(tiny_model, "bloom"), "prefix_tuning"),
    "bert": (lambda: bert_classifier().bert, "prompt_tuning"),
    "deberta": (lambda: deberta_classifier().deberta, "prefix_tuning"),
}


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_a_replaced_forward_wraps_the_prompted_one(replace, is_first):
    check(*MODELS["bert_classifier"], replace, is_first)


@in_turns(replace=[hooked_everywhere, compiled], name=[name for name in MODELS if name != "bert_classifier"])
def test_models_of_every_kind_keep_what_was_put_around_their_forward(name, replace):
    check(*MODELS[name], replace, is_first=True, by_name=name in ("bert", "deberta"))


def test_the_check_notices_a_forward_that_is_not_bound_anew(monkeypatch):
    monkeypatch.setattr("softprompt_zoo.model.prompted_model.rebind", lambda module, wrap: None)
    for name in ("bert_classifier", "llama", "t5"):
        with pytest.raises(zoo.UnsupportedError, match="called without its prompts"):
            check(*MODELS[name], hooked, is_first=True)
    monkeypatch.setattr("softprompt_zoo.sites.hooks.check_entry", lambda host: None)
    for name in ("bert_classifier", "llama", "t5"):
        with pytest.raises(AssertionError):
            check(*MODELS[name], hooked, is_first=True)


@pytest.mark.slow
def test_a_compiled_forward_is_compiled_anew_with_the_prompt():
    with torch.compiler.set_stance("default"):
        check(*MODELS["bert_classifier"], compiled, is_first=True)


def test_hooks_may_be_taken_off_and_a_method_given_back_later():
    from accelerate.hooks import remove_hook_from_module

    expected = run(attach(bert_classifier(), "p_tuning_v2"))
    model = attach(hooked_everywhere(bert_classifier()), "p_tuning_v2")
    remove_hook_from_module(model, recurse=True)
    for tensor, right in zip(run(model), expected, strict=True):
        assert torch.allclose(tensor, right, atol=1e-5)
    model.forward = types.MethodType(BertForSequenceClassification.forward, model)
    for tensor, right in zip(run(model), expected, strict=True):
        assert torch.allclose(tensor, right, atol=1e-5)
    copied = pickle.loads(pickle.dumps(model))
    for tensor, right in zip(run(copied), expected, strict=True):
        assert torch.allclose(tensor, right, atol=1e-5)


def test_a_copy_of_a_hooked_model_has_prompts_of_its_own():
    model = attach(hooked_everywhere(bert_classifier()), "p_tuning_v2")
    expected = run(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.prompts.parameters():
            parameter.zero_()
    zoo.detach(model)
    for tensor, right in zip(run(copied), expected, strict=True):
        assert torch.allclose(tensor, right, atol=1e-5)


def test_a_forward_that_runs_another_model_is_refused():
    model = copy.deepcopy(compiled(bert_classifier()))
    with pytest.raises(zoo.UnsupportedError, match=r"holds no method of this very model.*delete model\.forward"):
        attach(model, "p_tuning_v2")
    assert not is_attached(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(zoo.UnsupportedError, match="holds no method of this very model"):
        copy.deepcopy(compiled(attach(bert_classifier(), "p_tuning_v2")))


def test_a_forward_that_cannot_hand_prompts_on_is_refused_and_leaves_the_one_that_was_there():
    def narrow(self, input_ids=None, labels=None):
        return BertForSequenceClassification.forward(self, input_ids=input_ids, labels=labels)

    model = attach(bert_classifier(), "p_tuning_v2")
    expected = run(model)
    for forward in (types.MethodType(narrow, model), lambda *args, **kwargs: None):
        with pytest.raises(
            zoo.UnsupportedError, match=r"model\.forward of this BertForSequenceClassification was replaced"
        ):
            model.forward = forward
    assert all(torch.equal(tensor, right) for tensor, right in zip(run(model), expected, strict=True))


@pytest.mark.parametrize("name", ["bert_classifier", "llama", "t5"])
def test_a_method_that_was_taken_off_before_attaching_is_told(name):
    model = MODELS[name][0]()
    taken = model.forward
    attach(model, MODELS[name][1])
    inputs = {"decoder_input_ids": TEXT} if model.config.is_encoder_decoder else {}
    with pytest.raises(zoo.UnsupportedError, match="called without its prompts"):
        taken(input_ids=TEXT, **inputs)
    with model.prompts.disabled():
        taken(input_ids=TEXT, **inputs)
    inner = model.get_encoder() if inputs else model.base_model
    assert torch.isfinite(inner(input_ids=TEXT).last_hidden_state).all()
    if model.can_generate():
        assert model.generate(TEXT, max_new_tokens=2).shape[0] == len(TEXT)
    zoo.detach(model)
    taken(input_ids=TEXT, **inputs)
