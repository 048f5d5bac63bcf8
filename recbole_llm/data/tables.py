"""Atomic files -> tables with integer ids: RecBole's reading and filtering, on whole columns."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils.enum_type import FeatureSource, FeatureType

from recbole_llm.config import Config
from recbole_llm.data import benchmark
from recbole_llm.data.atomic import AtomicFormat, read_table, read_types
from recbole_llm.data.download import download
from recbole_llm.data.fields import (
    check_columns,
    check_field_settings,
    check_names,
    check_suffixes,
    check_unshared,
    columns_of,
    source_name,
)
from recbole_llm.data.filters import factorize, first_users, k_core, parse_intervals, within, without_repeated_pairs
from recbole_llm.data.rows import as_tensor
from recbole_llm.errors import ConfigError, DataError


class TableDataset(SequentialDataset):  # type: ignore[misc]
    """The part of RecBole's dataset that ends with a table of interactions, of users and of items.

    Ids, field names and filters are RecBole's; ids are the texts of the files.

    Parameters
    ----------
    config : recbole_llm.config.Config

    Attributes
    ----------
    source_files : list of pathlib.Path
        The atomic files that were read.
    inter_feat, user_feat, item_feat : pandas.DataFrame
    noticed, warned : list of str
        What was said while they were read: to print after the results, and at once.
    newest_time : float
        Newest time in the file, before any filter.

    Raises
    ------
    ConfigError, DataError
        For a missing or damaged file, a missing field, or filters that leave no rows.
    """

    user_feat: Any
    item_feat: Any
    inter_feat: Any  # a DataFrame while it is filtered, an Interaction of rows after `build`
    newest_time: float = 0.0
    parts: np.ndarray | None = None  # of files split beforehand: which part each line belongs to

    def __init__(self, config: Config) -> None:
        self.source_files: list[Path] = []
        self.noticed: list[str] = []
        self.warned: list[str] = []
        super().__init__(config)

    def _notice(self, texts: Iterable[str]) -> None:
        """Add a notice to print after the results of a run."""
        texts = list(texts)
        self.noticed += texts
        self.config.notices += [text for text in texts if text not in self.config.notices]

    def _warn(self, text: str) -> None:
        self.warned.append(text)
        self.logger.warning(text)

    def _load_data(self, token: str, dataset_path: str) -> None:
        if not Path(dataset_path).exists():
            self._download()
        super()._load_data(token, dataset_path)
        if self.parts is not None:  # nothing else is filtered
            self._filter_nan_user_or_item()

    def _benchmark_presets(self) -> None:
        """Read ready-made lists, which RecBole expects to be complete; see :mod:`recbole_llm.data.benchmark`."""

    def _download(self) -> None:
        url = self._get_download_url("url", allow_none=True)
        download(self.dataset_name, url, Path(self.dataset_path), self.logger)

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
        check_names(self.config)
        if columns_of(self.config, "inter")[0] == set():
            raise ConfigError("load_col names no field of the .inter file: add the fields of user, item and time.")
        if self.config["benchmark_filename"] is not None:
            self.inter_feat, self.parts = benchmark.read(self, Path(dataset_path))
            if self.config["smoke"]:
                users = self.inter_feat[self.uid_field]
                few = users.isin(pd.unique(users)[: int(self.config["smoke_users"])]).to_numpy()
                self.inter_feat, self.parts = self.inter_feat[few].reset_index(drop=True), self.parts[few]
            return
        if not (Path(dataset_path) / f"{token}.inter").is_file():
            found = sorted(path.name for path in Path(dataset_path).glob("*.inter"))
            raise DataError(
                f"There is no file {token}.inter in {dataset_path!r} (found: {', '.join(found) or 'no .inter file'}). "
                "The dataset name, the folder and the file must have the same name."
            )
        super()._load_inter_feat(token, dataset_path)

    def _load_feat(self, filepath: str, source: FeatureSource | str) -> pd.DataFrame | None:
        """Read an atomic file and note the types of its fields."""
        load_col, unload_col = columns_of(self.config, source_name(source))
        if load_col == set():
            return None
        path, form = Path(filepath), AtomicFormat.of(self.config)
        header = read_types(path, form)
        check_columns(self.config, path, source_name(source), header, load_col, unload_col, self._needed(source))
        names = [field for field in header if (load_col is None or field in load_col) and field not in unload_col]
        if not names:
            self._warn(f"No field of {path} is loaded.")
            return None
        shared = self._needed(source).values()
        check_unshared(path, [field for field in names if self.field2source.get(field, source) != source], shared)
        frame = read_table(path, form, header, names)
        if isinstance(source, FeatureSource) or source != "link":
            self._register(source, {field: header[field] for field in names})
        for field in names:
            if header[field].value.endswith("seq"):
                self._limit_sequences(frame, field)
        self.source_files.append(path)
        return frame

    def _register(self, source: FeatureSource | str, types: dict[str, FeatureType]) -> None:
        """Record source and type of the fields of a file, as RecBole does."""
        for field, ftype in types.items():
            self.field2source[field], self.field2type[field] = source, ftype
            if not ftype.value.endswith("seq"):
                self.field2seqlen[field] = 1
            if "float" in ftype.value:
                self.field2bucketnum[field] = 2

    def _limit_sequences(self, frame: pd.DataFrame, field: str) -> None:
        """Cut the sequences of a field to its ``seq_len``, and record the longest."""
        longest = max(map(len, frame[field]), default=0)
        limit = (self.config["seq_len"] or {}).get(field)
        self.field2seqlen[field] = longest if limit is None else min(int(limit), longest)
        if limit is not None:
            frame[field] = pd.Series([part[:limit] for part in frame[field]], frame.index, dtype=object)

    def _needed(self, source: FeatureSource | str) -> dict[str, str]:
        """Parameters that name a field of a file, and the fields."""
        user, item = {"USER_ID_FIELD": self.uid_field}, {"ITEM_ID_FIELD": self.iid_field}
        needed = {FeatureSource.USER: user, FeatureSource.ITEM: item}
        needed[FeatureSource.INTERACTION] = user | item
        if self.config["benchmark_filename"] is None:  # those files are in order
            needed[FeatureSource.INTERACTION] = user | item | {"TIME_FIELD": self.time_field}
        return needed.get(source, {})

    def _load_additional_feat(self, token: str, dataset_path: str) -> None:
        check_suffixes(self.config, Path(dataset_path), token)
        super()._load_additional_feat(token, dataset_path)

    def _init_alias(self) -> None:
        ids = {"user": self.uid_field, "item": self.iid_field, "time": self.time_field}
        kinds = [name.removesuffix("_feat") for name in self._build_feat_name_list()]
        check_field_settings(self.config, self.field2type, self.field2source, ids, kinds)
        unknown = [field for field in self.config["seq_len"] or () if field not in self.field2type]
        self._notice([f"seq_len: no field {field!r} is loaded; it has no effect." for field in unknown])
        suffix = self.config["LIST_SUFFIX"]
        for field in self.inter_feat if self.parts is None else ():
            if field.removesuffix(suffix) != field and field.removesuffix(suffix) in self.inter_feat:
                raise DataError(
                    f"{field!r} is what the list of {field.removesuffix(suffix)!r} is called: leave it out with "
                    "load_col, or set LIST_SUFFIX. Files with ready-made lists are read with benchmark_filename."
                )
        super()._init_alias()

    def _set_alias(self, alias_name: str, default_value: Sequence[str]) -> None:
        list_field = f"{self.iid_field}{self.config['LIST_SUFFIX']}"
        if alias_name == "item_id" and self.parts is not None and list_field in self.field2type:
            default_value = [*default_value, list_field]  # ready-made lists hold items
        super()._set_alias(alias_name, default_value)

    # ---- filtering, ids

    def _data_filtering(self) -> None:
        self.newest_time = float(self.inter_feat[self.time_field].max())
        self._cut()
        super()._data_filtering()

    def _cut(self) -> None:
        """Cut the interactions to the small part that a smoke run needs; otherwise keep all."""
        if self.config["smoke"]:
            users, interactions = int(self.config["smoke_users"]), int(self.config["smoke_interactions"])
            self.inter_feat = first_users(self.inter_feat, self.uid_field, users, interactions)

    def _filter_nan_user_or_item(self) -> None:
        """Drop rows without an id (RecBole's version drops others where a feature file has repeated ids)."""
        for name, field in (("user", self.uid_field), ("item", self.iid_field), ("inter", None)):
            feat = getattr(self, f"{name}_feat")
            if feat is None:
                continue
            ids = [field] if field else [self.uid_field, self.iid_field]
            missing = feat[ids].isna().any(axis=1)
            if missing.any():
                self._warn(
                    f"{int(missing.sum())} lines of the .{name} file have no {' or '.join(ids)} and are left out."
                )
                setattr(self, f"{name}_feat", feat[~missing].reset_index(drop=True))

    def _filter_inter_by_user_or_item(self) -> None:
        """Drop interactions whose user or item the ``.user`` or ``.item`` file does not list, and log it."""
        if self.user_feat is None and self.item_feat is None:
            return
        before = len(self.inter_feat)
        super()._filter_inter_by_user_or_item()
        lost = before - len(self.inter_feat)
        if lost:
            self._notice(
                [
                    f"{lost:,} of {before:,} interactions are left out: the .user or .item file does not list their "
                    "user or item (filter_inter_by_user_or_item)."
                ]
            )

    def _filter_by_field_value(self) -> None:
        """Keep the rows whose values ``val_interval`` allows: numbers in intervals, ids in lists."""
        for field, allowed in (self.config["val_interval"] or {}).items():
            for name in self.feat_name_list:
                feat = getattr(self, name)
                if field not in feat:
                    continue
                if self.field2type[field] == FeatureType.FLOAT:
                    intervals = parse_intervals(f"val_interval of {field}", allowed)
                    kept = within(feat[field].to_numpy(), intervals or [])
                else:
                    kept = feat[field].isin([str(value) for value in allowed]).to_numpy()
                setattr(self, name, feat[kept])

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
        keep = self.config["rm_dup_inter"]
        if keep is not None:
            pair = [self.uid_field, self.iid_field]
            self.inter_feat = without_repeated_pairs(self.inter_feat, pair, self.time_field, keep)

    def _filter_by_inter_num(self) -> None:
        """Filter on the number of interactions (k-core), on integer codes."""
        keys = [f"{kind}_inter_num_interval" for kind in ("user", "item")]
        intervals = [parse_intervals(key, self.config[key]) for key in keys]
        fields = [self.uid_field, self.iid_field]
        codes, tokens = zip(*(factorize(self.inter_feat[field]) for field in fields), strict=True)
        kept, allowed = k_core(codes, [len(unique) for unique in tokens], intervals)
        self.inter_feat = self.inter_feat[kept]
        for name, field, interval, unique, ok in zip(
            ("user_feat", "item_feat"), fields, intervals, tokens, allowed, strict=True
        ):
            feat = getattr(self, name)
            if feat is not None and interval:
                # Rows of .user/.item without any interaction go only where the lower bound excludes zero.
                banned = feat[field].isin(unique[~ok])
                if not within(np.zeros(1), interval)[0]:
                    banned |= ~feat[field].isin(unique[ok])
                setattr(self, name, feat[~banned])

    def _remap(self, remap_list: Sequence[tuple[pd.DataFrame, str, FeatureType]]) -> None:
        """Assign internal ids in order of first appearance, as RecBole does; 0 is padding and missing."""
        if not remap_list:
            return
        coded = []
        for feat, field, ftype in remap_list:
            values = feat[field] if ftype == FeatureType.TOKEN else _concatenate(feat[field].tolist())
            codes, unique = factorize(values)
            coded.append((codes, unique))
        for _, unique in coded:
            if "\0" in "".join(unique):  # at the end of a string, NumPy drops it
                field = str(remap_list[0][1])
                raise DataError(f"{field!r}: an id contains a NUL character. Remove it from the file.")
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
                    if feat[field].isna().all():
                        raise DataError(
                            f"{field!r} of the .{name.removesuffix('_feat')} data has no value at all: leave it out "
                            "with load_col."
                        )
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
        """Scale the fields of ``normalize_field``, or all numbers under ``normalize_all``, to 0 to 1."""
        fields = self.float_like_fields if self.config["normalize_all"] else self.config["normalize_field"]
        for field in fields or ():
            for feat in self.field2feats(field):
                parts = feat[field].tolist() if self.field2type[field] == FeatureType.FLOAT_SEQ else None
                values = feat[field].to_numpy(np.float64) if parts is None else _concatenate(parts)
                low, high = (values.min(), values.max()) if len(values) else (0, 0)
                if low == high:
                    self._warn(f"All values of {field!r} are the same; normalised, they are 1.")
                scaled = (values - low) / (high - low) if low < high else np.ones(len(values))
                if parts is not None:
                    ends = np.cumsum([len(part) for part in parts])[:-1]
                    scaled = pd.Series(np.split(scaled, ends), index=feat.index, dtype=object)
                feat[field] = scaled

    def _preload_weight_matrix(self) -> None:
        """Tables (number of ids, width) of numbers by id, as ``preload_weight`` names them."""
        for id_field, value_field in (self.config["preload_weight"] or {}).items():
            feat = self.field2feats(value_field)[0]
            values = feat[value_field].tolist()
            if self.field2type[value_field] == FeatureType.FLOAT:
                matrix = np.zeros(self.num(id_field))
                matrix[feat[id_field]] = values
            else:
                matrix = np.zeros((self.num(id_field), self.field2seqlen[value_field]))
                for index, part in zip(feat[id_field], values, strict=True):
                    matrix[index, : len(part)] = part
            self._preloaded_weight[id_field] = matrix

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Interaction:
        if any(field in self.config["numerical_features"] for field in data):
            return super()._dataframe_to_interaction(data)
        return Interaction(
            {field: as_tensor(data[field], self.field2type[field], self.field2seqlen.get(field)) for field in data}
        )


def _concatenate(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.array([], dtype=object)
