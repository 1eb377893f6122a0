"""The command line, run in this process."""

from typer.testing import CliRunner

from softprompt_zoo.cli import app


def invoke(*words, **options):
    return CliRunner().invoke(app, [str(word) for word in words], **options)


def refusal(*words, **options):
    """Run a command that must fail, and return its one-line error message."""
    result = invoke(*words, **options)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]
