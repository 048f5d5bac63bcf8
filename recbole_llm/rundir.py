"""The run directory: what an experiment leaves behind, and how it is found again."""

import glob
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
import yaml
from recbole.utils import set_color
from tabulate import tabulate

from recbole_llm import distributed
from recbole_llm.config import Config
from recbole_llm.data.controls import control_of, label
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.evaluator.cold import cold_report
from recbole_llm.llm.fingerprint import file_sha256
from recbole_llm.parameters import SECRETS, ParameterDumper, load_yaml
from recbole_llm.registry import stock_models
from recbole_llm.trainer import checkpoint
from recbole_llm.trainer.meter import Meter

LOCK, DATA_STAMP = "lock", "data.json"
PACKAGES = (
    *("recbole-llm", "recbole", "torch", "transformers", "sentence-transformers", "peft", "bitsandbytes"),
    *("numpy", "pandas"),
)
FILTERS = (
    *("user_inter_num_interval", "item_inter_num_interval", "val_interval", "rm_dup_inter", "threshold"),
    *("filter_inter_by_user_or_item", "benchmark_filename"),
)
# Where and how a run is carried out, not what it computes: two runs that differ only here are the same experiment.
CIRCUMSTANCES = frozenset(
    {"resume", "checkpoint_dir", "show_progress", "state", "gpu_id", "use_gpu", "worker", "data_path", "save_state"}
    | {"embedding_cache_dir", "llm_cache_dir", "rec_llm_cache_dir", "log_wandb", "wandb_project", "smoke_settings"}
    | {"nproc", "world_size", "group_offset", "offset", "ip", "port", "distributed_timeout", "find_unused_parameters"}
    | SECRETS
)
LANGUAGE_MODEL_KEYS = frozenset(
    {"llm", "llm_revision", "llm_local_files_only", "llm_dtype", "llm_trust_remote_code", "rec_llm", "item_text"}
)


# ---- logging


class _Plain(logging.Formatter):
    """RecBole colours its lines by hand; a file or a pipe gets them without."""

    def format(self, record: logging.LogRecord) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", super().format(record))


class Console(logging.StreamHandler):
    """Our own handler, told apart from one that the calling program installed."""


class LogFile(logging.FileHandler):
    """The log of a run or a study."""


