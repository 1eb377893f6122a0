"""Tiny models with task heads, built from configs."""

import pytest
import torch
from helpers.products import is_in_turn
from transformers import (
    AlbertConfig,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    RobertaConfig,
    T5Config,
)

IDS = {"vocab_size": 101, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 3}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**IDS, **SIZES, "max_position_embeddings": 64}
SEQ2SEQ = {**IDS, "decoder_start_token_id": 0, "d_model": 32}
SIDES = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (
    ("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
CONFIGS = {
    "bert": lambda: BertConfig(**BERT),
    "roberta": lambda: RobertaConfig(**{**BERT, "pad_token_id": 1, "bos_token_id": 0}),
    "electra": lambda: ElectraConfig(embedding_size=32, **BERT),
    "distilbert": lambda: DistilBertConfig(
        dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64, **IDS
    ),
    "modernbert": lambda: ModernBertConfig(cls_token_id=1, sep_token_id=2, **BERT),
    "albert": lambda: AlbertConfig(embedding_size=24, **BERT),
    "deberta_v2": lambda: DebertaV2Config(
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        type_vocab_size=0,
        conv_kernel_size=3,
        **BERT,
    ),
    "llama": lambda: LlamaConfig(num_key_value_heads=2, **BERT),
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **IDS),
    "t5": lambda: T5Config(d_kv=8, d_ff=48, num_layers=2, num_heads=4, **SEQ2SEQ),
    "bart": lambda: BartConfig(max_position_embeddings=64, forced_eos_token_id=None, **SIDES, **SEQ2SEQ),
}
TASKS = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "question": AutoModelForQuestionAnswering,
    "choice": AutoModelForMultipleChoice,
}
ENCODERS = ["bert", "roberta", "electra", "distilbert", "modernbert", "albert", "deberta_v2"]
PAIRS = (
    [("sequence", name) for name in CONFIGS]
    + [("token", name) for name in [*ENCODERS, "llama", "gpt2", "t5"]]
    + [("question", name) for name in [*ENCODERS, "llama", "gpt2", "bart", "t5"]]
    + [("choice", name) for name in ENCODERS]
)
"""Pairs of a task and an architecture for which transformers has a class."""


def in_turn(task, architecture):
    """Return a pair as a parameter, marked slow unless it is in the default run, which has every second task."""
    tasks = [of for of, name in PAIRS if name == architecture]
    turn = is_in_turn(min(2, len(tasks)), tasks.index(task), [*CONFIGS].index(architecture))
    return pytest.param(task, architecture, marks=[] if turn else [pytest.mark.slow])


CASES = [in_turn(*pair) for pair in PAIRS]


def classifier(task, architecture, seed=0, implementation="sdpa"):
    """Build a tiny model in eval mode, with weights large enough that every change of the input shows."""
    config = CONFIGS[architecture]()
    if task == "question":
        config.num_labels = 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture in ("deberta_v2", "mpnet"):  # these have no other
            implementation = "eager"
        model = TASKS[task].from_config(config, attn_implementation=implementation)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
    return model.eval()


def texts(task, rows=3, length=7, seed=0):
    """Return token ids `(rows, length)`, or `(rows, 2, length)` for multiple choice; texts end in the eos token."""
    shape = (rows, 2, length) if task == "choice" else (rows, length)
    ids = torch.randint(3, 101, shape, generator=torch.Generator().manual_seed(seed))
    ids[..., -1] = 2
    return ids


def labels(task, rows=3, length=7):
    """Return labels for `texts` as keyword arguments."""
    if task == "question":
        return {"start_positions": torch.arange(rows) % 3, "end_positions": torch.arange(rows) % 3 + 2}
    if task == "token":
        return {"labels": torch.arange(rows * length).view(rows, length) % 3}
    return {"labels": torch.arange(rows) % 2}


def logits(model, ids, **more):
    """Return the logits of a forward pass without gradients; for questions, start and end logits side by side."""
    with torch.no_grad():
        output = model(input_ids=ids, **more)
    return torch.stack([output.start_logits, output.end_logits], -1) if "start_logits" in output else output.logits


def disturb(model, name="default", seed=1, scale=0.1):
    """Add noise to a prompt's parameters, including those of its head."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.prompts[name].parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
