"""Data sets, a language model, an encoder, and a tokenizer, all small enough for a quick benchmark of methods."""

import json

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from softprompt_zoo.testing import tiny_model

TEMPLATE = "{% for message in messages %}<s>{{ message.role }} : {{ message.content }} {% endfor %}"
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
LETTERS = "rstuvwxyz"
FILMS = [
    {"text": f"{letter} {letter} film .", "label": ("negative", "positive")[n % 2]} for n, letter in enumerate(LETTERS)
]
TEXTS = [{"input": f"a : {letter} | b : {letter * 2}", "target": f"{letter} is {letter} ."} for letter in LETTERS]


def save_tokenizer(folder):
    """Save a tokenizer of characters in which each label word, with or without a space in front, is one token."""
    pieces = [*SPECIAL.values(), " negative", " positive", "negative", "positive"]
    letters = sorted({chr(code) for code in range(32, 122)} | {"\n"})
    words = {piece: number for number, piece in enumerate([*pieces, *letters])}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?negative| ?positive|[\s\S]"), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=core, chat_template=TEMPLATE, **SPECIAL).save_pretrained(folder)


def save_benchmark_data(tmp_path_factory):
    """Save everything; return the folders of the data, the model, and the encoder as the options of a benchmark."""
    data, model, encoder = (tmp_path_factory.mktemp(name) for name in ("data", "model", "encoder"))
    for name in ("movie_sentiment", "tweet_sentiment", "product_sentiment", "e2e_nlg"):
        (data / name).mkdir()
        for part in ("train", "test"):
            rows = TEXTS if name == "e2e_nlg" else FILMS
            (data / name / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    llama = tiny_model("llama")
    llama.config.max_position_embeddings = 2048  # rotary positions have no table
    llama.save_pretrained(model)
    save_tokenizer(model)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=101, max_position_embeddings=64, **sizes)
    BertForSequenceClassification(config).base_model.save_pretrained(encoder)
    save_tokenizer(encoder)
    return {"data": str(data), "model": str(model), "encoder": str(encoder)}
