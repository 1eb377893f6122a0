"""What a deployment configured, and what of it cannot work."""

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

KEY = "soft_prompt"
"""What names a request's prompt in its `kv_transfer_params`."""
OPTIONS = ("bank", "storage_options", "cache_bytes", "placeholder", "authorize")
"""What `kv_connector_extra_config` may hold."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The connector's part of a deployment's configuration: `kv_connector_extra_config`."""

    bank: str
    """Folder or fsspec address of the bank."""
    storage_options: Mapping[str, Any] | None = None
    """Options of the address's file system."""
    cache_bytes: int = 256 * 2**20
    """Bound on the prompts that each worker keeps ready on its device, in bytes."""
    placeholder: int = 0
    """Token id that stands in a request where its prompt is; penalties may act on it."""
    authorize: str | None = None
    """`module:function` that is asked whether a request may name a prompt; `None` lets every request name any."""
    secret: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16), repr=False)
    """Goes into the salt of cached blocks, so that no client can name the salt of a prompt."""

    @classmethod
    def read(cls, extra: Mapping[str, Any]) -> "Settings":
        """Read and check `kv_connector_extra_config`.

        Args:
            extra: As the user gave it. Not changed.

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
                raise ValueError(f"kv_connector_extra_config has {name}={value!r}; expected an integer from {least} on")
        return settings

    @property
    def is_local(self) -> bool:
        """Whether the bank is a folder of this machine, whose look-ups nobody has to wait for."""
        return "://" not in self.bank


def check_deployment(config: Any) -> None:
    """Refuse a deployment in which a request could lose its prompt.

    Args:
        config: vLLM's `VllmConfig`.

    Raises:
        ValueError: If something in it cannot work with soft prompts; says what to do.
    """
    policy = config.kv_transfer_config.kv_load_failure_policy
    if policy != "fail":
        raise ValueError(
            f"kv_load_failure_policy is {policy!r}; with soft prompts it must be 'fail', for a prompt that cannot be "
            "loaded would be computed from placeholder tokens"
        )
    if config.model_config.runner_type == "pooling":
        raise ValueError(
            "the runner is 'pooling', which reads no keys and values from elsewhere, so its requests would be answered "
            "without their soft prompts; leave the bank out, or serve with --runner generate"
        )
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(config.parallel_config, name, 1) > 1:
            raise ValueError(
                f"{name} is {getattr(config.parallel_config, name)}; soft prompts need 1, for context parallelism "
                "deals a request's tokens out to ranks"
            )
    if config.model_config.use_mla:
        raise ValueError(
            f"{config.model_config.model} keeps one latent per token (MLA), from which its keys and values come; a "
            "soft prompt is keys and values, so serve the prompt as tokens: zoo.export(to='vocabulary')"
        )
