"""The conversion of a checkpoint to the format that llama.cpp reads."""

import os
import subprocess
import sys

import pytest

CONVERTER = os.environ.get("LLAMA_CPP_CONVERTER", "")


def convert(folder, gguf):
    """Convert a checkpoint with llama.cpp's own script, in float32."""
    if not os.path.isfile(CONVERTER):
        pytest.skip("LLAMA_CPP_CONVERTER does not name llama.cpp's convert_hf_to_gguf.py")
    script = [sys.executable, CONVERTER, str(folder), "--outfile", str(gguf), "--outtype", "f32"]
    own = {**os.environ, "PYTHONSAFEPATH": ""}  # the script imports modules next to it
    done = subprocess.run(script, capture_output=True, text=True, timeout=600, env=own)
    assert done.returncode == 0, done.stderr[-5000:]
    return str(gguf)
