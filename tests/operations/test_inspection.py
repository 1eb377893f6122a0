"""What `inspect` shows, checked against arithmetic and the base model's own attention."""

import re

import pytest
import torch
from helpers.products import in_turns
from helpers.several_prompts import ARCHITECTURES, batch, prompted

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model, tiny_tokenizer
from softprompt_zoo.testing.subject import LENGTHS, random_text
from softprompt_zoo.tokens.kinds import PlainTokens

WORDS = [5, 17, 30, 99]
TOKENIZER = tiny_tokenizer()
SITES = {"encoder": "encoder_attentions", "decoder": "decoder_attentions", "cross": "cross_attentions"}


def made_of_words(architecture, words=tuple(WORDS)):
    model = prompted(architecture, "prompt_tuning", (len(words), 1, 1))
    embeddings = model.prompts.backbone.embed(torch.tensor(words))
    model.prompts["a"].learned = PlainTokens({"embeddings": embeddings.clone()})
    return model


@pytest.mark.parametrize("nearest_by", ["cosine", "distance"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma3"])  # Gemma scales its embeddings
def test_the_nearest_words_of_words_are_themselves(architecture, nearest_by):
    found = zoo.inspect(made_of_words(architecture), "a", tokenizer=TOKENIZER, nearest_by=nearest_by)["a"]
    nearest = [near[0] for near in found.neighbours]
    assert [word.id for word in nearest] == WORDS
    assert [word.word for word in nearest] == ["w5", "w17", "w30", "w99"]
    assert [word.cosine for word in nearest] == pytest.approx([1] * 4, abs=1e-5)
    assert [word.distance for word in nearest] == pytest.approx([0] * 4, abs=1e-5)


@pytest.mark.parametrize("nearest_by", ["cosine", "distance"])
def test_neighbours_norms_and_similarities_are_those_of_the_table(nearest_by, monkeypatch):
    monkeypatch.setattr("softprompt_zoo.operations.inspect.ROWS_AT_ONCE", 30)  # of 101, to join several parts
    model = prompted("llama", "prompt_tuning")
    found = zoo.inspect(model, "a", neighbours=7, nearest_by=nearest_by)["a"]
    table, tokens = model.get_input_embeddings().weight, model.prompts["a"].learned.embeddings.detach()
    distances = (tokens[:, None] - table[None]).norm(dim=-1)
    cosines = torch.nn.functional.cosine_similarity(tokens[:, None], table[None], dim=-1)
    order = (distances if nearest_by == "distance" else -cosines).argsort(dim=1)[:, :7]
    assert [[word.id for word in near] for near in found.neighbours] == order.tolist()
    assert found.neighbours[0][0].word == f"#{order[0, 0]}"
    for values, name in ((distances, "distance"), (cosines, "cosine")):
        shown = torch.tensor([[getattr(word, name) for word in near] for near in found.neighbours])
        torch.testing.assert_close(shown, values.gather(1, order), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.norms["embeddings"].tokens[0], tokens.norm(dim=1))
    smaller = (table.norm(dim=1)[None] < tokens.norm(dim=1)[:, None]).float().mean(dim=1) * 100
    torch.testing.assert_close(found.norms["embeddings"].percentiles[0], smaller)
    unit = tokens / tokens.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.similarity, unit @ unit.T)


def attentions(model, output):
    if model.prompts.backbone.family == "encoder_decoder":
        return {site: getattr(output, name) for site, name in SITES.items()}
    return {next(iter(model.prompts.backbone.layers)): output.attentions}


def base_attentions(architecture, text):
    model = tiny_model(architecture, implementation="eager")
    with torch.no_grad():
        output = model(**text, output_attentions=True)
    return [
        getattr(output, name) for name in (*SITES.values(), "attentions") if getattr(output, name, None) is not None
    ]


@in_turns(
    architecture=[*ARCHITECTURES, "mistral", "albert", "bart", "bloom", "deberta_v2"],
    side=["left", "right"],
    method=["prompt_tuning", "prefix_tuning"],
)
def test_mass_and_the_texts_weights_add_to_one(architecture, method, side):
    model = prompted(architecture, method)
    text = batch(model, side)
    found = zoo.inspect(model, "a", inputs=text)["a"].attention
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(**text, prompts=["a"] * len(LENGTHS), output_attentions=True)
    assert found.shares
    if not any(base_attentions(architecture, text)):
        pytest.skip("the base model returns no attentions in this version of transformers")
    for site, weights in attentions(model, output).items():
        if site not in found.shares:
            assert (method, site) == ("prompt_tuning", "decoder")  # of an encoder-decoder
            continue
        is_second = site != "encoder" and model.prompts.backbone.family == "encoder_decoder"
        ones = torch.ones(len(LENGTHS), weights[0].shape[2], dtype=torch.bool)
        is_text = ones if is_second else text["attention_mask"].bool()
        own = torch.stack([layer.sum(dim=-1).mean(dim=1)[is_text].mean() for layer in weights])
        torch.testing.assert_close(found.shares[site] + own, torch.ones_like(own), atol=1e-5, rtol=0)
        if site in found.tokens:
            torch.testing.assert_close(found.tokens[site].sum(dim=1), found.shares[site])


@pytest.mark.parametrize("keys_values", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_real_tokens_get_what_the_base_model_gives_them(architecture, keys_values):
    model = made_of_words(architecture)
    if keys_values:
        states = model.prompts.backbone.keys_values(torch.tensor(WORDS))
        model.prompts.add("keys", "prefix_tuning", num_virtual_tokens=4)
        model.prompts["keys"].learned = PlainTokens(states.tensors())
    text = random_text(4, 5)  # as long as the prompt, whose own pass then has the same shape as the text's
    found = zoo.inspect(model, "keys" if keys_values else "a", inputs={"input_ids": text})
    base = tiny_model(architecture, implementation="eager")
    with torch.no_grad():
        weights = base(torch.cat([torch.tensor([WORDS]), text], dim=1), output_attentions=True).attentions
    expected = torch.stack([layer[0, :, 4:, :4].mean(dim=(0, 1)) for layer in weights])
    torch.testing.assert_close(found.prompts[0].attention.tokens["decoder"], expected, atol=1e-5, rtol=0)


def test_a_bidirectional_model_gives_real_tokens_the_same():
    model = made_of_words("bert")
    text = random_text(6, 5)
    found = zoo.inspect(model, "a", inputs={"input_ids": text})["a"].attention.tokens["encoder"]
    base = tiny_model("bert", implementation="eager")
    with torch.no_grad():
        weights = base(torch.cat([torch.tensor([WORDS]), text], dim=1), output_attentions=True).attentions
    expected = torch.stack([layer[0, :, 4:, :4].mean(dim=(0, 1)) for layer in weights])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_several_prompts_share_the_attention_in_their_order(architecture):
    """Two prompts together get the attention that their concatenation gets, token by token."""
    model = prompted(architecture, "prefix_tuning", (4, 2, 1))
    model.prompts.add("ba", zoo.blend([model.prompts["b"], model.prompts["a"]], how="concatenate"))
    text = batch(model)
    model.prompts.activate("b", "a")
    both = zoo.inspect(model, inputs=text)
    assert [prompt.name for prompt in both] == ["b", "a"]
    one = zoo.inspect(model, "ba", inputs=text)["ba"].attention
    for site, tokens in one.tokens.items():
        parts = [both[name].attention.tokens[site] for name in "ba"]
        torch.testing.assert_close(torch.cat(parts, dim=1), tokens, atol=1e-5, rtol=0)


def test_batches_count_by_their_tokens():
    model = prompted("llama", "prompt_tuning")
    text = batch(model)
    rows = [
        {"input_ids": text["input_ids"][[row]], "attention_mask": text["attention_mask"][[row]]} for row in range(3)
    ]
    together, apart = (zoo.inspect(model, "a", inputs=inputs)["a"].attention for inputs in (text, rows))
    torch.testing.assert_close(together.tokens["decoder"], apart.tokens["decoder"], atol=1e-5, rtol=0)


@in_turns(architecture=ARCHITECTURES, implementation=["sdpa", "eager"])
def test_the_model_is_left_as_it_was(architecture, implementation):
    model = prompted(architecture, "prompt_tuning")
    model.set_attn_implementation(implementation)
    model.train()
    text = batch(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    active, chosen = model.prompts.active, model.config._attn_implementation

    def outputs():
        model.eval()
        with torch.no_grad():
            logits = model(**text).logits
        model.train()
        return logits

    expected = outputs()
    zoo.inspect(model, "b", inputs=text)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert (model.prompts.active, model.config._attn_implementation) == (active, chosen)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    zoo.inspect(model, inputs=text)
    assert torch.equal(outputs(), expected)


def test_keys_and_values_stand_beside_those_of_words():
    model = prompted("llama", "prefix_tuning", (4, 1, 1))
    ids = torch.linspace(0, 100, 64).long()
    words = model.prompts.backbone.keys_values(ids).sites["decoder"]
    own = model.prompts["a"].merged_tokens(model.prompts.backbone).sites["decoder"]
    found = zoo.inspect(model, "a")["a"]
    assert found.neighbours == ()
    assert found.attention is None
    for kind in ("keys", "values"):
        norms = found.norms[f"decoder {kind}"]
        for layer in range(2):
            of_own = getattr(own, kind)[layer].norm(dim=-1).mean(dim=0)
            of_words = getattr(words, kind)[layer].norm(dim=-1).mean(dim=0)
            torch.testing.assert_close(norms.tokens[layer], of_own)
            smaller = (of_words[None] < of_own[:, None]).float().mean(dim=1) * 100
            torch.testing.assert_close(norms.percentiles[layer], smaller)


def test_gated_prompts_show_their_gates_and_take_nothing_of_the_texts_attention(llama_adapter):
    model = prompted("llama", "llama_adapter", (4, 2, 1), num_layers_from_top=1)
    model.prompts.add("prefix", "prefix_tuning", num_virtual_tokens=4)
    text = batch(model)
    alone = zoo.inspect(model, "prefix", inputs=text)["prefix"].attention.shares["decoder"]
    model.prompts.activate("a", "prefix")
    found = zoo.inspect(model, inputs=text)
    assert found["a"].attention.shares == {}
    sizes = found["a"].gates["decoder"]
    assert sizes[0] == 0
    assert float(sizes[1]) == pytest.approx(float(model.prompts["a"].learned.gates.detach().tanh().abs().mean()))
    # The first layer comes before the gate, so the prefix gets the same attention there as alone.
    torch.testing.assert_close(found["prefix"].attention.shares["decoder"][0], alone[0])
    assert "gate" in str(found)


def test_a_prompt_with_tasks_is_shown_task_by_task():
    model = prompted("llama", "multitask_prompt_tuning", (4, 4, 4), num_tasks=2)
    text = batch(model)
    tasks = [zoo.inspect(model, "a", task=task, inputs=text)["a"] for task in (0, 1)]
    tokens = model.prompts["a"].merged_tokens(model.prompts.backbone).embeddings
    for task, found in enumerate(tasks):
        torch.testing.assert_close(found.norms["embeddings"].tokens[0], tokens[task].norm(dim=1))
        model.set_attn_implementation("eager")
        with torch.no_grad():
            output = model(**text, prompts=["a"] * 3, task_ids=[task] * 3, output_attentions=True)
        is_text = text["attention_mask"].bool()
        own = torch.stack([layer.sum(dim=-1).mean(dim=1)[is_text].mean() for layer in output.attentions])
        torch.testing.assert_close(found.attention.shares["decoder"], 1 - own, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="task is None; prompt 'a' has 2 tasks, counted from 0"):
        zoo.inspect(model, "a")


def test_prompts_may_be_named_by_a_string_or_a_list():
    model = prompted("llama", "prompt_tuning")
    text = batch(model)
    assert str(zoo.inspect(model, ["a"], inputs=text)) == str(zoo.inspect(model, "a", inputs=text))
    model.prompts.activate("b", "a")
    active = zoo.inspect(model, inputs=text)
    model.prompts.activate("c")
    assert str(zoo.inspect(model, ("b", "a"), inputs=text)) == str(active)


def test_what_cannot_be_shown_is_refused():
    model = prompted("llama", "prompt_tuning")
    text = batch(model)
    for arguments, error, message in [
        ({"name": "z"}, zoo.UnknownPromptError, "no prompt 'z'"),
        ({"name": ["a", "a"]}, ValueError, "each prompt may occur in it only once"),
        ({"name": 5}, TypeError, "name is 5; expected a prompt's name, a list of names"),
        ({"neighbours": 0}, ValueError, "neighbours is 0"),
        ({"nearest_by": "luck"}, ValueError, "nearest_by is 'luck'"),
        ({"tokenizer": "gpt2"}, TypeError, "tokenizer is 'gpt2'; expected the model"),
        ({"task": 1}, ValueError, "have no tasks"),
        ({"inputs": "text"}, TypeError, "inputs is not a batch"),
        ({"inputs": []}, TypeError, "inputs is not a batch"),
        ({"inputs": {"attention_mask": text["attention_mask"]}}, ValueError, "expected the tensor input_ids"),
        ({"inputs": {**text, "prompts": ["a"] * 3}}, ValueError, "inputs has prompts; leave it out"),
        ({"inputs": {**text, "attention_mask": torch.ones(3, 1, 9, 9)}}, zoo.UnsupportedError, "is 4-D"),
    ]:
        with pytest.raises(error, match=message):
            zoo.inspect(model, **arguments)
    with pytest.raises(zoo.UnsupportedError, match="disabled"), model.prompts.disabled():
        zoo.inspect(model, inputs=text)
    model.prompts.activate()
    with pytest.raises(ValueError, match="no prompt is active; name one of 'a', 'b', 'c'"):
        zoo.inspect(model)
    with pytest.raises(zoo.UnsupportedError, match="has no prompts to inspect"):
        zoo.inspect(tiny_model("llama"))
    with pytest.raises(ValueError, match="nothing for the decoder to read"):
        zoo.inspect(prompted("t5", "prompt_tuning"), inputs={"input_ids": text["input_ids"]})
    through_cache = prompted("bloom", "prompt_tuning")
    through_cache.prompts.activate("a", "b")
    with pytest.raises(zoo.UnsupportedError, match="inspect one ungated prompt"):
        zoo.inspect(through_cache, inputs=text)
    empty = zoo.get_method("prompt_tuning")(tiny_model("llama").to("meta"))
    with pytest.raises(zoo.UnsupportedError, match="meta device"):
        zoo.inspect(empty)


def test_tables_pictures_and_pages(tmp_path):
    model = made_of_words("t5")
    model.prompts.add("keys", "prefix_tuning", num_virtual_tokens=3)
    model.prompts.activate("a", "keys")

    class Awkward:
        """A tokenizer with words that markup, mathematics and fonts could trip over."""

        def decode(self, ids):
            return {5: "[red]", 17: "<b>$x_", 30: "\n", 99: "日本"}.get(ids[0], "")

    found = zoo.inspect(model, tokenizer=Awkward(), inputs=batch(model))
    text = str(found)
    for part in (
        "'[red]' (1.00, 0.00)",
        "'<b>$x_' (1.00",
        r"'\n' (1.00",
        "keys: prefix_tuning, 3 virtual tokens, cross",
    ):
        assert part in text
    found.to_png(tmp_path / "a.png")
    found.to_html(tmp_path / "a.html")
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    found.to_png(tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes() == content
    page = (tmp_path / "a.html").read_text("utf-8")
    assert "&lt;b&gt;$x_" in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "http" not in page


def test_pictures_say_that_matplotlib_is_missing(tmp_path, monkeypatch):
    found = zoo.inspect(made_of_words("llama"), "a")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(zoo.UnsupportedError, match="pictures need matplotlib"):
        found.to_png(tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
