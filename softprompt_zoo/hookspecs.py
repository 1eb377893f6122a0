"""The contract of a soft-prompt method, in the order in which the host calls it.

A method is a module (or object) published under the entry-point group `softprompt_zoo`. Its hooks are marked
`softprompt_zoo.hookimpl`: `build_virtual_tokens`, or in its place, without virtual tokens, `map_text` or `attend`; and
others where it needs them (`inject` and `merge` have defaults). It has these attributes:

- `Config`, a frozen dataclass that extends `MethodConfig`: only what the user chooses.
- `Parameters(config, backbone)`, a `torch.nn.Module`: only what is trained, in its final shapes. Its
  `initialize(config, backbone)` gives the start values; it is not called when a saved prompt is loaded.
- Optional ones, which `docs/reference/hooks.md` lists.

A hook may ask for fewer arguments than its spec names. A *wrapper* plugin (group `softprompt_zoo.wrappers`) implements
the same hooks, `hookimpl(wrapper=True)`, around those of every method, or, with a `Config`, of prompts that choose it.
"""

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from softprompt_zoo.backbone.backbone import Backbone
    from softprompt_zoo.config.options import MethodConfig
    from softprompt_zoo.exchange import PeftFiles, PeftPrompt, TrainingStep
    from softprompt_zoo.shapes import Float
    from softprompt_zoo.tokens.placement import Placement
    from softprompt_zoo.tokens.text import Text
    from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

PROJECT = "softprompt_zoo"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def build_virtual_tokens(
    config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone", text: "Text"
) -> "VirtualTokens":
    """Make the virtual tokens from the trained parameters; called once per forward and prompt.

    A method that asks for `text` makes other tokens for each row. It is called once for a text, when the text is
    begun: what it made stays with the text's cache, also through beams and further turns. A row's tokens must depend on
    the row's own text alone, not on its neighbors or on padding; attaching tries that.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`; its `training` flag says whether the model trains.
        backbone: Sizes of the frozen model, and its embedding table. Not changed.
        text: What the rows say.

    Returns:
        `InputTokens` with embeddings `(tokens, hidden)`, or `(tasks, tokens, hidden)` if the config has
        `num_tasks`, from which the host takes each row's by its `task_ids`; or `LayerTokens` with keys and values
        `(kv_heads, tokens, head_dim)` per layer of one or more of `backbone.layers`' sites. Values are
        `(kv_heads, tokens, value_dim)` where a layer has another width for them. With gates, `(heads,)` or `(1,)` per
        layer, a layer may have `None` in all three. With scores, `(kv_heads, tokens)` per layer, these are added to the
        attention scores of the tokens: the logarithm of a factor on the share of each. In the dtype and on the device
        of the parameters (the host casts); gradients must flow to them. Of a method that asks for `text`, every tensor
        has an axis of rows in front: `(rows, tokens, hidden)`, `(rows, kv_heads, tokens, head_dim)`.

    Raises:
        ShapeError: By the host, if a shape is another one, or there are more or fewer rows than in the text.
        PluginError: By the host, if nothing is returned; at attaching, if a start value is infinite or not a number, or
            a row's tokens depend on other rows or on padding.
    """
    raise NotImplementedError  # a spec is never called


@hookspec(firstresult=True)
def inject(
    config: "MethodConfig", parameters: "nn.Module", tokens: "VirtualTokens", backbone: "Backbone", text: "Text"
) -> "Placement":
    """Return where the virtual tokens go; never touch the model. By default `Placement(tokens)`.

    A method that asks for `text` is called once for a text, as `build_virtual_tokens` is.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`, or the plain tokens of a merged prompt.
        tokens: What `build_virtual_tokens` returned, or the merged tokens.
        backbone: Sizes of the frozen model.
        text: What the rows say; `None` where merged tokens are placed.

    Returns:
        A `Placement` of `tokens`, or of others of the same shapes; gradients must keep flowing.

    Raises:
        PluginError: By the host, if anything but a `Placement` is returned, or one with an impossible number.
        ShapeError: By the host, if it is of other tokens and a shape is another one.
    """
    raise NotImplementedError  # a spec is never called


