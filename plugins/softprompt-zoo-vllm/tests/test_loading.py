"""The worker's side without vLLM: the right numbers in the right slots, and failures that affect only one request."""

import types

import pytest
import torch
from softprompt_zoo_vllm.catalog import PromptRefusedError
from softprompt_zoo_vllm.loading import Layer, Loader
from softprompt_zoo_vllm.settings import Settings
from softprompt_zoo_vllm.steps import Load, Step
from softprompt_zoo_vllm.tables import Table, TableCache

import softprompt_zoo as zoo

HEADS, WIDTH, SLOTS = 4, 3, 64


class FakeCatalog:
    """A catalog of prompts with random numbers for two layers; it counts the reads."""

    def __init__(self):
        self.num_reads = 0
        self.prefixes = {name: self.make(name, length) for name, length in {"alice": 5, "bob": 9}.items()}

    def make(self, name, length, dtype=torch.float32):
        generator = torch.Generator().manual_seed(length)
        layers = [
            [torch.randn(HEADS, length, WIDTH, generator=generator).to(dtype) for _ in range(2)] for _ in range(2)
        ]
        return zoo.Prefix(zoo.PrefixEntry(name, name[0], length), tuple(map(tuple, layers)))

    def read(self, name):
        self.num_reads += 1
        if name not in self.prefixes:
            raise PromptRefusedError(f"there is no soft prompt {name!r}")
        return self.prefixes[name]


class FakeAttention(types.SimpleNamespace):
    """A layer whose cache has one row for each slot."""

    def __init__(self):
        super().__init__(kv_cache=torch.full((2, SLOTS, HEADS, WIDTH), torch.nan))
        self.impl = types.SimpleNamespace(do_kv_cache_update=self.update)

    @staticmethod
    def update(layer, key, value, cache, slots):
        cache[0, slots, : key.shape[1]], cache[1, slots, : key.shape[1]] = key, value


@pytest.fixture
def worker():
    """Return a loader with two layers of two groups, blocks of 4 and of 8 tokens, and two of the four heads."""
    catalog = FakeCatalog()
    loader = Loader(Settings("bank", cache_bytes=10**6), catalog, [4, 8], torch.float32)
    modules = [FakeAttention(), FakeAttention()]
    loader.place(Layer(index, index, module, slice(1, 3)) for index, module in enumerate(modules))
    return types.SimpleNamespace(loader=loader, catalog=catalog, caches=[module.kv_cache for module in modules])


def load(name, begin=0, blocks=((2, 5, 9), (3, 1)), stamp=None, request_id=None):
    end = {"alice": 5, "bob": 9}.get(name, 5)
    return Load(request_id or name, name, stamp or name[0], begin, end, blocks)


def test_keys_and_values_are_where_their_blocks_are(worker):
    worker.loader.run(Step([load("alice"), load("bob", blocks=((7, 8, 10), (6, 4)))]))
    assert worker.loader.take_results() == ({"alice", "bob"}, set())
    slots = {"alice": [[8, 9, 10, 11, 20], [24, 25, 26, 27, 28]]}
    slots["bob"] = [[28, 29, 30, 31, 32, 33, 34, 35, 40], [48, 49, 50, 51, 52, 53, 54, 55, 32]]
    for name, by_layer in slots.items():
        for layer, own in enumerate(by_layer):
            for half in range(2):
                expected = worker.catalog.prefixes[name].layers[layer][half][1:3].transpose(0, 1)
                assert worker.caches[layer][half, own, :2].equal(expected)
    written = [int(cache[0, :, 0].isfinite().all(-1).sum()) for cache in worker.caches]
    assert written == [14, 14]  # and nowhere else


def test_what_vllm_has_or_a_window_left_behind_is_not_written(worker):
    worker.loader.run(Step([load("bob", begin=4, blocks=((2, 5, 9), (None, 1)))]))
    assert worker.loader.take_results() == ({"bob"}, set())
    assert worker.caches[0][0, :, 0].isfinite().all(-1).nonzero().flatten().tolist() == [20, 21, 22, 23, 36]
    assert worker.caches[1][0, :, 0].isfinite().all(-1).nonzero().flatten().tolist() == [8]


def test_a_load_that_fails_fails_alone(worker):
    loads = [load("alice"), load("nobody"), load("bob", stamp="before it was replaced")]
    worker.loader.run(Step(loads, ["refused"]))
    assert worker.loader.take_results() == ({"alice", "nobody", "bob", "refused"}, {"nobody", "bob", "refused"})
    assert int(worker.caches[0][0, :, 0].isfinite().all(-1).sum()) == 5
    assert worker.loader.take_results() == (set(), set())


def test_numbers_that_the_models_dtype_cannot_hold_are_refused():
    catalog = FakeCatalog()
    catalog.prefixes["alice"].layers[1][0][0, 0, 0] = 1e6
    loader = Loader(Settings("bank"), catalog, [4], torch.float16)
    module = FakeAttention()
    loader.place([Layer(1, 0, module, slice(0, 4))])
    loader.run(Step([load("alice", blocks=((2, 5),))]))
    assert loader.take_results() == ({"alice"}, {"alice"})
    assert module.kv_cache.isnan().all()


def test_a_prompt_is_read_once_until_it_is_replaced(worker):
    for _ in range(3):
        worker.loader.run(Step([load("alice")]))
    assert worker.catalog.num_reads == 1
    worker.catalog.prefixes["alice"] = zoo.Prefix(
        zoo.PrefixEntry("alice", "2", 5), worker.catalog.make("alice", 5).layers
    )
    worker.loader.run(Step([load("alice", stamp="2")]))
    assert worker.catalog.num_reads == 2


def test_what_was_read_too_late_is_kept_for_the_next_request(worker):
    worker.loader.run(Step([load("alice", stamp="before it was replaced")]))
    assert worker.loader.take_results() == ({"alice"}, {"alice"})
    worker.loader.run(Step([load("alice", request_id="again")]))
    assert worker.loader.take_results() == ({"again"}, set())
    assert worker.catalog.num_reads == 1


def test_the_cache_of_tables_keeps_to_its_bound():
    table = Table(((torch.zeros(4, 2, 8), torch.zeros(4, 2, 8)),))
    cache = TableCache(2 * table.num_bytes)
    for name in "abc":
        cache.put(name, "1", table)
        cache.get("a", "1")  # so that it is not the least recently used one
    assert [cache.get(name, "1") for name in "abc"] == [table, None, table]
    assert cache.get("a", "2") is None
    small = TableCache(table.num_bytes - 1)
    small.put("a", "1", table)
    assert small.get("a", "1") is None
