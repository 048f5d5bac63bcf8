"""One experiment from settings to results: the whole story on one page.

    run("LiteLLM4Rec", "ml-100k", config_dict={"epochs": 3})

does what ``python run_recbole_llm.py --model=LiteLLM4Rec --dataset=ml-100k --epochs=3`` does.
"""

import logging
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any, cast

import torch
from recbole.utils import init_seed, set_color

from recbole_llm import distributed
from recbole_llm.config import Config
from recbole_llm.contract import LLMRecommender
from recbole_llm.data import controls
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import TrainLoader, prepare_data
from recbole_llm.data.trained import FILE, TrainedData
from recbole_llm.errors import CheckpointError, ConfigError, RecBoleLLMError, is_out_of_memory
from recbole_llm.llm.auto import recording
from recbole_llm.llm.resolve import resolve_llm
from recbole_llm.llm.spec import LLMSpec
from recbole_llm.own_code import explain_own_code
from recbole_llm.processes import spawn
from recbole_llm.run import submodel
from recbole_llm.run.evaluate import evaluate_on_test, finish, time_inference
from recbole_llm.run.folder import (
    DATA_STAMP,
    TRAINED,
    advice_when_writing_fails,
    changed_files,
    discard_unused,
    find_resumable,
    is_unfinished,
    new_run,
    run_lock,
    settings_of,
    stamp_data,
    stamp_language_models,
)
from recbole_llm.run.load import what_was_read
from recbole_llm.run.logging import log_to_console, logging_into
from recbole_llm.run.protocol import protocol_text
from recbole_llm.run.results import read_json, results_of, training_record, write_results, write_training_record
from recbole_llm.run.summary import dataset_text, print_summary
from recbole_llm.trainer import checkpoint
from recbole_llm.trainer.meter import Meter
from recbole_llm.trainer.trainer import RunTrainer


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Train a model and evaluate its best weights.

    Parameters
    ----------
    model, dataset, config_file_list, config_dict, arguments
        As :class:`recbole_llm.config.Config`.
    saved : bool
        Write a run directory (``checkpoint_dir/<Model>-<dataset>-<time>/``).

    Returns
    -------
    dict
        RecBole's ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result`` and ``test_result`` (under
        ``mask_history``), and ``test_result_unmasked``, ``stages``, ``members`` (of a hybrid), ``run_dir``.

    Examples
    --------
    >>> result = run("MostPopular", "ml-100k", config_dict={"smoke": True, "show_progress": False})
    >>> sorted(result["best_valid_result"])[:2]
    ['mrr@10', 'mrr@20']
    """
    spawned = distributed.launched() is not None
    log_to_console()
    config = Config(model, dataset, config_file_list, config_dict, arguments)
    log_to_console(config["state"])
    if not spawned and config["world_size"] > 1:
        given = {"model": model, "dataset": dataset, "config_file_list": config_file_list, "config_dict": config_dict}
        return spawn(run, {**given, "arguments": arguments, "saved": saved}, config)
    with distributed.group(config["distributed_timeout"]) as here:
        resumed = distributed.from_main(lambda: find_resumable(config)) if saved else None
        with ExitStack() as stack:
            if resumed is not None and here.is_main:
                stack.enter_context(run_lock(resumed))
            run_dir = resumed
            if saved and resumed is None:
                run_dir = distributed.from_main(lambda: stack.enter_context(new_run(config)))
            main_dir = run_dir if here.is_main else None  # where this process writes
            stack.enter_context(logging_into(main_dir))
            try:
                if resumed is not None and here.size == 1 and (resumed / TRAINED).is_file():
                    return finish(config, resumed)
                return experiment(config, run_dir, resume=resumed is not None)
            except RecBoleLLMError:
                discard_unused(main_dir)
                raise
            except KeyboardInterrupt:
                _say_how_to_go_on(run_dir)
                raise


def _say_how_to_go_on(run_dir: Path | None) -> None:
    if not distributed.first_to_fail():
        return
    if run_dir is not None and is_unfinished(run_dir):
        message = f"Interrupted. Continue with: recbole-llm --resume={shlex.quote(str(run_dir))}"
    else:
        message = "Interrupted before the first epoch had ended: there is nothing to resume."
        discard_unused(run_dir, weights=True)
    # Processes other than the main one show errors only.
    getLogger().log(logging.WARNING if distributed.world().is_main else logging.ERROR, message)


class OutOfMemoryError(RecBoleLLMError, MemoryError):
    """The device or the process is out of memory."""


@contextmanager
def _advice_when_out_of_memory(config: Config, run_dir: Path | None) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own are RuntimeErrors
        if not is_out_of_memory(error):
            raise
        state = run_dir is not None and checkpoint.state_folder(run_dir) is not None
        kept = f" Finished epochs are kept in {run_dir}." if state else ""
        raise OutOfMemoryError(
            f"Out of memory ({str(error).splitlines()[0][:200]}). Lower "
            f"train_batch_size={config['train_batch_size']} (with accumulate_grad_batches the optimizer sees the "
            f"same batch), MAX_ITEM_LIST_LENGTH={config['MAX_ITEM_LIST_LENGTH']} or, in evaluation, "
            f"eval_score_memory_mb={config['eval_score_memory_mb']}; amp=bf16 halves activations.{kept}"
        ) from error


def prepare(config: Config) -> tuple[HistoryDataset, list[HistoryDataset]]:
    """Load the dataset and its training, validation and test splits."""
    dataset = HistoryDataset(config)
    return dataset, dataset.build()


def experiment(
    config: Config,
    run_dir: Path | None,
    resume: bool = False,
    prepare: Callable[[Config], tuple[HistoryDataset, list[HistoryDataset]]] = prepare,
    on_validation: Callable[[RunTrainer], None] | None = None,
    evaluate_test: bool = True,
) -> dict[str, Any]:
    """Train and evaluate: what :func:`run` does once settings and run directory exist.

    Parameters
    ----------
    config : Config
    run_dir : pathlib.Path, optional
    resume : bool
        Continue from the training state in ``run_dir``.
    prepare : callable
        Gives dataset and splits; a study shares them among its trials.
    on_validation : callable
        Called with the trainer after every validation and after its state was saved; it may end the run by raising.
    evaluate_test : bool
        False leaves the test set alone: ``test_result`` is then None, and the run directory has no results until
        :func:`recbole_llm.run.evaluate.evaluate_run` writes them.
    """
    if config["world_size"] > 1 and distributed.world().size == 1:
        raise ConfigError(
            f"nproc={config['nproc']}, world_size={config['world_size']}: this function runs in one process. Leave "
            "them out; `run` and the command line start several."
        )
    with explain_own_code(), _advice_when_out_of_memory(config, run_dir), advice_when_writing_fails(run_dir):
        return _experiment(config, run_dir, resume, prepare, on_validation, evaluate_test)


def _experiment(
    config: Config, run_dir: Path | None, resume: bool, prepare: Any, on_validation: Any, evaluate_test: bool
) -> dict[str, Any]:
    logger = getLogger()
    meter = Meter(config["device"])
    init_seed(config["seed"], config["reproducibility"])
    logger.info(set_color("Protocol", "pink") + f": {protocol_text(config)}")
    logger.info(config.summary())
    logger.debug(config)
    weights = _initial_weights(config)
    controls.refuse_without_text(config)
    _check_timing(config)
    with meter.phase("model"):
        config.model_class.find_language_models(config, find_named)
    with meter.phase("data"):
        dataset, splits = prepare(config)
        train_data, valid_data, test_data = prepare_data(config, dataset, splits)
    if run_dir is not None and distributed.world().is_main and not (run_dir / FILE).is_file():
        stamp_data(run_dir, config, dataset)
        what_was_read(config, dataset).save(run_dir)
    logger.info(dataset_text(dataset))
    logger.debug(dataset)

    model = _build_model(config, run_dir, train_data, resume, meter)
    _notice_untrained_users(config, model, dataset)
    if weights is not None:
        _check_same_ids(weights.parent, f"init_from={config['init_from']!r}", config, model, train_data.dataset)
        checkpoint.load_weights(model, weights)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info(f"{config['model']}: {trainable:,} trainable parameters")
    logger.debug(model)

    trainer = RunTrainer(config, model, run_dir, train_data.dataset.train_counts)
    if resume:
        trainer.resume()
    try:
        trainer.fit(
            train_data,
            valid_data,
            saved=run_dir is not None,
            show_progress=config["show_progress"],
            callback_fn=(lambda epoch, score: on_validation(trainer)) if on_validation else None,
        )
    finally:
        trainer.close()
    if run_dir is not None and distributed.world().is_main:
        write_training_record(run_dir, training_record(config, trainer, meter))
    test_result, members, times = None, None, None
    if evaluate_test:
        test_result, members = evaluate_on_test(trainer, test_data, config["show_progress"])
        times = time_inference(config, trainer, test_data)

    unmasked = trainer.evaluation.unmasked if trainer.evaluation and test_result is not None else None
    meter.merge_peaks()
    trainer.meter.merge_peaks()
    if distributed.world().is_main:
        training = training_record(config, trainer, meter)
        report = results_of(config, dataset, trainer, training, test_result, members, times)
        if run_dir is not None and evaluate_test:
            write_results(run_dir, report, trainer)
        print_summary(config, report, run_dir if evaluate_test else None)
    return {
        "best_valid_score": trainer.best_valid_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": trainer.best_valid_result,
        "test_result": test_result,
        "test_result_unmasked": unmasked,
        "stages": trainer.stage_results,
        "members": members,
        "run_dir": None if run_dir is None else str(run_dir),
    }


def find_named(config: Config, key: str, weights: bool) -> None:
    """Raise :class:`ModelNotFoundError` if the encoder that a setting names is not available; ``auto`` names none."""
    spec = LLMSpec.from_config(config, key)
    if spec.name != "auto":
        resolve_llm(spec, weights=weights)


def _initial_weights(config: Config) -> Path | None:
    """Return the weights of the run that ``init_from`` names."""
    if not config["init_from"]:
        return None
    weights = Path(config["init_from"]) / checkpoint.WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"init_from={config['init_from']!r} is not a run directory: it has no {weights}.")
    submodel.refuse_final_fit(weights.parent, settings_of(weights.parent).get("final_fit"), config)
    return weights


def _build_model(
    config: Config, run_dir: Path | None, train_data: TrainLoader, resume: bool, meter: Meter
) -> LLMRecommender:
    """Build the model, after S3Rec's pre-training where it is due, and record what ``auto`` resolved to."""
    with tempfile.TemporaryDirectory(prefix="recbole-llm-") as temporary:
        if submodel.has_pretraining(config):
            _pretrain_s3rec(config, run_dir, Path(temporary), train_data, resume, meter)
        init_seed(config["seed"], config["reproducibility"])
        with meter.phase("model"), recording() as auto:
            train_data.dataset.applied = ()
            model = submodel.build(config, train_data.dataset)
            controls.check_applied(config, train_data.dataset)
    config.auto_models = auto
    if run_dir is not None and distributed.world().is_main:
        stamp_language_models(run_dir, auto)
    return model


