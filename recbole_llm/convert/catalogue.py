"""Rows of a ``.item`` or ``.user`` file: one per id, in the order of the source."""

from collections.abc import Sequence

from recbole_llm.convert.text import clean_text, clean_token, guard_sequence


class Catalogue:
    """Cleaned fields by raw id, held in memory.

    Parameters
    ----------
    fields : sequence of (str, str)
        Name and RecBole type (``token``, ``token_seq``, ``float``) of each field behind the id.
    title : str, optional
        The field without which an item counts as untitled.
    """

    def __init__(self, fields: Sequence[tuple[str, str]], title: str = "") -> None:
        self.fields = tuple(fields)
        self.title = title
        self.rows: dict[str, tuple[str, ...]] = {}
        self._clean = [_CLEAN[kind] for _, kind in self.fields]
        self._title = next((place for place, (name, _) in enumerate(self.fields) if name == title), None)

    def __contains__(self, raw_id: str) -> bool:
        return raw_id in self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, raw_id: str, values: Sequence[str]) -> None:
        """Add a row; ``values`` are raw text, one per field."""
        self.rows[raw_id] = tuple(
            [clean(value) if value else "" for clean, value in zip(self._clean, values, strict=True)]
        )

    def titled(self, raw_id: str) -> bool:
        """Whether the id is known and has a title."""
        row = self.rows.get(raw_id)
        return row is not None and (self._title is None or bool(row[self._title]))

    def only(self, names: Sequence[str]) -> "Catalogue":
        """Return a catalogue with these fields alone, in this order."""
        places = [[name for name, _ in self.fields].index(name) for name in names]
        smaller = Catalogue([self.fields[place] for place in places], self.title)
        smaller.rows = {raw: tuple([row[place] for place in places]) for raw, row in self.rows.items()}
        return smaller


def _sequence(value: str) -> str:
    return guard_sequence(clean_text(value))


_CLEAN = {"token": clean_token, "token_seq": _sequence, "float": clean_text}
