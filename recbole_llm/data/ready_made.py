"""Histories and rows of files that were split beforehand."""

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.utils.enum_type import FeatureType

from recbole_llm.data.benchmark import chain, ignored_filters
from recbole_llm.data.row_dataset import RowDataset
from recbole_llm.data.times import stable_order
from recbole_llm.errors import DataError


def lay_out(dataset: RowDataset, parts: np.ndarray) -> np.ndarray:
    """Make the histories and rows of a dataset from the lines of its files; the part of each row, shape (rows,)."""
    ignored = ignored_filters(dataset.config)
    if ignored:
        dataset._notice([f"{', '.join(ignored)}: files split beforehand (benchmark_filename) are not filtered."])
    list_field = dataset.iid_field + dataset.config["LIST_SUFFIX"]
    if list_field in dataset.inter_feat:
        return _lay_out_lists(dataset, parts, list_field)
    Dataset._change_feat_format(dataset)
    dataset._aug_presets()
    users = dataset.inter_feat[dataset.uid_field].numpy()
    order = np.arange(len(users))
    if dataset.time_field in dataset.inter_feat:
        times = dataset._order_times()
        order = stable_order(times)
    order = order[stable_order(parts[order])]
    order = order[stable_order(users[order])]
    if dataset.time_field in dataset.inter_feat:
        back = (np.diff(users[order]) == 0) & (np.diff(times[order]) < 0)
        if back.any():
            dataset._notice(
                [
                    f"For {len(np.unique(users[order][1:][back])):,} users an interaction of a later file of "
                    f"benchmark_filename is older than one of an earlier file: the order of the files is used."
                ]
            )
    columns = {field: values[torch.from_numpy(order)] for field, values in dataset.inter_feat.interaction.items()}
    dataset._set_histories(columns)
    rows = np.flatnonzero(dataset.histories.depths > 0)
    dataset.inter_feat = dataset._rows_at(rows)
    return parts[order][rows]


def _lay_out_lists(dataset: RowDataset, parts: np.ndarray, list_field: str) -> np.ndarray:
    frame = dataset.inter_feat
    users, targets = frame[dataset.uid_field].to_numpy(), frame[dataset.iid_field].to_numpy()
    lists = frame[list_field].tolist()
    if dataset.field2type[list_field] != FeatureType.TOKEN_SEQ:
        raise DataError(f"{list_field!r} must be of type token_seq: '{list_field}:token_seq'.")
    other = [field for field in frame if field not in (dataset.uid_field, dataset.iid_field, list_field)]
    if other:
        dataset._notice([f"Fields other than the ready-made item lists are ignored: {', '.join(other)}."])
    for field in [*other, list_field]:
        dataset._del_col(frame, field)
    kept = np.array([len(part) > 0 for part in lists], dtype=bool)
    if not kept.all():
        dataset._notice([f"{int((~kept).sum()):,} lines with an empty {list_field} are skipped."])
    lists = [part for part in lists if len(part)]
    chained = chain(users[kept], lists, targets[kept], parts[kept])
    Dataset._change_feat_format(dataset)
    dataset._aug_presets()
    ids = {dataset.uid_field: chained.users, dataset.iid_field: chained.items}
    starts = torch.from_numpy(chained.starts)
    dataset._set_histories({field: torch.from_numpy(values) for field, values in ids.items()}, starts)
    if np.array_equal(chained.starts, dataset.offsets[chained.users]):
        dataset.histories.starts = None  # one sequence a user, as in other datasets
    dataset.inter_feat = dataset._rows_at(chained.position, chained.length)
    return parts[kept]
