"""The placeholders of a template, as Python's `str.format` writes them: `{name}`; `{{` and `}}` are braces."""

import string


def split(template: str) -> tuple[list[str], list[str]]:
    """Split a template at its placeholders.

    Args:
        template: The template.

    Returns:
        The texts around the placeholders, one more than there are placeholders, and the content of each one's braces.

    Raises:
        ValueError: If a brace is unmatched.
    """
    texts, placeholders = [""], []
    for text, field, form, conversion in string.Formatter().parse(template):
        texts[-1] += text
        if field is not None:
            placeholders.append(_written(field, form, conversion))
            texts.append("")
    return texts, placeholders


def _written(field: str, form: str | None, conversion: str | None) -> str:
    """Reassemble what the formatter has split."""
    return f"{field}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