def _check_same_ids(
    folder: Path, setting: str, config: Config, model: LLMRecommender, dataset: HistoryDataset
) -> None:
    """Raise CheckpointError if another run's weights use other internal ids for items or users."""
    fields = [dataset.iid_field] + [dataset.uid_field] * _learns_users(model, dataset)
    if (folder / FILE).is_file():
        same = TrainedData.load(folder).same_ids(dataset, fields)
    else:  # of an earlier version
        stamp = folder / DATA_STAMP
        same = not stamp.is_file() or not changed_files(read_json(stamp), config)
    if not same:
        raise CheckpointError(
            f"{setting}: that run numbers its {' and '.join(fields)} differently from this one: the weights "
            "would not match. Start from a run on the same files with the same filters."
        )


def _learns_users(model: LLMRecommender, dataset: HistoryDataset) -> bool:
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    return any(table.num_embeddings == dataset.user_num != dataset.item_num for table in tables)


def _notice_untrained_users(config: Config, model: LLMRecommender, dataset: HistoryDataset) -> None:
    if config["protocol"] == "temporal_session" and _learns_users(model, dataset):
        config.notices.append(
            f"{config['model']} learns a vector per user, and under protocol=temporal_session no tested user was "
            "trained on: those vectors are random."
        )


def _check_timing(config: Config) -> None:
    batches, mode = config["timing_batches"], config["eval_args"]["mode"]["test"]
    if not isinstance(batches, int) or batches < 0:
        raise ConfigError(f"timing_batches={batches!r} must be a number of batches, or 0.")
    if batches and mode != "full":
        raise ConfigError(
            f"timing_batches={batches} times the ranking of the whole catalogue, but eval_args.mode of test is "
            f"{mode!r}. Set timing_batches=0 or mode=full."
        )


