"""Lists for any number of users with Ray Data: a `Recommender` in every worker, histories from and lists to parquet.

python examples/ray_recommend.py RUN_DIR HISTORIES LISTS --workers=2

Needs `pip install -U 'ray[data]'`. HISTORIES, a file or a folder of parquet, has a row per user: the user's id and the
list of item ids, oldest first, in columns with the names that they have in the data set. LISTS is a folder of parquet
with user, item, rank and score, as `recbole-llm recommend` writes them, users in no particular order. Unknown items
are left out. Every machine of a cluster must see the three places and the data files of the run.
"""

import argparse

import pyarrow as pa
import ray
import torch

from recbole_llm import Recommender


class Lists:
    """A recommender in a process of its own that turns histories into lists, a batch at a time."""

    def __init__(self, run_dir: str, k: int, use_gpu: bool) -> None:
        torch.set_num_threads(1)  # one process per core
        self.recommender = Recommender.load(run_dir, use_gpu=use_gpu)
        self.k = k

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return a row per user and recommended item."""
        user, item = self.recommender.dataset.uid_field, self.recommender.dataset.iid_field
        users, histories = batch.column(user).to_pylist(), batch.column(item).to_pylist()
        lists = self.recommender.recommend(histories, k=self.k, unknown="skip")
        rows = [
            (name, *pair, rank) for name, found in zip(users, lists, strict=True) for rank, pair in enumerate(found, 1)
        ]
        names, items, scores, ranks = zip(*rows, strict=True) if rows else ([], [], [], [])
        columns = {
            user: pa.array(names, batch.schema.field(user).type),
            item: pa.array(items, pa.string()),
            "rank": pa.array(ranks, pa.int32()),
            "score": pa.array(scores, pa.float32()),
        }
        return pa.table(columns)


def main() -> None:
    """Read histories, recommend, write lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir")
    parser.add_argument("histories")
    parser.add_argument("lists")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1, help="at most so many at once; each has one core")
    parser.add_argument("--batch", type=int, default=1024, help="users at once in a worker")
    parser.add_argument("--gpus", type=float, default=0, help="of a worker, such as 1 or .25")
    options = parser.parse_args()
    (
        ray.data.read_parquet(options.histories)
        .map_batches(
            Lists,
            fn_constructor_args=(options.run_dir, options.k, options.gpus > 0),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=options.workers),
            num_gpus=options.gpus,
            batch_size=options.batch,
            batch_format="pyarrow",
        )
        .write_parquet(options.lists)
    )


if __name__ == "__main__":
    main()
