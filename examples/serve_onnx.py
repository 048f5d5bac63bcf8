"""Serve what `recbole-llm export RUN_DIR --out=DIR --users=none --onnx` wrote, with numpy and onnxruntime alone.

python examples/serve_onnx.py DIR 50 181          # after these items, oldest first
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


class Server:
    """Best items after a history of raw item ids."""

    def __init__(self, folder: str) -> None:
        self.items = Path(folder, "items.txt").read_text(encoding="utf-8").split("\n")[:-1]
        self.number = {item: line for line, item in enumerate(self.items, 1)}
        self.vectors = np.load(Path(folder, "item_vectors.npy"), mmap_mode="r")
        about = json.loads(Path(folder, "export.json").read_text(encoding="utf-8"))["user_tower"]
        self.width = about["inputs"]["item_id_list"][1]
        self.tower = onnxruntime.InferenceSession(Path(folder, about["file"]))

    def recommend(self, history: list[str], k: int = 10) -> list[tuple[str, float]]:
        """Return the k best items that are not in the history, with their scores."""
        newest = [self.number[item] for item in history][-self.width :]
        ids = np.zeros((1, self.width), dtype=np.int64)
        ids[0, : len(newest)] = newest
        inputs = {"item_id_list": ids, "item_length": np.array([len(newest)], dtype=np.int64)}
        (user,) = self.tower.run(["user_vector"], inputs)
        scores = self.vectors @ user[0]
        scores[[self.number[item] - 1 for item in history]] = -np.inf
        best = np.argsort(-scores, kind="stable")[:k]
        return [(self.items[place], float(scores[place])) for place in best]


if __name__ == "__main__":
    for item, score in Server(sys.argv[1]).recommend(sys.argv[2:]):
        print(item, f"{score:.4f}", sep="\t")  # noqa: T201
