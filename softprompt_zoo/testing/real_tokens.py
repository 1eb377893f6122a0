"""Prompts made of real tokens, and the base model's results for those tokens (promise 5)."""

import dataclasses

import pytest
import torch
from torch import Tensor

from softprompt_zoo.sites.shared_pass import record_keys_values
from softprompt_zoo.testing.subject import DECODER_LENGTH, Subject, random_text
from softprompt_zoo.tokens.input_tokens import InputTokens
from softprompt_zoo.tokens.kinds import PlainTokens
from softprompt_zoo.tokens.layer_tokens import LayerTokens
from softprompt_zoo.tokens.site_tokens import SiteTokens
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens
from softprompt_zoo.trial.words import ready

REAL_SEED = 33
NO_REAL_TOKENS = "real tokens share the text's softmax, gated ones have their own: test the method's equation by hand"
"""Why promise 5 is not defined for a method with gated tokens."""


@dataclasses.dataclass(frozen=True)
class RealTokens:
    """The tokens that a prompt is made of."""

    ids: Tensor
    """`(1, tokens)`."""
    are_embeddings: bool
    """Whether the prompt holds their embeddings; otherwise it holds their keys and values."""


def make_of_real_tokens(subject: Subject, base: Subject, text: Tensor) -> RealTokens:
    """Turn the subject's prompt into one made of real tokens.

    Args:
        subject: Its prompt's values are replaced.
        base: The model without a prompt.
        text: The text that it will be tried on; an encoder-decoder's keys and values depend on it.

    Returns:
        The real tokens.
    """
    prompts = subject.model.prompts
    prompt = prompts["default"]
    if prompt.beyond_tokens is not None:
        pytest.skip("real tokens in front of a text neither depend on it nor change it")
    ids = random_text(prompt.num_virtual_tokens, REAL_SEED)
    tokens = prompt.place(prompts.backbone).tokens
    if tokens.gates:
        pytest.skip(NO_REAL_TOKENS)
    plain: VirtualTokens
    if tokens.at_input is not None:
        plain = InputTokens(prompts.backbone.embed(ids[0]))
    elif subject.is_causal:
        plain = prompts.backbone.keys_values(ids[0])
    elif subject.is_encoder_decoder and tokens.at("decoder") is not None:
        plain = LayerTokens({"decoder": _decoder_states(subject, base, ids, text)})
    else:
        pytest.skip("real tokens in a bidirectional text see the text, but fixed keys and values cannot")
    prompt.learned = PlainTokens(plain.tensors())
    return RealTokens(ids, tokens.at_input is not None)


def expected_logits(base: Subject, tokens: RealTokens, text: Tensor) -> Tensor:
    """Run the base model on the real tokens and the text, and return the text's logits."""
    count = tokens.ids.shape[1]
    if not base.is_encoder_decoder:
        return base.logits(torch.cat([tokens.ids, text], dim=1))[:, count:]
    if tokens.are_embeddings:
        return base.logits(torch.cat([tokens.ids, text], dim=1))
    decoder = torch.cat([tokens.ids, random_text(DECODER_LENGTH, 77)], dim=1)
    return base.logits(text, decoder_input_ids=decoder)[:, count:]


def expected_loss(base: Subject, tokens: RealTokens, text: Tensor) -> Tensor:
    """Return a causal base model's loss of the text after the real tokens.

    Keys and values have no logit that predicts the first token of the text, so for them it does not count.
    """
    labels = torch.cat([torch.full_like(tokens.ids, -100), text], dim=1)
    if not tokens.are_embeddings:
        labels[:, tokens.ids.shape[1]] = -100
    result: Tensor = base.run(torch.cat([tokens.ids, text], dim=1), labels=labels).loss
    return result


def _decoder_states(subject: Subject, base: Subject, ids: Tensor, text: Tensor) -> SiteTokens:
    """Run the decoder on the tokens with the encoded text, and return their keys and values."""
    with torch.no_grad():
        states = base.model.get_encoder()(**base.reading(text)).last_hidden_state
    stacks = subject.model._softprompt_stacks
    with ready(stacks), torch.no_grad():
        inputs = {"input_ids": ids, "encoder_hidden_states": states, "use_cache": False}
        _, recorded = record_keys_values(stacks["decoder"], inputs)
    sites = sorted(site for site in recorded.keys if site.name == "decoder")
    return SiteTokens(tuple(recorded.keys[s][0] for s in sites), tuple(recorded.values[s][0] for s in sites))
