"""Virtual tokens inside the text: made of real words, they must give what the base model gives for these words."""

import copy
import dataclasses

import pytest
import torch
from transformers import RobertaConfig, RobertaForMaskedLM, Trainer, TrainingArguments

import softprompt_zoo as zoo
from softprompt_zoo.prompt import MergedTokens
from softprompt_zoo.testing import TINY_MODELS, tiny_model
from softprompt_zoo.testing.checks import turn_checkpointing_on
from softprompt_zoo.testing.models import CLASSIFICATION
from softprompt_zoo.testing.subject import LENGTHS, Subject, assert_equal, pad, random_text

METHODS = ["prompt_tuning", "p_tuning"]
TOKENS = 5
CAUSAL = ["gpt2", "llama", "gemma3", "mistral"]
WRITERS = [*CAUSAL, "t5", "bart"]
TEXTS = [random_text(length, seed) for seed, length in enumerate(LENGTHS)]
PLACES = [{0: 0, 1: 1, 4: 3, 8: 3}, {2: 4}, {5: 2, 6: 0}]
"""Per text, where a virtual token stands, and which: at the start, at the end, twice, out of order."""
PLACEHOLDER = 3
NEW_TOKENS = 5


def with_slots(places=PLACES, side="right"):
    """Texts with placeholders, their mask, and the slots."""
    index = [torch.full_like(text, -1) for text in TEXTS]
    for row, chosen in zip(index, places, strict=True):
        for place, token in chosen.items():
            row[0, place] = token
    texts = [text.masked_fill(row >= 0, PLACEHOLDER) for text, row in zip(TEXTS, index, strict=True)]
    ids, mask = pad(texts, side)
    slots, _ = pad([row + 1 for row in index], side)
    return ids, mask, slots - 1


def spoken(ids, slots, words):
    """The same texts with real words in the slots; a column of `words` per virtual token, a row per text or one."""
    words = words.expand(ids.shape[0], -1)
    return torch.where(slots >= 0, words.gather(1, slots.clamp(min=0)), ids)


def made_of(model, name, seed):
    """Make a prompt of real words and return them, `(1, tokens)`."""
    host = model.prompts
    words = random_text(host[name].num_virtual_tokens, 40 + seed)
    host[name].learned = MergedTokens({"embeddings": host.backbone.embed(words[0]).detach().clone()})
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


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", TINY_MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_slots_made_of_words_give_what_the_words_give(method, architecture, side):
    subject, words = subject_and_words(architecture, method)
    base = base_of(architecture)
    ids, mask, slots = with_slots(side=side)
    logits = subject.logits(ids, mask, soft_slots=slots)
    expected = base_logits(base, spoken(ids, slots, words), mask)
    assert_equal(seen(logits, mask, subject), seen(expected, mask, base), "logits")
    assert not torch.allclose(seen(base_logits(base, ids, mask), mask, base), seen(expected, mask, base), atol=1e-2)


@pytest.mark.parametrize("architecture", TINY_MODELS)
def test_rows_with_other_places_give_what_they_give_alone(architecture):
    subject = Subject.prompted(architecture, "p_tuning", {"num_virtual_tokens": TOKENS})
    ids, mask, slots = with_slots()
    batch = subject.logits(ids, mask, soft_slots=slots)
    for row, text in enumerate(TEXTS):
        length = text.shape[1]
        alone = subject.logits(ids[row : row + 1, :length], soft_slots=slots[row : row + 1, :length])[0]
        assert_equal(batch[row] if subject.is_encoder_decoder else batch[row, :length], alone, f"row {row}")


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bert", "t5", "bart"])
def test_only_the_slots_differ_from_the_text(architecture):
    subject, words = subject_and_words(architecture)
    ids, mask, slots = with_slots()
    seen_embeddings = []
    stack = next(iter(subject.model._softprompt_stacks.values())).module
    hook = lambda module, args, kwargs: seen_embeddings.append(kwargs["inputs_embeds"])  # noqa: E731
    handle = stack.register_forward_pre_hook(hook, with_kwargs=True)
    subject.run(ids, mask, soft_slots=slots)
    handle.remove()
    embed = subject.model.prompts.backbone.embed
    text = slots < 0
    assert torch.equal(seen_embeddings[0][text], embed(ids)[text])
    assert torch.equal(seen_embeddings[0][~text], embed(spoken(ids, slots, words))[~text])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert", "t5", "bart"])
