"""Settings that name fields of a dataset: RecBole's own keys, checked before anything is computed."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole.utils.enum_type import FeatureSource, FeatureType

from recbole_llm.config import Config
from recbole_llm.config.values import nearest
from recbole_llm.data.filters import parse_intervals
from recbole_llm.errors import ConfigError, DataError

# Kinds of atomic files that RecBole knows; ours read the first three, and those of additional_feat_suffix.
KINDS = ("inter", "user", "item", "kg", "link", "net")
_FLOATS = (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)
_TOKENS = (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)


def columns_of(config: Config, kind: str) -> tuple[set[str] | None, set[str]]:
    """Which fields of the ``.kind`` file are loaded, None for all of them, and which are not.

    Raises
    ------
    ConfigError
        If ``load_col`` or ``unload_col`` names an unknown kind of file, or both are given for this one.
    """
    known = [*KINDS, *_names(config, "additional_feat_suffix")]
    for key in ("load_col", "unload_col"):
        for name in config[key] or ():
            if name not in known:
                raise ConfigError(f"{key}: there is no kind of file {name!r}.{nearest(str(name), known)}")
    given = "*" if config["load_col"] is None else config["load_col"].get(kind)
    load = None if given == "*" else set(given or ())
    unload = set((config["unload_col"] or {}).get(kind) or ())
    if load and unload:
        raise ConfigError(
            f"load_col={sorted(load)} and unload_col={sorted(unload)} are both given for the .{kind} file: use one."
        )
    return load, unload


def check_columns(
    config: Config,
    path: Path,
    kind: str,
    header: Mapping[str, FeatureType],
    load: set[str] | None,
    unload: set[str],
    needed: Mapping[str, str],
) -> None:
    """Check that an atomic file has the requested fields.

    Parameters
    ----------
    config : Config
    path : pathlib.Path
    kind : str
        ``inter``, ``user``, ``item`` or an additional suffix.
    header : dict of str to FeatureType
    load, unload : set of str
        As :func:`columns_of` gives them.
    needed : dict of str to str
        Parameter -> the required field that it names.

    Raises
    ------
    DataError
    """
    for key, field in needed.items():
        if field not in header:
            raise DataError(
                f"{path} has no field {field!r} ({key}).{nearest(str(field), header)} It has: {', '.join(header)}. "
                f"Name the right one with --{key}=NAME."
            )
        if load is not None and field not in load:
            raise DataError(
                f"load_col leaves out {field!r} ({key}) of {path}, which is needed; add it, or drop load_col."
            )
        if field in unload:
            raise DataError(f"unload_col takes out {field!r} ({key}) of {path}, which is needed.")
        wanted = FeatureType.FLOAT if key == "TIME_FIELD" else FeatureType.TOKEN
        if header[field] != wanted:
            raise DataError(
                f"{path}, line 1: {field!r} ({key}) is of type {header[field].value!r}; it must be "
                f"'{field}:{wanted.value}'."
            )
    keys = {field: "load_col" for field in load or ()} | dict.fromkeys(unload, "unload_col")
    for key in ("selected_features", "item_attribute"):
        value = config[key] if kind == "item" else None
        keys |= {field: key for field in ([value] if isinstance(value, str) else value or []) if field in keys}
    for field, key in keys.items():
        if field not in header:
            raise DataError(
                f"{path} has no field {field!r} ({key}).{nearest(str(field), header)} It has: {', '.join(header)}."
            )


def check_unshared(path: Path, known: Iterable[str], shared: Container[str]) -> None:
    """Check that the fields that other files had before are ids, which files share."""
    for field in known:
        if field not in shared:
            raise DataError(
                f"{path} has a field {field!r}, and so has a file that was read before: rename one, or leave it out "
                "with load_col. An additional file has ids of another name, which alias_of_item_id lists."
            )


def check_names(config: Config) -> None:
    """Check that the parameters that name fields name different ones."""
    keys = ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "ITEM_LIST_LENGTH_FIELD")
    known: dict[str, str] = {}
    for key in keys:
        if config[key] in known:
            raise ConfigError(f"{known[config[key]]} and {key} are both {config[key]!r}: they must name two fields.")
        known[config[key]] = key


def check_suffixes(config: Config, folder: Path, name: str) -> None:
    """Check that the files of ``additional_feat_suffix`` exist, and that none of them is read anyway."""
    for suffix in _names(config, "additional_feat_suffix"):
        if suffix in KINDS[:3]:
            raise ConfigError(f"additional_feat_suffix={suffix!r}: the .{suffix} file is read anyway; remove it.")
        if not (folder / f"{name}.{suffix}").is_file():
            raise DataError(
                f"additional_feat_suffix={suffix!r}: there is no file {str(folder / f'{name}.{suffix}')!r}."
            )


def check_field_settings(
    config: Config,
    types: Mapping[str, FeatureType],
    sources: Mapping[str, Any],
    ids: Mapping[str, str],
    kinds: Sequence[str],
) -> None:
    """Check the settings that filter, scale or join fields against the fields that were loaded.

    Parameters
    ----------
    config : Config
    types : dict of str to FeatureType
        Fields that were loaded.
    sources : dict of str to FeatureSource or str
        Where each field comes from.
    ids : dict of str to str
        The fields of user, item and time, by ``user``, ``item`` and ``time``.
    kinds : sequence of str
        Files that were loaded.

    Raises
    ------
    ConfigError
        For what RecBole would reject later without naming the key, or accept and misread.
    """

    fields = _LoadedFields(types, sources, ids)
    _check_intervals(config, fields)
    _check_threshold(config, fields)
    _check_scaling(config, fields)
    _check_aliases(config, fields)
    _check_preloaded(config, fields)
    _check_unused(config, ids, kinds)


@dataclass(frozen=True)
class _LoadedFields:
    """The fields that were loaded, as :func:`check_field_settings` gets them."""

    types: Mapping[str, FeatureType]
    sources: Mapping[str, Any]
    ids: Mapping[str, str]

    def check(self, key: str, name: Any, allowed: Sequence[FeatureType], of: str | None = None) -> None:
        """Raise :class:`ConfigError` unless ``name`` is a field of an allowed type (and of the ``.of`` file)."""
        if not isinstance(name, str) or name not in self.types:
            raise ConfigError(
                f"{key}: no field {name!r} is loaded.{nearest(str(name), self.types)} Loaded: "
                f"{', '.join(self.types)}. load_col says what is loaded."
            )
        if self.types[name] not in allowed:
            raise ConfigError(
                f"{key}: {name!r} is of type {self.types[name].value!r}, which is not supported; "
                f"{' or '.join(kind.value for kind in allowed)} can."
            )
        kind = self.file_of(name)
        if of is not None and kind != of and name not in (self.ids["user"], self.ids["item"]):
            raise ConfigError(f"{key}: {name!r} is a field of the .{kind} file; one of the .{of} file is needed.")

    def file_of(self, name: str) -> str:
        """Return the kind of file that a field comes from."""
        return source_name(self.sources[name]).removesuffix("_id")


def _check_intervals(config: Config, fields: _LoadedFields) -> None:
    for name, value in (config["val_interval"] or {}).items():
        fields.check("val_interval", name, (FeatureType.FLOAT, FeatureType.TOKEN))
        if fields.types[name] == FeatureType.FLOAT:
            parse_intervals(f"val_interval of {name}", value)
        elif isinstance(value, str):
            raise ConfigError(f"val_interval of {name}: {value!r} must be a list of ids, such as [{value}].")


def _check_threshold(config: Config, fields: _LoadedFields) -> None:
    threshold = config["threshold"] or {}
    if len(threshold) > 1 or fields.ids["time"] in threshold:
        raise ConfigError(f"threshold={threshold!r} must name one field, other than the time, that gives the label.")
    for name in threshold:
        fields.check("threshold", name, (FeatureType.FLOAT,), of="inter")


def _check_scaling(config: Config, fields: _LoadedFields) -> None:
    normalized, numerical = _names(config, "normalize_field"), _names(config, "numerical_features")
    if normalized and config["normalize_all"]:
        raise ConfigError("normalize_field and normalize_all are both given: use one.")
    for name in normalized:
        fields.check("normalize_field", name, _FLOATS)
    for name in numerical:
        fields.check("numerical_features", name, (FeatureType.FLOAT,))
    for name, method in (config["discretization"] or {}).items():
        fields.check("discretization", name, (FeatureType.FLOAT,))
        if name not in numerical:
            raise ConfigError(f"discretization: {name!r} must be among numerical_features={numerical!r}.")
        _check_discretization(name, method)


def _check_aliases(config: Config, fields: _LoadedFields) -> None:
    aliases = {config[key]: key for key in ("USER_ID_FIELD", "ITEM_ID_FIELD")}
    for kind in ("user", "item"):
        key = f"alias_of_{kind}_id"
        for name in _names(config, key):
            fields.check(key, name, _TOKENS)
            if name in aliases:
                raise ConfigError(f"{key}: {name!r} is already used by {aliases[name]}.")
            aliases[name] = key


def _check_preloaded(config: Config, fields: _LoadedFields) -> None:
    for name, value in (config["preload_weight"] or {}).items():
        fields.check("preload_weight", name, (FeatureType.TOKEN,))
        fields.check("preload_weight", value, _FLOATS)
        if fields.file_of(name) != source_name(fields.sources[value]):
            raise ConfigError(f"preload_weight: {name!r} and {value!r} must be fields of the same file.")


def _check_discretization(name: str, method: Any) -> None:
    kind = method.get("method") if isinstance(method, Mapping) else None
    buckets = method.get("bucket") if isinstance(method, Mapping) else None
    if kind not in ("ED", "LD") or (kind == "ED" and (not isinstance(buckets, int) or buckets < 1)):
        raise ConfigError(
            f"discretization of {name}: {method!r} must be {{method: LD}}, or {{method: ED, bucket: N}} with N of 1 "
            "or more."
        )


def _check_unused(config: Config, ids: Mapping[str, str], kinds: Sequence[str]) -> None:
    for kind, names in (config["unused_col"] or {}).items():
        if kind not in kinds:
            raise ConfigError(f"unused_col: no .{kind} file is loaded.")
        if names == "*":
            raise ConfigError(f"unused_col: name the fields of the .{kind} file; '*' would leave none.")
        for name in names or ():
            if name in (ids["user"], ids["item"]):
                raise ConfigError(f"unused_col: {name!r} is needed; leave it out.")


def _names(config: Config, key: str) -> list[str]:
    value = config[key] or []
    return [value] if isinstance(value, str) else list(value)


def source_name(source: FeatureSource | str) -> str:
    """``inter``, ``user``, ``item`` or an additional suffix."""
    return source if isinstance(source, str) else source.value
