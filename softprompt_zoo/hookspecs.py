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
    """Build the virtual tokens from the trained parameters; called once per forward and prompt.

    A method that asks for `text` builds different tokens for each row. It is called once per text, when the text
    starts: the result stays with the text's cache, including through beam search and further turns. A row's tokens must
    depend only on the row's own text, not on other rows or on padding; attaching checks this, and refuses `num_tasks`.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`; its `training` flag says whether the model trains.
        backbone: Sizes of the frozen model, and its embedding table. Not changed.
        text: The rows' text.

    Returns:
        `InputTokens`, or `LayerTokens` at one or more of `backbone.layers`' sites, in the dtype and on the device of
        the parameters (the host casts); gradients must flow to them. Their tensors:

        | tensor     | shape                           | notes                                                       |
        | ---------- | ------------------------------- | ----------------------------------------------------------- |
        | embeddings | `(tokens, hidden)`              | of `InputTokens`                                            |
        | with tasks | `(tasks, tokens, hidden)`       | if there is `num_tasks`; a row gets those of its `task_ids` |
        | keys       | `(kv_heads, tokens, head_dim)`  | of `LayerTokens`, for each layer of a site                  |
        | values     | `(kv_heads, tokens, value_dim)` | the same; `value_dim` is `head_dim` in most models          |
        | gates      | `(heads,)` or `(1,)`            | optional; a layer may then have `None` in all three         |
        | scores     | `(kv_heads, tokens)`            | optional; added to the attention scores of the tokens       |
        | per row    | `(rows, …)`                     | all but tasks, if the method asks for `text`                |

    Raises:
        ShapeError: By the host, if a shape is wrong, `LayerTokens` are to have tasks, or rows are missing or too many.
        PluginError: By the host, if nothing is returned; when attaching, if an initial value is infinite or not a
            number, or a row's tokens depend on other rows or on padding.
    """
    raise NotImplementedError  # a spec is never called


@hookspec(firstresult=True)
def inject(
    config: "MethodConfig", parameters: "nn.Module", tokens: "VirtualTokens", backbone: "Backbone", text: "Text"
) -> "Placement":
    """Return where the virtual tokens go; never touch the model. By default `Placement(tokens)`.

    A method that asks for `text` is called once per text, like `build_virtual_tokens`, and cannot have `num_tasks`.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`, or the plain tokens of a merged prompt.
        tokens: What `build_virtual_tokens` returned, or the merged tokens.
        backbone: Sizes of the frozen model.
        text: The rows' text; `None` when merged tokens are placed.

    Returns:
        A `Placement` of `tokens`, or of others of the same shapes; gradients must keep flowing.

    Raises:
        PluginError: By the host, if anything but a `Placement` is returned, or one with an invalid number.
        ShapeError: By the host, if it has other tokens of a different shape.
    """
    raise NotImplementedError  # a spec is never called


