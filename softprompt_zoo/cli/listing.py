"""`methods`, `plugins` and `show`: what is installed."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt_zoo.cli.command import console
from softprompt_zoo.errors import printable

if TYPE_CHECKING:
    from softprompt_zoo.config.recipe import Recipe
    from softprompt_zoo.registry.discovery import PluginReport

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def methods(as_json: AsJson = False) -> None:
    """List the soft-prompt methods that are installed."""
    from softprompt_zoo.registry.registry import registry

    rows = [
        {"name": found.name, "aliases": list(found.aliases), "summary": found.summary, "distribution": found.origin}
        for found in registry.candidates().values()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _print_methods(rows)


def _print_methods(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    # Names are meant to be copied, so a narrow terminal must not truncate them.
    names = (Column("method", no_wrap=True), Column("aliases", overflow="fold"))
    table = Table(*names, "summary", Column("distribution", overflow="fold", min_width=12))
    for row in rows:
        cells = (cell if isinstance(cell, str) else ", ".join(cell) for cell in row.values())
        table.add_row(*(escape(printable(cell)) for cell in cells))
    console().print(table)


def plugins(
    check: Annotated[bool, typer.Option("--check", help="Load every plugin and run its hooks.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the installed plugins and any problems with them; exit code 1 if there are any."""
    from softprompt_zoo.registry.registry import registry

    reports = registry.reports(load=check)
    notes: dict[str, str] = {}
    if check:
        from softprompt_zoo.cli.hook_check import check_hooks

        reports, notes = check_hooks(reports)
    if as_json:
        typer.echo(json.dumps(list(map(dataclasses.asdict, reports)), indent=2))
    else:
        _print_reports(reports, notes)
    if any(report.problem for report in reports):
        raise typer.Exit(1)


def _print_reports(reports: "list[PluginReport]", notes: dict[str, str]) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    distribution = Column("distribution", overflow="fold", min_width=12)
    table = Table(Column("plugin", no_wrap=True), "kind", distribution, "state")
    for report in reports:
        style, state = ("red", "problem, see below") if report.problem else (None, notes.get(report.name, "ok"))
        cells = map(printable, (report.name, report.kind, report.origin, state))
        table.add_row(*map(escape, cells), style=style)
    console().print(table)
    for report in reports:
        if report.problem:
            _print_problem(report, report.problem)


def _print_problem(report: "PluginReport", problem: str) -> None:
    line = printable(f"{report.name} ({report.origin}): {' '.join(problem.split())}")
    console().print(line, style="red", markup=False, highlight=False, soft_wrap=True)


def show(method: Annotated[str, typer.Argument(help="Name or alias.", metavar="METHOD")]) -> None:
    """Show a method's page, its options, its recipe, and what its prompts can be exported to."""
    import inspect

    from softprompt_zoo.cli.options import describe_options
    from softprompt_zoo.registry.registry import registry

    found = registry.lookup(method)
    typer.echo(f"{found.name} ({found.distribution} {found.version})".rstrip())
    if found.aliases:
        typer.echo(f"aliases: {', '.join(found.aliases)}")
    typer.echo(f"\n{inspect.getdoc(found.plugin) or 'no description'}\n\nOptions:")
    for option in describe_options(found.config_class):
        lines = [f"  {option.name}: {option.type} = {option.default}", *option.description]
        typer.echo("\n      ".join(lines))
    typer.echo("\nRecipe:")
    typer.echo("\n".join(_recipe_lines(found.recipe)))
    from softprompt_zoo.cli.tried_exports import describe_exports  # loads transformers, which takes a while

    typer.echo("\nExports:\n  " + "\n  ".join(describe_exports(found)))


def _recipe_lines(recipe: "Recipe | None") -> list[str]:
    if recipe is None:
        return ["  none; give train a --learning-rate and --steps"]
    return [f"  {name}: {value}" for name, value in dataclasses.asdict(recipe).items()]
