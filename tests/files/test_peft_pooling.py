"""PEFT's classifiers whose head reads a virtual token: the same accuracy here on request."""

import peft
import pytest
import torch
from helpers.classifiers import classifier, disturb, labels, logits, texts
from helpers.products import in_turns
from transformers import ModernBertForSequenceClassification

import softprompt_zoo as zoo
from softprompt_zoo.sites.call import Call
from softprompt_zoo.testing.comparison import assert_equal

TEXT = texts("sequence")
KINDS = {"prompt_tuning": peft.PromptTuningConfig, "p_tuning": peft.PromptEncoderConfig}
ENCODERS = ["bert", "roberta", "electra", "distilbert", "modernbert", "deberta_v2"]


def theirs(architecture, kind, folder):
    """Save PEFT's classifier with every trained number changed, and return it loaded again."""
    sizes = {
        "token_dim": 32,
        "num_attention_heads": 4,
        "num_layers": 2,
    }  # PEFT does not find these in DistilBERT's config
    config = KINDS[kind](num_virtual_tokens=4, task_type="SEQ_CLS", **sizes)
    wrapped = peft.get_peft_model(classifier("sequence", architecture), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name or "prompt_encoder" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    wrapped.save_pretrained(folder)
    return peft.PeftModel.from_pretrained(classifier("sequence", architecture), folder).eval()


def run_theirs(wrapped, ids, mask=None):
    return logits(wrapped, ids, attention_mask=torch.ones_like(ids) if mask is None else mask)


def check_import(architecture, kind, folder):
    wrapped = theirs(architecture, kind, folder)
    model = zoo.load(classifier("sequence", architecture), folder, pools_prompt=True)
    assert_equal(logits(model, TEXT), run_theirs(wrapped, TEXT), "PEFT's logits")
    mask = torch.ones_like(TEXT)
    mask[1, 4:] = 0
    assert_equal(logits(model, TEXT, attention_mask=mask), run_theirs(wrapped, TEXT, mask), "of padded rows")
    return model, wrapped


@in_turns(architecture=ENCODERS, kind=KINDS)
@pytest.mark.filterwarnings("error:PEFT's SEQ_CLS head")
def test_the_head_reads_a_virtual_token_as_in_peft(architecture, kind, tmp_path):
    model, wrapped = check_import(architecture, kind, tmp_path / "theirs")
    expected = run_theirs(wrapped, TEXT)
    model.save_pretrained(tmp_path / "ours")
    assert_equal(logits(zoo.load(classifier("sequence", architecture), tmp_path / "ours"), TEXT), expected, "saved")
    zoo.export(model, tmp_path / "back")
    again = peft.PeftModel.from_pretrained(classifier("sequence", architecture), tmp_path / "back").eval()
    assert_equal(run_theirs(again, TEXT), expected, "back in PEFT")


def test_without_it_the_text_is_pooled_and_a_warning_says_so(tmp_path):
    wrapped = theirs("bert", "prompt_tuning", tmp_path)
    with pytest.warns(UserWarning, match=r"differ from PEFT's; zoo.load\(…, pools_prompt=True\) does what PEFT does"):
        model = zoo.load(classifier("sequence", "bert"), tmp_path)
    assert not torch.allclose(logits(model, TEXT), run_theirs(wrapped, TEXT), atol=1e-3)


def test_rows_of_a_batch_are_pooled_each_in_its_own_way(tmp_path):
    model, wrapped = check_import("bert", "prompt_tuning", tmp_path)
    model.prompts.add("text", "prompt_tuning", num_virtual_tokens=2, train_head=True)
    rows = logits(model, TEXT, prompts=["default", None, "text"])
    assert_equal(rows[0], run_theirs(wrapped, TEXT)[0], "PEFT's row")
    assert_equal(rows[1], logits(classifier("sequence", "bert"), TEXT)[1], "a bare row")
    alone = zoo.get_method("prompt_tuning")(classifier("sequence", "bert"), num_virtual_tokens=2)
    alone.prompts["default"].load_state_dict(
        {k: v for k, v in model.prompts["text"].state_dict().items() if "head" not in k}
    )
    assert_equal(rows[2], logits(alone, TEXT)[2], "a row whose text is pooled")


def test_a_bank_and_a_copy_keep_it(tmp_path):
    model, wrapped = check_import("bert", "prompt_tuning", tmp_path)
    bank = zoo.PromptBank("memory://pooled", model)
    bank.add("stored", model.prompts["default"])
    model.prompts.bank = bank
    model.prompts.add("copy", model.prompts["default"])
    for name in ("stored", "copy"):
        assert_equal(logits(model, TEXT, prompts=name), run_theirs(wrapped, TEXT), name)
    shorter = zoo.truncate(model.prompts["default"], 2, by="norm")
    assert shorter.config.pools_prompt
    model.prompts.add("text", "prompt_tuning", num_virtual_tokens=2)
    with pytest.raises(zoo.UnsupportedError, match="has is_pooled=False"):
        zoo.blend([shorter, model.prompts["text"]], drop_heads=True)
    slots = torch.full(TEXT.shape, -1)
    slots[:, 1] = 0
    with pytest.raises(zoo.UnsupportedError, match="pools_prompt=True, but its tokens are in soft slots"):
        model(input_ids=TEXT, soft_slots=slots)


def test_a_prompt_is_trained_so_and_goes_to_peft(tmp_path):
    model = zoo.get_method("prompt_tuning")(
        classifier("sequence", "bert"), num_virtual_tokens=4, train_head=True, pools_prompt=True
    )
    disturb(model)
    optimizer = torch.optim.SGD(model.prompts.parameters(), lr=0.1)
    model.train()(input_ids=TEXT, **labels("sequence")).loss.backward()
    optimizer.step()
    model.eval()
    zoo.export(model, tmp_path)
    again = peft.PeftModel.from_pretrained(classifier("sequence", "bert"), tmp_path).eval()
    assert_equal(run_theirs(again, TEXT), logits(model, TEXT), "PEFT's logits")


def test_it_is_refused_where_no_head_would_read_a_virtual_token(tmp_path):
    for task, architecture, method in (("sequence", "bert", "prefix_tuning"), ("sequence", "gpt2", "prompt_tuning")):
        model = classifier(task, architecture)
        with pytest.raises(
            zoo.UnsupportedError, match="pools_prompt is True, which is for virtual tokens at the input"
        ):
            zoo.get_method(method)(model, pools_prompt=True)
        assert not hasattr(model, "prompts")
    config = peft.PromptTuningConfig(num_virtual_tokens=4, task_type="TOKEN_CLS")
    peft.get_peft_model(classifier("token", "bert"), config).save_pretrained(tmp_path / "token")
    with pytest.raises(zoo.UnsupportedError, match="has PEFT's task 'TOKEN_CLS': it is only for SEQ_CLS"):
        zoo.load(classifier("token", "bert"), tmp_path / "token", pools_prompt=True)
    zoo.get_method("prompt_tuning")(classifier("sequence", "bert")).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="pools_prompt is True, which is only for PEFT adapters"):
        zoo.load(classifier("sequence", "bert"), tmp_path / "ours", pools_prompt=True)


def test_the_check_notices_a_head_that_reads_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(Call, "pooled_rows", lambda self, device: None)
    with pytest.raises(AssertionError):
        check_import("bert", "prompt_tuning", tmp_path)


@pytest.mark.parametrize("attached", [False, True])
def test_a_head_that_reads_all_tokens_is_refused_and_the_model_is_as_before(attached, tmp_path):
    def fresh():
        config = classifier("sequence", "modernbert").config
        config.classifier_pooling = "mean"
        torch.manual_seed(0)
        return ModernBertForSequenceClassification(config).eval()

    config = peft.PromptTuningConfig(num_virtual_tokens=4, task_type="SEQ_CLS")
    peft.get_peft_model(fresh(), config).save_pretrained(tmp_path)
    model = fresh()
    if attached:
        zoo.get_method("prefix_tuning")(model, "own", num_virtual_tokens=3)
    before = logits(model, TEXT)
    with pytest.raises(zoo.UnsupportedError, match="reads more tokens than the first one"):
        zoo.load(model, tmp_path, pools_prompt=True)
    assert torch.equal(logits(model, TEXT), before)
    assert list(getattr(model, "prompts", ())) == (["own"] if attached else [])
