"""sentence-transformers over a prompted encoder: sentences are pooled from what the prompted model gives."""

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
