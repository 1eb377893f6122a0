"""Prompts for SmolLM2, and what the prompted model writes after each."""

import dataclasses

import torch
from safetensors.torch import load_file

import softprompt_zoo as zoo

TEXTS = ["The capital of France is", "Once upon a time", "def add(a, b):", "My favorite food is"]
INSTRUCTION = "Answer as a poet of the sea, with images of ships and storms, and end with a question to the reader."
METHODS = ["prefix_tuning", "prompt_tuning"]
PROMPTS = 20
NEW_TOKENS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A prompt as keys and values, a text's ids, and what the prompted model writes after both."""

    prefix: dict
    ids: list
    expected: list


def add_prompt(model, name, method, **options):
    if hasattr(model, "prompts"):
        model.prompts.add(name, method, **options)
    else:
        zoo.get_method(method)(model, name, **options)


def make_case(model, words, number, folder):
    """Add a noisy prompt of `number + 1` tokens, started from text; return it with what the model writes after it."""
    name, text = f"user-{number}", " ".join(INSTRUCTION.split()[number:])
    add_prompt(model, name, METHODS[number % 2], num_virtual_tokens=number + 1, init_text=text, tokenizer=words)
    with torch.no_grad():
        for parameter in model.prompts[name].parameters():
            parameter.add_(0.2 * parameter.std() * torch.randn_like(parameter))
    model.prompts.activate(name)
    ids = words(TEXTS[number % len(TEXTS)], return_tensors="pt").input_ids
    written = model.generate(input_ids=ids, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
    zoo.export(model, folder, to="kv", name=name)
    prefix = load_file(folder / "prefix.safetensors")
    return Case(prefix=prefix, ids=ids[0].tolist(), expected=written[0, ids.shape[1] :].tolist())


def count_different(answer, cases):
    """Count the prompts after which an engine writes something else."""
    assert len({tuple(case.expected) for case in cases}) == PROMPTS
    return sum(answer(case) != case.expected for case in cases)
