"""Settings that name fields of a dataset: RecBole's own keys, checked with the remedy before anything is computed."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole.utils.enum_type import FeatureSource, FeatureType

from recbole_llm.config.values import choice, nearest
from recbole_llm.data.filters import parse_intervals
from recbole_llm.errors import ConfigError, DataError

# Kinds of atomic files that RecBole knows; ours read the first three, and those of additional_feat_suffix.
KINDS = ("inter", "user", "item", "kg", "link", "net")
_FLOATS = (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)
_TOKENS = (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)


def columns_of(config: Any, kind: str) -> tuple[set[str] | None, set[str]]:
    """Which fields of the ``.kind`` file are loaded, None for all of them, and which are not.

    Raises
    ------
    ConfigError
        Where ``load_col`` or ``unload_col`` is no mapping of lists, or both are given for this file.
    """
    wanted: dict[str, set[str] | None] = {}
    for key in ("load_col", "unload_col"):
        given = config[key]
        if given is None:
            wanted[key] = None
            continue
        _mapping(key, given, "{inter: [user_id, item_id, timestamp]}")
        known = [*KINDS, *_suffixes(config)]
        for name, fields in given.items():
            if name not in known:
                raise ConfigError(f"{key}: there is no kind of file {name!r}.{nearest(str(name), known)}")
            if fields != "*" and fields is not None:
                _names(f"{key}.{name}", fields)
        fields = given.get(kind, () if key == "load_col" else None)
        wanted[key] = None if fields == "*" else set(fields or ())
    load, unload = wanted["load_col"], wanted["unload_col"]
    if load and unload:
        raise ConfigError(
            f"load_col={sorted(load)} and unload_col={sorted(unload)} are both given for the .{kind} file: use one."
        )
    return load, unload or set()


def check_columns(
    config: Any,
    path: Path,
    kind: str,
    header: Mapping[str, FeatureType],
    load: set[str] | None,
    unload: set[str],
    needed: Mapping[str, str],
) -> None:
    """Check that an atomic file has the fields that are asked for.

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
        Parameter -> the field that it names, which has to be there.

    Raises
    ------
    DataError
    """
    for key, field in needed.items():
        if field not in header:
            raise DataError(
                f"{path} has no field {field!r} ({key}).{nearest(str(field), header)} It has: {', '.join(header)}. "
                f"Say which one it is with --{key}=NAME."
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


def check_suffixes(config: Any, folder: Path, name: str) -> None:
    """Check that the files of ``additional_feat_suffix`` are there, and are no file that is read anyway."""
    for suffix in _suffixes(config):
        if suffix in KINDS[:3]:
            raise ConfigError(f"additional_feat_suffix={suffix!r}: the .{suffix} file is read anyway; leave it out.")
        if not (folder / f"{name}.{suffix}").is_file():
            raise DataError(
                f"additional_feat_suffix={suffix!r}: there is no file {str(folder / f'{name}.{suffix}')!r}."
            )


def check_field_settings(
    config: Any, types: Mapping[str, FeatureType], sources: Mapping[str, Any], ids: Mapping[str, str]
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

    Raises
    ------
    ConfigError
        For what RecBole would refuse later without the key, or accept and misread.
    """

    def field(key: str, name: Any, allowed: Sequence[FeatureType], of: str | None = None) -> None:
        if not isinstance(name, str) or name not in types:
            raise ConfigError(
                f"{key}: no field {name!r} is loaded.{nearest(str(name), types)} Loaded: {', '.join(types)}. "
                "load_col says what is loaded."
            )
        if types[name] not in allowed:
            raise ConfigError(
                f"{key}: {name!r} is of type {types[name].value!r}, which cannot be used here; "
                f"{' or '.join(kind.value for kind in allowed)} can."
            )
        kind = source_name(sources[name]).removesuffix("_id")
        if of is not None and kind != of and name not in (ids["user"], ids["item"]):
            raise ConfigError(f"{key}: {name!r} is a field of the .{kind} file; one of the .{of} file is needed.")

    for name, value in _mapping("val_interval", config["val_interval"], '{rating: "[3,inf)"}').items():
        field("val_interval", name, (FeatureType.FLOAT, FeatureType.TOKEN))
        if types[name] == FeatureType.FLOAT:
            parse_intervals(f"val_interval of {name}", value)
        else:
            _names(f"val_interval of {name}", value, numbers=True)
    threshold = _mapping("threshold", config["threshold"], "{rating: 3}")
    if len(threshold) > 1:
        raise ConfigError(f"threshold={threshold!r} names {len(threshold)} fields; one of them can give the label.")
    for name, value in threshold.items():
        field("threshold", name, (FeatureType.FLOAT,), of="inter")
        if name == ids["time"] or isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"threshold={threshold!r} must give a number for a field other than the time.")
    normalized = _names("normalize_field", config["normalize_field"])
    if normalized and config["normalize_all"]:
        raise ConfigError("normalize_field and normalize_all are both given: use one.")
    for name in normalized:
        field("normalize_field", name, _FLOATS)
    numerical = _names("numerical_features", config["numerical_features"])
    for name in numerical:
        field("numerical_features", name, _FLOATS)
    for name, method in _mapping("discretization", config["discretization"], "{price: {method: LD}}").items():
        field("discretization", name, _FLOATS)
        if name not in numerical:
            raise ConfigError(f"discretization: {name!r} must be among numerical_features={numerical!r}.")
        _check_discretization(name, method)
    _check_aliases(config, ids, field)
    if config["rm_dup_inter"] is not None:
        choice(config, "rm_dup_inter", ["first", "last", None])
    for name, length in _mapping("seq_len", config["seq_len"], "{tags: 10}").items():
        if name in types and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
            raise ConfigError(f"seq_len={config['seq_len']!r}: {length!r} must be a number of parts, 1 or more.")
    for name, value in _mapping("preload_weight", config["preload_weight"], "{item_id: vector}").items():
        field("preload_weight", name, (FeatureType.TOKEN,))
        field("preload_weight", value, _FLOATS)
    _check_unused(config, sources, ids)