# ---- S3Rec: two models, one after the other


class Overlay:
    """Return a copy of a configuration with some values replaced."""

    def __init__(self, config: Config, values: Mapping[str, Any]) -> None:
        self._config, self._values = config, values

    def __getitem__(self, key: str) -> Any:
        return self._values[key] if key in self._values else self._config[key]


def _pretrain_s3rec(
    config: Config, run_dir: Path | None, temporary: Path, train_data: TrainLoader, resume: bool, meter: Meter
) -> None:
    """Pre-train S3Rec: RecBole leaves its two stages to the user and cannot load its checkpoint in current torch.

    The pre-trained weights go through a file, since S3Rec reads one, that holds tensors only.
    """
    file = (run_dir or temporary) / "pretrained.pth"
    config["train_stage"] = "pretrain"
    if not distributed.from_main(lambda: resume and file.is_file()):
        getLogger().info(f"S3Rec pre-training: {config['pretrain_epochs']} epochs.")
        model = submodel.build(config, train_data.dataset)
        stage = Overlay(
            config, {"epochs": config["pretrain_epochs"], "save_state": False, "log_wandb": False, "final_fit": None}
        )
        trainer = RunTrainer(cast(Config, stage), model, None)
        trainer.fit(train_data, None, saved=False, show_progress=config["show_progress"])
        meter.seconds["pretrain"] = trainer.meter.seconds.get("train", 0.0)
        meter.cpu_seconds["pretrain"] = trainer.meter.cpu_seconds.get("train", 0.0)
        meter.peak_memory_mb["pretrain"] = trainer.meter.peak_memory_mb.get("train", 0.0)
        if distributed.world().is_main:
            torch.save({"state_dict": model.state_dict()}, file)
    weights = distributed.from_main(file.read_bytes)
    if not distributed.world().is_main:
        file = temporary / file.name  # the folder may be on another machine
        file.write_bytes(weights)
    config["train_stage"], config["pre_model_path"] = "finetune", str(file)
