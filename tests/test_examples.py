"""Reading data files and applying templates."""

import csv
import importlib.util
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softprompt_zoo.errors import DataError, ZooError
from softprompt_zoo.examples import Example, apply_template, check_template, demo_data, read_examples

GENERATOR = Path(__file__).parents[1] / "benchmarks" / "make_demo_data.py"
SPLITS = ("train", "validation", "test")
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=5)
in_one_folder = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, content: str | bytes, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refused(path: Path, *wanted: str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_examples(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    for part in (str(path), *wanted):
        assert part in message
    assert not message.endswith(".")
    assert isinstance(caught.value, ZooError)
    assert isinstance(caught.value, ValueError)
    return message


def plain(rows: Iterable[tuple[str, str]]) -> list[Example]:
    return [Example(text, target, (target,)) for text, target in rows]


@in_one_folder
@given(pairs, st.booleans(), st.booleans())
def test_jsonl_comes_back(tmp_path: Path, rows: list[tuple[str, str]], ascii_only: bool, mark: bool) -> None:
    content = "\n\n".join(
        json.dumps({"input": text, "target": target, "more": 1}, ensure_ascii=ascii_only) for text, target in rows
    )
    path = write(tmp_path, ("\ufeff" if mark else "") + content)
    assert read_examples(path) == plain(rows)


@in_one_folder
@given(pairs, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_csv_comes_back(tmp_path: Path, rows: list[tuple[str, str]], end: str, mark: bool) -> None:
    path = tmp_path / "data.CSV"
    encoding = "utf-8-sig" if mark else "utf-8"
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.writer(stream, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([("label", "other", "text"), *((b, "", a) for a, b in rows)])
    assert read_examples(path) == plain(rows)


@in_one_folder
@given(pairs, st.data())
def test_jsonl_cut_anywhere_is_refused_or_a_beginning(
    tmp_path: Path, rows: list[tuple[str, str]], data: st.DataObject
) -> None:
    content = lines(*({"input": text, "target": target} for text, target in rows)).encode()
    path = write(tmp_path, content[: data.draw(st.integers(0, len(content)))])
    try:
        examples = read_examples(path)
    except DataError:
        return
    assert examples == plain(rows)[: len(examples)]


@in_one_folder
@given(
    st.one_of(st.binary(max_size=60), texts.map(str.encode)),
    st.sampled_from(["data.jsonl", "data.csv"]),
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    refused(write(tmp_path, content, name))


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"input": "a", "target": "b"}, {}),
        ({"text": "a", "label": "b"}, {}),
        ({"input": "a", "label": "b"}, {}),
        ({"text": "a", "target": "b"}, {}),
        ({"input": "a", "target": "b", "text": "x", "label": "y"}, {}),
        ({"question": "a", "answer": "b"}, {"input_field": "question", "target_field": "answer"}),
        ({"question": "a", "target": "b"}, {"input_field": "question"}),
        ({"question": "a", "label": "b"}, {"input_field": "question"}),
        ({"input": "a", "answer": "b", "target": "x"}, {"target_field": "answer"}),
        ({"text": "b", "x": "a"}, {"input_field": "x", "target_field": "text"}),
    ],
)
def test_field_names(tmp_path: Path, row: dict[str, str], options: dict[str, str]) -> None:
    expected = [Example("a", "b", ("b",))]
    assert read_examples(write(tmp_path, lines(row)), **options) == expected
    content = f"{','.join(row)}\n{','.join(row.values())}\n"
    assert read_examples(write(tmp_path, content, "data.csv"), **options) == expected


def test_references(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        lines(
            {"input": "a", "references": ["b", "c"]},
            {"input": "a", "target": "d", "references": ["b"]},
        ),
    )
    assert read_examples(path) == [
        Example("a", "b", ("b", "c")),
        Example("a", "d", ("b",)),
    ]
    # a field that the user names must exist, or a typo would go unnoticed
    refused(path, ":1: no field 'tagret'", target_field="tagret")


def test_references_column_of_csv_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "input,target,references\na,b,3\n", "data.csv")
    assert read_examples(path) == [Example("a", "b", ("b",))]


@pytest.mark.parametrize("options", [{}, {"target_field": "answer"}])
def test_target_can_be_left_out_on_request(tmp_path: Path, options: dict[str, str]) -> None:
    path = write(tmp_path, lines({"input": "a"}))
    assert read_examples(path, need_target=False, **options) == [Example("a", None, ())]
    refused(path, ":1: no field", "fields found: 'input'", **options)


def test_target_that_is_there_is_checked_all_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, lines({"input": "a", "target": ""}))
    refused(path, ":1: field 'target' is blank", need_target=False)


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    refused(write(tmp_path, "", name), "is empty")