def test_outputs_and_losses_are_those_of_the_words(architecture):
    """No virtual position appears, labels keep their places, and the label of a slot counts unless it is -100."""
    subject, words = subject_and_words(architecture, implementation="eager")
    base = Subject(architecture, tiny_model(architecture, implementation="eager"))
    ids, mask, slots = with_slots()
    every = random_text(8, 78).repeat(3, 1) if subject.is_encoder_decoder else ids.masked_fill(mask == 0, -100)
    for given in (every, every if subject.is_encoder_decoder else every.masked_fill(slots >= 0, -100)):
        more = {"labels": given, "output_hidden_states": True, "output_attentions": True}
        ours = subject.run(ids, mask, soft_slots=slots, **more)
        theirs = base.run(spoken(ids, slots, words), mask, **more)
        assert_equal(ours.loss, theirs.loss, "loss")
    assert ours.keys() == theirs.keys()
    for name in [name for name in theirs if name.endswith(("hidden_states", "attentions"))]:
        for one, other in zip(ours[name], theirs[name], strict=True):
            assert one.shape == other.shape, name


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert", "t5", "bart"])
def test_gradients_are_those_of_the_embeddings_at_the_slots(architecture):
    """A virtual token that stands twice gets both gradients, one that no row uses gets none."""
    subject = Subject.prompted(architecture, "prompt_tuning", {"num_virtual_tokens": TOKENS + 2})
    base = base_of(architecture)
    ids, mask, slots = with_slots()
    table = subject.model.prompts["default"].learned.embeddings
    weights = 1 if subject.is_encoder_decoder else mask[..., None]
    (weights * subject.model(**subject.inputs(ids, mask, soft_slots=slots)).logits.pow(2)).sum().backward()

    inputs = base.model.get_input_embeddings()(ids).detach()
    inputs[slots >= 0] = table.detach()[slots[slots >= 0]]
    inputs.requires_grad_()
    arguments = base.inputs(ids, mask, inputs_embeds=inputs)
    del arguments["input_ids"]
    (weights * base.model(**arguments).logits.pow(2)).sum().backward()
    expected = torch.zeros_like(table)
    expected.index_add_(0, slots[slots >= 0], inputs.grad[slots >= 0])
    assert_equal(table.grad, expected, "gradient")
    assert (table.grad[:TOKENS].abs().amax(1) > 0).all()
    assert table.grad[TOKENS:].abs().max() == 0


def generate(subject, ids, mask, **options):
    output = subject.model.generate(
        ids,
        attention_mask=mask,
        **{"max_new_tokens": NEW_TOKENS, "do_sample": False, **options},
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences[:, -NEW_TOKENS:], torch.stack(output.logits, dim=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", WRITERS)
def test_generation_is_that_of_the_words(architecture, method):
    """Cached, uncached, with a static cache, and by repeated forward; padded on the left."""
    subject, words = subject_and_words(architecture, method)
    base = base_of(architecture)
    ids, mask, slots = with_slots(side="left" if subject.is_causal else "right")
    expected, expected_logits = generate(base, spoken(ids, slots, words), mask)
    for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        text, logits = generate(subject, ids, mask, soft_slots=slots, **options)
        assert torch.equal(text, expected), options
        assert_equal(logits, expected_logits, f"logits with {options}")
    for step in range(NEW_TOKENS):
        new = expected[:, :step]
        if subject.is_causal:
            more = torch.cat([ids, new], dim=1), torch.cat([mask, torch.ones_like(new)], dim=1)
            logits = subject.logits(*more, soft_slots=torch.cat([slots, torch.full_like(new, -1)], dim=1))
        else:
            start = torch.zeros(3, 1, dtype=torch.long)
            logits = subject.logits(ids, mask, soft_slots=slots, decoder_input_ids=torch.cat([start, new], dim=1))
        assert_equal(logits[:, -1], expected_logits[:, step], f"token {step} by a forward over the whole text")


@pytest.mark.parametrize("architecture", WRITERS)
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 3, "use_cache": False},
        {"do_sample": True, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
    ],
    ids=str,
)
def test_beams_and_samples_are_those_of_the_words(architecture, options):
    subject, words = subject_and_words(architecture)
    base = base_of(architecture)
    ids, mask, slots = with_slots(side="left" if subject.is_causal else "right")
    torch.manual_seed(0)
    expected, _ = generate(base, spoken(ids, slots, words), mask, **options)
    torch.manual_seed(0)
    text, _ = generate(subject, ids, mask, soft_slots=slots, **options)
    assert torch.equal(text, expected)


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_assisted_decoding_and_prompt_lookup(architecture):
    subject, words = subject_and_words(architecture)
    base = base_of(architecture)
    ids, mask, slots = (part[:1] for part in with_slots())
    expected, _ = generate(base, spoken(ids, slots, words), mask)
    for options in ({"assistant_model": base.model}, {"prompt_lookup_num_tokens": 2}):
        assert torch.equal(generate(subject, ids, mask, soft_slots=slots, **options)[0], expected), options


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_guidance_reads_a_second_text_without_slots(architecture):
    """The last token alone, or a negative prompt; it was read with the slots of the first text."""
    subject, _ = subject_and_words(architecture)
    ids, mask, slots = (part[:1] for part in with_slots())
    for options in ({}, {"negative_prompt_ids": TEXTS[1]}):
        with pytest.raises(zoo.UnsupportedError, match="generate runs the model on a second text, as guidance_scale"):
            generate(subject, ids, mask, soft_slots=slots, guidance_scale=2.0, **options)
    generate(subject, ids, mask, guidance_scale=2.0)
    with subject.model.prompts.disabled():
        text, _ = generate(subject, ids, mask, soft_slots=slots, guidance_scale=2.0)
    assert torch.equal(text, generate(base_of(architecture), ids, mask, guidance_scale=2.0)[0])


