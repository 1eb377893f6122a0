"""The examples of a source, in any form."""

from collections.abc import Iterator
from typing import Any

from softprompt_zoo.errors import DataError
from softprompt_zoo.examples.forms import FORMS, form_of
from softprompt_zoo.examples.sources import Source


class Reading:
    """The examples of a source, read again in every iteration."""

    def __init__(
        self, source: Source, form: str | None = None, input_field: str | None = None, target_field: str | None = None
    ) -> None:
        """Check the first row.

        Args:
            source: Where rows come from.
            form: The form of the rows; by default recognized by their fields.
            input_field: The field with the input, if it does not have a default name.
            target_field: The field with the target, if it does not have a default name.

        Raises:
            DataError: If there are no rows, or their fields do not match the form.
        """
        first = next(source.rows(), None)
        if first is None:
            raise DataError(f"{source.name}: has no rows; at least one is needed; add one or name another file")
        self.source = source
        self.form = form or form_of(first)
        """One of `FORMS`."""
        self._form = FORMS[self.form](first, input_field, target_field)

    def __iter__(self) -> Iterator[Any]:
        return map(self._form.example, self.source.rows())