@hookspec(firstresult=True)
def merge(config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone") -> "VirtualTokens":
    """Return the trained tokens without the scaffold that trained them; by default as they are built in eval mode.

    A method whose prompts are more than constant tokens has no such form: by default `merge` refuses where
    `build_virtual_tokens` or `inject` asks for `text`, or there is `map_text`. Such prompts are saved, loaded, combined
    and named by rows as any other; merging, folding, banks and exports refuse them in the words of the error.

    Args:
        config: What the user chose. Not changed.
        parameters: The trained `Parameters`, in eval mode. Not changed.
        backbone: Sizes of the frozen model.

    Returns:
        The tokens that `build_virtual_tokens` gives in eval mode: same kind, same shapes. The host
        calls it without gradients and keeps a copy.

    Raises:
        UnsupportedError: If the prompt has no merged form; says what would be lost.
        ShapeError: By the host, if a shape is another one.
        PluginError: By the host, if nothing is returned.
    """
    raise NotImplementedError  # a spec is never called


@hookspec(firstresult=True)
def map_text(
    config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone", text: "Text"
) -> "Float[Tensor, 'rows length hidden']":
    """Return other embeddings for the rows' text; optional.

    Called in every forward, before positions are added and prompts stand in front. While a text is gone on with, it
    gets the new tokens alone, whose `text.mask` is false: whether generated tokens are changed is the method's choice.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`.
        backbone: Sizes of the frozen model.
        text: What the rows say. Not changed.

    Returns:
        The embeddings of all positions, of the shape of `text.embeddings`, in any dtype (the host casts). Those of
        several prompts of a row are changed one after the other, in the order of the prompts.

    Raises:
        ShapeError: By the host, if the shape is another one.
        PluginError: By the host, if nothing is returned.
        UnsupportedError: By the host, at attaching, if the model has no place for other embeddings.
    """
    raise NotImplementedError  # a spec is never called


@hookspec(firstresult=True)
def attend(
    config: "MethodConfig",
    parameters: "nn.Module",
    backbone: "Backbone",
    site: str,
    layer: int,
    query: "Float[Tensor, 'rows heads length head_dim']",
    hidden: "Float[Tensor, 'rows length hidden']",
    output: "Float[Tensor, 'rows length heads value_dim']",
) -> "Float[Tensor, 'rows length heads value_dim'] | None":
    """Return what is added to the output of a layer's attention, in front of its output projection; optional.

    Called in every forward for every layer, with all rows; those that lack the prompt get nothing added. It takes up no
    positions. What several prompts of a row add is summed, each made of the same `output`, times the prompt's weight.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`.
        backbone: Sizes of the frozen model.
        site: `"encoder"`, `"decoder"` or `"cross"`.
        layer: The layer's index within the site, from 0.
        query: The queries as attention sees them, after rotary embedding, contiguous. Not changed.
        hidden: What the attention module reads, as wide as the layer's `LayerShape.hidden_size`. Not changed.
        output: What attention gives for text and virtual tokens, gated ones as well. Not changed.

    Returns:
        A tensor like `output`: of its shape, dtype and device; `None` for nothing in this layer.

    Raises:
        ShapeError: By the host, if its shape or dtype is another one.
        UnsupportedError: By the host, at attaching, if the output of the model's attention is not reached.
    """


@hookspec(firstresult=True)
def training_loss(
    config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone", step: "TrainingStep"
) -> "Float[Tensor, ''] | None":
    """Replace the model's own loss; optional.

    Called in a forward in training mode that was given labels, if one of the parameters requires gradients.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`.
        backbone: Sizes of the frozen model, and what it computes for real words.
        step: The forward: its loss, outputs, inputs and means to run the frozen model once more.

    Returns:
        The loss, a scalar; `None` to keep the model's own.

    Raises:
        PluginError: By the host, if anything else is returned.
        UnsupportedError: By the host, if not every row of the batch has this prompt, alone or as the last one.
    """


@hookspec
def after_step(config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone") -> None:
    """Correct the parameters in place after an optimizer's step, a projection say; optional.

    Called without gradients, after the step of any torch optimizer that holds one of them.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`. Changed in place.
        backbone: Sizes of the frozen model.
    """


@hookspec(firstresult=True)
def parameter_groups(config: "MethodConfig", parameters: "nn.Module", learning_rate: float) -> "list[dict[str, Any]]":
    """Split the parameters into an optimizer's groups; optional, by default they are one group.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`.
        learning_rate: The rate the user chose, which the recipe's is the default of.

    Returns:
        Groups as torch optimizers take them, each with `"params"` and, where it differs, `"lr"`. Parameters in
        none of them are one more group.

    Raises:
        PluginError: By the host, if anything else is returned.
    """
    raise NotImplementedError  # a spec is never called


@hookspec(firstresult=True)
def write_peft(config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone") -> "PeftFiles | None":
    """Express the trained parameters as a PEFT adapter of the method's own type; optional.

    Without it, or where it returns `None`, the host writes the merged tokens: PROMPT_TUNING of those at the
    input embeddings, PREFIX_TUNING of keys and values. Not called of a merged prompt.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`. Not changed.
        backbone: Sizes of the frozen model.

    Returns:
        The fields of PEFT's config and its tensors.

    Raises:
        UnsupportedError: If PEFT cannot hold it; says what would be lost.
    """


@hookspec(firstresult=True)
def read_peft(fields: "dict[str, Any]", tensors: "dict[str, Tensor]", backbone: "Backbone") -> "PeftPrompt | None":
    """Read a PEFT adapter of one of the method's `PEFT_TYPES`; optional.

    Without it, or where it returns `None`, the host reads the plain tokens, and the prompt is a merged one.

    Args:
        fields: PEFT's config. Not changed.
        tensors: PEFT's tensors. Not changed.
        backbone: Sizes of the model the prompt goes to.

    Returns:
        The method's options, and what its `Parameters` hold, or plain tokens.

    Raises:
        CheckpointError: If the files do not fit together.
        BackboneMismatchError: If they were made for another model.
        UnsupportedError: If PEFT itself cannot run it right.
    """


@hookspec(firstresult=True)
def upgrade(
    options: "dict[str, Any]", state: "dict[str, Tensor]", version: str
) -> "tuple[dict[str, Any], dict[str, Tensor]]":
    """Read what another version of the plugin saved: options and tensors under the names that they have now; optional.

    Called when a saved prompt is loaded and the version in the file is not the one that is installed, older or newer.
    Not called of a merged prompt, which has no parameters.

    Args:
        options: As they were saved. May be changed.
        state: The tensors of `Parameters`, by their names in its `state_dict`. May be changed.
        version: Version of the package that saved them; empty if the method was registered by hand.

    Returns:
        Options and tensors of this version. Without the hook they are taken as they are.

    Raises:
        PluginError: By the host, if anything else is returned.
        CheckpointError: By the host, if they do not fit this version; so, too, whatever the hook raises itself.
    """
    raise NotImplementedError  # a spec is never called
