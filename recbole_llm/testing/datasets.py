"""Tiny made-up datasets."""

from pathlib import Path

WORDS = [
    *("apple", "violin", "harbor", "meteor", "cactus", "lantern"),
    *("pirate", "glacier", "wizard", "saddle", "quartz", "balloon"),
]


def write_dataset(folder: Path, name: str, histories: dict[str, list[str]], texts: dict[str, str]) -> Path:
    """Write ``folder/name/name.inter`` and ``.item``; times count up within a user. Returns ``folder``.

    >>> folder = write_dataset(Path("data"), "shop", {"ann": ["1", "2"]}, {"1": "a red ball", "2": "a blue ball"})
    >>> (folder / "shop" / "shop.inter").read_text().splitlines()[1].split("\\t")
    ['ann', '1', '0']
    """
    target = folder / name
    target.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, items in histories.items():
        lines += [f"{user}\t{item}\t{time}" for time, item in enumerate(items)]
    (target / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = ["item_id:token\ttitle:token_seq"] + [f"{item}\t{text}" for item, text in texts.items()]
    (target / f"{name}.item").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def write_cycle(folder: Path, name: str = "cycle", users: int = 40, items: int = 30, length: int = 12) -> Path:
    """Write a dataset whose next item is always the next number: user u has u, u+1, u+2, ... (modulo ``items``)."""
    histories = {f"u{u}": [f"i{(7 * u + i) % items}" for i in range(length - u % 4)] for u in range(users)}
    texts = {f"i{i}": f"{WORDS[i % len(WORDS)]} volume {i}" for i in range(items)}
    return write_dataset(folder, name, histories, texts)
