"""Training of one model, over RecBole's trainer."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.trainer.trainer import AbstractTrainer
from recbole.utils import calculate_valid_score, init_seed

from recbole_llm import distributed
from recbole_llm.config import Config
from recbole_llm.config.values import nearest
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.loader import EvaluationLoader, TrainLoader
from recbole_llm.errors import ConfigError
from recbole_llm.evaluator.evaluator import Evaluator
from recbole_llm.evaluator.ranks import Evaluation
from recbole_llm.own_code import try_the_class
from recbole_llm.trainer import state
from recbole_llm.trainer.accumulation import LossMean, mean_of, require_finite
from recbole_llm.trainer.batches import batches_of
from recbole_llm.trainer.checkpoint import BestWeights
from recbole_llm.trainer.forecast import forecast
from recbole_llm.trainer.meter import Meter
from recbole_llm.trainer.stage import FitArguments, Stage
from recbole_llm.trainer.steps import Steps
from recbole_llm.trainer.stopping import EarlyStopping
from recbole_llm.trainer.trackers import Trackers, validation_lines


class RunTrainer(Trainer):  # type: ignore[misc]
    """RecBole's trainer with schedules, stages, safe checkpoints and resuming.

    A model may train in several stages: it lists them in ``training_stages`` and changes itself in
    ``start_stage(name)``; every stage starts from the best weights of the one before, with its own optimizer,
    schedule and patience. A stage ``name`` may override ``learning_rate`` and ``epochs`` with the keys
    ``<name>_learning_rate`` and ``<name>_epochs``; ``stage_config(name)`` may give a configuration of its own, with
    other batches, optimizer and view. The scores of a stage start at those of the one before, which it must beat,
    unless the model says ``stages_start_afresh``.

    Parameters
    ----------
    config : Config
    model : LLMRecommender
    run_dir : pathlib.Path, optional
        Where weights, state and curves go; without it nothing is written and the last weights are evaluated.
    train_counts : numpy.ndarray of shape (item_num,), or function that returns it, optional
        Training interactions per item, for popularity metrics.
    finished : bool
        The model has been through its stages: evaluate it only.

    Attributes
    ----------
    evaluator : Evaluator
    evaluation : Evaluation, optional
        The last one, of validation or test.
    stage : Stage
    curve : list of dict
        Rows of ``history.csv``: a row for every epoch, counted from 1, and every validation inside one.
    stage_results : list of dict
        What each finished stage came to.
    """

    model: LLMRecommender

    def __init__(
        self,
        config: Config,
        model: LLMRecommender,
        run_dir: Path | None = None,
        train_counts: np.ndarray | Callable[[], np.ndarray] | None = None,
        finished: bool = False,
    ) -> None:
        # Not Trainer.__init__: it opens a TensorBoard writer in the current folder and evaluators that round.
        AbstractTrainer.__init__(self, config, model)
        self.logger = getLogger()
        self.run_dir = run_dir
        self.device = config["device"]
        self.gpu_available = self.device.type == "cuda"
        self.world = distributed.world()
        self.meter = Meter(self.device)
        self.evaluator = Evaluator(config, train_counts, self.meter.phase)
        self.evaluation: Evaluation | None = None
        self.trackers = Trackers(config, run_dir, self.world.is_main)
        self.stages = list(model.training_stages)
        self.train_rows: int | None = None
        self.stage_results: list[dict[str, Any]] = []
        self.curve: list[dict[str, Any]] = []
        self.train_loss_dict: dict[int, float] = {}
        self.chosen_from: list[dict[str, Any]] = []
        self._saved = False
        self.best_weights = BestWeights(model, run_dir)
        self._inside: Callable[[int, int, list[float]], bool] | None = None
        if finished:
            self._set_up_stage(len(self.stages) - 1, finished=True)
        else:
            self.start_stage(0)
        if not self.world.is_main:
            # The model is the same everywhere; what is drawn from here on, dropout and negatives, is each process's.
            init_seed(config["seed"] + self.world.rank, config["reproducibility"])

    @property
    def best_valid_score(self) -> float:
        """Best validation score of the stage; the worst possible number where there was none."""
        if self.early_stopping.score is None:
            return -np.inf if self.stage.valid_metric_bigger else np.inf
        return self.early_stopping.score

    @property
    def best_valid_result(self) -> OrderedDict[str, float] | None:
        """All metrics of the best validation of the stage."""
        return self.early_stopping.result

    @property
    def best_epoch(self) -> int | None:
        """Epoch whose weights are kept, counted from 1; None before there are any."""
        return self.early_stopping.epoch

    def start_stage(self, number: int) -> None:
        """Enter one of the stages, with an optimizer of its own."""
        self.model.start_stage(self.stages[number])
        self._set_up_stage(number)

    def _set_up_stage(self, number: int, finished: bool = False) -> None:
        self.stage = Stage.of(self.config, self.model, number)
        if self.world.size > 1:
            distributed.broadcast_state(self.model)
            if self.gpu_available:
                torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.start_epoch, self.start_batch = 0, 0
        self.start_sums: list[float] = []
        self._stopped = False
        self._validated = -1  # update of the stage whose weights were validated last
        self.early_stopping = EarlyStopping(self.stage.stopping_step, self.stage.valid_metric_bigger)
        trains = any(parameter.requires_grad for parameter in self.model.parameters())
        if not trains and self.stage.epochs > 0:
            where = f" in stage {self.stage.name!r}" if len(self.stages) > 1 else ""
            self.config.notices.append(
                f"{self.config['model']} has nothing to train{where}: epochs={self.stage.epochs} has no effect."
            )
            self.stage = replace(self.stage, epochs=0, eval_step=0)
        self.steps = Steps(self.model, self.stage, self.device, self.config["find_unused_parameters"])
        if trains and not finished:
            self.steps.optimizer  # noqa: B018 - its errors come before any work

    @property
    def updates(self) -> int:
        """Optimizer steps of the stage so far."""
        return self.steps.count

    # ---- training

    def fit(
        self,
        train_data: TrainLoader,
        valid_data: EvaluationLoader | None = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, OrderedDict[str, float] | None]:
        """Train every stage; returns the best validation score and result of the last one.

        Parameters are RecBole's, but epochs count from 1 for ``callback_fn``, as in all that is shown or written.
        ``saved=False`` writes nothing; the best weights are then kept in memory.
        """
        self.save_to_files(saved)
        self.train_rows = len(train_data.dataset)
        if self.evaluator.train_counts is None:
            self.evaluator.train_counts = train_data.dataset.train_counts
        if self.config["train_neg_sample_args"].get("dynamic", False):
            train_data.get_model(self.model)
        asked = FitArguments(valid_data, verbose, show_progress, callback_fn)
        if verbose:
            self._announce_stage(self.stage.number)
        while True:
            self._fit_stage(train_data, asked)
            early = self.early_stopping
            self.stage_results.append(state.result_of_stage(self))
            if self.stage.number + 1 == len(self.stages):
                return self.best_valid_score, early.result
            self.best_weights.restore()
            if verbose:
                self._announce_stage(self.stage.number + 1)
            self.start_stage(self.stage.number + 1)
            if not self.model.stages_start_afresh:
                # A stage starts at exactly the scores of the one before, and must beat them.
                self.early_stopping.score, self.early_stopping.result = early.score, early.result
            # Before the new stage's weights replace the file of the old one's: a crash in between must resume here.
            self._save_training_state(0)

    def save_to_files(self, saved: bool) -> None:
        """Whether weights, state, curves and candidates go to the run directory."""
        self._saved = saved and self.run_dir is not None
        self.evaluator.candidates_dir = self.run_dir if self._saved else None

    def _announce_stage(self, number: int) -> None:
        if len(self.stages) > 1:
            self.logger.info(f"Stage {number + 1} of {len(self.stages)}: {self.stages[number]}.")

    def _fit_stage(self, train_data: TrainLoader, asked: FitArguments) -> None:
        train_data = batches_of(self.stage, self.model, train_data, self.evaluator, asked.show_progress)
        self.stage = stage = self.stage.over(len(train_data))
        self.steps.total = total = stage.total_updates(len(train_data))
        notice = stage.warmup_notice(total)
        if notice:
            self.logger.warning(notice)
            self.config.notices.append(notice)
        expected = forecast(self.steps, self.evaluator, train_data, asked.valid_data) if asked.verbose else None
        if expected:
            self.logger.info(expected)
        if stage.epochs == 0:
            self._validate_untrained(asked)
        elif self.start_epoch == 0 and self.start_batch == 0:
            self.best_weights.keep(to_file=self._saved)

        inside_epochs = asked.valid_data is not None and bool(stage.eval_updates)
        self._inside = partial(self._validate_inside, asked) if inside_epochs else None
        for epoch in range(self.start_epoch + 1, stage.epochs + 1):
            row = self._timed_epoch(train_data, epoch, asked)
            validate = self._is_due(epoch, asked)
            if validate:
                self._validate(epoch, row, asked)
            elif asked.valid_data is None or (stage.eval_step <= 0 and not inside_epochs):
                self.early_stopping.epoch = epoch
                self.best_weights.keep(to_file=self._saved)
            self._keep(row, epoch)
            if validate:
                asked.report(epoch, row["valid_score"])
            if self._stopped or self.early_stopping.stopped:
                self._say_finished(asked)
                break

    def _say_finished(self, asked: FitArguments) -> None:
        found = "not evaluated" if asked.valid_data is None else f"best eval result in epoch {self.best_epoch}"
        if asked.verbose:
            self.logger.info(f"Finished training, {found}")

    def _is_due(self, epoch: int, asked: FitArguments) -> bool:
        """Whether to validate at the end of an epoch."""
        if asked.valid_data is None or self._stopped or self.stage.eval_step <= 0:
            return False
        # The weights at the end of the epoch may just have been validated.
        return epoch % self.stage.eval_step == 0 and self.updates != self._validated

    def _validate_untrained(self, asked: FitArguments) -> None:
        """Choose and validate in a stage without epochs: a tuner compares settings by their validation score."""
        stage, early = self.stage, self.early_stopping
        if len(self.model.choices) > 1:
            with self.meter.phase("valid"):
                self.chosen_from = self.evaluator.choose(
                    self.model, asked.valid_data, stage.valid_metric, stage.valid_metric_bigger, asked.show_progress
                )
        self.best_weights.keep(to_file=self._saved)
        if asked.valid_data is not None:
            with self.meter.phase("valid"):
                early.score, early.result = self._valid_epoch(asked.valid_data, asked.show_progress)

    def _validate_inside(self, asked: FitArguments, epoch: int, batches: int, sums: list[float]) -> bool:
        """Validate after some batches of an epoch; return whether training should end."""
        require_finite(sums, epoch, self.stage.learning_rate, self.run_dir, try_the_class(type(self.model)))
        row = self._row(epoch, sum(mean_of(sums)))
        self._validate(epoch, row, asked, f"epoch {epoch}, update {self.updates},")
        self._keep(row, epoch - 1, batches, sums)
        asked.report(epoch, row["valid_score"])
        return self.early_stopping.stopped

    def _timed_epoch(self, train_data: TrainLoader, epoch: int, asked: FitArguments) -> dict[str, Any]:
        """Train for one epoch; return its row of the curve."""
        before = self.meter.seconds.get("train", 0.0)
        with self.meter.phase("train"):
            loss = self._train_epoch(train_data, epoch - 1, show_progress=asked.show_progress)
        seconds = self.meter.seconds["train"] - before  # without validation inside the epoch
        self.train_loss_dict[epoch] = sum(loss) if isinstance(loss, tuple) else loss
        if asked.verbose:
            self.logger.info(self._generate_train_loss_output(epoch, 0.0, seconds, loss))
        return {**self._row(epoch, self.train_loss_dict[epoch]), "train_seconds": round(seconds, 3)}

    def _row(self, epoch: int, loss: float) -> dict[str, Any]:
        return {
            "stage": self.stage.name,
            "epoch": epoch,
            "updates": self.updates,
            "learning_rate": self.steps.learning_rate,
            "train_loss": loss,
        }

    def _keep(self, row: dict[str, Any], epochs: int, batches: int = 0, sums: Sequence[float] = ()) -> None:
        """Add a row to the curve and save what resuming needs."""
        self.curve.append(row)
        self.trackers.log(self.curve, to_files=self._saved)
        self._save_training_state(epochs, batches, sums)

    def _validate(self, epoch: int, row: dict[str, Any], asked: FitArguments, where: str | None = None) -> None:
        start = time.perf_counter()
        assert asked.valid_data is not None
        with self.meter.phase("valid"):
            score, result = self._valid_epoch(asked.valid_data, show_progress=asked.show_progress)
        self._validated = self.updates
        seconds = time.perf_counter() - start
        row.update({"valid_seconds": round(seconds, 3), "valid_score": score, **result})
        if asked.verbose:
            ranks = self.evaluation.ranks if self.evaluation else None
            places = self.config["metric_decimal_place"]
            for line in validation_lines(where or f"epoch {epoch}", seconds, score, result, ranks, places):
                self.logger.info(line)
        if self.early_stopping.update(score, result, epoch):
            self.best_weights.keep(to_file=self._saved)

    def _train_epoch(
        self, train_data: TrainLoader, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float | tuple[float, ...]:
        """One pass over the training rows; returns the mean loss over their targets, or that of each part of it."""
        epoch = epoch_idx + 1  # RecBole's callers count from 0
        # Stages continue the count, so that a second stage does not repeat the draws of the first.
        train_data.set_epoch(epoch_idx + 1_000_000 * self.stage.number, self.start_batch)

        def validate(batches: int, loss: LossMean) -> bool:
            if self.updates == self.stage.updates:
                self._stopped = True
                return True
            if self._inside is None or self.updates % self.stage.eval_updates:
                return False
            distributed.broadcast_state(self.model, parameters=False)
            self._stopped = self._inside(epoch, batches, loss.sums())
            self.model.train()
            return self._stopped

        first, sums, self.start_batch, self.start_sums = self.start_batch, self.start_sums, 0, []
        label = f"Train, epoch {epoch}"
        sums = self.steps.epoch(train_data, first, sums, validate, loss_func, label, show_progress)
        distributed.broadcast_state(self.model, parameters=False)
        require_finite(sums, epoch, self.stage.learning_rate, self.run_dir, try_the_class(type(self.model)))
        means = mean_of(sums)
        return means if len(means) > 1 else means[0]

    # ---- evaluation

    def evaluate(
        self,
        eval_data: EvaluationLoader | None,
        load_best_model: bool = True,
        model_file: str | Path | None = None,
        show_progress: bool = False,
    ) -> OrderedDict[str, float] | None:
        """Metrics under ``mask_history``; everything else is in :attr:`evaluation`.

        Parameters and result are RecBole's, except that values are not rounded.
        """
        if eval_data is None:
            return None
        if model_file is not None:
            self.best_weights.load(Path(model_file))
        elif load_best_model:
            self.best_weights.restore()
        self.evaluation = self.evaluator.evaluate(self.model, eval_data, show_progress)
        return self.evaluation.metrics

    def _valid_epoch(
        self, valid_data: EvaluationLoader, show_progress: bool = False
    ) -> tuple[float, OrderedDict[str, float]]:
        result = self.evaluate(valid_data, load_best_model=False, show_progress=show_progress) or OrderedDict()
        metric = self.stage.valid_metric
        report = (self.evaluation.report if self.evaluation else None) or {}
        scores = {**result, **{name: report[name] for name in self.model.valid_figures if name in report}}
        if metric not in scores:
            raise ConfigError(f"valid_metric={metric!r} is not computed.{nearest(metric, scores)}")
        return calculate_valid_score(scores, metric), result

    # ---- files

    def _save_training_state(self, epochs: int, batches: int = 0, sums: Sequence[float] = ()) -> None:
        if self.run_dir is None or not (self._saved and self.config["save_state"]):
            return
        state.save(self, self.run_dir, epochs, batches, sums)

    def resume(self) -> bool:
        """Continue from the state in the run directory; False where there is none yet."""
        if self.run_dir is None or not state.restore(self, self.run_dir):
            return False
        self._validated = self.updates if self.start_batch else -1
        return True

    def close(self) -> None:
        """Close the trackers."""
        self.trackers.close()
