"""llama.cpp on a checkpoint whose tokens are prompts, and with bare embeddings in front of a text."""

import ctypes

import numpy as np
import pytest
from helpers import served_models
from helpers.llama_cpp_engine import convert
from helpers.served_models import NAMES, NEW_TOKENS

import softprompt_zoo as zoo

llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install llama-cpp-python")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """SmolLM2, not the tiny model: the converter knows only the tokenizers of published models."""
    return served_models.smollm2(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def written(served):
    return [served.written(name, served.ids(text)) for name, text in served.rows]


@pytest.fixture(scope="module")
def index(served, tmp_path_factory):
    """The index of the exported prompts, and their folder."""
    folder = tmp_path_factory.mktemp("exported")
    return {**served.as_vocabulary(folder / "vocabulary"), "folder": folder}


@pytest.fixture(scope="module")
def engine(index):
    gguf = convert(index["folder"] / "vocabulary", index["folder"] / "served.gguf")
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    return llama_cpp.Llama(gguf, n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False, **exact)


def go_on(engine):
    """Return the greedy tokens after what the engine has read."""
    new = []
    while len(new) < NEW_TOKENS:
        new.append(engine.sample(temp=0.0))
        if new[-1] == engine.token_eos():
            break
        engine.eval(new[-1:])
    return new


def test_texts(engine, index, served, written):
    found = []
    for name, text in served.rows:
        entry = {"in_front": "", "ids": []} if name is None else index["prompts"][name]
        ids = engine.tokenize((entry["in_front"] + text).encode(), add_bos=False, special=True)
        assert ids == entry["ids"] + served.ids(text)
        engine.reset()
        engine.eval(ids)
        found.append(go_on(engine))
    assert found == written


def decode(engine, embeds):
    """Make an engine read embeddings `(tokens, hidden)`, as the export's README shows."""
    prompt = np.ascontiguousarray(embeds, dtype=np.float32)
    count, hidden = prompt.shape
    batch = llama_cpp.llama_batch_init(count, hidden, 1)
    batch.n_tokens = count
    ctypes.memmove(batch.embd, prompt.ctypes.data, prompt.nbytes)
    for i in range(count):
        batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = i, 1, 0, 0
    assert llama_cpp.llama_decode(engine.ctx, batch) == 0
    llama_cpp.llama_batch_free(batch)
    engine.n_tokens = count


def test_embeddings(engine, served, written, tmp_path):
    zoo.export(served.model, tmp_path / "bare", to="embeddings", name=list(NAMES))
    found = []
    for name, text in served.rows:
        engine.reset()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(engine.ctx), True)
        if name is not None:
            decode(engine, np.load(tmp_path / "bare" / f"{name}.npy"))
        engine.eval(served.ids(text))
        found.append(go_on(engine))
    assert found == written