@pytest.mark.parametrize(("content", "name"), [("\n \n", "data.jsonl"), ("input,target\n\n", "data.csv")])
def test_file_without_rows(tmp_path: Path, content: str, name: str) -> None:
    refused(write(tmp_path, content, name), "has no rows")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.jsonl", "no such file")
    refused(tmp_path, "is a folder")
    (tmp_path / "folder.jsonl").mkdir()
    refused(tmp_path / "folder.jsonl", "is a folder")


@pytest.mark.parametrize("name", ["data.json", "data.tsv", "data", "data.jsonl.gz"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, lines({"input": "a", "target": "b"}), name)
    refused(path, f"unknown suffix {path.suffix!r}", ".jsonl", ".csv")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path, lines({"input": "a", "target": "b"}))
    path.chmod(0)
    refused(path, "cannot be read")


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv"])
def test_other_encodings_name_line_and_byte(tmp_path: Path, name: str) -> None:
    good = b"input,target\n" if name.endswith("csv") else lines({"input": "a", "target": "b"})
    start = good if isinstance(good, bytes) else good.encode()
    path = write(tmp_path, start + "café,b\n".encode("latin-1"), name)
    refused(path, f"{path}:2: byte 0xe9 is not UTF-8")


def test_truncated_json_line(tmp_path: Path) -> None:
    content = lines({"input": "a", "target": "b"}, {"input": "c", "target": "d"})
    path = write(tmp_path, content[:-5])
    refused(path, ":2: ", "not valid JSON", "may be truncated", "one whole JSON object")
    path = write(tmp_path, content[5:])
    message = refused(path, ":1: ", "not valid JSON (column 1: expecting value)")
    assert "may be truncated" not in message


def test_old_line_ends_are_told_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, '{"input": "a", "target": "b"}\r{"input": "c", "target": "d"}\r')
    assert len(refused(path, ":1: ", "is not valid JSON").splitlines()) == 1


@pytest.mark.parametrize("line", ["[" * 100_000, "9" * 5000, "{'input': 'a'}", "nonsense"])
def test_odd_json_line(tmp_path: Path, line: str) -> None:
    message = refused(write(tmp_path, f"{line}\n"), ":1: ")
    assert len(message) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("row", [[1, 2], "text", 3, None, True, ["\ud800"]])
def test_row_that_is_no_object(tmp_path: Path, row: object) -> None:
    message = refused(write(tmp_path, lines({"input": "a", "target": "b"}, row)), ":2: ", "is not an object")
    assert message.encode()  # it can be printed


def test_missing_field_lists_those_there(tmp_path: Path) -> None:
    path = write(tmp_path, lines({"prompt": "a", "answer": "b"}))
    refused(path, ":1: no field 'input'", "fields found: 'prompt', 'answer'")
    path = write(tmp_path, lines({"input": "a", "target": "b"}, {"text": "a", "label": "b"}))
    refused(path, ":2: no field 'input'", "fields found: 'text', 'label'")
    refused(write(tmp_path, "{}\n"), "fields found: none")
    path = write(tmp_path, "input;target\na;b\n", "data.csv")
    refused(path, ":2: no field 'input'", "'input;target'")
    path = write(tmp_path, lines({str(number): "" for number in range(99)}))
    assert len(refused(path, "'9', ...")) < 300 + len(str(path))


def test_one_field_cannot_be_both(tmp_path: Path) -> None:
    path = write(tmp_path, lines({"input": "a", "target": "b"}))
    refused(path, "must differ", input_field="target")


@pytest.mark.parametrize("value", [1, 1.5, None, True, ["b"], {"b": 1}])
@pytest.mark.parametrize("field", ["input", "target"])
def test_wrong_type(tmp_path: Path, field: str, value: object) -> None:
    path = write(tmp_path, lines({"input": "a", "target": "b"} | {field: value}))
    refused(path, f":1: field {field!r} is {json.dumps(value)}", "must be text")


@pytest.mark.parametrize("value", ["", " ", "\t\n", "\u00a0"])
@pytest.mark.parametrize("field", ["input", "target"])
def test_blank(tmp_path: Path, field: str, value: str) -> None:
    row = {"input": "a", "target": "b"} | {field: value}
    refused(write(tmp_path, lines(row)), f":1: field {field!r} is blank")
    content = 'input,target\n"{input}","{target}"\n'.format_map(row)
    refused(write(tmp_path, content, "data.csv"), f":2: field {field!r} is blank")


