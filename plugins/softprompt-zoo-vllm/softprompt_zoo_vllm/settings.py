"""The configuration of a deployment, and checks of what cannot work."""

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

KEY = "soft_prompt"
"""The key of a request's prompt in its `kv_transfer_params`."""
OPTIONS = ("bank", "storage_options", "cache_bytes", "placeholder", "authorize")
"""The allowed keys of `kv_connector_extra_config`."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The connector's part of a deployment's configuration: `kv_connector_extra_config`."""

    bank: str
    """Folder or fsspec address of the bank."""
    storage_options: Mapping[str, Any] | None = None
    """Options of the address's file system."""
    cache_bytes: int = 256 * 2**20
    """Maximum size of the prompts that each worker caches on its device, in bytes."""
    placeholder: int = 0
    """Token id that takes the place of a request's prompt; penalties may act on it."""
    authorize: str | None = None
    """`module:function` that decides whether a request may use a prompt; `None` lets every request use any."""
    secret: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16), repr=False)
    """Part of the salt of cached blocks, so that no client can guess the salt of a prompt."""

    @classmethod
    def read(cls, extra: Mapping[str, Any]) -> "Settings":
        """Read and check `kv_connector_extra_config`.

        Args:
            extra: The user's settings. Not changed.

        Returns:
            The settings.

        Raises:
            ValueError: If an option is unknown or has a wrong value.
        """
        for name in extra:
            if name not in OPTIONS:
                raise ValueError(f"kv_connector_extra_config has {name!r}; expected some of {', '.join(OPTIONS)}")
        settings = cls(**extra) if "bank" in extra else cls(bank="")
        if not isinstance(settings.bank, str) or not settings.bank:
            raise ValueError(
                f"kv_connector_extra_config has bank={settings.bank!r}; expected the folder or address of a bank"
            )
        for name, least in (("cache_bytes", 1), ("placeholder", 0)):
            value = getattr(settings, name)
            if type(value) is not int or value < least:
                raise ValueError(
                    f"kv_connector_extra_config has {name}={value!r}; expected an integer of at least {least}"
                )
        return settings

    @property
    def is_local(self) -> bool:
        """Whether the bank is a local folder, in which lookups do not block."""
        return "://" not in self.bank


def check_deployment(config: Any) -> None:
    """Refuse a deployment in which a request could lose its prompt.

    Args:
        config: vLLM's `VllmConfig`.

    Raises:
        ValueError: If it cannot work with soft prompts; says what to do.
    """
    policy = config.kv_transfer_config.kv_load_failure_policy
    if policy != "fail":
        raise ValueError(
            f"kv_load_failure_policy is {policy!r}; with soft prompts it must be 'fail', because a prompt that cannot "
            "be loaded would otherwise be computed from placeholder tokens"
        )
    if config.model_config.runner_type == "pooling":
        raise ValueError(
            "the runner is 'pooling', which does not read keys and values from elsewhere, so its requests would be "
            "answered without their soft prompts; leave the bank out, or serve with --runner generate"
        )
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(config.parallel_config, name, 1) > 1:
            raise ValueError(
                f"{name} is {getattr(config.parallel_config, name)}; soft prompts need 1, because context parallelism "
                "distributes a request's tokens over ranks"
            )
    if config.model_config.use_mla:
        raise ValueError(
            f"{config.model_config.model} caches one latent per token (MLA), from which its keys and values are "
            "computed; a soft prompt is keys and values, so serve the prompt as tokens: zoo.export(to='vocabulary')"
        )
