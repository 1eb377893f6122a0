"""Every model in transformers' auto classes: a prompt of real tokens acts as these tokens do, or is refused."""

import copy

import pytest
import torch
from helpers.swept_models import MAPPINGS, VOCABULARY, NoTinyModelError, build

import softprompt_zoo as zoo
from softprompt_zoo.sites.shared_pass import record_keys_values
from softprompt_zoo.tokens.input_tokens import InputTokens
from softprompt_zoo.tokens.kinds import PlainTokens
from softprompt_zoo.tokens.layer_tokens import LayerTokens
from softprompt_zoo.tokens.site_tokens import SiteTokens
from softprompt_zoo.trial import choice_of_reach, rehearsal
from softprompt_zoo.trial.examination import examine
from softprompt_zoo.trial.words import ready

COUNT = 5
METHODS = ("prompt_tuning", "prefix_tuning")
CHOSEN = {
    "causal": ["exaone4", "phimoe", "deepseek_v3", "gemma4_text", "bart", "bigbird_pegasus", "doge", "trocr"],
    "masked": ["layoutlm", "splinter", "rembert"],
    "seq2seq": ["m2m_100", "umt5", "pegasus_x"],
}
"""Models that run by default: one for each thing that has been wrong."""
REFUSED = {
    ("causal", "doge"): METHODS,
    ("causal", "gemma4_text"): ("prompt_tuning",),
    ("masked", "rembert"): ("prefix_tuning",),
    ("seq2seq", "pegasus_x"): ("prefix_tuning",),
}
"""Refused combinations of the chosen models; all others work."""
VERSIONS_DIFFER = {("seq2seq", "umt5")}
"""Models not on the attention interface of the oldest transformers we claim, where prefixes are refused."""


def cases(chosen):
    """List kind, name and method of the chosen models, which run by default, or of all others."""
    return [
        (kind, name, method)
        for kind, names in MAPPINGS.items()
        for name in (CHOSEN[kind] if chosen else [name for name in names if name not in CHOSEN[kind]])
        for method in METHODS
    ]


