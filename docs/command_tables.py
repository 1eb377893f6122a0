"""Fills the page of the command line: `<!-- options of NAME -->` becomes a table made from the command's help."""

import re
from typing import Any

import typer

from softprompt_zoo.cli import app

PAGE = "reference/cli.md"
MARK = re.compile(r"<!-- options of ([\w -]+?) -->")


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Replace the marks of one page; mkdocs calls it for every page."""
    return MARK.sub(lambda match: table(match[1]), markdown) if page.file.src_uri == PAGE else markdown


def table(name: str) -> str:
    """Return a command's help and its arguments and options as Markdown."""
    command: Any = typer.main.get_command(app)
    for part in name.split():
        command = command.commands[part]
    lines = [command.help, "", "| argument or option | default | meaning |", "| --- | --- | --- |"]
    for parameter in command.params:
        is_argument = parameter.param_type_name == "argument"
        shown = (parameter.metavar or parameter.name.upper()) if is_argument else ", ".join(parameter.opts)
        has_default = parameter.default is not None and parameter.default is not False and parameter.default != ""
        default = repr(parameter.default) if has_default else ""
        default = f"`{default.strip(chr(39)).replace(chr(92) * 2, chr(92))}`" if default else ""
        meaning = (parameter.help or "").replace("|", "\\|").replace("\\n", "`\\n`")
        lines.append(f"| `{shown}` | {default} | {meaning} |")
    return "\n".join(lines)
