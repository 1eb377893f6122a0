"""Claims of papers about the methods in `plugins/`, and the sizes at which `claims.py` trains these methods."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from methods import CONTEXT_TEMPLATE, SHOTS

CPU_SECONDS = "cpu_seconds"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A method as it is trained here."""

    method: str
    options: Mapping[str, Any]
    plain: str = "prompt_tuning"
    """The plain method that it is compared with."""
    plain_tokens: int = 30
    """Virtual tokens of the plain method, for as many trained parameters; 0 to derive them after training."""
    shots: int = 0
    """Number of films that it is trained on and shown as `examples`; 0 to train on all and show none."""

    @property
    def plain_options(self) -> dict[str, int]:
        """Options of the plain method."""
        return {"num_virtual_tokens": self.plain_tokens}

    def beside(self, name: str) -> str:
        """Return the name of the experiment with its plain counterpart, which entries of the same size share."""
        return f"{self.plain}-{self.plain_tokens}" if self.plain_tokens else f"{self.plain}-beside-{name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A paper's claim about a method, as far as it can be measured here."""

    entry: str
    says: str
    paper: str
    against: str = ""
    """The experiment to compare with; by default the entry's plain counterpart."""
    key: str = "loss"
    """What is compared: a key of the results, or `CPU_SECONDS` per training step."""
    against_key: str = ""
    """Key of the other side's values; by default the same as `key`."""
    least: float = 0.0
    """How much better the entry must be."""


ENTRIES = {
    "residual": Entry(method="residual", options={"num_virtual_tokens": 11, "bottleneck_size": 8}),
    "dept": Entry(method="dept", options={"num_virtual_tokens": 12, "rank": 15, "max_length": 128}),
    "adept": Entry(method="dept", options={"offset": "token", "num_virtual_tokens": 19, "rank": 5}),
    "idpg": Entry(method="idpg", options={"num_virtual_tokens": 5, "bottleneck_size": 32, "kronecker_terms": 8}),
    "lopa": Entry(method="idpg", options={"num_virtual_tokens": 12, "bottleneck_size": 4, "gate_rank": 2}),
    "smop": Entry(method="smop", options={"num_virtual_tokens": 5, "num_prompts": 5}),
    "capt": Entry(method="capt", options={"num_virtual_tokens": 1}),
    "prefix_memory": Entry(
        method="prefix_memory", options={"share_heads": True}, plain="prefix_tuning", plain_tokens=32
    ),
    "ct_kv": Entry(
        method="ct_kv", options={"template": CONTEXT_TEMPLATE}, plain="prefix_tuning", plain_tokens=0, shots=SHOTS
    ),
}
"""Methods by name. With SmolLM2-135M, their sizes give them the same number of trained parameters as their plain
counterparts, within 4%."""
AS_MANY = "better than prompt tuning with as many trained numbers"
CLAIMS = (
    Claim(entry="residual", paper="Razdaibiedina et al. 2023, 2305.03937", says=AS_MANY),
    Claim(entry="dept", paper="Shi and Lipani 2023, 2309.05173", says=AS_MANY),
    Claim(
        entry="dept",
        paper="Shi and Lipani 2023, 2309.05173",
        key=CPU_SECONDS,
        least=0.2,
        says="saves over 20% of the time that prompt tuning with as many trained numbers takes",
    ),
    Claim(entry="adept", paper="Tang et al. 2025, 2501.03291", says=AS_MANY),
    Claim(
        entry="adept",
        paper="Tang et al. 2025, 2501.03291",
        against="dept",
        says="better than DePT with as many trained numbers",
    ),
    Claim(entry="idpg", paper="Wu et al. 2022, 2204.04497", says=AS_MANY),
    Claim(entry="lopa", paper="Jain et al. 2024, 2405.15282", says=AS_MANY),
    Claim(
        entry="lopa",
        paper="Jain et al. 2024, 2405.15282",
        against="idpg",
        says="better than IDPG with as many trained numbers",
    ),
    Claim(entry="smop", paper="Choi et al. 2023, EMNLP", says=AS_MANY),
    Claim(
        entry="smop",
        paper="Choi et al. 2023, EMNLP",
        key=CPU_SECONDS,
        says="takes less time than prompt tuning with as many trained numbers",
    ),
    Claim(entry="capt", paper="Liu et al. 2025, 2510.16670", says=AS_MANY),
    Claim(
        entry="prefix_memory",
        paper="Wang et al. 2025, 2506.13674",
        says="better than prefix tuning with as many trained numbers",
    ),
    Claim(
        entry="ct_kv",
        paper="Lu et al. 2025, 2507.04221",
        against="ct_kv",
        against_key="before_loss",
        says="better than in-context learning with the same examples",
    ),
    Claim(
        entry="ct_kv",
        paper="Lu et al. 2025, 2507.04221",
        says="better than prefix tuning with as many trained numbers, on the same examples",
    ),
)
