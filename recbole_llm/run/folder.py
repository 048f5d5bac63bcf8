"""The run directory: created, locked, found again, discarded, and downloaded from the Hugging Face hub."""

import errno
import glob
import json
import logging
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import yaml

from recbole_llm import checksums
from recbole_llm.config import Config
from recbole_llm.config.values import SECRETS, ParameterDumper, load_yaml
from recbole_llm.data import trained
from recbole_llm.data.controls import control_of
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import CheckpointError, ConfigError, RecBoleLLMError
from recbole_llm.files import file_sha256
from recbole_llm.run.identity import changed_language_models, changed_settings, plain, same_experiment
from recbole_llm.run.provenance import files_read
from recbole_llm.trainer import checkpoint

LOCK, DATA_STAMP, RESULTS = "lock", "data.json", "results.json"
# Written when training has ended: all that results need besides weights and evaluation.
TRAINED = "trained.json"
# The language models that `auto` resolved to.
AUTO = "auto.json"
# Files of a run before there is anything worth keeping.
_BEGINNINGS = frozenset(
    {"config.yaml", "run.log", LOCK, DATA_STAMP, AUTO, trained.FILE, "pretrained.pth", "history.csv", "tensorboard"}
    | {checksums.SUMS, "candidates", checkpoint.WEIGHTS, f"{checkpoint.STATE}.new", f"{checkpoint.STATE}.old"}
)
_NAME = re.compile(r".+-\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?")


def create_run_dir(config: Config) -> Path:
    """Make ``checkpoint_dir/<Model>[-<control>]-<dataset>-<time>/`` with the settings in it."""
    run_dir = _make_folder(config)
    store_settings(run_dir, config)
    return run_dir


def store_settings(run_dir: Path, config: Config) -> None:
    """Write ``config.yaml`` of a run directory, with its checksum."""
    with checksums.recorded(run_dir / "config.yaml") as file:
        write_settings(file, config.merged)


def _make_folder(config: Config) -> Path:
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    kind = "smoke-" * bool(config["smoke"]) + "refit-" * bool(config["final_fit"])
    name = f"{name_prefix(config)}{kind}{stamp}"
    parent = Path(config["checkpoint_dir"])
    for number in range(1000):
        run_dir = parent / (name if number == 0 else f"{name}-{number}")
        try:
            run_dir.mkdir(parents=True)
            break
        except FileExistsError:
            continue  # two runs in the same second
        except OSError as error:
            raise ConfigError(f"checkpoint_dir={str(parent)!r} cannot be written: {error}.") from error
    return run_dir


def name_prefix(config: Config) -> str:
    """Return the prefix of run directory names."""
    control = control_of(config)
    return f"{config['model']}-{'' if control == 'none' else control + '-'}{config['dataset']}-"


def write_settings(file: Path, settings: Mapping[str, Any], comment: str = "") -> None:
    """Write settings as YAML for ``--config_files``, without access tokens."""
    shown = {key: value for key, value in settings.items() if key not in SECRETS | {"resume"}}
    text = yaml.dump(plain(shown), Dumper=ParameterDumper, sort_keys=True, allow_unicode=True)
    file.write_text(comment + text, encoding="utf-8")


def settings_of(run_dir: Path) -> dict[str, Any]:
    """Read the settings of a run directory from its ``config.yaml``, once its files are found as they were written."""
    if not (run_dir / "config.yaml").is_file():
        raise CheckpointError(f"{run_dir} is not a run directory: it has no config.yaml in it.")
    checksums.verify(run_dir)
    return load_yaml(run_dir / "config.yaml")


