"""`inspect`: what is inside a trained prompt."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt_zoo.cli.command import check_file, console
from softprompt_zoo.cli.use import (
    Dtype,
    Model,
    PromptFolder,
    Revision,
    Template,
    chosen_template,
    found,
    load_prompted,
    trained_with,
)

if TYPE_CHECKING:
    from softprompt_zoo.training.base import Base


def inspect(
    model: Model,
    prompt_folder: PromptFolder,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Texts to measure the attention to the prompt on."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The prompt; all active ones if not given.")] = None,
    neighbours: Annotated[int, typer.Option(min=1, help="Nearest words for each virtual token.")] = 5,
    nearest_by: Annotated[str, typer.Option(help="How to rank the nearest words: cosine or distance.")] = "cosine",
    task: Annotated[int | None, typer.Option(help="The task to look at, if the prompt has several.")] = None,
    template: Template = None,
    png: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
    html: Annotated[Path | None, typer.Option(help="HTML page to write, with tables and pictures.")] = None,
    dtype: Dtype = "float32",
    revision: Revision = None,
) -> None:
    """Look inside a prompt: nearest words, norms, similar tokens, and the attention that texts pay to it."""
    prompt_folder = found(prompt_folder, revision)
    trained = trained_with(prompt_folder)
    form = chosen_template(template, trained)
    check_file("--png", png)
    check_file("--html", html)
    from softprompt_zoo.operations.inspect import inspect as look_inside

    base, network = load_prompted(model, prompt_folder, dtype)
    inputs = [_batch(base, network, form, text) for text in texts] if texts else None
    seen = look_inside(
        network,
        name,
        tokenizer=base.tokenizer,
        inputs=inputs,
        neighbours=neighbours,
        nearest_by=nearest_by,
        task=task,
    )
    if png is not None:
        seen.to_png(png)
    if html is not None:
        seen.to_html(html)
    console().print(seen)


def _batch(base: "Base", network: Any, template: str, text: str) -> dict[str, Any]:
    import torch

    from softprompt_zoo.examples import Example
    from softprompt_zoo.training.data import Tokenized

    ids = Tokenized(base.tokenizer, base.is_encoder_decoder, template).text_ids(Example(text, None))
    batch = {"input_ids": torch.tensor([ids])}
    if base.is_encoder_decoder:  # the decoder has generated nothing yet
        start = network.generation_config.decoder_start_token_id
        batch["decoder_input_ids"] = torch.tensor([[network.config.decoder_start_token_id if start is None else start]])
    return batch
