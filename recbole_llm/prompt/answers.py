"""Items of written answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from recbole_llm.prompt.answer_counts import count_answers
from recbole_llm.prompt.chat import parse_list, parse_title
from recbole_llm.prompt.item_names import ItemNames, map_choice, map_list, map_set
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
