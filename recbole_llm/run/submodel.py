"""A model inside a model: built from its own property file, or loaded from the run directory of a finished run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_llm.config import Config
from recbole_llm.config.adapter import AdaptedRecommender
from recbole_llm.config.registry import is_users
from recbole_llm.config.values import CODE_KEYS
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.served import ServedDataset
from recbole_llm.data.trained import FILE, TrainedData
from recbole_llm.errors import CheckpointError, ConfigError, RecBoleLLMError
from recbole_llm.files import file_sha256
from recbole_llm.own_code import require_constructor, require_sound
from recbole_llm.run.protocol import FILTERS
from recbole_llm.run.results import check_weights_file, read_results, read_training_record
from recbole_llm.trainer import checkpoint

# Settings that decide which interactions a model has seen, and the internal ids.
SAME_DATA = (
    *("dataset", "time_order", "smoke", *FILTERS),
    *("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "protocol"),
    *("cold_items", "cold_items_seed", "cold_items_in_history"),
    *(f"temporal_session_{key}" for key in ("test_ratio", "valid_ratio", "valid_max", "seed", "fold", "folds")),
)
# Settings that a loaded model takes from the run that loads it.
PLACES = (
    *("data_path", "use_gpu", "gpu_id", "embedding_cache_dir"),
    *("llm_cache_dir", "llm_local_files_only", "llm_token", "show_progress"),
    *sorted(CODE_KEYS),
)
# Keys of the run as a whole, which an inner model must not see.
OF_THE_RUN = frozenset({"model", "dataset", "config_files", "init_from", "resume", "load_col", "log_wandb"})


def inner_config(name: str, config: Config, settings: Mapping[str, Any] | None = None) -> Config:
    """Return the settings of a model that is built inside the model of ``config``.

    Data, evaluation, seed and device are those of the run; what the property file of the outer model has is its own
    and is not passed on.

    Parameters
    ----------
    name : str
        One of our models or of RecBole's sequential ones.
    config : Config
        Of the run.
    settings : dict, optional
        Departures from the inner model's property file.

    Raises
    ------
    ConfigError
        For an unknown model, or a value that is not allowed.
    """
    shared = {
        key: value
        for key, value in config.external_config_dict.items()
        if key in config.internal_config_dict and key not in config.model_keys | OF_THE_RUN
    }
    shared["MAX_ITEM_LIST_LENGTH"] = config["MAX_ITEM_LIST_LENGTH"]
    return Config(name, config["dataset"], config_dict={**shared, **(settings or {})})


def build(config: Config, dataset: HistoryDataset) -> LLMRecommender:
    """Build the model on its device; turn a stock model's complaints about its settings into ConfigError.

    Raises
    ------
    ModelError
        For a class that cannot be built so, or hides a hook.
    """
    require_constructor(config.model_class)
    try:
        model = config.model_class(config, dataset)
        require_sound(model)
        return model.to(config["device"])
    except (Exception, SystemExit) as error:  # RecBole's models assert, divide by zero and exit
        ours = isinstance(error, (RecBoleLLMError, torch.OutOfMemoryError))
        stock = issubclass(config.model_class, AdaptedRecommender) and not is_users(config.model_class)
        if ours or not stock:
            raise
        text = " ".join(str(error).split())
        raise ConfigError(
            f"{config['model']} cannot be built with these settings ({type(error).__name__}: {text}). "
            f"`recbole-llm help {config['model']}` lists them."
        ) from error


def has_pretraining(config: Config) -> bool:
    """Whether S3Rec is still to be pre-trained; it then reads those weights from a file."""
    return config["model"] == "S3Rec" and not config["pre_model_path"]


def restore(config: Config, dataset: HistoryDataset, run_dir: Path) -> LLMRecommender:
    """Load the model of a finished run with its best weights, on its device, in evaluation mode.

    Raises
    ------
    CheckpointError
        If the weights are missing, damaged, or do not fit the data.
    """
    pretrained = has_pretraining(config)
    if pretrained:
        config["train_stage"] = "pretrain"  # the fine-tuned weights come from the run directory
    model = build(config, dataset)
    for stage in model.training_stages:
        model.start_stage(stage)
    check_weights_file(run_dir)
    checkpoint.load_weights(model, run_dir / checkpoint.WEIGHTS)
    model.check_base(read_training_record(run_dir)["language_models"] or {})
    if pretrained:
        config["train_stage"] = model.train_stage = "finetune"
    return model.eval()


def load_trained(run_dir: str | Path, config: Config, dataset: HistoryDataset) -> LLMRecommender:
    """Load the frozen model of a finished run for use inside the model of ``config``; see its ``.config``.

    ``.item_tokens`` are its items by its own internal ids, which may be others than those of the outer run. Its inputs
    come from the batches of the outer run: pass them through :func:`newest` with its ``max_seq_length``.

    Parameters
    ----------
    run_dir : str or pathlib.Path
    config : Config
        Of the outer run.
    dataset : HistoryDataset
        Training split of the outer run.

    Raises
    ------
    CheckpointError
        If the directory is not a finished run, or one on other data, with another split or with longer histories.
    """
    run_dir = Path(run_dir)
    report = read_results(run_dir)
    places = {key: config.merged[key] for key in PLACES if key in config.merged}
    inner = Config(None, None, [run_dir / "config.yaml"], places)
    _check_same_data(run_dir, report, inner, config, dataset)
    needed = {field for fields in (inner["load_col"] or {}).values() for field in fields}
    loaded = {*dataset.flat.columns, *(() if dataset.item_feat is None else dataset.item_feat.columns)}
    # A model such as FDSA reads item features that this run has not loaded.
    own = dataset if needed <= loaded else _own_training_split(inner, run_dir)
    model = restore(inner, own, run_dir)
    model.config, model.item_tokens = inner, own.field2id_token[own.iid_field]
    return model.requires_grad_(False)


def _own_training_split(inner: Config, run_dir: Path) -> HistoryDataset:
    """Load the dataset with columns that the outer run has not loaded."""
    if not (run_dir / FILE).is_file():
        return HistoryDataset(inner).build()[0]
    return ServedDataset(inner, TrainedData.load(run_dir)).build()[0]


def refuse_final_fit(run_dir: Path, final_fit: Any, config: Config) -> None:
    """Raise CheckpointError if a run that was trained on all interactions would serve one that is evaluated."""
    if final_fit and not config["final_fit"]:
        raise CheckpointError(
            f"{run_dir} was trained on all interactions: it has seen what would be validated and tested here. Name "
            "the run that it was made from."
        )


def _check_same_fit(run_dir: Path, inner: Config, config: Config) -> None:
    refuse_final_fit(run_dir, inner["final_fit"], config)
    if config["final_fit"] and not inner["final_fit"]:
        raise CheckpointError(
            f"{run_dir} was trained on the training interactions only: refit it too, and name the result."
        )


def _check_same_data(
    run_dir: Path, report: Mapping[str, Any], inner: Config, config: Config, dataset: HistoryDataset
) -> None:
    _check_same_fit(run_dir, inner, config)
    different = [key for key in SAME_DATA if inner[key] != config[key]]
    if inner["eval_args"]["split"] != config["eval_args"]["split"]:
        different.append("eval_args.split")
    if different:
        key = different[0]
        raise CheckpointError(
            f"{run_dir} was trained with another {', '.join(different)} ({inner[key.partition('.')[0]]!r} there, "
            f"{config[key.partition('.')[0]]!r} here). Its items or its test set may be others: use the same settings."
        )
    now = {path.name: path for path in dataset.source_files}
    for name, digest in report["dataset"]["files"].items():
        if name.endswith(".inter") and name in now and (found := file_sha256(now[name])) != digest:
            if (run_dir / FILE).is_file():
                trained = TrainedData.load(run_dir)
                if trained.same_ids(dataset) and trained.same_histories(dataset):
                    continue  # the outer run was rebuilt from files that have changed since
            raise CheckpointError(
                f"{run_dir} was trained on another {name} than {now[name]} (SHA-256 {digest} there, {found} here). "
                "Train it again on this file, or point data_path at the one it was trained on."
            )
    if inner["MAX_ITEM_LIST_LENGTH"] > config["MAX_ITEM_LIST_LENGTH"]:
        raise CheckpointError(
            f"{run_dir} was trained on histories of MAX_ITEM_LIST_LENGTH={inner['MAX_ITEM_LIST_LENGTH']} items and "
            f"would get {config['MAX_ITEM_LIST_LENGTH']} here: set MAX_ITEM_LIST_LENGTH to the same."
        )


def newest(interaction: Interaction, length_field: str, limit: int, suffix: str = "_list") -> Interaction:
    """Keep only the newest ``limit`` entries of every list field; right padded.

    Parameters
    ----------
    interaction : Interaction
        With list fields of shape (B, L) or (B, L, width).
    length_field : str
        Field with the lengths, shape (B,).
    limit : int
    suffix : str
        How names of list fields end.
    """
    length = interaction[length_field]
    lists = {name: values for name, values in interaction.interaction.items() if name.endswith(suffix)}
    if not lists or max(values.shape[1] for values in lists.values()) <= limit:
        return interaction
    skip = (length - limit).clamp(min=0)[:, None]
    index = skip + torch.arange(limit, device=length.device)
    cut = {}
    for name, values in lists.items():
        where = index.view(*index.shape, *[1] * (values.ndim - 2)).expand(*index.shape, *values.shape[2:])
        cut[name] = values.gather(1, where)
    return Interaction({**interaction.interaction, **cut, length_field: length.clamp(max=limit)})
