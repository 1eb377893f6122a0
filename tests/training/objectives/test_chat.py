"""Chats, whose loss is that of the assistant's tokens only."""

import json

import pytest
import torch
from helpers.commands import invoke
from helpers.tiny_runs import WORDS, save_tiny, tiny_settings, train
from transformers import AutoModelForCausalLM, AutoTokenizer

import softprompt_zoo as zoo
from softprompt_zoo.examples.chats import Chat
from softprompt_zoo.examples.reading import Reading
from softprompt_zoo.examples.sources import Source
from softprompt_zoo.training.base import Base
from softprompt_zoo.training.objectives.chat import Chatting
from softprompt_zoo.training.objectives.rows import IGNORED

TEMPLATE = (
    "{% if tools %}w50{% for tool in tools %} {{ tool.function.name }}{% endfor %} : {% endif %}"
    "{% for message in messages %}{% if message.role == 'who' %}{{ raise_exception('no role who') }}{% endif %}"
    "<s>{{ {'system': 'w51', 'user': 'w52', 'assistant': 'w53', 'tool': 'w54'}"
    "[message.role] }} {% if message.role == 'assistant' %}BEGIN{{ message.content }}"
    "{% for call in message.tool_calls %}w55 {{ call.function.name }}{% endfor %}</s>END\n"
    "{% else %}{{ message.content }}</s>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<s>w53 {% endif %}"
)
"""A chat template that writes roles and calls as words, so that every token is visible."""
THINKING = TEMPLATE.replace("BEGIN", "BEGIN{% if loop.last %}w58 w59 {% endif %}")
"""Puts an empty thought only before an answer that is the last message, as some models' templates do."""


def plain(template):
    return template.replace("BEGIN", "").replace("END", "")


def marked(template):
    return template.replace("BEGIN", "{% generation %}").replace("END", "{% endgeneration %}")


CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "w30", "arguments": {}}}]}
TOOL = {"type": "function", "function": {"name": "w30", "parameters": {"type": "object", "properties": {}}}}


def said(role, content):
    return {"role": role, "content": content}


CHATS = [
    {"messages": [said("user", "w1 w2"), said("assistant", "w3 w4"), said("user", "w5"), said("assistant", "w6")]},
    {"messages": [said("system", "w7"), said("user", "w1"), said("assistant", "w1 w1")]},
    {"messages": [said("user", "w2"), CALL, said("tool", "w8"), said("assistant", "w9 w3")], "tools": [TOOL]},
    {"messages": [said("user", "w2 w5"), said("assistant", "w2"), said("assistant", "w5 w5")]},
]


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    save_tiny(folder / "model")
    save_tiny(folder / "plain")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.chat_template = plain(TEMPLATE)
    tokenizer.save_pretrained(folder / "model")
    write(folder / "train.jsonl", CHATS * 5)
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(chats, output, **changes):
    plain = {"data": str(chats / "train.jsonl"), "validation": str(chats / "train.jsonl")}
    return tiny_settings(chats, output, **{**plain, **changes})


