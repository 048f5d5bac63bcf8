"""Mapping of names written by a language model to items of the catalogue.

A name is looked up after undoing what differs without meaning: blanks and HTML escapes, then case and the place of an
article. Titles are not unique: a name matches all items of that title. An unknown name is replaced by the
nearest item by text embedding, or by spelling if a list to choose from was given.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

import numpy as np

from recbole_llm.prompt.nearest import NearestItems
from recbole_llm.text.titles import fronted_article, plain_text, without_article


def normalised(name: str) -> str:
    """Normalise a name: remove HTML escapes, surrounding spaces and repeated ones."""
    return plain_text(name)


def _loose_keys(name: str) -> tuple[str, str]:
    """Return what two spellings of a name share: first with its article, then without."""
    folded = fronted_article(name, any_case=True).casefold()
    return folded, without_article(folded)


@dataclass
class NameCounts:
    """Counts of written names by outcome.

    Attributes
    ----------
    names : int
        All that were written.
    exact, unknown, empty : int
        Names of items, names of nothing, and nothing at all: these add up to ``names``.
    repeated : int
        Known or unknown names that the same answer has given before.
    seen : int
        Exact names of nothing but items of the history.
    """

    names: int = 0
    exact: int = 0
    unknown: int = 0
    empty: int = 0
    repeated: int = 0
    seen: int = 0


@dataclass
class ItemNames:
    """Names of the catalogue.

    Parameters
    ----------
    names : list of str
        By internal id; ``""`` for padding and for items without a name.
    popularity : numpy.ndarray, shape (n_items,)
        Orders items of the same name.
    """

    names: Sequence[str]
    popularity: np.ndarray
    items_of: dict[str, list[int]] = field(init=False)
    _spellings: list[dict[str, str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Sort the items of every name."""
        self.names = [normalised(name) for name in self.names]
        self.items_of, self._spellings = {}, [{}, {}]
        for item in np.argsort(-self.popularity, kind="stable").tolist():
            name = self.names[item]
            if name:
                self.items_of.setdefault(name, []).append(item)
                for known, key in zip(self._spellings, _loose_keys(name), strict=True):
                    known.setdefault(key, name)  # of several titles the most popular one

    def as_in_catalogue(self, written: str) -> str:
        """Return the catalogue's spelling of a name, or the name itself (normalised) if there is none.

        Tried in this order: the name as it is; upper and lower case and the place of the article ignored
        (``mask, the`` is ``The Mask``); without an English article.
        """
        name = normalised(written)
        if name in self.items_of:
            return name
        keys = zip(self._spellings, _loose_keys(name), strict=True)
        return next((known[key] for known, key in keys if key in known), name)

    def count(self, written: Sequence[str], history: Collection[int], counts: NameCounts) -> None:
        """Add to the counts what one answer's names, spelt as in the catalogue, are."""
        for name, times in Counter(written).items():
            counts.names += times
            if not name:
                counts.empty += times
                continue
            items = self.items_of.get(name)
            counts.repeated += times - 1
            if items is None:
                counts.unknown += times
            else:
                counts.exact += times
                counts.seen += times * all(item in history for item in items)


def map_set(
    written: Sequence[Sequence[str]], histories: Sequence[set[int]], names: ItemNames, nearest: NearestItems | None
) -> list[list[int]]:
    """Items of answers that are one name each, several to a user (GenItem).

    Exact names come first, in order of first occurrence. A name that was written c times and is unknown gives the c
    nearest items, a known one c - 1, which follow behind all exact ones; those that are listed, written or in the
    history are passed over.

    Parameters
    ----------
    written : list of list of str
        Names of every row, spelt as in the catalogue where it has them (:meth:`ItemNames.as_in_catalogue`).
    histories : list of set of int
        What replacements leave out.
    names : ItemNames
    nearest : NearestItems or None
        None: no replacements.

    Returns
    -------
    list of list of int
        Distinct items of every row, best first.
    """
    lists: list[list[int]] = []
    wanted: list[tuple[int, str, int]] = []
    for row, texts in enumerate(written):
        counts = Counter(text for text in texts if text)
        known = [item for name in counts for item in names.items_of.get(name, ())]
        lists.append(list(dict.fromkeys(known)))
        wanted += [(row, name, times - (name in names.items_of)) for name, times in counts.items()]
    wanted = [entry for entry in wanted if entry[2] > 0]
    if nearest is None or not wanted:
        return lists
    most = max(len(lists[row]) + len(histories[row]) + len(written[row]) for row, _, _ in wanted)
    banned = [histories[row] | set(items) for row, items in enumerate(lists)]
    for (row, _, times), order in zip(wanted, nearest.order([name for _, name, _ in wanted], most), strict=True):
        for item in _first(order, banned[row], times):
            lists[row].append(item)
            banned[row].add(item)
    return lists