@contextmanager
def run_lock(run_dir: Path | None) -> Iterator[None]:
    """Mark a run as alive while the body runs, so that no other process continues it at the same time."""
    if run_dir is None:
        yield
        return
    lock = filelock.FileLock(run_dir / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise CheckpointError(f"{run_dir} is being run by another process.") from None
    try:
        yield
    finally:
        lock.release()
        (run_dir / LOCK).unlink(missing_ok=True)


def is_running(run_dir: Path) -> bool:
    """Whether another process is running it now."""
    if not (run_dir / LOCK).is_file():
        return False
    try:
        with filelock.FileLock(run_dir / LOCK, timeout=0):
            return False
    except filelock.Timeout:
        return True


def stamp_data(run_dir: Path, config: Config, dataset: HistoryDataset) -> None:
    """Store the hashes of the data files, so that a run is not continued on other data."""
    hashes = {path.name: file_sha256(path) for path in files_read(dataset, config.model_class)}
    checksums.write_json(run_dir / DATA_STAMP, hashes)


def changed_files(hashes: Mapping[str, str], config: Config) -> list[str]:
    """Return the dataset files whose SHA-256 differs from these sums by file name, or that are gone."""
    files = {Path(config["data_path"]) / name: expected for name, expected in hashes.items()}
    return [str(path) for path, expected in files.items() if not path.is_file() or file_sha256(path) != expected]


def same_data(hashes: Mapping[str, str], config: Config) -> bool:
    """Whether the files of a configuration's dataset still have these SHA-256 sums by file name."""
    return not changed_files(hashes, config)


def stamp_fits(run_dir: Path, config: Config) -> bool:
    """Whether the data files are still those that :func:`stamp_data` saw; true where it was never called."""
    file = run_dir / DATA_STAMP
    return not file.is_file() or same_data(json.loads(file.read_text(encoding="utf-8")), config)


def stamp_language_models(run_dir: Path, chosen: list[dict[str, Any]]) -> None:
    """Store what ``auto`` resolved to, so that a run is not continued with another language model."""
    if chosen and not (run_dir / AUTO).is_file():
        checksums.write_json(run_dir / AUTO, chosen)


def other_language_models(run_dir: Path, config: Config) -> list[str]:
    """Describe what ``auto`` meant in a run if it means something else now."""
    file = run_dir / AUTO
    return changed_language_models(json.loads(file.read_text(encoding="utf-8")), config) if file.is_file() else []


def discard_unused(run_dir: Path | None, weights: bool = False) -> None:
    """Remove the directory of a run that ended before it had anything to keep.

    ``weights`` says whether initial weights are nothing, too: after an error in training they stay as evidence.
    """
    if run_dir is not None and _has_nothing(run_dir) and (weights or not (run_dir / checkpoint.WEIGHTS).is_file()):
        shutil.rmtree(run_dir, ignore_errors=True)


def _has_nothing(run_dir: Path) -> bool:
    """Whether a run left neither results nor a state, nor weights that it may have been told to keep alone."""
    names = {path.name for path in run_dir.iterdir() if not path.name.endswith(".tmp")}
    if not names <= _BEGINNINGS or checkpoint.state_folder(run_dir) is not None:
        return False
    if checkpoint.WEIGHTS not in names:
        return True
    try:  # the initial weights, unless the run keeps no state
        return settings_of(run_dir).get("save_state") is True
    except RecBoleLLMError:
        return False


def remove_unfinished(run_dir: Path) -> None:
    """Remove files that only unfinished runs need, and partial files of killed processes."""
    (run_dir / TRAINED).unlink(missing_ok=True)
    for path in run_dir.glob("*.tmp"):
        path.unlink(missing_ok=True)
    for suffix in (".new", ".old"):
        shutil.rmtree(run_dir / f"{checkpoint.STATE}{suffix}", ignore_errors=True)


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove directories of runs that were killed before they had anything to keep; returns them.

    A live run keeps its lock: directories that are locked are not removed.
    """
    removed = []
    for run_dir in sorted(parent.iterdir()) if parent.is_dir() else []:
        if not _NAME.fullmatch(run_dir.name) or not run_dir.is_dir():
            continue
        with suppress(OSError, filelock.Timeout):
            if not any(run_dir.iterdir()):
                run_dir.rmdir()
                removed.append(run_dir)
            elif (run_dir / LOCK).is_file() and _has_nothing(run_dir):
                with filelock.FileLock(run_dir / LOCK, timeout=0):
                    if _has_nothing(run_dir):
                        shutil.rmtree(run_dir)
                        removed.append(run_dir)
    return removed


@contextmanager
def new_run(config: Config) -> Iterator[Path]:
    """Create a run directory, locked while the body runs; remove what killed runs left beside it."""
    for run_dir in remove_abandoned(Path(config["checkpoint_dir"])):
        logging.getLogger().info(f"{run_dir} removed: that run was killed before it had anything to keep.")
    with ExitStack() as stack:
        for _ in range(100):
            run_dir = _make_folder(config)
            try:
                stack.enter_context(run_lock(run_dir))
                store_settings(run_dir, config)
            except (FileNotFoundError, CheckpointError):
                stack.pop_all().close()
                continue  # another process removed the directory as abandoned before it was locked
            if (run_dir / LOCK).is_file():
                break
            stack.pop_all().close()
        else:
            raise ConfigError(f"No run directory can be created in checkpoint_dir={config['checkpoint_dir']!r}.")
        yield run_dir


def is_unfinished(run_dir: Path) -> bool:
    """Whether a run has no results yet and something to continue from."""
    if (run_dir / RESULTS).is_file():
        return False
    return (run_dir / TRAINED).is_file() or checkpoint.state_folder(run_dir) is not None


def find_resumable(config: Config) -> Path | None:
    """Return the run directory that ``resume`` names, or None for a new run.

    ``True`` selects the newest unfinished run with the same settings; without one, a new run starts with a notice.
    A named run that was stopped before its first validation restarts in its directory.
    """
    wanted = config["resume"]
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        return _newest_resumable(config)
    run_dir = Path(str(wanted))
    _check_resumable(run_dir, config)
    return run_dir


def _check_resumable(run_dir: Path, config: Config) -> None:
    """Raise :class:`CheckpointError` unless a named run is unfinished, and its settings, data and models unchanged."""
    settings = settings_of(run_dir)
    if (run_dir / RESULTS).is_file():
        raise CheckpointError(f"{run_dir} is finished; its results are in {run_dir / RESULTS}.")
    if not stamp_fits(run_dir, config):
        raise CheckpointError(f"{run_dir} was started on other data: the files in {config['data_path']} changed.")
    if not same_experiment(settings, config.merged):
        changed = changed_settings(settings, config.merged)
        raise CheckpointError(
            f"{run_dir} was started with other settings ({', '.join(changed[:5])}). Resume it with its own: "
            f"--resume={run_dir} and nothing else, or start a new run without --resume."
        )
    if other_models := other_language_models(run_dir, config):
        raise CheckpointError(
            f"{run_dir} was started with another language model: {', '.join(other_models)}. Make that one "
            "available again, or start a new run."
        )


def _hindrance(run_dir: Path, config: Config) -> str:
    """Say why an unfinished run cannot be continued with these settings; empty if it can."""
    try:
        settings = settings_of(run_dir)
    except CheckpointError as error:
        return f"cannot be read: {str(error).rstrip('.')}"
    if not same_experiment(settings, config.merged):
        return f"differs in {', '.join(changed_settings(settings, config.merged)[:5])}"
    return ", ".join(other_language_models(run_dir, config))


def _newest_resumable(config: Config) -> Path | None:
    """Return the newest unfinished run with the same settings; without one, say what the newest differs in."""
    runs = Path(config["checkpoint_dir"]).glob(glob.escape(name_prefix(config)) + "*")
    reason = ""
    for run_dir in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True):
        if not is_unfinished(run_dir) or not stamp_fits(run_dir, config) or is_running(run_dir):
            continue
        hindrance = _hindrance(run_dir, config)
        if not hindrance:
            return run_dir
        reason = reason or f" {run_dir} is unfinished, but {hindrance}."
    logging.getLogger().info(f"There is no unfinished run with these settings; starting a new one.{reason}")
    return None


# No space, quota, file too large, read-only file system.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


@contextmanager
def advice_when_writing_fails(run_dir: Path | None) -> Iterator[None]:
    """Explain how to finish a run that a full disk or a quota has stopped."""
    try:
        yield
    except OSError as error:
        if isinstance(error, RecBoleLLMError) or error.errno not in NO_ROOM:
            raise
        raise CheckpointError(
            f"{error.filename or run_dir or 'A file'} cannot be written: {error.strerror or error}.{_remedy(run_dir)}"
        ) from error
    except CheckpointError as error:
        cause = error.__cause__
        if run_dir is None or not isinstance(cause, OSError) or cause.errno not in NO_ROOM:
            raise
        raise CheckpointError(f"{error}{_remedy(run_dir)}") from error


def _remedy(run_dir: Path | None) -> str:
    if run_dir is None or not run_dir.is_dir() or not is_unfinished(run_dir):
        return " Free some space and start again."
    command = f"evaluate {shlex.quote(str(run_dir))}"
    if not (run_dir / TRAINED).is_file():
        command = f"--resume={shlex.quote(str(run_dir))}"
    return f" The weights are safe: free some space, then run `recbole-llm {command}`."


DATA = "dataset"  # folder of the data files beside the weights, where they were published with them
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def run_folder(name: str | Path) -> Path:
    """Return the folder of a run: a path as it is, a repository of the hub (``org/name[@revision]``) downloaded.

    A name whose first part is a folder here is a path.

    Raises
    ------
    CheckpointError
        If the repository cannot be downloaded.
    """
    path = Path(name)
    if path.exists() or not isinstance(name, str) or not _REPOSITORY.fullmatch(name) or path.parent.exists():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"{name!r} is neither a folder here nor a repository that can be read from the Hugging Face hub "
            f"({str(error).strip().splitlines()[0]}). For a private one, run `hf auth login`."
        ) from error
