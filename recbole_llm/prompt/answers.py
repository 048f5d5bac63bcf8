"""Items of written answers, and their statistics: counts of a batch, rates of a whole evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from recbole_llm.prompt.chat import parse_list, parse_title
from recbole_llm.prompt.item_names import ItemNames, NameCounts, map_choice, map_list, map_set
from recbole_llm.prompt.nearest import NearestItems


@dataclass(frozen=True)
class AnswerReader:
    """Reader of answers: titles that become items of the catalogue.

    Attributes
    ----------
    names : ItemNames
    nearest : NearestItems or None
        What replaces unknown names; None: nothing does.
    k : int
        Titles of a list.
    single : bool
        Whether an answer is one title, several to a row, or a list, one to a row.
    """

    names: ItemNames
    nearest: NearestItems | None
    k: int
    single: bool

    def read(
        self,
        answers: Sequence[Sequence[str]],
        left_out: Sequence[set[int]],
        histories: Sequence[set[int]],
        candidates: Sequence[Sequence[int]] | None = None,
    ) -> tuple[list[list[int]], dict[str, int]]:
        """Return the items of every row's answers, best first, and counts of what was written.

        Parameters
        ----------
        answers : list of list of str
            Texts of every row.
        left_out : list of set of int
            What may not be recommended.
        histories : list of set of int
        candidates : list of list of int, optional
            What each row chose from.
        """
        outside = {}
        if self.single:
            written = [[self.names.as_in_catalogue(parse_title(text)) for text in answer] for answer in answers]
            lists = map_set(written, left_out, self.names, self.nearest)
        else:
            lines = [parse_list(answer[0], self.k) for answer in answers]
            written = [[self.names.as_in_catalogue(name) for name in names] for names in lines]
            if candidates is None:
                lists = map_list(written, left_out, self.names, self.nearest)
            else:
                lists, outside["outside"] = map_choice(written, candidates, self.names)
        pairs = zip(lists, left_out, strict=True)
        recommended = [[item for item in items if item not in out] for items, out in pairs]
        return lists, count_answers(self.names, written, recommended, histories, self.k) | outside


# What a rate is called, and the count it is made of.
_OF_NAMES = {
    "exact": "exact",
    "hallucination": "unknown",
    "duplicate": "repeated",
    "empty": "empty",
    "seen": "seen",
}


def count_answers(
    names: ItemNames,
    written: Sequence[Sequence[str]],
    recommended: Sequence[Sequence[int]],
    histories: Sequence[set[int]],
    k: int,
) -> dict[str, int]:
    """Count the names that users were given and the places of their lists.

    Parameters
    ----------
    names : ItemNames
    written : list of list of str
        Names of every user, spelt as in the catalogue.
    recommended : list of list of int
        Items that they name, without those that the mask removes.
    histories : list of set of int
    k : int
        Places of a list.
    """
    found = NameCounts()
    for texts, history in zip(written, histories, strict=True):
        names.count(texts, history, found)
    return {
        **asdict(found),
        "users": len(written),
        "unparsed": sum(not any(texts) for texts in written),
        "filled": sum(max(0, k - len(items)) for items in recommended),
        "places": k * len(recommended),
    }


def answer_rates(counts: Mapping[str, float], chosen: bool) -> dict[str, float]:
    """Turn counts into rates among all names that were written, and per user.

    ``exact_rate``, ``hallucination_rate`` and ``empty_rate`` add up to 1. ``duplicate_rate``: names that the same user
    was given before. ``seen_rate``: exact names of items of the history, before it is masked. ``unparsed_rate``: users
    without any name. ``named_rate``: share of the final lists, without what the mask removes, that the model named;
    ``filled_rate``: the rest. With ``chosen``, where items were to be chosen from a list: ``outside_rate``, names that
    were not on it; ``reachable_rate``, users whose target was, which no Recall of named items can exceed.
    """
    if not counts.get("users"):
        return {}
    names, users = max(counts.get("names", 0), 1), counts["users"]
    rates = {f"{label}_rate": counts.get(name, 0) / names for label, name in _OF_NAMES.items()}
    if chosen:
        rates["outside_rate"] = counts.get("outside", 0) / names
        rates["reachable_rate"] = counts.get("reachable", 0) / users
    filled = counts.get("filled", 0) / max(counts.get("places", 0), 1)
    return {
        **rates,
        "unparsed_rate": counts.get("unparsed", 0) / users,
        "named_rate": 1 - filled,
        "filled_rate": filled,
        "tokens_per_user": counts.get("tokens", 0) / users,
    }
