"""Made-up datasets in atomic files whose right answers are known by construction."""

from pathlib import Path

from recbole_llm.testing import WORDS, write_cycle, write_dataset

__all__ = ["WORDS", "write_cycle", "write_dataset", "write_twins"]


def write_twins(folder: Path, name: str = "twins", shuffled: bool = False) -> Path:
    """A cycle of titles a0 -> a1 -> ... -> a11 -> a0, and a second edition b_k of each with the same text.

    Users ``a*`` have read first editions in order, half of them after a preface. Users ``b*`` have read the preface
    and then a second edition, which no training row has in its history; their validation item is the first edition of
    the next title, and only the text says which one that is.
    ``shuffled`` gives the second editions each other's texts, and the link is gone.
    """
    n = len(WORDS)
    histories = {f"a{u}": ["preface"] * (u % 2) + [f"a{(u + i) % n}" for i in range(6 + u % 5)] for u in range(60)}
    histories |= {f"b{k}": ["preface", f"b{k}", f"a{(k + 1) % n}", f"a{(k + 2) % n}"] for k in range(n)}
    texts = {f"a{k}": f"the {word} story" for k, word in enumerate(WORDS)}
    texts["preface"] = "how to read"
    texts |= {f"b{k}": f"the {WORDS[(k + 5) % n if shuffled else k]} story" for k in range(n)}
    return write_dataset(folder, name, histories, texts)
