"""Texts with virtual tokens inside, and the same texts with real words in their places."""

import torch

from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import LENGTHS, Subject, pad, random_text
from softprompt_zoo.tokens.kinds import PlainTokens

METHODS = ["prompt_tuning", "p_tuning"]
TOKENS = 5
CAUSAL = ["gpt2", "llama", "gemma3", "mistral"]
WRITERS = [*CAUSAL, "t5", "bart"]
TEXTS = [random_text(length, seed) for seed, length in enumerate(LENGTHS)]
PLACES = [{0: 0, 1: 1, 4: 3, 8: 3}, {2: 4}, {5: 2, 6: 0}]
"""For each text, where virtual tokens stand, and which: at the start, at the end, twice, out of order."""
PLACEHOLDER = 3
NEW_TOKENS = 5


def with_slots(places=PLACES, side="right"):
    """Return texts with placeholders, their mask, and the slots."""
    index = [torch.full_like(text, -1) for text in TEXTS]
    for row, chosen in zip(index, places, strict=True):
        for place, token in chosen.items():
            row[0, place] = token
    texts = [text.masked_fill(row >= 0, PLACEHOLDER) for text, row in zip(TEXTS, index, strict=True)]
    ids, mask = pad(texts, side)
    slots, _ = pad([row + 1 for row in index], side)
    return ids, mask, slots - 1


def spoken(ids, slots, words):
    """Put real words into the slots: `words` has a column per virtual token, and a row per text or one for all."""
    words = words.expand(ids.shape[0], -1)
    return torch.where(slots >= 0, words.gather(1, slots.clamp(min=0)), ids)


def made_of(model, name, seed):
    """Make a prompt of real words and return them, `(1, tokens)`."""
    host = model.prompts
    words = random_text(host[name].num_virtual_tokens, 40 + seed)
    host[name].learned = PlainTokens({"embeddings": host.backbone.embed(words[0]).detach().clone()})
    return words


def subject_and_words(architecture, method="prompt_tuning", implementation="sdpa"):
    subject = Subject.prompted(architecture, method, {"num_virtual_tokens": TOKENS}, implementation)
    return subject, made_of(subject.model, "default", 0)


def base_of(architecture):
    return Subject(architecture, tiny_model(architecture))


def base_logits(base, ids, mask):
    more = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if base.is_causal else {}
    return base.logits(ids, mask, **more)


def seen(logits, mask, subject):
    return logits if subject.is_encoder_decoder else logits[mask.bool()]


def generate(subject, ids, mask, **options):
    output = subject.model.generate(
        ids,
        attention_mask=mask,
        **{"max_new_tokens": NEW_TOKENS, "do_sample": False, **options},
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences[:, -NEW_TOKENS:], torch.stack(output.logits, dim=1)
