"""The contract of a soft-prompt method, in the order in which the host calls it.

A method is a module (or object) published under the entry-point group `softprompt_zoo`. It has three
hooks, marked `softprompt_zoo.hookimpl`, and these attributes:

- `Config`: a frozen dataclass that extends `MethodConfig`; only what the user chooses.
- `Parameters(config, backbone)`: a `torch.nn.Module` that holds only what is trained, in its final
  shapes. Its `initialize(config, backbone)` gives the start values; it is not called when a saved prompt
  is loaded. With `start_from(tokens)` it can start from another prompt's plain tokens.
- `RECIPE`: a `Recipe`, or nothing.
- `ALIASES`: a literal tuple of other names; read without importing the module, as is the first line
  of its docstring, the summary.
- `PEFT_TYPES`: names of PEFT's prompt types whose files this method loads, or nothing.

A hook may ask for fewer arguments than its spec names. A *wrapper* plugin (entry-point group
`softprompt_zoo.wrappers`) implements the same hooks with `hookimpl(wrapper=True)` and then runs around
the hooks of every method.
"""

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from softprompt_zoo.backbone import Backbone
    from softprompt_zoo.config import MethodConfig
    from softprompt_zoo.tokens import Placement, VirtualTokens

PROJECT = "softprompt_zoo"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def build_virtual_tokens(  # type: ignore[empty-body]
    config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone", task_ids: "Tensor | None"
) -> "VirtualTokens":
    """Make the virtual tokens from the trained parameters; called once per forward and prompt.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`; its `training` flag says whether the model trains.
        backbone: Sizes of the frozen model, and its embedding table. Not changed.
        task_ids: `(rows,)` integers, or `None` when the caller gave none.

    Returns:
        `InputTokens` with embeddings `(tokens, hidden)`, or `LayerTokens` with keys and values
        `(kv_heads, tokens, head_dim)` per layer of one or more of `backbone.layers`' sites; in the
        dtype and on the device of the parameters (the host casts); gradients must flow to them.

    Raises:
        ShapeError: By the host, if a shape is another one.
        PluginError: By the host, if nothing is returned.
    """


@hookspec(firstresult=True)
def inject(  # type: ignore[empty-body]
    config: "MethodConfig", parameters: "nn.Module", tokens: "VirtualTokens", backbone: "Backbone"
) -> "Placement":
    """Say where the virtual tokens go; never touch the model.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`, or the plain tokens of a merged prompt.
        tokens: What `build_virtual_tokens` returned, or the merged tokens.
        backbone: Sizes of the frozen model.

    Returns:
        A `Placement` of `tokens`; gradients must keep flowing.

    Raises:
        PluginError: By the host, if anything but a `Placement` is returned.
    """


@hookspec(firstresult=True)
def merge(  # type: ignore[empty-body]
    config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone"
) -> "VirtualTokens":
    """Return the trained tokens without the scaffold that trained them.

    Args:
        config: What the user chose. Not changed.
        parameters: The trained `Parameters`, in eval mode. Not changed.
        backbone: Sizes of the frozen model.

    Returns:
        The tokens that `build_virtual_tokens` gives in eval mode: same kind, same shapes. The host
        calls it without gradients and keeps a copy.

    Raises:
        ShapeError: By the host, if a shape is another one.
        PluginError: By the host, if nothing is returned.
    """
