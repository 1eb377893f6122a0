"""lm-evaluation-harness on the model object: its likelihoods and texts are the prompted model's."""

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model, tiny_tokenizer

huggingface = pytest.importorskip("lm_eval.models.huggingface")
instance = pytest.importorskip("lm_eval.api.instance")
pytestmark = pytest.mark.slow
PAIRS = [("w5 w6 w7", " w8 w9"), ("w10", " w11")]


def harness(model):
    return huggingface.HFLM(
        pretrained=model, tokenizer=tiny_tokenizer(), backend="causal", device="cpu", batch_size=2, max_length=40
    )


def likelihoods(model):
    requests = [
        instance.Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index)
        for index, pair in enumerate(PAIRS)
    ]
    return [value for value, _ in harness(model).loglikelihood(requests, disable_tqdm=True)]


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_likelihoods(method):
    torch.manual_seed(0)
    model = zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=4).eval()
    expected = []
    for context, continuation in PAIRS:
        ids = [tiny_tokenizer()(text, return_tensors="pt")["input_ids"] for text in (context, context + continuation)]
        start = ids[0].shape[1]
        with torch.no_grad():
            predicted = model(ids[1]).logits.log_softmax(-1)[0, start - 1 : -1]
        expected.append(float(predicted.gather(1, ids[1][0, start:, None]).sum()))
    assert likelihoods(model) == pytest.approx(expected, rel=1e-4)
    assert likelihoods(tiny_model("llama")) != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_texts(method):
    torch.manual_seed(0)
    model = zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=4).eval()
    contexts = ["w5 w6 w7", "w10"]

    def texts(one):
        options = {"until": ["[eos]"], "max_gen_toks": 5, "do_sample": False}
        requests = [
            instance.Instance(request_type="generate_until", doc={}, arguments=(context, options), idx=index)
            for index, context in enumerate(contexts)
        ]
        return harness(one).generate_until(requests, disable_tqdm=True)

    expected = []
    for context in contexts:
        ids = tiny_tokenizer()(context, return_tensors="pt")["input_ids"]
        made = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
        expected.append(tiny_tokenizer().decode(made, skip_special_tokens=True))
    assert [text.split() for text in texts(model)] == [text.split() for text in expected]
    assert texts(tiny_model("llama")) != texts(model)