@pytest.mark.parametrize(("template", "given"), [(TEMPLATE, CHATS), (THINKING, CHATS[:3])])
def test_the_loss_covers_what_the_assistant_says_token_by_token(chats, template, given):
    """The oracle is transformers' own mask, which needs a template that marks what is generated."""
    base = Base(str(chats / "model"))
    base.tokenizer.chat_template = plain(template)
    objective = Chatting(base, "{input}\n")
    examples = [*Reading(Source(str(chats / "train.jsonl")))][: len(given)]
    for chat, row in zip(given, objective.rows(examples), strict=True):
        messages = [{"content": "", **message} for message in chat["messages"]]
        right = objective.tokenizer.apply_chat_template(
            messages,
            tools=chat.get("tools"),
            chat_template=marked(template),
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        assert row.ids == right["input_ids"]
        masked = zip(right["input_ids"], right["assistant_masks"], strict=True)
        assert row.labels == [token if is_spoken else IGNORED for token, is_spoken in masked]
    words = objective.tokenizer.decode(objective.rows([Chat(tuple(CHATS[2]["messages"]), (TOOL,))])[0].ids)
    assert words.startswith("w50 w30 :")


def test_the_loss_is_the_mean_over_those_tokens(chats):
    objective = Chatting(Base(str(chats / "model")), "{input}\n")
    examples = [*Reading(Source(str(chats / "train.jsonl")))][:4]
    rows = objective.rows(examples)
    model = AutoModelForCausalLM.from_pretrained(chats / "model").eval()
    losses = []
    for row in rows:
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        losses += [-float(logs[place - 1, label]) for place, label in enumerate(row.labels) if label != IGNORED]
    measured = objective.measure(model, examples, rows, 2)
    assert measured.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert len(measured.answers) == 2


def test_chats_are_trained_on_and_the_prompt_is_used_from_the_command_line(chats, tmp_path):
    small = ("--steps", 3, "--batch-size", 4, "--option", "num_virtual_tokens=3", "--dtype", "float32")
    files = ("--data", chats / "train.jsonl", "--output", tmp_path / "run", "--handwritten", "w40 w41")
    result = invoke("train", chats / "model", "prefix", *files, *small)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["objective"] == {"name": "chat"}
    table = invoke("evaluate", chats / "model", tmp_path / "run", "--data", chats / "train.jsonl", "--dtype", "float32")
    assert table.exit_code == 0, table.output
    assert "loss per token of the assistant in 20 chats" in " ".join(table.output.split())
    answer = invoke("generate", chats / "model", tmp_path / "run", "w1 w2", "--dtype", "float32")
    assert answer.exit_code == 0, answer.output
    assert set(answer.stdout.split()) <= {*WORDS, ":"}


def test_a_handwritten_prompt_goes_into_the_message_of_the_system(chats):
    objective = Chatting(Base(str(chats / "model")), "{input}\n").with_instruction("w40")
    examples = [*Reading(Source(str(chats / "train.jsonl")))][:2]
    texts = [objective.tokenizer.decode(row.ids) for row in objective.rows(examples)]
    assert texts[0].startswith("<s> w51 w40 </s> <s> w52 w1")
    assert texts[1].startswith("<s> w51 w40 w7 </s>")


BAD = [
    ([said("user", "w1")], r"bad.jsonl:2: field 'messages' has no message with the role 'assistant', so there is no"),
    ([said("assistant", "w1")], r"bad.jsonl:2: message 1 is of the role 'assistant', so it answers nothing"),
    ([said("user", "w1"), said("assistant", " ")], r"bad.jsonl:2: the content of message 2 is blank"),
    ([said("user", "w1"), {"content": "w1"}], r"bad.jsonl:2: the role of message 2 is null; it must be text"),
    (
        [said("who", "w1"), said("assistant", "w1")],
        r"bad.jsonl:2: the model's chat template does not accept it: no role",
    ),
    ("w1", r"bad.jsonl:2: field 'messages' is \"w1\"; it must be a list"),
]


@pytest.mark.parametrize(("messages", "message"), BAD)
def test_what_is_no_chat_to_learn_from(chats, tmp_path, messages, message):
    write(tmp_path / "bad.jsonl", [CHATS[0], {"messages": messages}])
    with pytest.raises(zoo.DataError, match=message):
        train(settings(chats, tmp_path / "run", data=str(tmp_path / "bad.jsonl")))
    assert not (tmp_path / "run").exists()


def test_models_and_settings_that_do_not_go_with_chats(chats, tmp_path):
    with pytest.raises(zoo.UnsupportedError, match="plain has no chat template"):
        train(settings(chats, tmp_path / "run", model=str(chats / "plain")))
    with pytest.raises(zoo.DataError, match="but messages are rendered with the model's"):
        train(settings(chats, tmp_path / "run", template="w1 {input}"))
    tokenizer = AutoTokenizer.from_pretrained(chats / "model")
    tokenizer.chat_template = plain(TEMPLATE).replace(
        "{{ message.content }}", "{{ message.content if loop.last else 'w1' }}"
    )
    base = Base(str(chats / "model"))
    base.tokenizer = tokenizer
    with pytest.raises(zoo.DataError, match=r"renders message 2, or one before it, differently when later ones"):
        Chatting(base, "{input}\n").rows([Chat(tuple(CHATS[0]["messages"]))])
