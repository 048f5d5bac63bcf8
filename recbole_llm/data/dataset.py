"""Interactions as histories: each user's sequence stored once, list fields built per batch.

RecBole copies every prefix of every user into a dense ``(rows, MAX_ITEM_LIST_LENGTH)`` table per field. Here a row
is a position in one flat, sorted array; ``item_id_list`` and its siblings are gathered for the rows of a batch only.
Field names, dtypes, padding side and values are RecBole's.
"""

import copy
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import recbole.data.dataset
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils.enum_type import FeatureSource, FeatureType
from torch.nn.utils.rnn import pad_sequence

from recbole_llm import distributed
from recbole_llm.config.values import choice, nearest
from recbole_llm.data.atomic import AtomicFormat, read_table, read_types
from recbole_llm.data.cold import ColdItems, check_left, draw_cold_items
from recbole_llm.data.sessions import TEST, TRAIN, VALID, SessionSplit, split_sessions
from recbole_llm.data.times import are_ranks, history_order, stable_order
from recbole_llm.errors import ConfigError, DataError

# Column of `inter_feat` that says where in the flat array a row's target stands. It travels with the rows through
# RecBole's sorting, splitting and copying, and never reaches a model.
POSITION = "history_position"
# Prefix of the list fields that the `sequence` view adds: the next item at every position.
NEXT = "next_"


def take(interaction: Interaction, index: Any) -> Interaction:
    """Rows ``index`` of an interaction (RecBole's own indexing turns tensors into Python lists first)."""
    if isinstance(index, torch.Tensor) and index.ndim == 1 and index.dtype == torch.int64:
        # Takes a third of the time of values[index].
        columns = {field: values.index_select(0, index) for field, values in interaction.interaction.items()}
    else:
        columns = {field: values[index] for field, values in interaction.interaction.items()}
    return HistoryRows(columns, interaction.dataset) if isinstance(interaction, HistoryRows) else Interaction(columns)


class HistoryRows(Interaction):
    """Rows of a dataset; a list field is made when it is indexed, as FEARec does row by row."""

    def __init__(self, columns: dict[str, torch.Tensor], dataset: "HistoryDataset") -> None:
        super().__init__(columns)
        self.dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str) and index not in self.interaction and index in self.dataset.list_fields:
            return ListColumn(self, index)
        return super().__getitem__(index)


class ListColumn:
    """A list field of all rows, gathered for the rows that are asked for."""

    def __init__(self, rows: HistoryRows, field: str) -> None:
        self.rows, self.field = rows, field

    def __getitem__(self, index: Any) -> torch.Tensor:
        dataset = self.rows.dataset
        position, length = self.rows[POSITION][index], self.rows[dataset.item_list_length_field][index]
        values = dataset.gather_lists(position.reshape(-1), length.reshape(-1))[self.field]
        return values[0] if position.ndim == 0 else values


