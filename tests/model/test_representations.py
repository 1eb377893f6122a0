"""The representation of methods, prompts and models in notebooks."""

import copy
import pickle
import re

import peft
import pytest
from helpers.prompted import prompted

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model


@pytest.fixture
def model():
    model = prompted().model
    model.prompts.add("b", "prompt", num_virtual_tokens=1)
    return model


def test_a_method_is_written_as_it_is_made():
    method = zoo.get_method("prefix").configure(name="a", num_virtual_tokens=6, init_text="a <b>")
    for chosen in (zoo.get_method("prefix"), method, zoo.combine("prompt", method)):
        assert eval(repr(chosen), {"get_method": zoo.get_method, "combine": zoo.combine}) == chosen
    assert repr(zoo.get_method("prefix")) == "get_method('prefix_tuning')"
    assert "&lt;b&gt;" in method._repr_html_()
    assert method.summary in method._repr_html_()
    assert len(repr(method.configure(init_text="long " * 100))) < 200


def test_prompts_are_a_line_each(model):
    assert repr(model.prompts).splitlines() == [
        "prompts of LlamaForCausalLM (* active):",
        "* default: prefix_tuning, 4 virtual tokens, 256 parameters",
        "  b: prompt_tuning, 1 virtual token, 32 parameters",
    ]
    assert repr(model.prompts["b"]) == "Prompt(prompt_tuning, num_virtual_tokens=1)"
    assert "* default: prefix_tuning, 4 virtual tokens" in repr(model)
    model.prompts["b"].requires_grad_(False)
    model.prompts.set_weight("default", 0.5)
    zoo.merge(model)
    assert repr(model.prompts).splitlines()[1:] == [
        "* default: prefix_tuning, 4 virtual tokens, 256 parameters, merged, weight 0.5",
        "  b: prompt_tuning, 1 virtual token, 32 parameters, merged, frozen",
    ]
    assert repr(copy.deepcopy(model).prompts) == repr(model.prompts)
    alone = pickle.loads(pickle.dumps(model.prompts))
    assert repr(alone) == repr(model.prompts)
    with pytest.raises(zoo.UnsupportedError, match="are not on a model"):
        alone.push_to_hub("me/prompt")


def test_trained_parameters_are_printed_as_peft_does(capsys):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    peft.get_peft_model(tiny_model("llama"), config).print_trainable_parameters()
    expected = capsys.readouterr().out
    zoo.get_method("prompt")(tiny_model("llama"), num_virtual_tokens=5).print_trainable_parameters()
    assert capsys.readouterr().out == expected
    assert re.match(r"trainable params: 160 \|\|", expected)


def test_what_inspect_found_is_tables_in_a_notebook(model):
    found = zoo.inspect(model, ["default", "b"])
    page = found._repr_html_()
    assert page.count("<table>") == page.count("</table>") == 2
    assert "<h4>b: prompt_tuning, 1 virtual tokens</h4>" in page
    cells = re.findall(r"<td>(.*?)</td>", page)
    assert all(" ".join(cell.split())[:12] in str(found) for cell in cells)