@pytest.mark.parametrize(
    ("references", "wanted"),
    [
        ([], "field 'references' is []"),
        (None, "field 'references' is null"),
        ("b", "field 'references' is \"b\""),
        (["b", 1], "item 2 of field 'references' is 1"),
        (["b", " "], "item 2 of field 'references' is blank"),
    ],
)
def test_bad_references(tmp_path: Path, references: object, wanted: str) -> None:
    path = write(tmp_path, lines({"input": "a", "target": "b", "references": references}))
    refused(path, f":1: {wanted}")


def test_half_a_character(tmp_path: Path) -> None:
    path = write(tmp_path, '{"input": "ab\\ud800", "target": "b"}\n')
    assert refused(path, ":1: field 'input'", "surrogate", "character 3").encode()


@pytest.mark.parametrize(("row", "count"), [("a", 1), ("a,b,c", 3), ("a,b,", 3)])
def test_csv_row_of_other_length(tmp_path: Path, row: str, count: int) -> None:
    path = write(tmp_path, f'input,target\n\n"x\ny",z\n{row}\n', "data.csv")
    refused(path, f"{path}:5: has {count} columns; the header has 2: 'input', 'target'")


def test_csv_column_named_twice(tmp_path: Path) -> None:
    path = write(tmp_path, "input,target,input\na,b,c\n", "data.csv")
    refused(path, ":1: columns named twice: 'input'")


@pytest.mark.parametrize("row", ['"a,b\n', '"a"x,b\n'])
def test_malformed_csv(tmp_path: Path, row: str) -> None:
    path = write(tmp_path, f"input,target\nfine,row\n{row}", "data.csv")
    refused(path, f"{path}:3: is not valid CSV")


@given(texts, st.text(max_size=20), st.text(max_size=20))
def test_template_keeps_all_text(text: str, before: str, after: str) -> None:
    template = "{input}".join(part.replace("{", "{{").replace("}", "}}") for part in (before, after))
    example = Example(text, None)
    assert apply_template(template, example) == before + text + after
    check_template(template)


def test_template_may_use_the_input_twice() -> None:
    assert apply_template("{input}, {{}} {input}\n", Example("{a}", "b")) == "{a}, {} {a}\n"


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("", "no place for the input"),
        ("{{input}}", "no place for the input"),
        ("{target}", "unknown placeholder {target}"),
        ("{input} {label}", "unknown placeholder {label}"),
        ("{}", "unknown placeholder {}"),
        ("{0}", "unknown placeholder {0}"),
        ("{input.target}", "unknown placeholder {input.target}"),
        ("{input[0]}", "unknown placeholder {input[0]}"),
        ("{input!r}", "unknown placeholder {input!r}"),
        ("{input:>9}", "unknown placeholder {input:>9}"),
        ("{ input }", "unknown placeholder { input }"),
        ("{input} {", "malformed"),
        ("{input} }", "malformed"),
    ],
)
def test_bad_templates(template: str, wanted: str) -> None:
    for use in (check_template, lambda given: apply_template(given, Example("a", "b"))):
        with pytest.raises(DataError) as caught:
            use(template)
        message = str(caught.value)
        assert wanted in message
        assert repr(template) in message
        assert "the only placeholder is {input}" in message


def load_generator() -> ModuleType:
    specification = importlib.util.spec_from_file_location("make_demo_data", GENERATOR)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_demo_data_can_be_read_and_has_no_input_twice() -> None:
    sizes = {split: read_examples(demo_data() / f"{split}.jsonl") for split in SPLITS}
    assert {split: len(rows) for split, rows in sizes.items()} == {
        "train": 600,
        "validation": 60,
        "test": 60,
    }
    inputs = [row.input for rows in sizes.values() for row in rows]
    assert len(set(inputs)) == len(inputs)
    museums = [text.split(" | ")[0] for text in inputs]
    assert len(set(museums)) == len(museums)
    assert sum(path.stat().st_size for path in demo_data().iterdir()) < 300_000


@pytest.mark.skipif(not GENERATOR.is_file(), reason="the generator is in the repository alone")
def test_demo_data_is_what_the_generator_makes(tmp_path: Path) -> None:
    load_generator().write_rows(tmp_path)
    for split in SPLITS:
        made, shipped = (folder / f"{split}.jsonl" for folder in (tmp_path, demo_data()))
        assert made.read_bytes() == shipped.read_bytes()


@pytest.mark.skipif(not GENERATOR.is_file(), reason="the generator is in the repository alone")
def test_demo_sentences_say_all_that_is_in_the_table() -> None:
    generator = load_generator()
    assert len(generator.OPENINGS) >= 8
    for rows in generator.make_rows().values():
        for row in rows:
            for cell in row["input"].split(" | "):
                key, value = cell.split(" : ")
                said = "pay nothing" if (key, value) == ("entry", "free") else value
                assert said in row["target"]
