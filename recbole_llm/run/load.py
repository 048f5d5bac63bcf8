"""Loading of finished runs, for evaluation and recommendation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from recbole.utils import init_seed

from recbole_llm.config import Config
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.controls import control_of
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import EvaluationLoader, Loaders, TrainLoader, prepare_data
from recbole_llm.data.served import ServedDataset
from recbole_llm.data.trained import FILE, TrainedData, text_digests
from recbole_llm.errors import CheckpointError
from recbole_llm.own_code import explain_own_code
from recbole_llm.run import submodel
from recbole_llm.run.folder import changed_files
from recbole_llm.run.logging import SILENT
from recbole_llm.run.results import read_results, read_training_record
from recbole_llm.text.item_text import item_text_of
from recbole_llm.trainer.trainer import RunTrainer


@dataclass
class Run:
    """A finished or loaded experiment.

    Attributes
    ----------
    config, dataset, model, trainer : the objects it was made of; the model holds its best weights, in evaluation mode.
    training : HistoryDataset
        The training split.
    """

    config: Config
    dataset: HistoryDataset
    training: HistoryDataset
    model: LLMRecommender
    trainer: RunTrainer
    loaders: Callable[[], Loaders]

    @property
    def train_data(self) -> TrainLoader:
        """Loader of the training rows. With it the data is split, which recommendations for everybody do not need."""
        return self.loaders()[0]

    @property
    def valid_data(self) -> EvaluationLoader:
        """Loader of the validation rows; None where the split leaves none."""
        return self.loaders()[1]

    @property
    def test_data(self) -> EvaluationLoader:
        """Loader of the test rows; None where the split leaves none."""
        return self.loaders()[2]

    @property
    def everything(self) -> HistoryDataset:
        """The dataset with all interactions, including those added since the run was trained."""
        return self.dataset.grown if isinstance(self.dataset, ServedDataset) else self.dataset


def load_run(run_dir: str | Path, config_dict: Mapping[str, Any] | None = None, model: type | None = None) -> Run:
    """Rebuild a finished experiment from its run directory, with its best weights.

    Ids, splits and metrics are those of the run, even if rows of the data files are in another order or new ones
    have come.

    Parameters
    ----------
    run_dir : str or pathlib.Path
    config_dict : dict, optional
        Settings to change, such as ``{"data_path": ..., "use_gpu": False}``.
    model : class, optional
        The class that was trained, where it is neither ours nor RecBole's.

    Raises
    ------
    CheckpointError
        If the directory is no run, is unfinished or damaged, or does not fit the data.

    Examples
    --------
    >>> from recbole_llm import run
    >>> run_dir = run("MostPopular", "ml-100k", config_dict={"smoke": True, "show_progress": False})["run_dir"]
    >>> loaded = load_run(run_dir)
    >>> loaded.trainer.evaluate(loaded.test_data, load_best_model=False) is None
    False
    """
    run_dir = Path(run_dir)
    report = read_results(run_dir)
    config = Config(model, None, [run_dir / "config.yaml"], config_dict)
    return load_with(config, run_dir, report["dataset"]["files"])


@explain_own_code()
def load_with(config: Config, run_dir: Path, files: Mapping[str, str]) -> Run:
    """:func:`load_run` with settings that have been read.

    Parameters
    ----------
    config : Config
    run_dir : pathlib.Path
    files : mapping
        Name -> SHA-256 of the data files of the run.
    """
    init_seed(config["seed"], config["reproducibility"])
    dataset = read_dataset(config, run_dir, files)
    loaders = cache(lambda: prepare_data(config, dataset))
    training = _training_split(config, dataset, lambda: loaders()[0].dataset)
    network = submodel.restore(config, training, run_dir)
    _check_language_models(network.provenance() or {}, run_dir)
    trainer = RunTrainer(config, network, run_dir, lambda: training.train_counts, finished=True)
    return Run(config, dataset, training, network, trainer, loaders)


def _training_split(config: Config, dataset: HistoryDataset, split: Callable[[], HistoryDataset]) -> HistoryDataset:
    """Return the training split; its rows are made when somebody asks for them, where they are all it changes."""
    changes_more = config["cold_items"] or config["unused_col"] or control_of(config) != "none"
    return split() if changes_more else dataset.with_rows_of(split)


def _check_language_models(now: Mapping[str, Any], run_dir: Path) -> None:
    """Raise CheckpointError if the run used another language model for its texts."""
    known = read_training_record(run_dir)["language_models"] or {}
    for key in ("llm", "rec_llm"):
        first, second = (source.get(f"{key}_revision") for source in (known, now))
        # A revision names the content, but for random weights, which share the seed.
        renamed = str(first).startswith("seed-") and known.get(key) != now.get(key)
        if first is not None and second is not None and (first != second or renamed):
            raise CheckpointError(
                f"{run_dir} was trained with {key}={known.get(key)}, revision {first}, and would now get "
                f"{now.get(key)}, revision {second}. Make the first available on this machine, or train again."
            )


def read_dataset(config: Config, run_dir: Path, files: Mapping[str, str]) -> HistoryDataset:
    """Load the dataset of a run with the run's internal ids; warn about files that have changed.

    Raises
    ------
    CheckpointError
        If the files have changed and the run cannot be rebuilt on them.
    """
    changed = changed_files(files, config)
    if not changed and not (run_dir / FILE).is_file():
        return HistoryDataset(config)  # of an earlier version
    trained = TrainedData.load(run_dir)
    if not changed:
        dataset = HistoryDataset(config)
        if trained.same_ids(dataset):
            return dataset
        changed = ["the settings, or the libraries that read the files"]
    getLogger().info(f"Changed since {run_dir} was trained: {', '.join(changed)}. Ids are mapped by their raw values.")
    if config["benchmark_filename"] is not None:
        raise CheckpointError(
            f"{run_dir} was trained on files that were split beforehand (benchmark_filename), and they have changed: "
            f"{', '.join(changed)}. Point data_path at the files of the run."
        )
    dataset = ServedDataset(config, trained)
    _say_changed_texts(config, dataset, trained, run_dir)
    return dataset


def what_was_read(config: Config, dataset: HistoryDataset) -> TrainedData:
    """Return ids, histories and texts of a built dataset, to be stored in the run directory."""
    return TrainedData.of(dataset, _digests(config, dataset))


def _digests(config: Config, dataset: HistoryDataset) -> np.ndarray | None:
    """Return digests of the item texts, if the model reads any."""
    file = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    if not config.model_class.reads_item_text(config) or config["item_vectors"] or not file.is_file():
        return None
    title_only = "item_title" in config.model_keys
    # What is wrong with the texts is said where the model reads them.
    return text_digests(item_text_of(dataset, config, title_only, logger=SILENT).texts)


def _say_changed_texts(config: Config, dataset: HistoryDataset, trained: TrainedData, run_dir: Path) -> None:
    now = _digests(config, dataset) if trained.texts is not None else None
    if trained.texts is None or now is None:
        return
    tokens, empty = trained.tokens[dataset.iid_field], text_digests([""])[0]
    gone = np.flatnonzero((now == empty) & (trained.texts != empty))
    if len(gone):
        raise CheckpointError(
            f"{len(gone)} items of {run_dir} have no text any more, {tokens[gone[0]]!r} for one, and "
            f"{config['model']} reads it. Point data_path at an .item file that has them."
        )
    changed = np.flatnonzero(now != trained.texts)
    if len(changed):
        some = ", ".join(repr(str(tokens[item])) for item in changed[:5])
        getLogger().warning(
            f"{len(changed)} of {len(tokens) - 1} item texts differ from those that {run_dir} was trained on ({some}"
            f"{', ...' if len(changed) > 5 else ''}): vectors in its weights come from the old texts, others "
            "from the new ones."
        )