def map_list(
    written: Sequence[Sequence[str]], histories: Sequence[set[int]], names: ItemNames, nearest: NearestItems | None
) -> list[list[int]]:
    """Items of answers that are a list each (GenList): an unknown name is replaced where it stands.

    Parameters and result are those of :func:`map_set`. A repeated exact name is left out.
    """
    places: list[list[int | str]] = []
    banned: list[set[int]] = []
    for row, texts in enumerate(written):
        entries: dict[int | str, None] = {}
        for number, name in enumerate(texts):
            known = names.items_of.get(name)
            # An unknown name that is repeated stands for another item each time.
            entries.update(dict.fromkeys(known if known else [f"{number} {name}"] if name else []))
        places.append(list(entries))
        banned.append(histories[row] | {entry for entry in entries if isinstance(entry, int)})
    unknown = [entry.partition(" ")[2] for row in places for entry in row if isinstance(entry, str)]
    orders: Iterator[list[int]] = iter(())
    if nearest is not None and unknown:
        most = max(len(row) + len(out) for row, out in zip(places, banned, strict=True))
        orders = iter(nearest.order(unknown, most))
    lists: list[list[int]] = []
    for row, entries_of_row in enumerate(places):
        items: list[int] = []
        for entry in entries_of_row:
            if isinstance(entry, int):
                items.append(entry)
            elif nearest is not None:
                found = _first(next(orders), banned[row], 1)
                items += found
                banned[row].update(found)
        lists.append(items)
    return lists


def map_choice(
    written: Sequence[Sequence[str]], allowed: Sequence[Sequence[int]], names: ItemNames
) -> tuple[list[list[int]], int]:
    """Items of answers that choose from a list of items (Classify, Rank).

    A name on the list is its item; any other, and one that is used up, the unused item with the most similar
    spelling.

    Parameters
    ----------
    written : list of list of str
        Names of every row, spelt as in the catalogue where it has them (:meth:`ItemNames.as_in_catalogue`).
    allowed : list of list of int
        What each row may choose from.
    names : ItemNames

    Returns
    -------
    lists : list of list of int
        Distinct items of every row, best first.
    outside : int
        Names that were not on their list.
    """
    lists, outside = [], 0
    for texts, items in zip(written, allowed, strict=True):
        free = dict.fromkeys(items)
        by_name: dict[str, list[int]] = {}
        for item in items:
            by_name.setdefault(names.names[item], []).append(item)
        chosen = []
        for name in texts:
            outside += bool(name) and name not in by_name
            if not free or not name:
                continue
            exact = next((item for item in by_name.get(name, ()) if item in free), None)
            item = _spelled_like(name, list(free), names.names) if exact is None else exact
            chosen.append(item)
            del free[item]
        lists.append(chosen)
    return lists, outside


def _first(order: Iterable[int], banned: set[int], count: int) -> list[int]:
    found: list[int] = []
    for item in order:
        if len(found) == count:
            break
        if item not in banned:
            found.append(item)
    return found


def _spelled_like(name: str, items: Sequence[int], names: Sequence[str]) -> int:
    """Return the item with the most similar name; the first if there are several."""
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(name)
    best, highest = items[0], -1.0
    for item in items:
        matcher.set_seq1(names[item])
        # Upper bounds, quick to have.
        if matcher.real_quick_ratio() > highest and matcher.quick_ratio() > highest:
            ratio = matcher.ratio()
            if ratio > highest:
                best, highest = item, ratio
    return best
