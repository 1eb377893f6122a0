"""Self-study: a model asks and answers itself about a document."""

import pytest
import torch
from cartridges import CHAT, attach, cartridge, chat_tokenizer, method, one_thread  # noqa: F401 - fixtures of all tests

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model, tiny_tokenizer

TEXT = " ".join(f"w{5 + index % 80}" for index in range(30))


def study(model=None, tokenizer=None, **options):
    model = tiny_model("llama") if model is None else model
    tokenizer = chat_tokenizer() if tokenizer is None else tokenizer
    chosen = {
        "conversations": 5,
        "chunk_tokens": (4, 8),
        "max_question_tokens": 5,
        "max_answer_tokens": 6,
        "batch_size": 2,
    }
    document = options.pop("document", TEXT)
    return list(cartridge.self_study(model, tokenizer, document, **{**chosen, **options}))


def short_seed_prompts(monkeypatch):
    """Replace the prompts by one word per kind to tell them apart: the tiny vocabulary has no English."""
    short = {kind: (f"w{80 + index}",) for index, kind in enumerate(cartridge.SEED_PROMPTS)}
    monkeypatch.setattr(cartridge.study, "SEED_PROMPTS", short)
    return {kind: int(text[0][1:]) for kind, text in short.items()}


def test_conversations_are_asked_and_answered_behind_the_chunk(monkeypatch):
    """Checks what the model was shown, turn by turn, and that the answer is the base model's likeliest."""
    ids_of = short_seed_prompts(monkeypatch)
    model, tokenizer = tiny_model("llama"), chat_tokenizer()
    shown = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda ids, **how: shown.append((ids, how)) or generate(ids, **how))
    rows = study(model, tokenizer, batch_size=1)
    assert len(rows) == 5
    for row, (asking, answering) in zip(rows, zip(shown[::2], shown[1::2], strict=True), strict=True):
        chunk = [int(word[1:]) for word in row["chunk"].split()]
        assert 4 <= len(chunk) <= 8
        assert " ".join(f"w{i}" for i in chunk) in TEXT
        assert asking[0][0].tolist() == [91, *chunk, 99, 92, ids_of[row["kind"]], 99, 93]
        assert (asking[1]["do_sample"], asking[1]["temperature"]) == (True, 0.6)
        question = tokenizer(row["question"])["input_ids"]
        assert answering[0][0].tolist() == [91, *chunk, 99, 92, *question, 99, 93]
        assert answering[1]["do_sample"] is False
        asked = [92, *question, 99, 93]
        assert row["input_ids"][: len(asked)] == asked
        assert row["labels"] == row["input_ids"]
        likeliest = tiny_model("llama").generate(answering[0], max_new_tokens=6, do_sample=False)[
            0, answering[0].shape[1] :
        ]
        expected = likeliest.tolist()
        end = expected.index(2) + 1 if 2 in expected else 6
        assert row["input_ids"][len(asked) :] == expected[:end]
        assert tokenizer.decode(expected[:end], skip_special_tokens=True) == row["answer"]


def test_batches_write_what_single_conversations_do():
    """Answers are the likeliest, so padding a batch must not change them."""
    model, tokenizer = tiny_model("llama"), chat_tokenizer()
    writer = cartridge.study._Writer(model, tokenizer, False)
    texts = ["w91 w5 w6 w99 w92 w7 w99 w93", "w91 w5 w99 w92 w30 w99 w93", "w93"]
    assert writer.write(texts, 6, 0.0) == [writer.write([text], 6, 0.0)[0] for text in texts]