def text_of(length, seed):
    return torch.randint(3, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


WORDS, DECODED = text_of(COUNT, 33), text_of(6, 77)
TEXTS = [text_of(9, 0), text_of(4, 1)]


def logits(model, kind, ids, mask=None, decoded=DECODED):
    """Run a model and return its first output, `(rows, length, …)`."""
    mask = {} if mask is None else {"attention_mask": mask}
    decoder = {"decoder_input_ids": decoded.expand(ids.shape[0], -1)} if kind == "seq2seq" else {}
    return model(ids, **mask, **decoder)[0]


def difference(given, expected):
    """Return the largest difference, relative to the largest logit."""
    return float((given - expected).abs().max() / max(1.0, float(expected.abs().max())))


def padded():
    """Put the texts into one batch, padded on the left."""
    length = max(text.shape[1] for text in TEXTS)
    rows = [torch.nn.functional.pad(text, (length - text.shape[1], 0)) for text in TEXTS]
    return torch.cat(rows), (torch.cat(rows) != 0).long()


def fill_with_words(model, base, kind):
    """Make the model's prompt one of real tokens; return the input in which the base model reads them, or `None`."""
    host = model.prompts
    tokens = host["default"].place(host.backbone).tokens
    if isinstance(tokens, InputTokens):
        plain, place = InputTokens(host.backbone.embed(WORDS[0])), "text"
    elif host.backbone.family == "causal":
        plain, place = host.backbone.keys_values(WORDS[0]), "text"
    elif kind == "seq2seq":
        plain, place = _decoder_states(model, base), "decoder"
    else:
        return None  # keys and values of words that would see the text
    host["default"].learned = PlainTokens(plain.tensors())
    return place


def _decoder_states(model, base):
    stack = model._softprompt_stacks["decoder"]
    states = base.get_encoder()(TEXTS[0]).last_hidden_state
    with ready(model._softprompt_stacks):
        _, seen = record_keys_values(stack, {"input_ids": WORDS, "encoder_hidden_states": states, "use_cache": False})
    sites = sorted(site for site in seen.keys if site.name == "decoder")
    return LayerTokens(
        {"decoder": SiteTokens(tuple(seen.keys[s][0] for s in sites), tuple(seen.values[s][0] for s in sites))}
    )


def check_texts(model, base, kind, place):
    """Check that the text after the prompt gives what it gives after the words."""
    with_words = torch.cat([WORDS, TEXTS[0]], dim=1)
    if place == "decoder":
        expected = logits(base, kind, TEXTS[0], decoded=torch.cat([WORDS, DECODED], dim=1))[:, COUNT:]
    else:
        expected = logits(base, kind, with_words)
        expected = expected if kind == "seq2seq" else expected[:, COUNT:]
    assert difference(logits(model, kind, TEXTS[0]), expected) < 1e-4


def check_padding(model, base, kind):
    """Check that padding changes nothing if it changes nothing in the base model."""
    ids, mask = padded()

    def moved(one):
        batch = logits(one, kind, ids, mask)
        alone = [logits(one, kind, text)[0] for text in TEXTS]
        rows = [row if kind == "seq2seq" else row[seen.bool()] for row, seen in zip(batch, mask, strict=True)]
        return max(difference(row, text) for row, text in zip(rows, alone, strict=True))

    if moved(base) < 1e-4:
        assert moved(model) < 1e-4


def check_generation(model, base):
    """Check that tokens generated with either kind of cache have the logits of the whole text."""
    ids, mask = padded()
    for cache in ({}, {"cache_implementation": "static"}):
        options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        try:
            bare = _written(base, torch.cat([WORDS, TEXTS[0]], dim=1), None, {**options, **cache})
        except Exception:
            continue  # the base model cannot either
        if difference(*bare) > 1e-4:
            continue
        try:
            found = model.generate(ids, attention_mask=mask, **options, **cache)
        except zoo.UnsupportedError:
            return
        for row, text in enumerate(TEXTS):
            whole = torch.cat([WORDS, text, found.sequences[row : row + 1, ids.shape[1] : -1]], dim=1)
            expected = base(whole, use_cache=False)[0][0, COUNT + text.shape[1] - 1 :]
            assert difference(torch.stack(found.logits, dim=1)[row], expected) < 1e-4, cache


def _written(model, ids, mask, options):
    """Return the logits of the generated tokens, and those of the whole text at once."""
    found = model.generate(ids, attention_mask=mask, **options)
    whole = model(found.sequences[:, :-1], use_cache=False)[0][:, ids.shape[1] - 1 :]
    return torch.stack(found.logits, dim=1), whole


def check_sweep(kind, name, method, is_refused=None):
    try:
        base = build(kind, name)
    except NoTinyModelError as reason:
        pytest.skip(str(reason).splitlines()[0])
    given = copy.deepcopy(base)
    modules = [(type(module), dict(module._forward_pre_hooks)) for module in given.modules()]
    implementation = given.config._attn_implementation
    try:
        model = zoo.get_method(method)(given, num_virtual_tokens=COUNT)
    except zoo.UnsupportedError:
        assert is_refused in (None, True)
        assert [(type(module), dict(module._forward_pre_hooks)) for module in given.modules()] == modules
        assert given.config._attn_implementation == implementation
        assert torch.equal(logits(given, kind, TEXTS[0]), logits(base, kind, TEXTS[0]))
        return
    assert not is_refused
    model.eval()
    place = fill_with_words(model, base, kind)
    if place is not None:
        check_texts(model, base, kind, place)
    check_padding(model, base, kind)
    if place is not None and kind == "causal" and model.can_generate():
        check_generation(model, base)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "name", "method"), cases(chosen=True))
def test_a_prompt_of_real_tokens_is_right_or_refused(kind, name, method):
    is_refused = None if (kind, name) in VERSIONS_DIFFER else method in REFUSED.get((kind, name), ())
    check_sweep(kind, name, method, is_refused)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("kind", "name", "method"), cases(chosen=False))
def test_a_prompt_of_real_tokens_is_right_or_refused_everywhere(kind, name, method):
    check_sweep(kind, name, method)


def forget():
    rehearsal._FOUND.clear()
    choice_of_reach._FOUND.clear()


def found(model):
    """Return what is found out about a model, or why it is refused."""
    try:
        backbone, there = examine(model)
    except zoo.UnsupportedError as error:
        return str(error)
    facts = [(type(one.reach), one.is_padding_sensitive, one.attentions, one.shapes) for one in there.values()]
    return backbone.sizes(), backbone.inside.refuse.input_problem, facts


def check_leading_layers(kind, name, monkeypatch):
    try:
        model = build(kind, name, depth=5)
    except NoTinyModelError as reason:
        pytest.skip(str(reason).splitlines()[0])
    forget()
    by_leading_layers = found(model)
    assert found(model) == by_leading_layers  # the remembered result
    forget()
    monkeypatch.setattr(rehearsal, "_passes", lambda family, stacks: False)
    monkeypatch.setattr("softprompt_zoo.backbone.probe._idle_linear", torch.nn.functional.linear)
    assert by_leading_layers == found(model)


@pytest.mark.parametrize("name", CHOSEN["causal"])
def test_the_leading_layers_tell_what_all_layers_do(name, monkeypatch):
    check_leading_layers("causal", name, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in MAPPINGS.items() for name in names])
def test_the_leading_layers_tell_what_all_layers_do_everywhere(kind, name, monkeypatch):
    check_leading_layers(kind, name, monkeypatch)
