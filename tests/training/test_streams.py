"""Data that are read during training."""

import gc
import json
import random
import signal
import subprocess
import sys

import pytest
from helpers.tiny_runs import assert_equal_weights, resume, save_tiny, tiny_settings, train, weights

import softprompt_zoo as zoo
from softprompt_zoo.examples import Example
from softprompt_zoo.examples.reading import Reading
from softprompt_zoo.examples.sources import Source
from softprompt_zoo.training.base import Base
from softprompt_zoo.training.data import read_data
from softprompt_zoo.training.objectives.writing import Writing
from softprompt_zoo.training.streams import Stream, StreamedRows, shuffled


def write_parquet(path, count, at_once=100_000):
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema({"input": pyarrow.string(), "target": pyarrow.string()})
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, count, at_once):
            numbers = range(start, min(start + at_once, count))
            texts = [f"w{number % 60} w{number // 60 % 60} w{number // 3600}" for number in numbers]
            writer.write_table(pyarrow.table({"input": texts, "target": texts}, schema))
    return path


def test_a_buffer_mixes_all_and_the_same_way_again():
    orders = [[*shuffled(iter(range(100)), 7, random.Random(seed))] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == [*range(100)] != orders[0]
    assert all(item <= place + 7 for place, item in enumerate(orders[0]))
    assert sorted(shuffled(iter(range(3)), 7, random.Random(0))) == [0, 1, 2]


def count_examples():
    return sum(type(thing) is Example for thing in gc.get_objects())


def test_a_stream_holds_no_more_than_its_buffer(place, tmp_path):
    count = 4_000
    reading = Reading(Source(str(write_parquet(tmp_path / "rows.parquet", count))))
    writing = Writing(Base(str(place / "model")), "{input}")
    rows = StreamedRows(writing, Stream(reading, count), 512, seed=0, buffer=50)
    others, held, seen = count_examples(), [], 0  # what tests before this one still hold
    for row in rows.epoch(0):
        seen += 1
        assert len(row) == 7
        if seen % 1000 == 1:
            held.append(count_examples() - others)
    assert seen == count
    assert max(held) <= 50 + 2 * 64


def test_held_out_rows_are_those_of_a_run_in_memory_and_not_trained_on(place, tmp_path):
    settings = tiny_settings(place, tmp_path / "run", validation=None)
    whole, streamed = (read_data(tiny_settings(place, "", validation=None, streaming=value)) for value in (False, True))
    assert streamed.validation == whole.validation
    assert [*streamed.train] == whole.train == [*streamed.train]
    assert len(streamed.train) == 18
    assert streamed.sources == whole.sources
    assert settings.command().count("--streaming") == 0


def test_a_resumed_stream_goes_on_where_it_was(place, tmp_path, at_step):
    """An epoch has five steps, so that both runs cross its end."""
    changes = {"streaming": True, "steps": 8}
    train(tiny_settings(place, tmp_path / "whole", **changes))
    undo = at_step(6, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(zoo.StoppedError):
        train(tiny_settings(place, tmp_path / "run", **changes))
    undo()
    resume(tmp_path / "run")
    assert_equal_weights(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    losses = [
        [
            entry["loss"]
            for entry in json.loads((tmp_path / name / "training.json").read_text())["history"]
            if "loss" in entry
        ]
        for name in ("run", "whole")
    ]
    assert losses[0] == losses[1]


def test_streams_leave_out_what_is_too_long_and_refuse_what_has_nothing_else(place, tmp_path):
    printed = train(tiny_settings(place, tmp_path / "run", streaming=True, max_length=10, steps=1))
    assert "left out" in printed
    with pytest.raises(ValueError, match="none of the first 20 training rows fits into 2 tokens"):
        train(tiny_settings(place, tmp_path / "other", streaming=True, max_length=2))
    (tmp_path / "bad.jsonl").write_text('{"input": "w1", "target": "w2"}\n' * 9 + '{"input": "w1", "target": ""}\n')
    with pytest.raises(zoo.DataError, match=r"bad.jsonl:10: field 'target' is blank"):
        train(tiny_settings(place, tmp_path / "other", streaming=True, data=str(tmp_path / "bad.jsonl")))
    assert not (tmp_path / "other").exists()


MEMORY = """
import resource, sys
from softprompt_zoo.examples.reading import Reading
from softprompt_zoo.examples.sources import Source
from softprompt_zoo.training.base import Base
from softprompt_zoo.training.objectives.writing import Writing
from softprompt_zoo.training.streams import Stream, StreamedRows

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

reading = Reading(Source(sys.argv[1]))
count = sum(1 for _ in reading)
rows = StreamedRows(Writing(Base(sys.argv[2]), "{input}"), Stream(reading, count), 512, 0)
for number, row in enumerate(rows.epoch(0), 1):
    if number == 50_000:
        before = peak()
print(number, before, peak())
"""


@pytest.mark.slow
def test_a_million_rows_stream_in_constant_memory(tmp_path):
    """Compare peak memory in MiB after 50,000 rows, which filled the buffer, and after all rows."""
    file, model = write_parquet(tmp_path / "rows.parquet", 1_000_000), save_tiny(tmp_path / "model")
    result = subprocess.run([sys.executable, "-c", MEMORY, file, model], capture_output=True, text=True, check=True)
    count, before, after = map(int, result.stdout.split())
    print(f"{count} rows: {before} MiB after 50,000, {after} MiB after all")
    assert count == 1_000_000
    assert after - before <= 30