@hookspec(firstresult=True)
def merge(config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone") -> "VirtualTokens":
    """Return the trained tokens without the scaffold for training them; by default as they are built in eval mode.

    A method whose prompts are more than constant tokens has no such form: by default, `merge` refuses if
    `build_virtual_tokens` or `inject` asks for `text`, or if there is `map_text`. Such prompts can be saved, loaded,
    combined and used per row like any other; merging, folding, banks and exports refuse them with this error's message.

    Args:
        config: What the user chose. Not changed.
        parameters: The trained `Parameters`, in eval mode, under `torch.no_grad()`. Not changed.
        backbone: Sizes of the frozen model.

    Returns:
        The tokens that `build_virtual_tokens` returns in eval mode: same kind, same shapes. The host keeps a copy.

    Raises:
        UnsupportedError: If the prompt has no merged form; says what would be lost.
        ShapeError: By the host, if a shape is wrong.
        PluginError: By the host, if nothing is returned.
    """
    raise NotImplementedError  # a spec is never called


@hookspec(firstresult=True)
def map_text(
    config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone", text: "Text"
) -> "Float[Tensor, 'rows length hidden']":
    """Return new embeddings for the rows' text; optional.

    Called in every forward, before positions are added and prompts are put in front. When a text is continued, it
    gets only the new tokens, whose `text.mask` is false: the method decides whether generated tokens are changed.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`.
        backbone: Sizes of the frozen model.
        text: The rows' text. Not changed.

    Returns:
        Embeddings like `text.embeddings`, in any dtype (the host casts). A row's prompts change them in their order.

    Raises:
        ShapeError: By the host, if the shape is wrong.
        PluginError: By the host, if nothing is returned.
        UnsupportedError: By the host, when attaching, if the model has no place for other embeddings.
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
    """Return what to add to the output of a layer's attention, before its output projection; optional.

    Called in every forward for every layer, with all rows; nothing is added to those that lack the prompt. It takes up
    no positions. Several prompts of a row each get the same `output`; their results are weighted by prompt and added.

    Args:
        config: What the user chose. Not changed.
        parameters: The method's `Parameters`.
        backbone: Sizes of the frozen model.
        site: `"encoder"`, `"decoder"` or `"cross"`.
        layer: The layer's index within the site, from 0.
        query: The queries as attention sees them, after rotary embedding, contiguous. Not changed.
        hidden: The input of the attention module, as wide as the layer's `LayerShape.hidden_size`. Not changed.
        output: The output of attention over text and virtual tokens, including gated ones. Not changed.

    Returns:
        A tensor like `output`: of its shape, dtype and device; `None` for nothing in this layer.

    Raises:
        ShapeError: By the host, if its shape or dtype is wrong.
        UnsupportedError: By the host, when attaching, if the output of the model's attention cannot be reached.
    """


@hookspec(firstresult=True)
def training_loss(
    config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone", step: "TrainingStep"
) -> "Float[Tensor, ''] | None":
    """Replace the model's own loss; optional.

    Called in a forward in training mode with labels, if one of the parameters requires gradients.

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
    """Correct the parameters in place after an optimizer's step, for example by a projection; optional.

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
        learning_rate: The rate the user chose; the default is the recipe's.

    Returns:
        Groups for a torch optimizer, each with `"params"` and, if it differs, `"lr"`; parameters in none form one more.

    Raises:
        PluginError: By the host, if anything else is returned.
    """
    raise NotImplementedError  # a spec is never called


@hookspec(firstresult=True)
def write_peft(config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone") -> "PeftFiles | None":
    """Express the trained parameters as a PEFT adapter of the method's own type; optional.

    Without it, or if it returns `None`, the host writes the merged tokens: PROMPT_TUNING for those at the
    input embeddings, PREFIX_TUNING for keys and values. Not called for a merged prompt.

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

    Without it, or if it returns `None`, the host reads the plain tokens, and the prompt is a merged one.

    Args:
        fields: PEFT's config. Not changed.
        tensors: PEFT's tensors. Not changed.
        backbone: Sizes of the model the prompt goes to.

    Returns:
        The method's options, and the content of its `Parameters`, or plain tokens, which must fit the options.

    Raises:
        CheckpointError: If the files are inconsistent.
        BackboneMismatchError: If they were made for another model.
        UnsupportedError: If PEFT itself cannot run it correctly.
    """


@hookspec(firstresult=True)
def upgrade(
    options: "dict[str, Any]", state: "dict[str, Tensor]", version: str
) -> "tuple[dict[str, Any], dict[str, Tensor]]":
    """Convert what another version of the plugin saved: options and tensors under their current names; optional.

    Called when a prompt that is not merged is loaded, and its version, older or newer, is not the installed one.

    Args:
        options: As they were saved. May be changed.
        state: The tensors of `Parameters`, by their names in its `state_dict`. May be changed.
        version: Version of the package that saved them; empty if the method was registered by hand.

    Returns:
        Options and tensors of this version. Without the hook they are taken as they are.

    Raises:
        PluginError: By the host, if anything else is returned.
        CheckpointError: By the host, if they do not fit this version, or if the hook itself raises an error.
    """
    raise NotImplementedError  # a spec is never called
