"""The placeholders of a template, as Python's `str.format` writes them: `{name}`; `{{` and `}}` are braces."""

import string


def split(template: str) -> list[tuple[str, str | None]]:
    """Cut a template at its placeholders.

    Args:
        template: The template.

    Returns:
        Texts, each with what stands between the braces after it; `None` if there is no placeholder after it.

    Raises:
        ValueError: If a brace stands alone.
    """
    return [(text, _written(*parts)) for text, *parts in string.Formatter().parse(template)]


def _written(field: str | None, form: str | None, conversion: str | None) -> str | None:
    """Put together again what the formatter has taken apart."""
    if field is None:
        return None
    return f"{field}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
