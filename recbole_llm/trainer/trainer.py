"""Training and evaluation of one model, over RecBole's trainer."""

import csv
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.trainer import Trainer
from recbole.trainer.trainer import AbstractTrainer
from recbole.utils import calculate_valid_score, dict2str, early_stopping, init_seed, set_color
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recbole_llm import distributed
from recbole_llm.config.values import SECRETS, choice, nearest
from recbole_llm.data.loader import FullSortLoader, train_loader
from recbole_llm.errors import ConfigError, MissingExtraError, RecBoleLLMError
from recbole_llm.evaluator import metrics
from recbole_llm.evaluator.ranks import RankCollector, Ranks
from recbole_llm.trainer import checkpoint
from recbole_llm.trainer.meter import Meter
from recbole_llm.trainer.retrieval import Retrieved, summary
from recbole_llm.trainer.schedule import SCHEDULES, autocast_dtype, learning_rate_factor, parameter_groups

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
TRAIN_STAGE = "train"


class DivergedError(RecBoleLLMError, ArithmeticError):
    """The training loss became infinite or NaN."""


class RunTrainer(Trainer):
    """RecBole's trainer with schedules, stages, safe checkpoints, resuming, and masked and unmasked metrics at once.

    A model may train in several stages: it lists them in ``training_stages`` and changes itself in
    ``start_stage(name)``; every stage starts from the best weights of the one before, with its own optimizer,
    schedule and patience. A stage ``name`` may override ``learning_rate`` and ``epochs`` with the keys
    ``<name>_learning_rate`` and ``<name>_epochs``; ``stage_config(name)`` may give a configuration of its own, with
    other batches, optimizer and view. The scores of a stage start at those of the one before, which it must beat,
    unless the model says ``stages_start_afresh``.

    A model that re-orders what another one retrieved says so in ``reranks``, the number of candidates (0: not in this
    stage), and gives the first one's scores in ``retriever_scores``. The candidates of a split are then computed once
    and handed to it with the batches; ``pools`` is how many it draws training negatives from.

    Parameters
    ----------
    config : Config
    model : recbole SequentialRecommender
    run_dir : pathlib.Path, optional
        Where weights, state and curves go; without it nothing is written and the last weights are evaluated.
    train_counts : numpy.ndarray, shape (item_num,), optional
        Training interactions per item, for popularity metrics.
    finished : bool
        The model has been through its stages: evaluate it only.
    """

    model: Any

    def __init__(
        self,
        config: Any,
        model: Any,
        run_dir: Path | None = None,
        train_counts: np.ndarray | None = None,
        finished: bool = False,
    ) -> None:
        # Not Trainer.__init__: it opens a TensorBoard writer in the current folder and evaluators that round.
        AbstractTrainer.__init__(self, config, model)
        self.logger = getLogger()
        self.run_dir = run_dir
        self.device = config["device"]
        self.gpu_available = self.device.type == "cuda"
        self.eval_type = config["eval_type"]
        self.test_batch_size = config["eval_batch_size"]
        choice(config, "popularity_counts", ["train", "all"])
        self.train_counts = train_counts
        self.train_rows: int | None = None

        self.stages = list(getattr(model, "training_stages", [TRAIN_STAGE]))
        self._read_settings(0)
        self.start_epoch = 0
        self.updates = 0
        self.cur_step = 0
        self.best_valid_score = self._worst_score()
        self.best_valid_result: OrderedDict[str, float] | None = None
        self.best_epoch: int | None = None
        self.stage_results: list[dict[str, Any]] = []
        self.curve: list[dict[str, Any]] = []
        self.train_loss_dict: dict[int, float] = {}
        self.meter = Meter(self.device)
        self.ranks: Ranks | None = None
        self.chosen_from: list[dict[str, Any]] = []
        self.unmasked_result: OrderedDict[str, float] | None = None
        self.retrieval: dict[str, Any] | None = None
        self.item_tensor = None
        self.tot_item_num: int | None = None
        self.tensorboard: SummaryWriter | None = None
        self.world = distributed.world()
        self.wandb = _start_wandb(config) if config["log_wandb"] and self.world.is_main else None
        self._total_steps = 0
        self._saved = False
        self._best_weights: dict[str, torch.Tensor] | None = None
        self._inside: Callable[[int, int, list[float]], bool] | None = None
        self._validated = -1
        self._candidates: dict[tuple[str, int], Retrieved] = {}
        self._retriever_key: str | None = None
        if finished:
            self._set_up_stage(len(self.stages) - 1)
        else:
            self._start_stage(0)
        if not self.world.is_main:
            # The model is the same everywhere; what is drawn from here on, dropout and negatives, is each process's.
            init_seed(config["seed"] + self.world.rank, config["reproducibility"])

    def _worst_score(self) -> float:
        return -np.inf if self.valid_metric_bigger else np.inf

    def _stage_setting(self, key: str) -> Any:
        value = self.config[f"{self.stages[self.stage]}_{key}"]
        return self.settings[key] if value is None else value

    def _read_settings(self, stage: int) -> None:
        """How this stage trains and what it is validated by."""
        self.stage = stage
        own = self.model.stage_config(self.stages[stage]) if hasattr(self.model, "stage_config") else None
        self.settings = settings = self.config if own is None else own
        self.stopping_step = settings["stopping_step"]
        self.clip_grad_norm = settings["clip_grad_norm"]
        self.valid_metric = settings["valid_metric"].lower()
        self.valid_metric_bigger = settings["valid_metric_bigger"]
        self.weight_decay = settings["weight_decay"]
        self.learner = str(choice({"learner": str(settings["learner"]).lower()}, "learner", LEARNERS))
        choice(settings, "lr_schedule", SCHEDULES)
        choice(settings, "decay_groups", ["all", "no_bias_norm"])
        choice(settings, "amp", [None, "bf16", "fp16"])
        self.accumulate = int(settings["accumulate_grad_batches"])
        if self.accumulate < 1:
            raise ConfigError(f"accumulate_grad_batches={self.accumulate!r} must be at least 1.")
        self.eval_updates = int(settings["eval_updates"] or 0)
        if isinstance(self.clip_grad_norm, (int, float)) and not isinstance(self.clip_grad_norm, bool):
            self.clip_grad_norm = {"max_norm": self.clip_grad_norm}
        self.amp_dtype = autocast_dtype(settings["amp"], settings["enable_amp"], self.device)

    def _start_stage(self, stage: int) -> None:
        if hasattr(self.model, "start_stage"):
            self.model.start_stage(self.stages[stage])
        self._set_up_stage(stage)

    def _set_up_stage(self, stage: int) -> None:
        self._read_settings(stage)
        self._parallel: distributed.ParallelLoss | None = None
        if self.world.size > 1:
            distributed.broadcast_state(self.model)
            if self.gpu_available:
                self.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.epochs = int(self._stage_setting("epochs"))
        self.eval_step = min(self.settings["eval_step"], self.epochs)
        self.learning_rate = float(self._stage_setting("learning_rate"))
        self.start_epoch, self.start_batch, self.cur_step, self.updates = 0, 0, 0, 0
        self._start_sums: list[float] = []
        self._stopped = False
        self.best_valid_score, self.best_valid_result, self.best_epoch = self._worst_score(), None, None
        self.optimizer = self._build_optimizer()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype is torch.float16)

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        groups = parameter_groups(self.model, self.settings["decay_groups"], self.weight_decay)
        if not any(group["params"] for group in groups):
            if self.epochs > 0:
                stage = f" in stage {self.stages[self.stage]!r}" if len(self.stages) > 1 else ""
                self.config.notices.append(
                    f"{self.config['model']} has nothing to train{stage}: epochs={self.epochs} has no effect."
                )
                self.epochs = self.eval_step = 0
            groups = [{"params": [torch.zeros(0, requires_grad=True)]}]
        if self.learner in ("adam", "adamw"):
            kind = torch.optim.Adam if self.learner == "adam" else torch.optim.AdamW
            return kind(groups, lr=self.learning_rate, eps=self.settings["adam_eps"], fused=True)
        for group in groups if self.learner == "sparse_adam" else []:
            group.pop("weight_decay")
        return super()._build_optimizer(params=groups, **kwargs)

    # ---- training

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, OrderedDict[str, float] | None]:
        """Train every stage; returns the best validation score and result of the last one.

        Parameters are RecBole's. ``saved=False`` writes nothing; the best weights are then kept in memory.
        """
        self._saved = saved and self.run_dir is not None
        self.train_rows = len(train_data.dataset)
        if self.train_counts is None:
            self.train_counts = train_data.dataset.train_counts
        if self.config["train_neg_sample_args"].get("dynamic", False):
            train_data.get_model(self.model)
        if verbose:
            self._announce_stage(self.stage)
        while True:
            self._fit_stage(train_data, valid_data, verbose, show_progress, callback_fn)
            self.stage_results.append(
                {
                    "stage": self.stages[self.stage],
                    "best_epoch": self.best_epoch,
                    "updates": self.updates,
                    "valid_metric": self.settings["valid_metric"],
                    "best_valid_score": None if self.best_epoch is None else self.best_valid_score,
                    "best_valid_result": self.best_valid_result,
                }
            )
            if self.stage + 1 == len(self.stages):
                return self.best_valid_score, self.best_valid_result
            self._load_best()
            best = self.best_valid_score, self.best_valid_result
            if verbose:
                self._announce_stage(self.stage + 1)
            self._start_stage(self.stage + 1)
            if not getattr(self.model, "stages_start_afresh", False):
                # A stage starts at exactly the scores of the one before, and must beat them.
                self.best_valid_score, self.best_valid_result = best
            # Before the new stage's weights replace the file of the old one's: a crash in between must resume here.
            self._save_training_state(0)

    def _announce_stage(self, stage: int) -> None:
        if len(self.stages) > 1:
            self.logger.info(f"Stage {stage + 1} of {len(self.stages)}: {self.stages[stage]}.")

    def _fit_stage(
        self, train_data: Any, valid_data: Any, verbose: bool, show_progress: bool, callback_fn: Any
    ) -> None:
        train_data = self._stage_loader(train_data, show_progress)
        self._total_steps = -(-len(train_data) // self.accumulate) * self.epochs
        if self.epochs == 0 and len(getattr(self.model, "choices", ())) > 1:
            with self.meter.phase("valid"):
                self._choose(valid_data, show_progress)
        if self.epochs == 0 or (self.start_epoch == 0 and self.start_batch == 0):
            self._save_best()
        if self.epochs == 0 and valid_data is not None:
            # Nothing is learned, but a tuner compares settings by their validation score.
            with self.meter.phase("valid"):
                self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data, show_progress)

        def inside(epoch: int, batches: int, sums: list[float]) -> bool:
            """Validation after some batches of an epoch; whether training is to end."""
            self._require_finite(sums, epoch)
            row = self._row(epoch, sum(sums))
            where = f"epoch {epoch}, update {self.updates},"
            stop = self._validate(epoch, valid_data, row, verbose, show_progress, where)
            self._keep(row, epoch, batches, sums)
            if callback_fn:
                callback_fn(epoch, row["valid_score"])
            return stop

        self._inside = inside if valid_data is not None and self.eval_updates else None
        for epoch in range(self.start_epoch, self.epochs):
            before = self.meter.seconds.get("train", 0.0)
            with self.meter.phase("train"):
                loss = self._train_epoch(train_data, epoch, show_progress=show_progress)
            seconds = self.meter.seconds["train"] - before  # without validation inside the epoch
            self.train_loss_dict[epoch] = sum(loss) if isinstance(loss, tuple) else loss
            if verbose:
                self.logger.info(self._generate_train_loss_output(epoch, 0.0, seconds, loss))
            row = self._row(epoch, self.train_loss_dict[epoch])
            row["train_seconds"] = round(seconds, 3)
            stop = self._stopped
            # The weights at the end of the epoch may just have been validated.
            due = self.eval_step > 0 and (epoch + 1) % self.eval_step == 0 and self.updates != self._validated
            validate = valid_data is not None and not stop and due
            if validate:
                stop = self._validate(epoch, valid_data, row, verbose, show_progress)
            elif valid_data is None or (self.eval_step <= 0 and not self.eval_updates):
                self.best_epoch = epoch
                self._save_best()
            self._keep(row, epoch + 1)
            if validate and callback_fn:
                callback_fn(epoch, row["valid_score"])
            if stop:
                if verbose:
                    self.logger.info(f"Finished training, best eval result in epoch {self.best_epoch}")
                break

    @torch.no_grad()
    def _choose(self, valid_data: Any, show_progress: bool) -> None:
        """Settings that are chosen and not learned: one pass over the validation data ranks under all of them."""
        if not isinstance(valid_data, FullSortEvalDataLoader):
            raise ConfigError(
                f"{self.config['model']} chooses among {len(self.model.choices)} settings by validation: that needs a "
                "validation split with full ranking (eval_args); or give one setting."
            )
        self.model.eval()
        self.test_dataset = valid_data.dataset
        length = max(self.config["topk"]) if metrics.needs_lists(self.config["metrics"]) else 0
        collectors = [RankCollector(length) for _ in self.model.choices]
        for number, batch in enumerate(self._progress(valid_data, "Choose     ", show_progress)):
            interaction, history, _, target = batch
            interaction, target = interaction.to(self.device), target.to(self.device)
            history = (history[0].to(self.device), history[1].to(self.device))
            user = interaction[self.config["USER_ID_FIELD"]]
            with self.autocast():
                for collector, scores in zip(collectors, self.model.full_sort_choices(interaction), strict=True):
                    place = number * self.world.size + self.world.rank
                    collector.collect(scores, user, target, history, place)
        collected = [distributed.gather(collector.collected()) for collector in collectors]

        def judge() -> list[float]:
            results = []
            for parts in collected:
                masked, unmasked, _ = self._results(parts, [])
                results.append(masked if self.config["mask_history"] else unmasked)
            return [calculate_valid_score(result, self.valid_metric) for result in results]

        scores = distributed.from_main(judge)
        best = int(np.argmax(scores) if self.valid_metric_bigger else np.argmin(scores))
        self.model.choose(best)
        self.chosen_from = [
            {**self.model.describe(setting), self.valid_metric: score}
            for setting, score in zip(self.model.choices, scores, strict=True)
        ]
        self.logger.info(f"Chosen on validation, of {len(scores)}: {self.chosen_from[best]}")

    def _row(self, epoch: int, loss: float) -> dict[str, Any]:
        return {
            "stage": self.stages[self.stage],
            "epoch": epoch,
            "updates": self.updates,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": loss,
        }

    def _keep(self, row: dict[str, Any], next_epoch: int, next_batch: int = 0, sums: Sequence[float] = ()) -> None:
        """Add a row to the curve and save what resuming needs."""
        self.curve.append(row)
        self._write_curve()
        self._log_elsewhere(row)
        self._save_training_state(next_epoch, next_batch, sums)

    def _stage_loader(self, train_data: Any, show_progress: bool) -> Any:
        """Training batches as the stage wants them."""
        if self.settings is not self.config:
            train_data = train_loader(self.settings, train_data.dataset)
        elif hasattr(self.model, "batch_costs") and getattr(self.model, "reranks", True):
            costs = self.model.batch_costs()
            if costs is not None:
                train_data.bucket(*costs)
            pools = getattr(self.model, "pools", 0)
            if pools:
                split = FullSortLoader(self.config, train_data.dataset, None)
                split.phase = "train"
                train_data.negatives.draw_from(self._retrieved(split, pools, show_progress).items)
        return train_data

    def _validate(
        self,
        epoch: int,
        valid_data: Any,
        row: dict[str, Any],
        verbose: bool,
        show_progress: bool,
        where: str | None = None,
    ) -> bool:
        start = time.perf_counter()
        with self.meter.phase("valid"):
            score, result = self._valid_epoch(valid_data, show_progress=show_progress)
        self._validated = self.updates
        seconds = time.perf_counter() - start
        self.best_valid_score, self.cur_step, stop, better = early_stopping(
            score, self.best_valid_score, self.cur_step, max_step=self.stopping_step, bigger=self.valid_metric_bigger
        )
        row.update({"valid_seconds": round(seconds, 3), "valid_score": score, **result})
        if verbose:
            self.logger.info(
                set_color(f"{where or f'epoch {epoch}'} evaluating", "green")
                + f" [{set_color('time', 'blue')}: {seconds:.2f}s, {set_color('valid_score', 'blue')}: {score:f}]"
            )
            self.logger.info(set_color("valid result", "blue") + ": \n" + dict2str(self.rounded(result)))
        if better:
            self.best_valid_result, self.best_epoch = result, epoch
            self._save_best()
        return stop

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float | tuple[float, ...]:
        """One pass over the training rows; returns the sum of the batch losses, or of each part of them."""
        self.model.train()
        if self.world.size > 1 and self._parallel is None:
            self._parallel = distributed.ParallelLoss(self.model, self.config["find_unused_parameters"])
        if hasattr(train_data, "set_epoch"):
            # Stages continue the count, so that a second stage does not repeat the draws of the first.
            train_data.set_epoch(epoch_idx + 1_000_000 * self.stage, self.start_batch)
        batches = len(train_data)
        progress = self._progress(train_data, f"Train {epoch_idx:>5}", show_progress, self.start_batch)
        # Sums of before a resume count once.
        total = [torch.tensor(self._start_sums, device=self.device) * self.world.is_main] if self._start_sums else []
        first, self.start_batch, self._start_sums = self.start_batch, 0, []
        for number, interaction in enumerate(progress, start=first):
            group = min(self.accumulate, batches - number // self.accumulate * self.accumulate)
            is_last = (number + 1) % self.accumulate == 0 or number + 1 == batches
            batch = interaction.to(self.device)
            with self._parallel.no_sync() if self._parallel and not is_last else nullcontext():
                with self.autocast():
                    losses = self._loss(batch, loss_func)
                weight = self._weight(train_data, number, batch)
                # Some of RecBole's models return a tensor of one element.
                parts = [part.reshape(()) for part in (losses if isinstance(losses, tuple) else (losses,))]
                # Gradients are averaged over the processes.
                loss = torch.stack(parts).sum() * (weight * self.world.size)
                self.scaler.scale(loss / group).backward()
            # Sums stay on the device: reading them here would wait for it at every step.
            values = torch.stack([part.detach().float() for part in parts]) * weight
            total = [total[0] + values] if total else [values]
            if is_last:
                if self._parallel:
                    self._parallel.finish_step()
                self._step()
                if self._inside and self.updates % self.eval_updates == 0:
                    distributed.broadcast_state(self.model, parameters=False)
                    self._stopped = self._inside(epoch_idx, number + 1, distributed.total(total[0]).tolist())
                    if self._stopped:
                        break
                    self.model.train()
        sums = distributed.total(total[0]).tolist() if total else [0.0]
        distributed.broadcast_state(self.model, parameters=False)
        self._require_finite(sums, epoch_idx)
        return tuple(sums) if len(sums) > 1 else sums[0]

    def _require_finite(self, sums: Sequence[float], epoch_idx: int) -> None:
        if not np.all(np.isfinite(sums)):
            raise DivergedError(
                f"The training loss of epoch {epoch_idx} is {sum(sums)}. Lower learning_rate={self.learning_rate}, "
                "set clip_grad_norm, or turn mixed precision off (T5 overflows in fp16, not in bf16). The best "
                "weights so "
                f"far are kept in {self.run_dir}."
            )

    def _loss(self, batch: Any, loss_func: Any) -> Any:
        if self._parallel is not None:
            return self._parallel(batch, loss_func)
        return (loss_func or self.model.calculate_loss)(batch)

    def _weight(self, train_data: Any, number: int, batch: Any) -> Any:
        """This process's part of a batch's mean loss: of its rows, or of what ``loss_weight`` of the model counts."""
        if self.world.size == 1:
            return 1.0
        share = train_data.share(number)
        if not hasattr(self.model, "loss_weight"):
            return share
        own = torch.as_tensor(self.model.loss_weight(batch) if share else 0, dtype=torch.float32, device=self.device)
        return own / distributed.total(own)

    def _step(self) -> None:
        warmup = self.settings["warmup_updates"]
        if warmup is None:
            warmup = int(self.settings["warmup_ratio"] * self._total_steps)
        factor = learning_rate_factor(self.updates, self.settings["lr_schedule"], warmup, self._total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        if self.clip_grad_norm:
            # Gradients are scaled under fp16; clipping them before unscaling would clip at another norm.
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.model.parameters(), **self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1

    def autocast(self) -> Any:
        """The context that the model runs in: mixed precision where ``amp`` asks for it."""
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp_dtype)

    @staticmethod
    def _progress(data: Any, label: str, show: bool, done: int = 0) -> Any:
        if not show:
            return data
        return tqdm(data, total=len(data), initial=done, ncols=100, desc=set_color(label, "pink"), leave=False)

    # ---- evaluation

    @torch.no_grad()
    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | Path | None = None,
        show_progress: bool = False,
    ) -> OrderedDict[str, float] | None:
        """Metrics under ``mask_history``; the other version is in :attr:`unmasked_result`, ranks in :attr:`ranks`.

        Parameters and result are RecBole's, except that values are not rounded.
        """
        if eval_data is None:
            return None
        if model_file is not None:
            self._load_weights(Path(model_file))
        elif load_best_model:
            self._load_best()
        self.model.eval()
        self.test_dataset = eval_data.dataset
        if hasattr(self.model, "start_evaluation"):
            self.model.start_evaluation()
        length = max(self.config["topk"]) if metrics.needs_lists(self.config["metrics"]) else 0
        retrieved, reranked = None, 0
        if getattr(self.model, "reranks", 0):
            retrieved = self._retrieved(eval_data, self.model.reranks, show_progress)
            reranked = self._hand_over(retrieved, eval_data)
        collected = self._collect(eval_data, length, "Evaluate   ", show_progress)
        counts = distributed.gather(self.model.evaluation_counts() if hasattr(self.model, "evaluation_counts") else {})
        self.masked_result, self.unmasked_result, self.model_report = distributed.from_main(
            lambda: self._results(collected, counts, retrieved, reranked)
        )
        return self.masked_result if self.config["mask_history"] else self.unmasked_result

    @torch.no_grad()
    def _collect(self, eval_data: Any, list_length: int, label: str, show_progress: bool, scorer: Any = None) -> Any:
        """What :meth:`Ranks.of` takes, of a split under the model's scores or those of ``scorer``."""
        full = isinstance(eval_data, FullSortEvalDataLoader)
        cold = eval_data.dataset.cold
        collector = RankCollector(list_length, group=cold.items if cold is not None and full else None)
        for number, batch in enumerate(self._progress(eval_data, label, show_progress)):
            if full:
                interaction, history, _, target = batch
                if scorer is None:
                    scores = self.scores(interaction, eval_data.dataset)
                else:
                    with self.autocast():
                        scores = scorer(interaction.to(self.device))
                history = (history[0].to(self.device), history[1].to(self.device))
                user = interaction[self.config["USER_ID_FIELD"]]
            else:
                # Sampled candidates: everything else is -inf already, and the history plays no part.
                self.tot_item_num = eval_data.dataset.item_num
                with self.autocast():
                    interaction, scores, _, target = self._neg_sample_batch_eval(batch)
                history = (torch.zeros(0, dtype=torch.long, device=self.device),) * 2
                user = interaction[self.config["USER_ID_FIELD"]][: len(target)]
            place = number * self.world.size + self.world.rank
            collector.collect(scores, user.to(self.device), target.to(self.device), history, place)
        return distributed.gather(collector.collected())

    def _results(
        self, collected: Any, counts: Any, retrieved: Retrieved | None = None, reranked: int = 0
    ) -> tuple[Any, ...]:
        """Masked and unmasked metrics and the model's own figures, of what all processes have seen: each row once."""
        self.ranks = ranks = Ranks.of(collected)
        if retrieved is not None:
            self.retrieval = summary(self.config, retrieved, ranks, reranked)
        summed: Counter[str] = sum((Counter(part) for part in counts), Counter())
        own = self.model.evaluation_report(summed) if hasattr(self.model, "evaluation_report") else None
        return (
            self._metrics(ranks.masked, ranks.masked_lists),
            self._metrics(ranks.unmasked, ranks.unmasked_lists),
            own,
        )

    def _retrieved(self, data: Any, k: int, show_progress: bool) -> Retrieved:
        """Candidates of a split, computed where they were not before by this retriever."""
        if (data.phase, k) not in self._candidates:
            if self._retriever_key is None:
                self._retriever_key = self.model.retriever_key()
            key = f"{self._retriever_key} {k} {self.config['mask_history']} {len(data.dataset)}"
            folder = self.run_dir if self._saved else None
            known = distributed.from_main(lambda: Retrieved.load(folder, data.phase, key) if folder else None)
            if known is None:
                self.model.eval()
                with self.meter.phase("retrieve"):
                    label = f"Retrieve {data.phase}"
                    collected = self._collect(data, k, label, show_progress, self.model.retriever_scores)
                    known = distributed.from_main(lambda: self._keep_retrieved(collected, folder, data.phase, key))
            self._candidates[data.phase, k] = known
        return self._candidates[data.phase, k]

    def _keep_retrieved(self, collected: Any, folder: Path | None, phase: str, key: str) -> Retrieved:
        ranks = Ranks.of(collected)
        lists = ranks.masked_lists if self.config["mask_history"] else ranks.unmasked_lists
        retrieved = Retrieved(torch.from_numpy(lists), ranks.masked, ranks.unmasked)
        if folder:
            retrieved.save(folder, phase, key)
        return retrieved

    def _hand_over(self, retrieved: Retrieved, data: Any) -> int:
        """Give a loader the candidates of its rows; returns how many rows are re-ranked."""
        items = retrieved.items
        if self.model.reranks_retrieved_only(data.phase):
            missed = retrieved.ranks(self.config["mask_history"]) > items.shape[1]
            items = items.masked_fill(torch.from_numpy(missed)[:, None], 0)
        data.retrieved = items
        return int((items > 0).any(1).sum())

    def evaluate_members(self, eval_data: Any, show_progress: bool = False) -> list[dict[str, Any]]:
        """Results of the models that a hybrid is made of, on the same data, and the seconds each took."""
        hybrid, kept = self.model, (self.ranks, self.masked_result, self.unmasked_result, self.model_report)
        results = []
        try:
            for member in hybrid.members:
                self.model = member
                start = time.perf_counter()
                self.evaluate(eval_data, load_best_model=False, show_progress=show_progress)
                results.append(
                    {
                        "member": member.label,
                        "test_masked": self.masked_result,
                        "test_unmasked": self.unmasked_result,
                        "test_seconds": round(time.perf_counter() - start, 3),
                    }
                )
        finally:
            self.model = hybrid
            self.ranks, self.masked_result, self.unmasked_result, self.model_report = kept
        return results

    @torch.no_grad()
    def scores(self, interaction: Any, dataset: Any, n_items: int | None = None) -> torch.Tensor:
        """Scores of the whole catalogue for every row, (B, n_items), padding ``-inf``: what an evaluation ranks.

        Parameters
        ----------
        interaction : Interaction
            Rows of ``dataset``, targets not needed.
        dataset : HistoryDataset
        n_items : int, optional
            Default: the items of ``dataset``; a model may have grown by more.
        """
        self.tot_item_num = n_items or dataset.item_num
        if self.item_tensor is None:
            self.item_tensor = dataset.get_item_feature().to(self.device)
        with self.autocast():
            return self._full_sort_batch_eval((interaction, None, None, None))[1]

    def _metrics(self, rank: np.ndarray, lists: np.ndarray | None) -> OrderedDict[str, float]:
        if lists is None:
            return OrderedDict(metrics.compute(self.config, rank, None, None))
        assert self.train_counts is not None and self.ranks is not None, "popularity metrics need train_counts"
        dataset = self.test_dataset
        all_counts = dataset.all_counts
        return OrderedDict(
            metrics.compute(
                self.config, rank, lists, self.train_counts, self.ranks.target, all_counts, dataset.catalogue_size
            )
        )

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, OrderedDict[str, float]]:
        result = self.evaluate(valid_data, load_best_model=False, show_progress=show_progress) or OrderedDict()
        if self.valid_metric not in result:
            raise ConfigError(
                f"valid_metric={self.valid_metric!r} is not computed.{nearest(self.valid_metric, result)}"
            )
        return calculate_valid_score(result, self.valid_metric), result

    def rounded(self, result: dict[str, float]) -> OrderedDict[str, float]:
        """A result with ``metric_decimal_place`` digits, for people to read."""
        places = self.config["metric_decimal_place"]
        return OrderedDict((name, round(value, places)) for name, value in result.items())

    # ---- files

    def _save_best(self) -> None:
        if self._saved and self.run_dir is not None:
            if self.world.is_main:
                checkpoint.save_weights(self.model, self.run_dir / checkpoint.WEIGHTS)
        else:
            self._best_weights = {
                name: tensor.clone() for name, tensor in checkpoint.learned_tensors(self.model).items()
            }

    def _load_best(self) -> None:
        if self._best_weights is not None:
            self.model.load_state_dict(self._best_weights, strict=False)
        elif self.run_dir is not None:
            self._load_weights(self.run_dir / checkpoint.WEIGHTS)

    def _load_weights(self, file: Path) -> None:
        distributed.from_main(lambda: checkpoint.load_weights(self.model, file))
        distributed.broadcast_state(self.model)

    def _save_training_state(self, next_epoch: int, next_batch: int = 0, sums: Sequence[float] = ()) -> None:
        if self.run_dir is None or not (self._saved and self.config["save_state"]):
            return
        values = {
            "stage": self.stage,
            "next_epoch": next_epoch,
            "next_batch": next_batch,
            "loss_sums": list(sums),
            "updates": self.updates,
            "cur_step": self.cur_step,
            "best_valid_score": None if np.isinf(self.best_valid_score) else self.best_valid_score,
            "best_valid_result": self.best_valid_result,
            "best_epoch": self.best_epoch,
            "stage_results": self.stage_results,
            "curve": self.curve,
            "seconds": self.meter.seconds,
            "peak_memory_mb": self.meter.peak_memory_mb,
            "scaler": self.scaler.state_dict(),
            "stopped": self.cur_step > self.stopping_step,
        }
        random_states = distributed.gather(checkpoint.random_state(self.device))
        if self.world.is_main:
            checkpoint.save_state(self.run_dir / checkpoint.STATE, self.model, self.optimizer, values, random_states)

    def resume(self) -> bool:
        """Continue from the state in the run directory; False where there is none yet."""
        if self.run_dir is None:
            return False
        run_dir = self.run_dir
        folder = distributed.from_main(lambda: checkpoint.state_folder(run_dir))
        if folder is None:
            return False
        self._saved = True
        state = distributed.from_main(lambda: checkpoint.read_whole_state(folder))
        for stage in range(1, state.values["stage"] + 1):
            self._start_stage(stage)
        values = checkpoint.load_state(state, self.model, self.optimizer, self.world.rank, self.device)
        if len(state.random) != self.world.size:
            self.logger.warning(
                f"{run_dir} was trained with {len(state.random)} process(es) so far and goes on with "
                f"{self.world.size}: batches are the same, but dropout and negatives are not those of an "
                "uninterrupted run."
            )
        self.start_epoch = self.epochs if values["stopped"] else values["next_epoch"]
        self.start_batch, self._start_sums = values.get("next_batch", 0), values.get("loss_sums", [])
        self.updates, self.cur_step = values["updates"], values["cur_step"]
        self._validated = self.updates if self.start_batch else -1
        if values["best_valid_score"] is not None:
            self.best_valid_score = values["best_valid_score"]
        if values["best_valid_result"] is not None:
            self.best_valid_result = OrderedDict(values["best_valid_result"])
        self.best_epoch, self.stage_results = values["best_epoch"], values["stage_results"]
        self.curve, self.meter.seconds = values["curve"], values["seconds"]
        self.meter.peak_memory_mb = values.get("peak_memory_mb", {})
        self.scaler.load_state_dict(values["scaler"])
        self.logger.info(
            f"Resuming {self.run_dir}: stage {self.stages[self.stage]!r}, epoch {values['next_epoch']} comes next"
            + (f", from batch {self.start_batch} on." if self.start_batch else ".")
        )
        return True

    def _log_elsewhere(self, row: dict[str, Any]) -> None:
        """TensorBoard events in the run directory, and Weights & Biases where ``log_wandb`` asks for it."""
        if not self.world.is_main:
            return
        numbers = {key: value for key, value in row.items() if key not in ("stage", "epoch")}
        if self.wandb is not None:
            self.wandb.log(
                {"epoch": row["epoch"], **{f"{row['stage']}/{key}": value for key, value in numbers.items()}}
            )
        if self.run_dir is None or not self._saved:
            return
        if self.tensorboard is None:
            self.tensorboard = SummaryWriter(str(self.run_dir / "tensorboard"))
        for key, value in numbers.items():
            self.tensorboard.add_scalar(f"{row['stage']}/{key}", value, row["epoch"])
        self.tensorboard.flush()

    def close(self) -> None:
        """End what is logged elsewhere; its files and threads would stay open as long as the process."""
        if self.tensorboard is not None:
            self.tensorboard.close()
            self.tensorboard = None
        if self.wandb is not None:
            self.wandb.finish()
            self.wandb = None

    def _write_curve(self) -> None:
        if self.run_dir is None or not self._saved or not self.world.is_main:
            return
        columns = list(dict.fromkeys(key for row in self.curve for key in row))
        with (self.run_dir / "history.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.curve)


def _start_wandb(config: Any) -> Any:
    """A Weights & Biases run with the merged settings, without access tokens."""
    try:
        import wandb
    except ImportError as error:
        raise MissingExtraError("log_wandb=True needs the package wandb: pip install wandb.") from error
    settings = {key: value for key, value in config.merged.items() if key not in SECRETS}
    return wandb.init(project=config["wandb_project"], config=settings)