def test_slots_need_a_text():
    """Without one, generate begins a text of one token; slots further behind would stand in what is written."""
    subject, _ = subject_and_words("llama")
    with pytest.raises(ValueError, match=r"soft_slots has shape \(1, 2\) for 0 rows of 0 tokens"):
        subject.model.generate(soft_slots=torch.tensor([[0, 1]]), bos_token_id=1, max_new_tokens=2)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_prefill_in_chunks(architecture):
    subject, words = subject_and_words(architecture)
    ids, mask, slots = with_slots(side="left")
    expected, logits = generate(base_of(architecture), spoken(ids, slots, words), mask)
    text, chunked = generate(subject, ids, mask, soft_slots=slots, prefill_chunk_size=4)
    assert torch.equal(text, expected)
    assert_equal(chunked, logits, "logits")


@pytest.mark.parametrize("architecture", CAUSAL)
def test_step_by_step_with_a_cache(architecture):
    """The slots cover the text from its first token, so every step sees its own."""
    subject, _ = subject_and_words(architecture)
    ids, _, slots = (part[:1] for part in with_slots())
    full = subject.logits(ids, soft_slots=slots)
    cache = None
    for step in range(ids.shape[1]):
        output = subject.run(
            ids[:, step : step + 1], soft_slots=slots[:, : step + 1], past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        assert_equal(output.logits[:, 0], full[:, step], f"step {step}")


@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_second_turn_goes_on_from_the_cache(architecture):
    subject, words = subject_and_words(architecture)
    ids, mask, slots = (part[:1] for part in with_slots())
    first = subject.model.generate(
        ids, attention_mask=mask, soft_slots=slots, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
    )
    text = torch.cat([first.sequences, TEXTS[1]], dim=1)
    slots = torch.nn.functional.pad(slots, (0, text.shape[1] - slots.shape[1]), value=-1)
    slots[0, -2] = 4
    everything = spoken(text, slots, words), torch.ones_like(text)
    expected, logits = generate(base_of(architecture), *everything)
    ours, our_logits = generate(
        subject, text, torch.ones_like(text), soft_slots=slots, past_key_values=first.past_key_values
    )
    assert torch.equal(ours, expected)
    assert_equal(our_logits, logits, "logits")


@pytest.mark.parametrize("architecture", WRITERS)
def test_another_prompt_in_every_row(architecture):
    """Rows fill their slots from their own prompt; a row without a prompt has none, and is the base model's."""
    subject, words = subject_and_words(architecture)
    subject.model.prompts.add("longer", "p_tuning", num_virtual_tokens=TOKENS + 3)
    longer = made_of(subject.model, "longer", 1)
    base = base_of(architecture)
    rows = ["longer", None, "default"]
    places = [{0: 7, 5: 0}, {}, {3: 4}]
    side = "left" if subject.is_causal else "right"
    ids, mask, slots = with_slots(places, side)
    table = torch.stack([longer[0], torch.zeros_like(longer[0]), torch.nn.functional.pad(words[0], (0, 3))])
    heard = spoken(ids, slots, table)
    logits = subject.logits(ids, mask, soft_slots=slots, prompts=rows)
    assert_equal(seen(logits, mask, subject), seen(base_logits(base, heard, mask), mask, base), "logits")
    by_index = subject.logits(ids, mask, soft_slots=slots, prompts=torch.tensor([1, -1, 0]))
    assert torch.equal(logits, by_index)
    for beams in (1, 2):
        text, _ = generate(subject, ids, mask, soft_slots=slots, prompts=rows, num_beams=beams)
        assert torch.equal(text, generate(base, heard, mask, num_beams=beams)[0]), f"{beams} beams"


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_two_prompts_of_a_row_are_counted_through(architecture):
    subject, words = subject_and_words(architecture)
    subject.model.prompts.add("second", "p_tuning", num_virtual_tokens=3)
    second = made_of(subject.model, "second", 1)
    ids, mask, slots = with_slots([{0: 7, 5: 4}, {1: 5}, {3: 6, 4: 0}])
    expected = base_logits(base_of(architecture), spoken(ids, slots, torch.cat([words, second], dim=1)), mask)
    logits = subject.logits(ids, mask, soft_slots=slots, prompts=[["default", "second"]] * 3)
    assert_equal(seen(logits, mask, subject), seen(expected, mask, subject), "logits")


class Tasks:
    """A table of virtual tokens for each of two tasks."""

    NAME = "tasks_in_slots"

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(zoo.MethodConfig):
        num_tasks: int = 2

    class Parameters(torch.nn.Module):
        def __init__(self, config, backbone):
            super().__init__()
            self.tables = torch.nn.Parameter(torch.empty(2, config.num_virtual_tokens, backbone.hidden_size))

        def initialize(self, config, backbone):
            with torch.no_grad():
                self.tables.copy_(backbone.embed(torch.arange(20, 20 + self.tables[..., 0].numel()).view(2, -1)))

    @zoo.hookimpl
    def build_virtual_tokens(self, parameters):
        return zoo.InputTokens(parameters.tables)

    @zoo.hookimpl
    def inject(self, tokens):
        return zoo.Placement(tokens)

    @zoo.hookimpl
    def merge(self, parameters):
        return zoo.InputTokens(parameters.tables)


def test_every_row_fills_its_slots_for_its_own_task():
    zoo.register(Tasks())
    try:
        subject = Subject("llama", zoo.get_method("tasks_in_slots")(tiny_model("llama"), num_virtual_tokens=TOKENS))
        base = base_of("llama")
        words = torch.arange(20, 30).view(2, TOKENS)
        ids, mask, slots = with_slots(side="left")
        tasks = torch.tensor([1, 0, 1])
        heard = spoken(ids, slots, words[tasks])
        logits = subject.logits(ids, mask, soft_slots=slots, task_ids=tasks)
        assert_equal(logits[mask.bool()], base_logits(base, heard, mask)[mask.bool()], "logits")
        text, _ = generate(subject, ids, mask, soft_slots=slots, task_ids=tasks, num_beams=2)
        assert torch.equal(text, generate(base, heard, mask, num_beams=2)[0])
    finally:
        zoo.unregister("tasks_in_slots")


@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_prefix_stands_in_front_of_a_text_with_slots(architecture):
    subject, words = subject_and_words(architecture)
    host = subject.model.prompts
    front = random_text(4, 50)
    host.add("prefix", "prefix_tuning", num_virtual_tokens=4)
    with torch.no_grad():
        for site, own in host["prefix"].learned.prefixes.items():
            own.embeddings.copy_(zoo.tokens.flatten_layers(host.backbone.keys_values(front[0]).sites[site]))
    base = base_of(architecture)
    ids, mask, slots = with_slots(side="left")
    heard = [text[keep.bool()][None] for text, keep in zip(spoken(ids, slots, words), mask, strict=True)]
    long_ids, long_mask = pad([torch.cat([front, text], dim=1) for text in heard], "left")
    expected = base_logits(base, long_ids, long_mask)[:, 4:]
    for order in (["prefix", "default"], ["default", "prefix"]):
        host.activate(*order)
        logits = subject.logits(ids, mask, soft_slots=slots)
        assert_equal(logits[mask.bool()], expected[mask.bool()], f"logits of {order}")
    text, _ = generate(subject, ids, mask, soft_slots=slots)
    assert torch.equal(text, generate(base, long_ids, long_mask)[0])


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_a_decoder_that_reads_the_text_once_more_has_no_slots(architecture):
    """It would see the ids that hold the places."""
    model = zoo.get_method("prompt_tuning")(tiny_model(architecture, task=CLASSIFICATION), num_virtual_tokens=TOKENS)
    slots = torch.tensor([[0, 1, -1, 3, -1, -1]])
    ids = torch.tensor([[PLACEHOLDER, PLACEHOLDER, 9, PLACEHOLDER, 11, model.config.eos_token_id]])
    with pytest.raises(zoo.UnsupportedError, match=r"virtual tokens in a text that the decoder of .* reads, too"):
        model(input_ids=ids, soft_slots=slots)
    with torch.no_grad():
        plain = model(input_ids=ids, prompts=[None]).logits
        assert torch.equal(model(input_ids=ids, soft_slots=torch.full_like(slots, -1)).logits, plain)
        held = [ids.masked_fill(slots >= 0, placeholder) for placeholder in (PLACEHOLDER, 8)]
        read = [model(input_ids=text, soft_slots=slots, decoder_input_ids=ids).logits for text in held]
    assert torch.equal(*read)


def test_an_encoders_prefix_works_beside_slots():
    """The prefix alone, on the text with words in the slots, is the oracle."""
    for architecture in ("bert", "t5", "bart"):
        subject, words = subject_and_words(architecture)
        subject.model.prompts.add("prefix", "prefix_tuning", num_virtual_tokens=4)
        ids, mask, slots = with_slots()
        both = subject.logits(ids, mask, soft_slots=slots, prompts=[["prefix", "default"]] * 3)
        alone = subject.logits(spoken(ids, slots, words), mask, prompts="prefix")
        assert_equal(seen(both, mask, subject), seen(alone, mask, subject), f"{architecture}'s logits")


def test_prompts_that_come_and_go_between_calls_with_slots():
    """What eval mode keeps of one call is not taken for another's."""
    subject, words = subject_and_words("llama")
    subject.model.prompts.add("second", "prompt_tuning", num_virtual_tokens=3)
    second = made_of(subject.model, "second", 1)
    base = base_of("llama")
    ids, _, slots = (part[:1] for part in with_slots([{0: 1, 5: 2}, {}, {}]))
    cases = ((["default"], words), (["second"], second), (["second", "default"], second), (["default"], words))
    for names, own in cases:
        logits = subject.logits(ids, soft_slots=slots, prompts=[names])
        assert_equal(logits, base.logits(spoken(ids, slots, own)), f"logits of {names}")
    front = base.logits(torch.cat([words, TEXTS[1]], dim=1))[:, TOKENS:]
    assert_equal(subject.logits(TEXTS[1]), front, "the prompt in front, without slots")


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
def test_checkpointing_changes_memory_only(architecture, use_reentrant):
    subject = Subject.prompted(architecture, "p_tuning", {"num_virtual_tokens": TOKENS})
    ids, mask, slots = with_slots()
    labels = random_text(8, 78).repeat(3, 1) if subject.is_encoder_decoder else ids
    inputs = subject.inputs(ids, mask, soft_slots=slots, labels=labels)
    for module in subject.model.modules():
        for name in ("p", "dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    subject.model.train()
    subject.model(**inputs).loss.backward()
    plain = subject.gradients()
    turn_checkpointing_on(subject.model, use_reentrant)
    subject.model(**inputs).loss.backward()
    for name, gradient in subject.gradients().items():
        assert_equal(gradient, plain[name], f"gradient of {name}")


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_it_compiles_into_one_graph(architecture):
    subject, _ = subject_and_words(architecture)
    ids, mask, slots = with_slots()
    expected = subject.logits(ids, mask, soft_slots=slots)
    torch._dynamo.reset()
    compiled = torch.compile(subject.model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_equal(compiled(**subject.inputs(ids, mask, soft_slots=slots)).logits, expected, "compiled logits")


def test_a_model_that_counts_positions_from_its_ids():
    """RoBERTa's positions come from the ids, from which slots are taken away."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = RobertaConfig(vocab_size=101, max_position_embeddings=64, pad_token_id=0, **sizes)
    base = RobertaForMaskedLM(config).eval()
    for parameter in base.parameters():
        parameter.data.normal_(std=0.3)
    model = zoo.get_method("prompt_tuning")(copy.deepcopy(base), num_virtual_tokens=TOKENS)
    words = made_of(model, "default", 0)
    for side in ("left", "right"):
        ids, mask, slots = with_slots(side=side)
        with torch.no_grad():
            ours = model(ids, attention_mask=mask, soft_slots=slots).logits
            theirs = base(spoken(ids, slots, words), attention_mask=mask).logits
        assert_equal(ours[mask.bool()], theirs[mask.bool()], f"logits padded on the {side}")


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_disabled_and_detached_models_read_the_placeholders(architecture):
    subject, _ = subject_and_words(architecture)
    ids, mask, slots = with_slots()
    expected = base_of(architecture).logits(ids, mask)
    with subject.model.prompts.disabled():
        assert torch.equal(subject.logits(ids, mask, soft_slots=slots), expected)
    zoo.detach(subject.model)
    assert torch.equal(subject.logits(ids, mask), expected)


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_text_without_slots_sees_no_prompt(architecture):
    """Once a call has slots, its rows see virtual tokens there and nowhere else."""
    subject, _ = subject_and_words(architecture)
    ids, mask = pad(TEXTS, "right")
    logits = subject.logits(ids, mask, soft_slots=torch.full_like(ids, -1))
    assert_equal(seen(logits, mask, subject), seen(base_of(architecture).logits(ids, mask), mask, subject), "logits")


def test_embeddings_instead_of_ids():
    subject, words = subject_and_words("llama")
    ids, mask, slots = with_slots()
    embeddings = subject.model.get_input_embeddings()(ids)
    with torch.no_grad():
        logits = subject.model(inputs_embeds=embeddings, attention_mask=mask, soft_slots=slots).logits
    assert_equal(logits, subject.logits(ids, mask, soft_slots=slots), "logits")
    text = subject.model.generate(
        inputs_embeds=embeddings[:1], attention_mask=mask[:1], soft_slots=slots[:1], max_new_tokens=4, do_sample=False
    )
    heard = spoken(ids, slots, words)[:1]
    expected = base_of("llama").model.generate(heard, attention_mask=mask[:1], max_new_tokens=4, do_sample=False)
    assert torch.equal(text, expected[:, -4:])


def test_the_stack_inside_takes_slots_too():
    subject, words = subject_and_words("llama")
    ids, _, slots = (part[:1] for part in with_slots())
    with torch.no_grad():
        states = subject.model.model(ids, soft_slots=slots).last_hidden_state
        expected = base_of("llama").model.model(spoken(ids, slots, words)).last_hidden_state
    assert_equal(states, expected, "hidden states")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32])
def test_any_integers_do(dtype):
    subject, _ = subject_and_words("llama")
    ids, mask, slots = with_slots()
    expected = subject.logits(ids, mask, soft_slots=slots)
    assert torch.equal(subject.logits(ids, mask, soft_slots=slots.to(dtype)), expected)


def test_half_precision():
    model = zoo.get_method("p_tuning")(tiny_model("llama").to(torch.bfloat16), num_virtual_tokens=TOKENS)
    ids, mask, slots = with_slots()
    output = model(ids, attention_mask=mask, soft_slots=slots, labels=ids)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert all(parameter.grad.abs().max() > 0 for parameter in model.prompts.parameters())


def change(slots, row, column, value):
    slots = slots.clone()
    slots[row, column] = value
    return slots


SHAPE = "give one entry for each token of the text from the first on, like attention_mask"
WRONG = {
    "too large": (lambda s: change(s, 1, 2, 5), "row 1 of soft_slots uses virtual token 5, but its prompts have 5 at"),
    "too small": (lambda s: change(s, 2, 1, -100), "row 2 of soft_slots has -100; expected a virtual token's index"),
    "short": (lambda s: s[:, :-1], rf"soft_slots has shape \(3, 8\) for 3 rows of 9 tokens; {SHAPE}"),
    "long": (lambda s: torch.cat([s, s], 1), rf"soft_slots has shape \(3, 18\) for 3 rows of 9 tokens; {SHAPE}"),
    "one row": (lambda s: s[:1], rf"soft_slots has shape \(1, 9\) for 3 rows of 9 tokens; {SHAPE}"),
    "no rows": (lambda s: s[:0], rf"soft_slots has shape \(0, 9\) for 3 rows of 9 tokens; {SHAPE}"),
    "one axis": (lambda s: s[0], r"soft_slots has shape \(9,\) and dtype torch.int64; expected integers of shape"),
    "numbers": (lambda s: s.float(), "dtype torch.float32; expected integers of shape"),
    "flags": (lambda s: s >= 0, "dtype torch.bool; expected integers of shape"),
}


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_slots_in_forward(architecture, mistake):
    spoil, text = WRONG[mistake]
    subject, _ = subject_and_words(architecture)
    ids, mask, slots = with_slots()
    with pytest.raises(ValueError, match=text):
        subject.run(ids, mask, soft_slots=spoil(slots))


@pytest.mark.parametrize("architecture", ["llama", "t5"])
@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_slots_in_generate(architecture, mistake):
    spoil, text = WRONG[mistake]
    subject, _ = subject_and_words(architecture)
    ids, mask, slots = with_slots()
    with pytest.raises(ValueError, match=text):
        generate(subject, ids, mask, soft_slots=spoil(slots))


def test_slots_that_are_a_list():
    subject, _ = subject_and_words("llama")
    ids, mask, slots = with_slots()
    with pytest.raises(TypeError, match="soft_slots is list; expected integers of shape"):
        subject.run(ids, mask, soft_slots=slots.tolist())
    with pytest.raises(TypeError, match="soft_slots is list; expected integers of shape"):
        generate(subject, ids, mask, soft_slots=slots.tolist())


def test_slots_of_the_new_tokens_alone():
    """A step with a cache would otherwise read them as those of the first tokens."""
    subject, _ = subject_and_words("llama")
    ids, _, slots = (part[:1] for part in with_slots())
    cache = subject.run(ids[:, :4], soft_slots=slots[:, :4], use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"shape \(1, 1\) for 1 rows of 5 tokens, 4 of them in the cache"):
        subject.run(ids[:, 4:5], soft_slots=slots[:, 4:5], past_key_values=cache)
    with pytest.raises(ValueError, match="row 0 of soft_slots uses virtual token 9, but its prompts have 5 at"):
        subject.run(ids[:, 4:5], soft_slots=change(slots[:, :5], 0, 4, 9), past_key_values=cache)


@pytest.mark.parametrize("rows", [["default", None, "default"], [None, None, None]])
def test_a_slot_in_a_row_without_a_prompt(rows):
    subject, _ = subject_and_words("llama")
    ids, mask, slots = with_slots([{}, {3: 0}, {}])
    with pytest.raises(ValueError, match="row 1 of soft_slots uses virtual token 0, but its prompts have 0 at"):
        subject.run(ids, mask, soft_slots=slots, prompts=rows)


def test_slots_for_a_method_without_input_tokens():
    subject = Subject.prompted("llama", "prefix_tuning", {"num_virtual_tokens": TOKENS})
    ids, mask, slots = with_slots()
    with pytest.raises(ValueError, match="but its prompts have 0 at the input embeddings"):
        subject.run(ids, mask, soft_slots=slots)


def test_no_prompt_is_active():
    subject, _ = subject_and_words("llama")
    subject.model.prompts.activate()
    ids, mask, slots = with_slots()
    with pytest.raises(ValueError, match="its prompts have 0 at the input embeddings"):
        subject.run(ids, mask, soft_slots=slots)
    expected = base_of("llama").logits(ids, mask)
    assert torch.equal(subject.logits(ids, mask, soft_slots=torch.full_like(slots, -1)), expected)


def test_trainer_keeps_the_column_and_trains_the_slots(tmp_path):
    torch.manual_seed(0)
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=TOKENS + 1)
    table = model.prompts["default"].learned.embeddings
    before = table.detach().clone()
    ids, mask, slots = with_slots()
    labels = ids.masked_fill(mask == 0, -100)
    columns = {"input_ids": ids, "attention_mask": mask, "soft_slots": slots, "labels": labels}
    rows = [{name: column[row] for name, column in columns.items()} for row in range(3)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=3, learning_rate=1e-2, report_to="none"
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer._set_signature_columns_if_needed()
    assert "soft_slots" in trainer._signature_columns
    trainer.train()
    moved = (table.detach() - before).abs().amax(1)
    assert (moved[:TOKENS] > 1e-3).all()
    assert moved[TOKENS] == 0
    with torch.no_grad():
        expected = model.eval()(**columns).loss
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