def _check_aliases(config: Any, ids: Mapping[str, str], field: Any) -> None:
    aliases: dict[str, str] = {ids["user"]: "USER_ID_FIELD", ids["item"]: "ITEM_ID_FIELD"}
    for kind in ("user", "item"):
        key = f"alias_of_{kind}_id"
        for name in _names(key, config[key]):
            field(key, name, _TOKENS)
            if name in aliases:
                raise ConfigError(f"{key}: {name!r} is already used by {aliases[name]}.")
            aliases[name] = key


def _check_discretization(name: str, method: Any) -> None:
    kind = method.get("method") if isinstance(method, Mapping) else None
    buckets = method.get("bucket") if isinstance(method, Mapping) else None
    if kind not in ("ED", "LD") or (kind == "ED" and (not isinstance(buckets, int) or buckets < 1)):
        raise ConfigError(
            f"discretization of {name}: {method!r} must be {{method: LD}}, or {{method: ED, bucket: N}} with N of 1 "
            "or more."
        )


def _check_unused(config: Any, sources: Mapping[str, Any], ids: Mapping[str, str]) -> None:
    for kind, names in _mapping("unused_col", config["unused_col"], "{inter: [timestamp]}").items():
        if kind not in {source_name(source).removesuffix("_id") for source in sources.values()}:
            raise ConfigError(f"unused_col: no .{kind} file is loaded.")
        for name in _names(f"unused_col.{kind}", names):
            if name in (ids["user"], ids["item"]):
                raise ConfigError(f"unused_col: {name!r} is needed; leave it out.")


def _suffixes(config: Any) -> list[str]:
    return _names("additional_feat_suffix", config["additional_feat_suffix"])


def _names(key: str, value: Any, numbers: bool = False) -> list[Any]:
    allowed = (str, int, float) if numbers else str
    if value is None:
        return []
    if isinstance(value, str) or not isinstance(value, Collection) or isinstance(value, Mapping):
        raise ConfigError(f"{key}={value!r} must be a list, such as [{value}].")
    for name in value:
        if not isinstance(name, allowed):
            raise ConfigError(f"{key}={value!r} must be a list of names; {name!r} is none.")
    return list(value)


def _mapping(key: str, value: Any, example: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{key}={value!r} must be a mapping, such as {example}.")
    return value or {}


def source_name(source: FeatureSource | str) -> str:
    """``inter``, ``user``, ``item`` or an additional suffix."""
    return source if isinstance(source, str) else source.value
