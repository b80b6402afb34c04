"""Class labels: numbers with names."""

from __future__ import annotations

from typing import Any, Self


class Label(int):
    """A class label: a number, with the name that is used where a text is needed.

    Attributes:
        name: name of the class.
    """

    name: str

    def __new__(cls, number: int, name: str) -> Self:
        """Return a number with a name."""
        label = super().__new__(cls, number)
        label.name = name
        return label

    def __reduce__(self) -> tuple[type[Self], tuple[int, str]]:
        return type(self), (int(self), self.name)

    def __repr__(self) -> str:
        return f"{int(self)} ({self.name!r})"

    __str__ = int.__repr__  # `f"{label}"` stays the number


def name_of_label(value: Any) -> Any:
    """The name of a class label; any other value as it is."""
    return value.name if isinstance(value, Label) else value