def log_to_console(level: str = "INFO") -> None:
    """RecBole's log lines on the terminal, unless the program that calls us has set up logging itself.

    Of several processes the main one speaks; the others report errors only.
    """
    here = distributed.launched()
    if here is not None and not here.is_main:
        level = "ERROR"
    root = logging.getLogger()
    if not root.handlers:
        handler = Console()
        coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        kind = logging.Formatter if coloured else _Plain
        handler.setFormatter(kind("%(asctime)-15s %(levelname)s  %(message)s", "%d %b %H:%M"))
        root.addHandler(handler)
        for noisy in ("httpx", "httpcore", "urllib3", "filelock", "sentence_transformers", "transformers"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
    if any(isinstance(handler, Console) for handler in root.handlers):
        root.setLevel(level.upper())


@contextmanager
def logging_into(run_dir: Path | None, name: str = "run.log") -> Iterator[None]:
    """Copy every log line into ``run.log`` of the run directory."""
    if run_dir is None:
        yield
        return
    handler = LogFile(run_dir / name, encoding="utf-8")
    handler.setFormatter(_Plain("%(asctime)s %(levelname)s  %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class Overlay:
    """A configuration with some values replaced; the original is not changed."""

    def __init__(self, config: Any, values: Mapping[str, Any]) -> None:
        self._config, self._values = config, values

    def __getitem__(self, key: str) -> Any:
        return self._values[key] if key in self._values else self._config[key]


# ---- folders


def create(config: Config) -> Path:
    """Make ``checkpoint_dir/<Model>[-<control>]-<dataset>-<time>/`` with the settings in it."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    name = f"{name_prefix(config)}{'smoke-' if config['smoke'] else ''}{stamp}"
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
    write_settings(run_dir / "config.yaml", config.merged)
    return run_dir


def name_prefix(config: Config) -> str:
    """How names of run directories begin."""
    control = control_of(config)
    return f"{config['model']}-{'' if control == 'none' else control + '-'}{config['dataset']}-"


def write_settings(file: Path, settings: Mapping[str, Any], comment: str = "") -> None:
    """Settings as YAML that ``--config_files`` takes, without access tokens."""
    shown = {key: value for key, value in settings.items() if key not in SECRETS | {"resume"}}
    text = yaml.dump(plain(shown), Dumper=ParameterDumper, sort_keys=True, allow_unicode=True)
    file.write_text(comment + text, encoding="utf-8")


@contextmanager
def held(run_dir: Path | None) -> Iterator[None]:
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


def _is_alive(run_dir: Path) -> bool:
    """Whether another process is running it now."""
    if not (run_dir / LOCK).is_file():
        return False
    try:
        with filelock.FileLock(run_dir / LOCK, timeout=0):
            return False
    except filelock.Timeout:
        return True


def stamp_data(run_dir: Path, config: Config, dataset: Any) -> None:
    """Keep the hashes of the data files, so that a run is not continued on other data."""
    hashes = {path.name: file_sha256(path) for path in _files_read(dataset, config.model_class)}
    (run_dir / DATA_STAMP).write_text(json.dumps(hashes, indent=1), encoding="utf-8")


def same_data(hashes: Mapping[str, str], config: Config) -> bool:
    """Whether the files of a configuration's dataset still have these SHA-256 sums by file name."""
    files = {Path(config["data_path"]) / name: expected for name, expected in hashes.items()}
    return all(path.is_file() and file_sha256(path) == expected for path, expected in files.items())


def _stamp_fits(run_dir: Path, config: Config) -> bool:
    file = run_dir / DATA_STAMP
    return not file.is_file() or same_data(json.loads(file.read_text(encoding="utf-8")), config)


def discard_unused(run_dir: Path | None) -> None:
    """Remove the directory of a run that failed before it had anything to keep."""
    unused = {"config.yaml", "run.log", LOCK, DATA_STAMP}
    if run_dir is not None and {path.name for path in run_dir.iterdir()} <= unused:
        shutil.rmtree(run_dir, ignore_errors=True)


def plain(value: Any) -> Any:
    """The same value in the types that YAML and JSON have."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def same_experiment(settings: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two merged configurations ask for the same numbers."""
    return essence(settings) == essence(other)


def essence(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the numbers of a run. RecBole's own models read no text, so no language model is part of theirs."""
    ignored = CIRCUMSTANCES | (LANGUAGE_MODEL_KEYS if settings.get("model") in stock_models() else frozenset())
    return {key: value for key, value in plain(settings).items() if key not in ignored and value is not None}


def find_resumable(config: Config) -> Path | None:
    """The run directory that ``resume`` means, or None for a fresh run.

    ``True`` takes the newest unfinished run with the same settings and starts afresh, saying so, where there is none.
    """
    wanted = config["resume"]
    if wanted is None or wanted is False:
        return None
    if wanted is not True:
        run_dir = Path(str(wanted))
        settings = _settings_of(run_dir)
        if (run_dir / "results.json").is_file():
            raise CheckpointError(f"{run_dir} is finished; its results are in {run_dir / 'results.json'}.")
        if checkpoint.state_folder(run_dir) is None:
            raise CheckpointError(f"{run_dir} holds no training state: it was stopped before its first epoch ended.")
        if not _stamp_fits(run_dir, config):
            raise CheckpointError(f"{run_dir} was started on other data: the files in {config['data_path']} changed.")
        if not same_experiment(settings, config.merged):
            changed = _changed(settings, config.merged)
            raise CheckpointError(
                f"{run_dir} was started with other settings ({', '.join(changed[:5])}). Resume it with its own: "
                f"--resume={run_dir} and nothing else, or start a new run without --resume."
            )
        return run_dir
    pattern = glob.escape(name_prefix(config)) + "*"
    other = ""
    for run_dir in sorted(Path(config["checkpoint_dir"]).glob(pattern), key=lambda p: p.stat().st_mtime, reverse=True):
        unfinished = not (run_dir / "results.json").is_file() and checkpoint.state_folder(run_dir) is not None
        if not unfinished or not _stamp_fits(run_dir, config) or _is_alive(run_dir):
            continue
        settings = _settings_of(run_dir)
        if same_experiment(settings, config.merged):
            return run_dir
        other = (
            other or f" {run_dir} is unfinished, but differs in {', '.join(_changed(settings, config.merged)[:5])}."
        )
    logging.getLogger().info(f"There is no unfinished run with these settings; starting a new one.{other}")
    return None


def _changed(settings: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys in which two merged configurations are other experiments."""
    first, second = essence(settings), essence(now)
    return sorted(key for key in {*first, *second} if first.get(key) != second.get(key))


def _settings_of(run_dir: Path) -> dict[str, Any]:
    if not (run_dir / "config.yaml").is_file():
        raise CheckpointError(f"{run_dir} is no run directory: there is no config.yaml in it.")
    return load_yaml(run_dir / "config.yaml")


def read_results(run_dir: Path) -> dict[str, Any]:
    """``results.json`` of a finished run."""
    _settings_of(run_dir)
    file = run_dir / "results.json"
    if not file.is_file():
        raise CheckpointError(
            f"{run_dir} is not finished: there is no results.json. Continue it with `recbole-llm --resume={run_dir}`."
        )
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged ({error}).") from error


# ---- results


def protocol(config: Config) -> str:
    """One line that belongs beside every number of this run."""
    masked = "history masked" if config["mask_history"] else "history not masked"
    stamp = "SMOKE RUN, " if config["smoke"] else ""
    if control_of(config) != "none":
        stamp += f"CONTROL {control_of(config)} (seed {config['control_seed']}), "
    return (
        f"{stamp}{masked}, {evaluation(config)}, at most {config['MAX_ITEM_LIST_LENGTH']} items of history, "
        f"seed {config['seed']}, best epoch by {config['valid_metric']}"
    )


def evaluation(config: Config) -> str:
    """The part of the protocol that rows of one table must share."""
    arguments = config["eval_args"]
    (kind, how), *_ = arguments["split"].items()
    split = "leave-one-out" if kind == "LS" and how == "valid_and_test" else f"{kind}={how}"
    if kind == "temporal_session":
        split = _temporal_session(config)
    ranking = "full ranking" if arguments["mode"]["test"] == "full" else f"sampled ({arguments['mode']['test']})"
    if config["task"] == "topn":
        ranking = f"ranked among {config['topn_negatives']} sampled items (top-N task)"
    if config["cold_items"]:
        kept = "kept in" if config["cold_items_in_history"] else "dropped from"
        split += (
            f", {config['cold_items']:.0%} of the items held out of training (cold_items_seed "
            f"{config['cold_items_seed']}, {kept} evaluated histories)"
        )
    return f"{split}, {ranking}, time order {config['time_order']}"


def _temporal_session(config: Config) -> str:
    share, ranks = config["temporal_session_test_ratio"], " BY RANK TIMES" * config["allow_rank_times"]
    tested = f"last {share:.0%} of the sessions tested"
    if config["temporal_session_fold"] is not None:
        tested = (
            f"tuning fold {config['temporal_session_fold']} of {config['temporal_session_folds']} within the first "
            f"{1 - share:.0%} of the sessions"
        )
    return f"temporal session split{ranks} ({tested}, items unseen in training dropped)"


def report(
    config: Config,
    dataset: Any,
    trainer: Any,
    test_result: Mapping[str, float] | None,
    meter: Meter,
    members: list[dict[str, Any]] | None = None,
    inference: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Everything that ``results.json`` holds: figures with the protocol and the provenance they need.

    ``meter`` measured what came before the trainer; ``members`` are the results of a hybrid's members on the same
    data; ``inference`` is what :func:`recbole_llm.evaluator.timing.inference_times` found.
    """
    model = trainer.model
    seconds = {**meter.seconds, "train": 0.0, "valid": 0.0, **trainer.meter.seconds}
    peaks = {**meter.peak_memory_mb, **trainer.meter.peak_memory_mb}
    return plain(
        {
            "model": config["model"],
            "label": label(config),
            "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
            "smoke": bool(config["smoke"]),
            "protocol": {
                "text": protocol(config),
                "evaluation": evaluation(config),
                "name": config["protocol"],
                "control": control_of(config),
                "mask_history": config["mask_history"],
                "eval_args": config["eval_args"],
                "time_order": config["time_order"],
                "max_item_list_length": config["MAX_ITEM_LIST_LENGTH"],
                "ties": "equal scores by smaller internal id",
                "valid_metric": config["valid_metric"],
                "seed": config["seed"],
            },
            "best_valid_score": trainer.best_valid_score if np.isfinite(trainer.best_valid_score) else None,
            "best_valid_result": trainer.best_valid_result,
            **figures_on_test(trainer, test_result, members),
            "chosen_from": trainer.chosen_from or None,
            "stages": trainer.stage_results,
            "epochs": len(trainer.curve),
            "updates": sum(stage["updates"] for stage in trainer.stage_results),
            "batch": {
                "rows_per_update": config["train_batch_size"] * trainer.accumulate,
                "processes": trainer.world.size,
                "rows_per_process": -(-config["train_batch_size"] // trainer.world.size),
            },
            "dataset": {
                "name": config["dataset"],
                "users": dataset.user_num - 1,
                "items": dataset.item_num - 1,
                "interactions": len(dataset.flat),
                "train_rows": trainer.train_rows,
                "temporal_session": dataset.sessions.counts if dataset.sessions else None,
                "filters": {key: config[key] for key in FILTERS if config[key] is not None},
                "files": {path.name: file_sha256(path) for path in _files_read(dataset, model)},
            },
            "language_models": model.provenance() if hasattr(model, "provenance") else None,
            "parameters": {
                "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
                "all": sum(p.numel() for p in model.parameters()),
            },
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "inference": inference,
            "peak_memory_mb": round(max(peaks.values())),
            "phase_peak_memory_mb": {name: round(value) for name, value in peaks.items()},
            "environment": environment(config["device"]),
            "notices": config.notices,
            "command": _without_secrets(sys.argv),
            "settings": {key: value for key, value in config.merged.items() if key not in SECRETS},
        }
    )


def figures_on_test(
    trainer: Any, test_result: Mapping[str, float] | None, members: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """What a report says about the last evaluation, that of the test set; None throughout where there was none."""
    ranks = trainer.ranks if test_result is not None else None
    cold = trainer.test_dataset.cold if ranks else None
    return {
        "test_result": test_result,
        "test_masked": trainer.masked_result if ranks else None,
        "test_unmasked": trainer.unmasked_result if ranks else None,
        "model_report": trainer.model_report if ranks else None,
        "retrieval": trainer.retrieval if ranks else None,
        "members": members,
        "cold_items": cold_report(trainer.config, ranks, cold) if ranks and cold else None,
        "tied_targets": ranks.tied if ranks else None,
        "targets_in_history": ranks.targets_in_history if ranks else None,
    }


def _files_read(dataset: Any, model: Any) -> list[Path]:
    """The atomic files of a run; the texts of items come from a file that the dataset itself may not load."""
    items = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    text = [items] if getattr(model, "needs_item_text", False) and items.is_file() else []
    return list(dict.fromkeys([*dataset.source_files, *text]))


def _without_secrets(command: list[str]) -> str:
    """The command line as it can be typed again, tokens left out."""
    return shlex.join(re.sub(rf"^--({'|'.join(SECRETS)})=.*", r"--\1=(hidden)", part, flags=re.S) for part in command)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit and hardware of this process."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "packages": {package: package_version(package) for package in PACKAGES},
        "git": git_state(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "device": str(device),
    }


def _processor() -> str:
    """Name of the CPU where the system tells it, else its architecture."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def package_version(name: str) -> str | None:
    """Installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from, if it runs from one."""
    folder = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def write_results(run_dir: Path, results: Mapping[str, Any], trainer: Any) -> None:
    """``test_ranks.npz`` and then ``results.json``, whose presence says that the run is finished."""
    if results["test_result"] is not None:
        ranks, dataset = trainer.ranks, trainer.test_dataset
        counts = trainer.train_counts
        np.savez_compressed(
            run_dir / "test_ranks.npz",
            user=dataset.id2token(dataset.uid_field, ranks.user).astype(str),
            target=dataset.id2token(dataset.iid_field, ranks.target).astype(str),
            rank_masked=ranks.masked,
            rank_unmasked=ranks.unmasked,
            history_length=ranks.history_length,
            target_popularity=counts[ranks.target],
            **({} if dataset.cold is None else {"target_cold": dataset.cold.mask[ranks.target]}),
            target_popularity_rank=popularity_rank(counts)[ranks.target],
        )
    if hasattr(trainer.model, "save_adapter"):
        trainer.model.save_adapter(run_dir / "adapter")
    temporary = run_dir / "results.json.tmp"
    temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False, allow_nan=True), encoding="utf-8")
    os.replace(temporary, run_dir / "results.json")


def popularity_rank(counts: np.ndarray) -> np.ndarray:
    """1 + the number of items with more training interactions; shape (item_num,), item 0 is padding."""
    ascending = np.sort(counts[1:])
    return 1 + len(ascending) - np.searchsorted(ascending, counts, side="right")


def _cold_table(cold: Mapping[str, Any], kind: str, places: int) -> str:
    """Figures on cold and on warm targets, and on cold ones ranked among the cold items."""
    parts = {
        f"{cold['cold']['targets']} cold targets": cold["cold"].get(kind, {}),
        f"{cold['warm']['targets']} warm targets": cold["warm"].get(kind, {}),
        f"cold among the {cold['items']} cold items": cold["cold"].get("among_cold", {}),
    }
    metrics = list(dict.fromkeys(metric for part in parts.values() for metric in part))
    rows = [[metric, *(part.get(metric) for part in parts.values())] for metric in metrics]
    return tabulate(rows, ["metric", *parts], tablefmt="simple", floatfmt=f".{places}f")


def _members_table(results: Mapping[str, Any], part: str, head: str, places: int) -> str:
    """A hybrid's figures beside those of its members, with what each has cost."""
    provenance = results["language_models"]["members"]
    rows = [[results["model"], *results[part].values(), None, results["seconds"]["test"]]]
    for member, source in zip(results["members"], provenance, strict=True):
        rows.append([member["member"], *member[part].values(), source["run_seconds"], member["test_seconds"]])
    seconds = [row[-2] for row in rows[1:] if row[-2] is not None]
    rows[0][-2] = sum(seconds) if seconds else None
    columns = [head, *results[part], "seconds of runs", "of test"]
    digits = [f".{places}f"] * (len(columns) - 2) + [".1f", ".1f"]
    return tabulate(rows, columns, tablefmt="simple", floatfmt=digits)


def _retrieval_lines(results: Mapping[str, Any], metric: str, places: int) -> list[str]:
    """The rows of a two-step model: its retriever alone, and both on the users whose target was retrieved."""
    model, retrieval, mask_history = results["model"], results["retrieval"], results["protocol"]["mask_history"]
    k, users, found = retrieval["candidates"], retrieval["users"], retrieval["users_retrieved"]
    masked, unmasked = "retriever_masked", "retriever_unmasked"
    first, second = (masked, unmasked) if mask_history else (unmasked, masked)
    heads = {masked: "retriever alone,\nhistory masked", unmasked: "retriever alone,\nnot masked"}
    columns = [first, second, "retrieved_users", "retrieved_users_retriever"]
    rows = [[metric, *((retrieval[key] or {}).get(metric) for key in columns)] for metric in retrieval[first]]
    there = f"these {found} users"
    titles = ["metric", heads[first], heads[second], f"{model},\n{there}", f"retriever alone,\n{there}"]
    skipped = users - retrieval["users_reranked"]
    alone, both = retrieval[first].get(metric), results["test_result"].get(metric)
    gain = f" ({both / alone - 1:+.1%})" if alone and both is not None else ""
    return [
        "",
        f"{model} re-orders the retriever's first {k} items: they hold the target of {found} of {users} users "
        f"(Recall@{k} {retrieval[f'retriever_recall@{k}']:.{places}f})"
        + (f"; {skipped} users were not re-ranked (skip_users_without_target reads the label)" if skipped else ""),
        *([f"{metric} {both:.{places}f}, the retriever alone {alone:.{places}f}{gain}"] if alone is not None else []),
        "",
        tabulate(rows, titles, tablefmt="simple", floatfmt=f".{places}f"),
    ]


def _inference_line(times: Mapping[str, float]) -> str:
    return (
        f"inference: {times['median_ms']:.1f} ms ({times['median_cpu_ms']:.1f} ms of CPU) per batch of "
        f"{times['users']} users, top {times['k']}, input length {times['input_length']:.1f}, median of "
        f"{times['batches']} batches"
    )


def _model_report_line(figures: Mapping[str, float]) -> str:
    """What the model counted on the test set, such as shares of invalid answers."""
    shown = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
    return "test: " + ", ".join(shown)


def print_summary(config: Config, results: Mapping[str, Any], run_dir: Path | None) -> None:
    """The table at the end of a run, with the protocol above it."""
    logger = logging.getLogger()
    first, second = ("test_masked", "test_unmasked") if config["mask_history"] else ("test_unmasked", "test_masked")
    heads = {"test_masked": "test, history masked", "test_unmasked": "test, not masked"}
    places = config["metric_decimal_place"]
    valid = results["best_valid_result"] or {}
    test, other = results[first] or {}, results[second] or {}
    rows = [[metric, valid.get(metric), test.get(metric), other.get(metric)] for metric in test or valid]
    table = tabulate(
        rows, ["metric", "best valid", heads[first], heads[second]], tablefmt="simple", floatfmt=f".{places}f"
    )
    if results["cold_items"]:
        table += "\n\n" + _cold_table(results["cold_items"], first.removeprefix("test_"), places)
    if results["members"]:
        table += "\n\n" + _members_table(results, first, heads[first], places)
    language = results["language_models"] or {}
    lines = [
        set_color(f"{label(config)} on {config['dataset']}", "green") + f": {results['protocol']['text']}",
        *([f"llm: {language['llm']}, rec_llm: {language['rec_llm']}"] if "rec_llm" in language else []),
        *([f"llm: {language['llm']}, retriever: {language['retriever']}"] if "retriever" in language else []),
        *(
            f"stage {stage['stage']}: best {stage['valid_metric']} {stage['best_valid_score']:.{places}f} "
            f"in epoch {stage['best_epoch']}, {stage['updates']} updates"
            for stage in results["stages"]
            if len(results["stages"]) > 1 and stage["best_valid_score"] is not None
        ),
        "",
        table,
        *(_retrieval_lines(results, config["valid_metric"].lower(), places) if results["retrieval"] else []),
        *(["", _model_report_line(results["model_report"])] if results["model_report"] else []),
        "",
        "seconds: "
        + ", ".join(f"{name} {value:.1f}" for name, value in results["seconds"].items())
        + f"; peak memory {results['peak_memory_mb']} MB",
        *([_inference_line(results["inference"])] if results["inference"] else []),
    ]
    if run_dir is not None:
        lines.append(f"written to {run_dir}")
    logger.info("\n".join(lines))
    if (results["tied_targets"] or 0) > 0.01:
        logger.warning(
            f"{results['tied_targets']:.1%} of the targets share their score with another item; how these are ordered "
            "is arbitrary."
        )
    if results["targets_in_history"]:
        logger.warning(
            f"{results['targets_in_history']} targets were in their user's history and count as misses where it is "
            "masked; with repeated consumption compare the unmasked column, or set mask_history=False."
        )
    for notice in config.notices:
        logger.warning(notice)