class HistoryDataset(SequentialDataset):
    """RecBole's ``SequentialDataset`` with one flat array per field instead of a table of prefixes.

    Rows are the prefixes ``(u_1 .. u_{t-1}) -> u_t`` of RecBole's augmentation, in its order, and splitting is
    RecBole's. Every stock sequential model runs on it unchanged.

    Parameters
    ----------
    config : recbole_llm.config.Config

    Attributes
    ----------
    flat : Interaction
        All interactions sorted by user and time, one entry per interaction.
    offsets : numpy.ndarray of int64, shape (user_num + 1,)
        User ``u`` owns ``flat[offsets[u]:offsets[u + 1]]``.
    read_histories : tuple of numpy.ndarray
        Item of every interaction that was read, user by user and oldest first, and offsets as :attr:`offsets`; before
        a protocol takes any out.
    newest_time : float
        Newest time in the file, before any filter.
    source_files : list of pathlib.Path
        The atomic files that were read.
    catalogue_size : int
        Distinct items with an interaction, before a split takes any out.
    cold : ColdItems, optional
        Items held out of training. The splits' own :attr:`flat` and :attr:`offsets` lack their interactions.
    sessions : SessionSplit, optional
        Under ``protocol: temporal_session``, which user is in which part; :attr:`flat` then lacks what it took out.

    Raises
    ------
    DataError
        For a missing or damaged file, a missing field, a time that is missing or of the wrong kind, or filters that
        leave nothing.
    """

    inter_feat: Any  # a DataFrame while it is filtered, an Interaction of rows after `build`
    flat: Interaction
    offsets: np.ndarray
    catalogue_size: int
    sessions: SessionSplit | None = None
    cold: ColdItems | None = None
    read_histories: tuple[np.ndarray, np.ndarray]
    newest_time: float
    shuffle_keys: torch.Tensor | None = None  # shape (len(flat),), see `with_shuffled_histories`

    def __init__(self, config: Any) -> None:
        self.source_files: list[Path] = []
        self._exact_time: np.ndarray | None = None
        self._unused_lists: set[str] = set()
        choice(config, "time_order", ["exact", "recbole"])
        if config["benchmark_filename"] is not None:
            raise ConfigError(
                f"benchmark_filename={config['benchmark_filename']!r}: files split beforehand are not supported. "
                "Join them into one .inter file and choose a split with eval_args."
            )
        if hasattr(recbole.data.dataset, f"{config['model']}Dataset"):
            raise ConfigError(
                f"model={config['model']!r} reads data that RecBole prepares in its {config['model']}Dataset "
                "(knowledge graphs, negative histories), which recbole-llm does not have. Run it with RecBole itself."
            )
        super().__init__(config)

    # ---- reading

    def _load_data(self, token: str, dataset_path: str) -> None:
        with distributed.main_of_machine_first():
            if not Path(dataset_path).exists():
                self._download()
        super()._load_data(token, dataset_path)

    def _download(self) -> None:
        from recbole.utils.url import decide_download, download_url, extract_zip, rename_atomic_files

        folder = Path(self.dataset_path)
        advice = (
            f"Put the atomic files into {str(folder)!r} ({self.dataset_name}.inter, and .item for item text), "
            "or point data_path at the folder that holds them."
        )
        url = self._get_download_url("url", allow_none=True)
        if url is None:
            raise DataError(
                f"There is no folder {str(folder)!r} and RecBole offers no download for {self.dataset_name!r}. "
                f"{advice}"
            )
        try:
            self.logger.info(f"Downloading {self.dataset_name} from {url}.")
            if not decide_download(url):
                raise DataError(f"The download of {self.dataset_name!r} was declined. {advice}")
            folder.mkdir(parents=True, exist_ok=True)
            archive = Path(download_url(url, str(folder)))
            try:
                extract_zip(str(archive), str(folder))
            finally:
                archive.unlink()
            rename_atomic_files(str(folder), archive.stem, self.dataset_name)
        # RecBole asks on the terminal before a large download, and turns every interruption into a RuntimeError.
        except (OSError, EOFError, RuntimeError, TypeError, zipfile.BadZipFile) as error:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
            raise DataError(
                f"{self.dataset_name!r} cannot be downloaded from {url}: {error or type(error).__name__}. {advice}"
            ) from error

    def _load_user_or_item_feat(self, token: str, dataset_path: str, source: FeatureSource, field_name: str) -> Any:
        path = Path(dataset_path) / f"{token}.{source.value}"
        needed = [field for field in (self.config["load_col"] or {}).get(source.value, ()) if field != "*"]
        if needed and not path.is_file():
            raise DataError(
                f"There is no file {str(path)!r}, but load_col or the model {self.config['model']} asks for its "
                f"fields {', '.join(needed)}."
            )
        return super()._load_user_or_item_feat(token, dataset_path, source, field_name)

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        if not (Path(dataset_path) / f"{token}.inter").is_file():
            found = sorted(path.name for path in Path(dataset_path).glob("*.inter"))
            raise DataError(
                f"There is no file {token}.inter in {dataset_path!r} (found: {', '.join(found) or 'no .inter file'}). "
                "The dataset name, the folder and the file must have the same name."
            )
        super()._load_inter_feat(token, dataset_path)
        if self.config["protocol"] == "temporal_session" and not self.config["allow_rank_times"]:
            self._refuse_ranks()

    def _refuse_ranks(self) -> None:
        """Before any filter leaves gaps in the ranks."""
        users = pd.factorize(self.inter_feat[self.uid_field])[0]
        times = self.inter_feat[self.time_field].to_numpy()
        order = history_order(users, times)
        starts = np.flatnonzero(np.r_[True, np.diff(users[order]) != 0])
        if are_ranks(times[order], starts):
            raise DataError(
                f"protocol=temporal_session needs times that can be compared between users, but in "
                f"{self.source_files[0]} every user's {self.time_field!r} is a rank (0, 1, 2, ...): the sessions that "
                "end last would be the longest ones. Convert the data with its timestamps (recbole-llm convert), use "
                "leave-one-out (protocol=loo), or set allow_rank_times=True if that is what you want."
            )

    def _load_feat(self, filepath: str, source: FeatureSource | str) -> pd.DataFrame | None:
        """Read an atomic file and note the types of its fields."""
        load_col, unload_col = self._get_load_and_unload_col(source)
        if load_col == set():
            return None
        path, form = Path(filepath), AtomicFormat.of(self.config)
        header = read_types(path, form)
        self._require_fields(path, source, header, load_col)
        names = [
            field
            for field in header
            if (load_col is None or field in load_col) and (unload_col is None or field not in unload_col)
        ]
        if not names:
            self.logger.warning(f"No field of {path} is loaded.")
            return None
        frame = read_table(path, form, header, names)
        for field in names:
            ftype = header[field]
            sequence = ftype.value.endswith("seq")
            if isinstance(source, FeatureSource) or source != "link":
                self.field2source[field], self.field2type[field] = source, ftype
                if not sequence:
                    self.field2seqlen[field] = 1
                if "float" in ftype.value:
                    self.field2bucketnum[field] = 2
            if sequence:
                longest = max(map(len, frame[field]), default=0)
                limit = (self.config["seq_len"] or {}).get(field)
                self.field2seqlen[field] = longest if limit is None else min(int(limit), longest)
                if limit is not None:
                    frame[field] = pd.Series([part[:limit] for part in frame[field]], frame.index, dtype=object)
        self.source_files.append(path)
        return frame

    def _require_fields(
        self, path: Path, source: FeatureSource | str, types: dict[str, FeatureType], load_col: Any
    ) -> None:
        fields = list(types)
        needed: dict[str, str] = {}
        if source == FeatureSource.INTERACTION:
            needed = {"USER_ID_FIELD": self.uid_field, "ITEM_ID_FIELD": self.iid_field, "TIME_FIELD": self.time_field}
        elif source == FeatureSource.ITEM:
            needed = {"ITEM_ID_FIELD": self.iid_field}
        elif source == FeatureSource.USER:
            needed = {"USER_ID_FIELD": self.uid_field}
        for key, field in needed.items():
            if field not in fields:
                raise DataError(
                    f"{path} has no field {field!r} ({key}).{nearest(str(field), fields)} It has: "
                    f"{', '.join(fields)}. Say which one it is with --{key}=NAME."
                )
            if load_col is not None and field not in load_col:
                raise DataError(
                    f"load_col leaves out {field!r} ({key}) of {path}, which is needed; add it, or drop load_col."
                )
            wanted = FeatureType.FLOAT if key == "TIME_FIELD" else FeatureType.TOKEN
            if types[field] != wanted:
                raise DataError(
                    f"{path}, line 1: {field!r} ({key}) is of type {types[field].value!r}; it must be "
                    f"'{field}:{wanted.value}'."
                )
        for key in ("selected_features", "item_attribute"):
            value = self.config[key] if source == FeatureSource.ITEM else None
            for field in [value] if isinstance(value, str) else value or []:
                if load_col is not None and field in load_col and field not in fields:
                    raise DataError(
                        f"{path} has no field {field!r} ({key}).{nearest(field, fields)} It has: {', '.join(fields)}."
                    )

    # ---- filtering, ids

    def _data_filtering(self) -> None:
        self.newest_time = float(self.inter_feat[self.time_field].max())
        self._cut()
        super()._data_filtering()

    def _cut(self) -> None:
        """What is read of the file: all of it, or the little that a smoke run takes."""
        if self.config["smoke"]:
            users = self.inter_feat[self.uid_field]
            few = users.isin(pd.unique(users)[: int(self.config["smoke_users"])])
            frame = self.inter_feat[few]
            number = frame.groupby(self.uid_field, observed=True).cumcount()
            self.inter_feat = frame[number < int(self.config["smoke_interactions"])].reset_index(drop=True)

    def _filter_nan_user_or_item(self) -> None:
        """Drop rows without an id (RecBole's version drops others where a feature file has repeated ids)."""
        for name, field in (("user", self.uid_field), ("item", self.iid_field), ("inter", None)):
            feat = getattr(self, f"{name}_feat")
            if feat is None:
                continue
            ids = [field] if field else [self.uid_field, self.iid_field]
            missing = feat[ids].isna().any(axis=1)
            if missing.any():
                self.logger.warning(
                    f"{int(missing.sum())} lines of the .{name} file have no {' or '.join(ids)} and are left out."
                )
                setattr(self, f"{name}_feat", feat[~missing].reset_index(drop=True))

    def _parse_intervals_str(self, intervals_str: Any) -> list[tuple[str, float, float, str]] | None:
        """As RecBole, but an interval that is none is an error: RecBole warns and filters nothing."""
        if intervals_str is None:
            return None
        intervals = []
        for part in str(intervals_str).split(";"):
            match = re.fullmatch(r"\s*([(\[])\s*([^,\s]+)\s*,\s*([^,\s]+)\s*([)\]])\s*", part)
            try:
                assert match is not None
                low, high = float(match[2]), float(match[3])
                assert low <= high
            except (AssertionError, ValueError):
                raise ConfigError(
                    f"{intervals_str!r} is not an interval, in item_inter_num_interval, user_inter_num_interval or "
                    'val_interval. Write "[5,inf)" for 5 and more, and several as "[0,1];[3,4)".'
                ) from None
            intervals.append((match[1], low, high, match[4]))
        return intervals

    def _reset_index(self) -> None:
        for name in self.feat_name_list:
            if getattr(self, name).empty:
                kind = name.removesuffix("_feat")
                raise DataError(
                    f"Nothing is left of the .{kind} data of {self.dataset_name!r} after filtering. Loosen "
                    f"user_inter_num_interval={self.config['user_inter_num_interval']!r}, "
                    f"item_inter_num_interval={self.config['item_inter_num_interval']!r} or "
                    f"val_interval={self.config['val_interval']!r}."
                )
        super()._reset_index()

    def _remove_duplication(self) -> None:
        """As RecBole, with a stable sort: which of two equal times is kept follows the file."""
        keep = self.config["rm_dup_inter"]
        if keep is None:
            return
        frame = self.inter_feat.sort_values(by=[self.time_field], kind="stable")
        self.inter_feat = frame.drop_duplicates(subset=[self.uid_field, self.iid_field], keep=keep).sort_index()

    def _filter_by_inter_num(self) -> None:
        """Iterative filter on the number of interactions (k-core), on integer codes."""
        intervals = [self._parse_intervals_str(self.config[f"{kind}_inter_num_interval"]) for kind in ("user", "item")]
        fields = [self.uid_field, self.iid_field]
        feats = [self.user_feat, self.item_feat]
        codes, tokens = zip(*(pd.factorize(self.inter_feat[field]) for field in fields), strict=True)
        kept = np.ones(len(self.inter_feat), dtype=bool)
        allowed = [np.ones(len(unique), dtype=bool) for unique in tokens]
        while True:
            before = kept.sum()
            for i, interval in enumerate(intervals):
                if interval:
                    counts = np.bincount(codes[i][kept], minlength=len(tokens[i]))
                    allowed[i] &= np.asarray(self._within_intervals(counts, interval))
            for i in range(len(fields)):
                kept &= allowed[i][codes[i]]
            if kept.sum() == before:
                break
        self.inter_feat = self.inter_feat[kept]
        for name, field, feat, interval, unique, ok in zip(
            ("user_feat", "item_feat"), fields, feats, intervals, tokens, allowed, strict=True
        ):
            if feat is not None and interval:
                # Rows of .user/.item without any interaction go only where the lower bound excludes zero.
                banned = feat[field].isin(np.asarray(unique)[~ok])
                if not self._within_intervals(np.zeros(1), interval)[0]:
                    banned |= ~feat[field].isin(np.asarray(unique)[ok])
                setattr(self, name, feat[~banned])

    def _remap(self, remap_list: Sequence[tuple[pd.DataFrame, str, FeatureType]]) -> None:
        """Internal ids in order of first appearance, as RecBole gives them; 0 is padding and missing."""
        if not remap_list:
            return
        coded = []
        for feat, field, ftype in remap_list:
            values = feat[field] if ftype == FeatureType.TOKEN else _concatenate(feat[field].tolist())
            codes, unique = pd.factorize(values)
            coded.append((codes, np.asarray(unique, dtype=object)))
        merged, tokens = pd.factorize(np.concatenate([unique for _, unique in coded]))
        id_token = np.array(["[PAD]", *tokens])
        token_id = {token: i for i, token in enumerate(id_token)}
        start = 0
        for (feat, field, ftype), (codes, unique) in zip(remap_list, coded, strict=True):
            # The last entry serves code -1, a missing value.
            lookup = np.append(merged[start : start + len(unique)] + 1, 0).astype(np.int64)
            start += len(unique)
            ids = lookup[codes]
            if field not in self.field2id_token:
                self.field2id_token[field] = id_token
                self.field2token_id[field] = token_id
            if ftype == FeatureType.TOKEN:
                feat[field] = ids
            else:
                lengths = np.fromiter(map(len, feat[field]), dtype=np.int64, count=len(feat))
                parts = np.split(ids, np.cumsum(lengths)[:-1])
                feat[field] = pd.Series(parts, index=feat.index, dtype=object)

    def _fill_nan(self) -> None:
        for name in self.feat_name_list:
            feat = getattr(self, name)
            for field in feat:
                ftype = self.field2type[field]
                if name == "inter_feat" and field == self.time_field and feat[field].isna().any():
                    row = int(np.flatnonzero(feat[field].isna())[0])
                    raise DataError(
                        f"{int(feat[field].isna().sum())} interactions of {self.dataset_name!r} have no {field!r}, "
                        f"the first in row {row + 1} after filtering. Without a time there is no order: complete or "
                        "drop them."
                    )
                if ftype == FeatureType.TOKEN:
                    feat[field] = feat[field].fillna(0).astype(np.int64)
                elif ftype == FeatureType.FLOAT:
                    feat[field] = feat[field].fillna(feat[field].mean())
                else:
                    dtype = np.int64 if ftype == FeatureType.TOKEN_SEQ else np.float64
                    feat[field] = pd.Series(
                        [
                            value if isinstance(value, np.ndarray) else np.array([], dtype=dtype)
                            for value in feat[field]
                        ],
                        index=feat.index,
                        dtype=object,
                    )

    def _normalize(self) -> None:
        # RecBole rounds to float32 when it makes tensors; sorting needs the times as they were written.
        if self.time_field in self.inter_feat:
            self._exact_time = self.inter_feat[self.time_field].to_numpy(np.float64, copy=True)
        super()._normalize()

    # ---- histories

    def _change_feat_format(self) -> None:
        """DataFrames to tensors; then sort histories and define the rows, without building their lists."""
        Dataset._change_feat_format(self)
        self._aug_presets()
        times = self._order_times()
        order = history_order(self.inter_feat[self.uid_field].numpy(), times)
        self._exact_time = None
        self._set_flat(take(self.inter_feat, torch.from_numpy(order)))
        times = self._settled(times[order])
        self.read_histories = self.flat[self.iid_field].numpy(), self.offsets
        self.catalogue_size = len(torch.unique(self.flat[self.iid_field]))
        if self.config["protocol"] == "temporal_session":
            self._split_sessions(times)
        users = self.flat[self.uid_field].numpy()
        positions = np.arange(len(users), dtype=np.int64)
        depth = positions - self.offsets[users]  # how many interactions the user had before this one
        rows = positions[depth > 0]
        if len(rows) == 0:
            raise DataError(f"No user of {self.dataset_name!r} has two interactions: there is nothing to predict.")
        # In the order of time, which `build` asks for next.
        rows = rows[stable_order(self._sort_key(self.flat, self.time_field)[rows])]
        length = np.minimum(depth[rows], self.max_item_list_len)
        columns = take(self.flat, torch.from_numpy(rows)).interaction
        columns |= {self.item_list_length_field: torch.from_numpy(length), POSITION: torch.from_numpy(rows)}
        self.inter_feat = HistoryRows(columns, self)

    def _settled(self, times: np.ndarray) -> np.ndarray:
        """A place to change :attr:`flat` once it is sorted; takes and returns the time of each interaction."""
        return times

    def _set_flat(self, flat: Interaction) -> None:
        self.flat = flat
        counts = np.bincount(flat[self.uid_field].numpy(), minlength=self.user_num)
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def _split_sessions(self, times: np.ndarray) -> None:
        """Assign users to parts and take out what no model could know."""
        config = self.config
        self.sessions = split_sessions(
            self.flat[self.iid_field].numpy(),
            times,
            self.offsets,
            test_ratio=config["temporal_session_test_ratio"],
            valid_ratio=config["temporal_session_valid_ratio"],
            valid_max=config["temporal_session_valid_max"],
            seed=config["temporal_session_seed"],
            fold=config["temporal_session_fold"],
            folds=config["temporal_session_folds"],
        )
        counts = self.sessions.counts
        self.logger.info("Temporal session split: " + ", ".join(f"{k} {n:,}" for k, n in counts.items()))
        empty = [
            name
            for name in ("train", "valid", "test")
            if counts[f"{name}_sessions"] == 0 and (name != "valid" or config["temporal_session_valid_ratio"] > 0)
        ]
        if empty:
            raise DataError(
                f"protocol=temporal_session leaves no {empty[0]} session of {self.dataset_name!r} ({counts}). Use "
                "more data, or change temporal_session_test_ratio or temporal_session_valid_ratio (0: no validation)."
            )
        self._set_flat(take(self.flat, torch.from_numpy(np.flatnonzero(self.sessions.kept))))

    def build(self) -> list["HistoryDataset"]:
        """Training, validation and test split, as ``protocol``, ``eval_args`` and ``cold_items`` say."""
        splits = self._split()
        self.cold = draw_cold_items(
            self.config, np.bincount(self.flat[self.iid_field].numpy(), minlength=self.item_num)
        )
        if self.cold is None:
            return splits
        for number, (name, split) in enumerate(zip(("training", "validation", "test"), splits, strict=True)):
            split.cold = self.cold
            if number == 0 or not self.cold.in_history:
                splits[number] = split.without_cold(name)
        check_left(len(splits[0]), self.cold, self.dataset_name)
        self.logger.info(self.cold.describe())
        return splits

    def without_cold(self, name: str) -> "HistoryDataset":
        """This split with cold items in no history and, in training, as no target.

        Rows that are left without a history are dropped, and counted under ``name`` in :attr:`cold`.
        """
        assert self.cold is not None
        training = name == "training"
        warm = ~self.cold.mask[self.flat[self.iid_field].numpy()]
        # How many warm interactions stand before each position: where that position is in the new array.
        before = np.concatenate([[0], np.cumsum(warm)])
        position = self.inter_feat[POSITION].numpy()
        first = before[self.offsets][self.inter_feat[self.uid_field].numpy()]
        depth = before[position] - first
        kept = depth > 0
        wanted = warm[position] if training else np.ones(len(position), dtype=bool)
        if training:
            # What training reads is the rows' targets and the first item of a user.
            removed = ~warm[position]
            removed_first = ~warm[position - 1] & (
                position - 1 == self.offsets[self.inter_feat[self.uid_field].numpy()]
            )
            self.cold.counts["training_interactions_removed"] = int(removed.sum() + removed_first.sum())
        self.cold.counts[f"{name}_rows_without_history"] = int((wanted & ~kept).sum())
        index = np.flatnonzero(kept & wanted)
        columns = take(self.inter_feat, torch.from_numpy(index)).interaction
        columns[POSITION] = torch.from_numpy(before[position][index])
        columns[self.item_list_length_field] = torch.from_numpy(np.minimum(depth[index], self.max_item_list_len))
        split = self.copy(None)
        split.flat, split.offsets = take(self.flat, torch.from_numpy(np.flatnonzero(warm))), before[self.offsets]
        split.inter_feat = HistoryRows(columns, split)
        return split

    def _split(self) -> list["HistoryDataset"]:
        if self.config["protocol"] != "temporal_session":
            return super().build()
        self._change_feat_format()
        assert self.sessions is not None
        user, position = self.inter_feat[self.uid_field].numpy(), self.inter_feat[POSITION].numpy()
        part = self.sessions.part[user]
        last = position == self.offsets[user + 1] - 1
        self._drop_unused_col()
        rows = [part == TRAIN, (part == VALID) & last, (part == TEST) & last]
        return [self.copy(take(self.inter_feat, torch.from_numpy(np.flatnonzero(chosen)))) for chosen in rows]

    @staticmethod
    def _sort_key(interaction: Interaction, field: str) -> np.ndarray:
        # A numerical feature has its value and its bucket.
        values = interaction[field].numpy()
        return values if values.ndim == 1 else values[..., 0]

    def sort(self, by: Any, ascending: Any = True) -> None:
        """Sort the rows, as RecBole does; by one field, rows that stand in order already are left alone."""
        if not isinstance(by, str) or ascending is not True:
            super().sort(by, ascending)
            return
        key = self._sort_key(self.inter_feat, by)
        if not np.all(key[1:] >= key[:-1]):
            self.inter_feat = take(self.inter_feat, torch.from_numpy(stable_order(key)))

    def _order_times(self) -> np.ndarray:
        if self.config["time_order"] == "recbole":
            return self._sort_key(self.inter_feat, self.time_field)
        assert self._exact_time is not None, "a sequential dataset without time is refused when it is read"
        return self._exact_time

    def data_augmentation(self) -> None:
        """RecBole's table of prefixes; never built here, see :meth:`gather_lists`."""
        raise DataError("HistoryDataset builds prefixes per batch; data_augmentation is not called.")

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        """Rows with their list fields, as RecBole's augmented dataset gives them."""
        # A plain Interaction: a batch must not carry the dataset along.
        rows = Interaction(take(self.inter_feat, index).interaction)
        position = rows[POSITION]
        del rows[POSITION]
        lists = self.gather_lists(position.reshape(-1), rows[self.item_list_length_field].reshape(-1))
        rows.update(
            Interaction({field: values[0] if position.ndim == 0 else values for field, values in lists.items()})
        )
        return self.join(rows) if join else rows

    def join(self, df: Interaction) -> Interaction:
        """Add the loaded fields of the rows' users and items."""
        for feat, field in ((self.user_feat, self.uid_field), (self.item_feat, self.iid_field)):
            if feat is not None and field in df:
                df.update(take(feat, df[field]))
        return df

    def rows_at(self, position: torch.Tensor, length: torch.Tensor, with_next: bool = False) -> Interaction:
        """Rows whose target stands at ``position`` of :attr:`flat`, with the ``length`` interactions before it.

        Parameters
        ----------
        position, length : torch.LongTensor, shape (B,)
        with_next : bool
            Also the item after every history item, ``next_item_id_list`` of shape (B, L), for all-position losses.
        """
        # `unused_col` drops columns from the rows, not from the histories.
        rows = Interaction({field: self.flat[field][position] for field in self.flat if field in self.inter_feat})
        rows.update(Interaction({self.item_list_length_field: length, **self.gather_lists(position, length)}))
        if with_next:
            targets = self.gather_lists(position, length, shift=1, fields=[self.iid_field])
            rows.update(Interaction({NEXT + field: values for field, values in targets.items()}))
        return self.join(rows)

    @property
    def list_fields(self) -> list[str]:
        """Names of the list fields, ``<field>_list`` of every interaction field but the user."""
        return [getattr(self, f"{field}_list_field") for field in self.flat if field != self.uid_field]

    def gather_lists(
        self, position: torch.Tensor, length: torch.Tensor, shift: int = 0, fields: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """List fields of the ``length`` interactions before ``position``, right padded with 0.

        Parameters
        ----------
        position, length : torch.LongTensor, shape (B,)
            Positions in :attr:`flat` and how many interactions before them to take.
        shift : int
            1 gives the interaction after each of them: the targets of the ``sequence`` view.
        fields : list of str, optional
            Only the lists of these fields.

        Returns
        -------
        dict of torch.Tensor
            ``<field>_list`` of every interaction field but the user, shape (B, L) or (B, L, width).
        """
        steps = torch.arange(self.max_item_list_len)
        inside = steps < length[:, None]
        index = (position - length)[:, None] + steps + shift
        index = torch.where(inside, index, 0)
        shuffled = index
        if self.shuffle_keys is not None:
            keys = torch.where(inside, self.shuffle_keys[index], torch.inf)
            shuffled = index.gather(1, keys.argsort(dim=1))
        lists = {}
        for field, values in self.flat.interaction.items():
            if field == self.uid_field or (fields is not None and field not in fields):
                continue
            name = getattr(self, f"{field}_list_field")
            if name not in self._unused_lists:
                where = index if field == self.time_field else shuffled
                gathered = values.index_select(0, where.view(-1)).view(*index.shape, *values.shape[1:])
                mask = inside.view(*inside.shape, *[1] * (gathered.ndim - 2))
                lists[name] = torch.where(mask, gathered, torch.zeros((), dtype=gathered.dtype))
        return lists

    def with_shuffled_histories(self, seed: int) -> "HistoryDataset":
        """The same rows with the items that are visible in a history in random order; times stay where they are."""
        other = copy.copy(self)
        # One random number per interaction: what is in two histories has one order in both, whatever the batch.
        other.shuffle_keys = torch.rand(len(self.flat), generator=torch.Generator().manual_seed(seed))
        other.inter_feat = HistoryRows(self.inter_feat.interaction, other)
        return other

    def with_shuffled_training(self, seed: int) -> "HistoryDataset":
        """This training split with each user's training items, histories and targets, in random order."""
        other = copy.copy(self)
        keys = torch.rand(len(self.flat), generator=torch.Generator().manual_seed(seed)).numpy()
        position = np.sort(self.train_positions)
        source = np.arange(len(self.flat))
        source[position] = position[np.lexsort((keys[position], self.flat[self.uid_field].numpy()[position]))]
        kept = (self.uid_field, self.time_field)
        columns = self.flat.interaction.items()
        other.flat = Interaction({field: values if field in kept else values[source] for field, values in columns})
        rows = self.inter_feat[POSITION]
        moved = {field: values[rows] for field, values in other.flat.interaction.items() if field in self.inter_feat}
        other.inter_feat = HistoryRows({**self.inter_feat.interaction, **moved}, other)
        return other

    def history(self, index: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Every item a row's user had before the row's target: the whole history, not only the last L items.

        Returns
        -------
        row, item : torch.LongTensor, shape (pairs,)
            ``row`` counts from 0 in the order of ``index``; a repeated item stands once.
        """
        return self.items_before(self.inter_feat[self.uid_field][index], self.inter_feat[POSITION][index])

    def items_before(self, user: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Every item that users (B,) had before positions (B,) of :attr:`flat`; pairs as :meth:`history`."""
        return self._items_between(torch.from_numpy(self.offsets)[user], position)

    def _items_between(self, start: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        length = end - start
        row = torch.repeat_interleave(torch.arange(len(length)), length)
        first = torch.cumsum(length, 0) - length
        item = self.flat[self.iid_field][torch.arange(len(row)) - first[row] + start[row]]
        pair = row * self.item_num + item
        if len(pair) and self.has_repeats:
            pair = torch.unique(pair)
            return pair // self.item_num, pair % self.item_num
        return row, item

    @property
    def all_counts(self) -> np.ndarray:
        """Interactions of each item in training, validation and test, shape (item_num,)."""
        counts = np.bincount(self.flat[self.iid_field].numpy(), minlength=self.item_num)
        return counts if self.cold is None else np.where(self.cold.mask, self.cold.item_counts, counts)

    def after_last(self, user: torch.Tensor) -> tuple[Interaction, tuple[torch.Tensor, torch.Tensor]]:
        """What a model reads of users after all their interactions, which is a row without a target.

        Parameters
        ----------
        user : torch.LongTensor, shape (B,)
            Users with an interaction.

        Returns
        -------
        rows : Interaction
            User, list fields and their length, and the loaded fields of the users.
        history : two torch.LongTensor, shape (pairs,)
            As :meth:`history`.
        """
        offsets = torch.from_numpy(self.offsets)
        start, end = offsets[user], offsets[user + 1]
        length = (end - start).clamp(max=self.max_item_list_len)
        rows = Interaction({self.uid_field: user, self.item_list_length_field: length})
        rows.update(Interaction(self.gather_lists(end, length)))
        return self.join(rows), self._items_between(start, end)

    @property
    def has_repeats(self) -> bool:
        """Whether some user has an item more than once."""
        if not hasattr(self, "_has_repeats"):
            pairs = self.flat[self.uid_field].numpy() * np.int64(self.item_num) + self.flat[self.iid_field].numpy()
            pairs.sort()
            self._has_repeats = bool(np.any(pairs[1:] == pairs[:-1]))
        return self._has_repeats

    # ---- what RecBole asks of an augmented dataset

    def _grouped_index(self, group_by_list: Any) -> Iterable[np.ndarray]:
        """Row numbers of each group, groups in order of first appearance."""
        codes, unique = pd.factorize(np.asarray(group_by_list))
        order = stable_order(codes)
        return np.split(order, np.cumsum(np.bincount(codes, minlength=len(unique)))[:-1])

    def leave_one_out(self, group_by: str, leave_one_mode: str) -> list["HistoryDataset"]:
        """Last row of a user = test, the one before = validation, as RecBole splits, on whole arrays."""
        parts = {"valid_and_test": 2, "valid_only": 1, "test_only": 1}
        codes, unique = pd.factorize(self.inter_feat[group_by].numpy())
        order = stable_order(codes)
        counts = np.bincount(codes, minlength=len(unique))
        from_end = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(len(order))
        left_out = np.repeat(np.minimum(parts[leave_one_mode], counts - 1), counts)
        none = np.array([], dtype=np.int64)
        train, last = order[from_end >= left_out], order[(from_end == 0) & (left_out > 0)]
        split = {
            "valid_and_test": [train, order[(from_end == 1) & (left_out > 1)], last],
            "valid_only": [train, last, none],
            "test_only": [train, none, last],
        }[leave_one_mode]
        self._drop_unused_col()
        return [self.copy(take(self.inter_feat, torch.from_numpy(index))) for index in split]

    def _drop_unused_col(self) -> None:
        for kind, fields in (self.config["unused_col"] or {}).items():
            feat = getattr(self, f"{kind}_feat")
            for field in fields:
                if field in feat:
                    self._del_col(feat, field)
                elif field in [f"{name}{self.config['LIST_SUFFIX']}" for name in self.flat]:
                    self._unused_lists.add(field)
                else:
                    self.logger.warning(f"unused_col: there is no field {field!r} in the .{kind} data.")

    def _firsts(self) -> torch.Tensor:
        """Positions of the first items of those users whose second item is a row here: RecBole has no row for them."""
        before = self.inter_feat[POSITION] - 1
        return before[before == torch.from_numpy(self.offsets)[self.inter_feat[self.uid_field]]]

    def inter_matrix(self, form: str = "coo", value_field: str | None = None) -> Any:
        """Sparse users x items matrix of the rows' targets and of each first item (RecBole's definition)."""
        firsts = self._firsts()
        fields = [self.uid_field, self.iid_field] + ([value_field] if value_field else [])
        pairs = Interaction({field: torch.cat([self.inter_feat[field], self.flat[field][firsts]]) for field in fields})
        return self._create_sparse_matrix(pairs, self.uid_field, self.iid_field, form, value_field)

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Interaction:
        tensors = {}
        for field in data:
            ftype = self.field2type[field]
            plain = field not in self.config["numerical_features"]
            if ftype == FeatureType.TOKEN:
                tensors[field] = torch.from_numpy(data[field].to_numpy(np.int64, copy=True))
            elif ftype == FeatureType.FLOAT and plain:
                tensors[field] = torch.from_numpy(data[field].to_numpy(np.float32, copy=True))
            elif plain:
                width = self.field2seqlen[field]
                dtype = np.int64 if ftype == FeatureType.TOKEN_SEQ else np.float32
                rows = [torch.from_numpy(np.array(row[:width], dtype=dtype)) for row in data[field]]
                tensors[field] = pad_sequence(rows, batch_first=True)
            else:
                return super()._dataframe_to_interaction(data)
        return Interaction(tensors)

    @property
    def train_positions(self) -> np.ndarray:
        """Positions in :attr:`flat` of the interactions of this split, first items included."""
        return torch.cat([self.inter_feat[POSITION], self._firsts()]).numpy()

    @property
    def train_counts(self) -> np.ndarray:
        """How often each item stands in the rows of this split, first items included; shape (item_num,)."""
        return np.bincount(self.flat[self.iid_field][self.train_positions].numpy(), minlength=self.item_num)


def _concatenate(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.array([], dtype=object)
