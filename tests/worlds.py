"""Made-up datasets in atomic files whose right answers are known by construction."""

from pathlib import Path

WORDS = [
    "apple",
    "violin",
    "harbor",
    "meteor",
    "cactus",
    "lantern",
    "pirate",
    "glacier",
    "wizard",
    "saddle",
    "quartz",
    "balloon",
]


def write_dataset(folder: Path, name: str, histories: dict[str, list[str]], texts: dict[str, str]) -> Path:
    """``folder/name/name.inter`` and ``.item``; times count up within a user. Returns ``folder``."""
    target = folder / name
    target.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, items in histories.items():
        lines += [f"{user}\t{item}\t{time}" for time, item in enumerate(items)]
    (target / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = ["item_id:token\ttitle:token_seq"] + [f"{item}\t{text}" for item, text in texts.items()]
    (target / f"{name}.item").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


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


def write_cycle(folder: Path, name: str = "cycle", users: int = 40, items: int = 30, length: int = 12) -> Path:
    """User u has items u, u+1, u+2, ... (modulo ``items``): the next item is always the next number."""
    histories = {f"u{u}": [f"i{(7 * u + i) % items}" for i in range(length - u % 4)] for u in range(users)}
    texts = {f"i{i}": f"{WORDS[i % len(WORDS)]} volume {i}" for i in range(items)}
    return write_dataset(folder, name, histories, texts)
