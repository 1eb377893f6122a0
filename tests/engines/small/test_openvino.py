"""OpenVINO, with a prefix as its variables, writes what the prompted model writes."""

import pytest
from engine_cases import count_different

pytest.importorskip("openvino", reason="needs openvino: nox -s small_engines")
pytest.importorskip("onnx", reason="needs onnx: nox -s small_engines")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_twenty_prompts(page, cases, base, tmp_path):
    run = page("small-engines.md", "needs onnx", "needs openvino")
    run["write_graph"](base, tmp_path / "base.onnx")
    compiled = run["read_stateful"](tmp_path / "base.onnx")

    def answer(case):
        return run["answer_openvino"](compiled, case.prefix, case.ids, len(case.expected))

    assert count_different(answer, cases) == 0
