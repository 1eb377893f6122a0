"""sentence-transformers over a prompted encoder: sentences are pooled from the prompted model's states."""

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model, tiny_tokenizer

sentence_transformers = pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.slow
SENTENCES = ["w5 w6 w7 w8", "w9 w10"]


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_embeddings(method, tmp_path):
    tiny_model("bert").base_model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    encoder = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    bare = encoder.encode(SENTENCES, convert_to_tensor=True)
    torch.manual_seed(0)
    model = zoo.get_method(method)(encoder[0].model, num_virtual_tokens=4).eval()
    found = encoder.encode(SENTENCES, convert_to_tensor=True)
    batch = tiny_tokenizer()(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    keep = batch["attention_mask"][..., None]
    torch.testing.assert_close(found, (states * keep).sum(1) / keep.sum(1))
    assert not torch.allclose(found, bare, atol=1e-3)
    zoo.detach(encoder[0].model)
    assert torch.equal(encoder.encode(SENTENCES, convert_to_tensor=True), bare)


def prompted_encoder(method, base):
    from softprompt_zoo.sentence_encoders import PromptedTransformer

    tiny_model("bert").base_model.save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    part = PromptedTransformer(str(base))
    pooling = sentence_transformers.sentence_transformer.modules.Pooling(part.get_embedding_dimension())
    encoder = sentence_transformers.SentenceTransformer(modules=[part, pooling], device="cpu")
    zoo.get_method(method)(part.model, num_virtual_tokens=4)
    with torch.no_grad():
        for parameter in part.model.prompts.parameters():
            parameter.normal_()
    return encoder


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_what_was_saved_is_loaded_again(method, tmp_path):
    encoder = prompted_encoder(method, tmp_path / "base")
    expected = encoder.encode(SENTENCES, convert_to_tensor=True)
    encoder.save_pretrained(str(tmp_path / "saved"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    torch.testing.assert_close(again.encode(SENTENCES, convert_to_tensor=True), expected)
    bare = sentence_transformers.SentenceTransformer(str(tmp_path / "base"), device="cpu")
    assert not torch.allclose(bare.encode(SENTENCES, convert_to_tensor=True), expected, atol=1e-3)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_the_best_model_is_loaded_at_the_end(method, tmp_path):
    """Load a checkpoint that was written during training, as `load_best_model_at_end` does."""
    encoder = prompted_encoder(method, tmp_path / "base")
    best = encoder.encode(SENTENCES, convert_to_tensor=True)
    encoder.save_pretrained(str(tmp_path / "checkpoint-1"))
    with torch.no_grad():
        for parameter in encoder[0].model.prompts.parameters():
            parameter.zero_()
    trainer = object.__new__(sentence_transformers.SentenceTransformerTrainer)
    trainer.model = encoder
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    torch.testing.assert_close(encoder.encode(SENTENCES, convert_to_tensor=True), best)
