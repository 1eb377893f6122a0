"""The command `softprompt-zoo`. Torch and transformers are imported by the commands that need them, not here."""

import os
from collections.abc import Callable

import typer

from softprompt_zoo.cli.bank import add, delete, import_prompts, list_prompts, verify
from softprompt_zoo.cli.command import command
from softprompt_zoo.cli.compare import compare
from softprompt_zoo.cli.doctor import doctor
from softprompt_zoo.cli.files import export_prompt, import_prompt
from softprompt_zoo.cli.inside import inspect
from softprompt_zoo.cli.listing import methods, plugins, show
from softprompt_zoo.cli.new_plugin import new_plugin
from softprompt_zoo.cli.push import push
from softprompt_zoo.cli.serve import serve
from softprompt_zoo.cli.train import train
from softprompt_zoo.cli.use import evaluate, generate

app = typer.Typer(
    name="softprompt-zoo",
    help="Soft-prompt methods for Hugging Face transformers: train, measure, use and convert prompts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "methods": methods,
    "plugins": plugins,
    "show": show,
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "compare": compare,
    "inspect": inspect,
    "doctor": doctor,
    "export": export_prompt,
    "import": import_prompt,
    "push": push,
    "serve": serve,
    "new-plugin": new_plugin,
}
for name, function in _COMMANDS.items():
    app.command(name)(command(function))

_bank = typer.Typer(help="Keep a large number of prompts for one model in a bank.", no_args_is_help=True)
_BANK_COMMANDS: dict[str, Callable[..., None]] = {
    "add": add,
    "import": import_prompts,
    "list": list_prompts,
    "verify": verify,
    "delete": delete,
}
for name, function in _BANK_COMMANDS.items():
    _bank.command(name)(command(function))
app.add_typer(_bank, name="bank")


def main() -> None:
    """Run the command line."""
    if os.environ.get("COLUMNS", "").strip() == "0":  # some terminals report an unknown width as 0
        del os.environ["COLUMNS"]
    app()