def test_an_answer_ends_with_the_end_token_where_the_model_wrote_it():
    model, tokenizer = tiny_model("llama"), chat_tokenizer()
    model.generation_config.eos_token_id = [2, 7]
    writer = cartridge.study._Writer(model, tokenizer, False)
    assert writer._until_end([5, 7, 2, 0]) == [5, 7]
    assert writer._until_end([5, 6]) == [5, 6]


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = study(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    assert study(seed=1) == first
    assert study(seed=2) != first


def test_a_document_of_token_ids_is_studied_like_its_text():
    ids = chat_tokenizer()(TEXT, add_special_tokens=False)["input_ids"]
    assert study(document=ids) == study(document=torch.tensor(ids)) == study()


def test_every_kind_is_drawn_and_kinds_can_be_chosen():
    rows = study(conversations=40, batch_size=40)
    assert {row["kind"] for row in rows} == set(cartridge.SEED_PROMPTS)
    assert len(cartridge.SEED_PROMPTS) == 6
    assert {row["kind"] for row in study(kinds=["creative"])} == {"creative"}


def test_a_prompted_model_studies_without_its_prompts():
    model, _ = attach(num_virtual_tokens=8, init="random")
    model.train()
    assert study(model) == study()
    assert model.training
    assert model.prompts.active == ("default",)


def test_without_a_template_the_turns_are_plain_text():
    tokenizer = tiny_tokenizer()
    assert cartridge.turn(tokenizer, "w5") == "Question: w5\nAnswer:"
    assert len(study(tokenizer=tokenizer)) == 5


def test_a_default_system_message_is_left_out():
    """Some templates write a system message if the chat has none, but the cartridge stands there."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{% if messages[0].role != 'system' %}{{ ' w91 w50 w99 ' }}{% endif %}" + CHAT
    assert cartridge.turn(tokenizer, "w5").split() == ["w92", "w5", "w99", "w93"]


def test_labels_can_leave_the_question_out():
    for row in study(answers_only=True):
        asked = row["labels"].count(-100)
        assert row["labels"][:asked] == [-100] * asked
        assert row["labels"][asked:] == row["input_ids"][asked:]
        assert row["input_ids"][asked - 1] == 93


def test_rows_are_padded_to_a_batch_and_train_a_cartridge():
    rows = study(answers_only=True)
    batch = cartridge.collate(rows, pad_token_id=0)
    longest = max(len(row["input_ids"]) for row in rows)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["input_ids"][index].tolist() == row["input_ids"] + [0] * (longest - length)
        assert batch["attention_mask"][index].tolist() == [1] * length + [0] * (longest - length)
        assert batch["labels"][index].tolist() == row["labels"] + [-100] * (longest - length)
    model, prompt = attach(document=TEXT, tokenizer=chat_tokenizer(), chat=True)
    model.train()(**batch).loss.backward()
    assert prompt.learned.trained.grad.abs().max() > 0


def test_trainer_takes_the_rows(tmp_path):
    from transformers import Trainer

    model, prompt = attach(document=TEXT, tokenizer=chat_tokenizer(), chat=True)
    before = prompt.learned.trained.detach().clone()
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "use_cpu": True}
    arguments = zoo.get_method("cartridge").training_arguments(str(tmp_path), **options)
    assert (arguments.learning_rate, arguments.lr_scheduler_type) == (2e-2, "constant")
    Trainer(model, arguments, train_dataset=study(), data_collator=cartridge.collate).train()
    assert not torch.equal(prompt.learned.trained, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conversations": 0}, "conversations is 0"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"chunk_tokens": (8, 4)}, r"chunk_tokens is \(8, 4\)"),
        ({"temperature": -1}, "temperature is -1"),
        ({"kinds": ["riddle"]}, "kinds is 'riddle'; expected one of 'structuring'"),
        ({"chunk_tokens": (4, 5, 6)}, r"chunk_tokens is \(4, 5, 6\); expected a number, or a minimum and a maximum"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"kinds": []}, r"kinds is \[\]; expected a list with some of 'structuring'"),
        ({"kinds": "question"}, "kinds is 'question'; expected a list"),
        ({"document": ""}, "document has no tokens"),
        ({"document": [5, 101]}, "document has the token id 101; the model has 101 embeddings"),
        ({"chunk_tokens": 30, "max_answer_tokens": 60}, "60 more may be written; the model has 64 positions"),
    ],
)
def test_bad_studies_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        study(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "a"}, r"temperature is 'a' \(str\); expected a number of at least 0"),
        ({"chunk_tokens": "ab"}, r"chunk_tokens is 'ab' \(str\); expected an integer of at least 1"),
        ({"chunk_tokens": (4, "b")}, r"chunk_tokens is 'b' \(str\)"),
        ({"document": 5}, "document is int; expected a text, or token ids"),
    ],
)
def test_studies_of_wrong_types_are_told(options, message):
    with pytest.raises(TypeError, match=message):
        study(**options)
