"""Every error the package raises on purpose, besides `ValueError` and `TypeError` for a bad option."""


class ZooError(Exception):
    """Base of all errors of the package; catch it to catch them all."""


class UnsupportedError(ZooError, ValueError):
    """The request cannot be kept for this model, prompt or file; raised before anything is changed."""


class UnknownMethodError(ZooError, LookupError):
    """No installed plugin offers the soft-prompt method asked for."""


class UnknownPromptError(ZooError, LookupError):
    """The model holds no prompt of that name."""


class PromptExistsError(ZooError, ValueError):
    """The model already holds a prompt of that name."""


class PluginError(ZooError, RuntimeError):
    """A plugin failed to load, or one of its hooks broke its contract."""


class ShapeError(PluginError):
    """A hook returned tensors of a wrong shape."""


class CheckpointError(ZooError, ValueError):
    """A saved prompt is missing, truncated, corrupt, or not what its index says."""


class BackboneMismatchError(CheckpointError):
    """A saved prompt, or a bank, was made for another backbone."""


class BankError(ZooError, RuntimeError):
    """A bank of prompts cannot be opened or written: no bank, no permission, no room, or something else is there."""
