"""RecBole's data loaders over whole index arrays: no Python object per interaction."""

import copy
from collections.abc import Iterator
from logging import getLogger
from typing import Any, TypeAlias

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader, TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.data.transform import construct_transform
from recbole.sampler import RepeatableSampler
from recbole.sampler import Sampler as SequenceSampler
from recbole.utils import InputType, ModelType
from torch.utils.data import DataLoader, Dataset, Sampler

from recbole_llm import distributed
from recbole_llm.config import Config
from recbole_llm.contract import Reranker
from recbole_llm.data import mask
from recbole_llm.data.candidates import CANDIDATES, CandidateSampler, every_item, ranked_negatives
from recbole_llm.data.controls import control_of
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.rows import take
from recbole_llm.data.shuffles import with_shuffled_histories, with_shuffled_ties, with_shuffled_training
from recbole_llm.data.train_candidates import PrefixNegatives, RetrievedLists
from recbole_llm.data.views import TrainRows, view_of
from recbole_llm.errors import ConfigError


class _Batches(Sampler[Any]):
    """Index tensors of one epoch, a batch at a time."""

    def __init__(self, loader: "_ArrayLoader") -> None:
        self.loader = loader

    def __len__(self) -> int:
        return self.loader.n_batches

    def __iter__(self) -> Iterator[Any]:
        return self.loader.batches()


class _Same(Dataset[Any]):
    """Passes a batch of indices to ``collate_fn``."""

    def __getitem__(self, batch: Any) -> Any:
        return batch


class _ArrayLoader:
    """What RecBole's ``AbstractDataLoader`` sets up, with batches of index tensors instead of a list of integers."""

    sample_size: int
    step: int
    generator: torch.Generator
    epoch: int

    def _set_up(self, config: Config, dataset: HistoryDataset, sampler: Any, shuffle: bool) -> None:
        self.logger = getLogger()
        self.shuffle, self.config, self.model = shuffle, config, None
        self._dataset, self._sampler = dataset, sampler
        self._init_batch_size_and_step()  # type: ignore[attr-defined]
        self.generator = torch.Generator()
        self.generator.manual_seed(config["seed"])
        self.transform = construct_transform(config)
        self.is_sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self.epoch = 0
        self.candidates = None
        if config["task"] == "topn":
            self.candidates = CandidateSampler(dataset, int(config["topn_negatives"]), config["seed"])
        DataLoader.__init__(
            self,  # type: ignore[arg-type]
            dataset=_Same(),
            batch_size=None,
            sampler=_Batches(self),
            collate_fn=self.collate_fn,  # type: ignore[attr-defined]
            num_workers=config["worker"],
            generator=self.generator,
        )

    @property
    def n_batches(self) -> int:
        """Batches of one epoch that this process goes through."""
        return -(-self.sample_size // self.step)

    def batches(self) -> Iterator[Any]:
        """Index tensors of one epoch; each loader has its own."""
        raise NotImplementedError

    def _with_candidates(self, data: Interaction, fixed: bool) -> Interaction:
        if self.candidates is not None:
            user, target = data[self._dataset.uid_field], data[self._dataset.iid_field]
            data.update(Interaction({CANDIDATES: self.candidates.draw(user, target, fixed)}))
        return data

    def _with_excluded(self, data: Interaction, history: mask.Pairs) -> Interaction:
        return mask.exclude_from_choice(data, history, bool(self.config["mask_history"]))

    @property
    def _reads_excluded(self) -> bool:
        return self.config.model_class.reads_excluded


class TrainLoader(_ArrayLoader, TrainDataLoader):  # type: ignore[misc]
    """Training batches under a view; RecBole's negative sampling and transforms apply.

    Every epoch makes new draws. :meth:`set_epoch` sets the epoch; without it the loader counts.
    """

    def __init__(self, config: Config, dataset: HistoryDataset, sampler: Any, shuffle: bool = True) -> None:
        self._set_neg_sample_args(config, dataset, config["MODEL_INPUT_TYPE"], config["train_neg_sample_args"])
        view, per_user = view_of(config, config.model_class), config["max_train_rows_per_user"]
        self.rows = TrainRows(dataset, view, config["seed"], per_user, config["windows"])
        self.sample_size = len(self.rows)
        self.negatives: PrefixNegatives | RetrievedLists | None = None
        if issubclass(config.model_class, Reranker) and config.model_class.draws_negatives:
            if config["shuffle_ties"]:
                raise ConfigError(
                    f"shuffle_ties=True moves targets, and {config['model']} draws candidates for the order of the "
                    "files: use shuffle_ties=False."
                )
            self.negatives = PrefixNegatives(dataset, int(config["n_candidates"]) - 1)
        self._of_epoch = dataset
        self._costs: torch.Tensor | None = None
        self._first_batch = 0
        self._set_up(config, dataset, sampler, shuffle)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Make the next iteration that of ``epoch``, starting at ``first_batch``."""
        self.epoch, self._first_batch = epoch, first_batch

    def bucket(self, item_costs: torch.Tensor, recent: int) -> None:
        """Make batches of rows of similar length.

        Parameters
        ----------
        item_costs : torch.Tensor, shape (item_num,)
            What an item adds to the length of a row, in the history or among the candidates.
        recent : int
            Maximum number of newest items of a history that count.
        """
        self._costs, self._recent = item_costs.cpu().long(), recent

    def train_on(self, lists: RetrievedLists) -> None:
        """Take the candidates of rows from a retriever's lists, and leave out rows whose target is not in theirs."""
        self.negatives = lists
        self.rows.keep(lists.has_target)
        self.sample_size = len(self.rows)

    def __iter__(self) -> Iterator[Interaction]:
        # Seeds of worker processes come from this generator.
        self.generator.manual_seed(self.rows.generator(self.epoch).initial_seed())
        if self.config["shuffle_ties"]:
            self._of_epoch = with_shuffled_ties(self._dataset, self.rows.generator(self.epoch, "ties"))
        return super().__iter__()

    def batches(self) -> Iterator[Any]:
        """``(position, length)`` of each batch of this epoch, or of this process's share of it.

        A third tensor has the candidates, for models with candidates.
        """
        generator = self.rows.generator(self.epoch)
        first, self._first_batch = self._first_batch, 0
        self.epoch += 1
        columns: tuple[torch.Tensor, ...] = self.rows.draw(generator)
        if self.negatives is not None:
            columns = (*columns, self.negatives.draw(columns[0], generator))
        order = torch.arange(len(columns[0]))
        if self.shuffle:
            order = torch.randperm(len(order), generator=generator)
        if self._costs is not None:
            order = self._by_cost(order, self._costs_of(*columns)[order], generator)
        here = distributed.world()
        for rows in order.split(self.step)[first:]:
            # A process without rows of a short last batch still takes part in its step, with one that weighs nothing.
            part = here.share(len(rows))
            own = rows[part] if part.start < part.stop else rows[:1]
            yield tuple(column[own] for column in columns)

    def sample(self, count: int) -> Interaction:
        """Return up to ``count`` training rows, spread over all of them, as a batch; no draws are used up."""
        generator = self.rows.generator(0)
        columns: tuple[torch.Tensor, ...] = self.rows.draw(generator)
        places = torch.linspace(0, len(columns[0]) - 1, min(count, len(columns[0]))).long()
        columns = tuple(column[places] for column in columns)
        if self.negatives is not None:
            columns = (*columns, self.negatives.draw(columns[0], generator))
        return self.collate_fn(columns)

    def share(self, number: int) -> float:
        """Share of the rows of a batch on this process, 0 to 1."""
        rows = min(self.step, self.sample_size - number * self.step)
        part = distributed.world().share(rows)
        return (part.stop - part.start) / rows

    def _costs_of(
        self, position: torch.Tensor, length: torch.Tensor, candidates: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert self._costs is not None
        until = torch.nn.functional.pad(self._costs[self._dataset.flat[self._dataset.iid_field]].cumsum(0), (1, 0))
        costs = until[position] - until[position - length.clamp(max=self._recent)]
        if candidates is not None:
            for part in candidates.T:
                costs += self._costs[part.long()]
        return costs

    def _by_cost(self, order: torch.Tensor, costs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Sort the rows by cost within every 50 batches; shuffle whole batches again if rows are shuffled."""
        block = torch.arange(len(order)) // (50 * self.step)
        order = order[torch.argsort(block * (int(costs.max()) + 1) + costs, stable=True)]
        whole = len(order) // self.step
        if not self.shuffle:
            return order
        shuffled = order[: whole * self.step].view(whole, self.step)[torch.randperm(whole, generator=generator)]
        return torch.cat([shuffled.flatten(), order[whole * self.step :]])

    def collate_fn(self, batch: tuple[torch.Tensor, ...]) -> Interaction:
        """Rows of a batch, transformed, with sampled negatives where the configuration has them."""
        position, length, *candidates = batch
        data = self._of_epoch.rows_at(position, length, with_next=self.rows.view == "sequence")
        if candidates:
            data.update(Interaction({CANDIDATES: candidates[0].long()}))
        if self._reads_excluded:
            user = self._dataset.flat[self._dataset.uid_field][position]
            data = self._with_excluded(data, self._of_epoch.items_before(user, position))
        return self._neg_sampling(self.transform(self._dataset, self._with_candidates(data, fixed=False)))


class _EvaluationLoader(_ArrayLoader):
    """Rows in order. Of several processes each takes whole batches in turn: a score may depend, in its last digit, on
    the batch it is computed in, and metrics must not depend on the number of processes."""

    def _init_batch_size_and_step(self) -> None:
        times = getattr(self, "times", 1)
        fitting = int(self.config["eval_score_memory_mb"]) * 2**20 // (4 * self._dataset.item_num)
        self.step = max(1, min(self.config["eval_batch_size"] // times, fitting))
        self.set_batch_size(self.step * times)  # type: ignore[attr-defined]

    @property
    def n_batches(self) -> int:
        """Batches that this process goes through."""
        here = distributed.world()
        return len(range(here.rank, super().n_batches, here.size))

    def batches(self) -> Iterator[torch.Tensor]:
        """Row numbers of each batch of this process, in order."""
        here = distributed.world()
        yield from torch.arange(self.sample_size).split(self.step)[here.rank :: here.size]


class FullSortLoader(_EvaluationLoader, FullSortEvalDataLoader):  # type: ignore[misc]
    """Evaluation batches ``(interaction, (row, seen item), row, target)``.

    Unlike RecBole's, the second entry holds the whole history of every row, see :mod:`recbole_llm.data.mask`.
    Batches shrink so that their scores stay below ``eval_score_memory_mb``.

    Attributes
    ----------
    phase : str
        Name of the split, such as ``valid``.
    retrieved : torch.LongTensor, shape (rows, k), optional
        Candidates of every row for a model that re-ranks: batches then have a field with them.
    """

    phase = ""
    retrieved: torch.Tensor | None = None

    def __init__(self, config: Config, dataset: HistoryDataset, sampler: Any, shuffle: bool = False) -> None:
        self.uid_field, self.iid_field = dataset.uid_field, dataset.iid_field
        self.sample_size = len(dataset)
        self._set_up(config, dataset, sampler, shuffle=False)

    def collate_fn(self, index: torch.Tensor) -> tuple[Interaction, tuple[torch.Tensor, torch.Tensor], Any, Any]:
        """One batch."""
        interaction = self.transform(self._dataset, self._with_candidates(self._dataset[index], fixed=True))
        if self.retrieved is not None:
            interaction.update(Interaction({CANDIDATES: self.retrieved[index]}))
        history = self._dataset.history(index)
        if self._reads_excluded:
            interaction = self._with_excluded(interaction, history)
        return interaction, history, torch.arange(len(index)), interaction[self.iid_field]


class SampledLoader(_EvaluationLoader, NegSampleEvalDataLoader):  # type: ignore[misc]
    """Evaluation batches ``(interaction, row, row of each target, target)``: a target among sampled items.

    The interaction holds the B targets and then N times B items, in the order of the rows. Unlike RecBole's, which
    draws at every evaluation and repeats items, the N items of a row are distinct and drawn once, from the seed: every
    epoch and every model rank the same ones. Under ``mask_history`` none of them is in the row's whole history.

    Parameters
    ----------
    config : Config
    dataset : HistoryDataset
        The split.
    phase : {'valid', 'test'}
    train_counts : numpy.ndarray, shape (item_num,)
        Popularity of the items in training, from which ``popN`` draws.
    """

    def __init__(self, config: Config, dataset: HistoryDataset, phase: str, train_counts: np.ndarray) -> None:
        arguments = config[f"{phase}_neg_sample_args"]
        self._set_neg_sample_args(config, dataset, InputType.POINTWISE, arguments)
        self.sample_size = len(dataset)
        self._set_up(config, dataset, None, shuffle=False)
        popular = arguments["distribution"] == "popularity"
        weights = torch.from_numpy(train_counts) if popular else every_item(dataset.item_num)
        seeds = np.random.SeedSequence([config["seed"] % 2**32, ("valid", "test").index(phase)])
        generator = torch.Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0]) >> 1)
        outside = bool(config["mask_history"])
        self._sampled = ranked_negatives(dataset, self.neg_sample_num, weights, outside, generator)

    def collate_fn(self, index: torch.Tensor) -> tuple[Interaction, torch.Tensor, torch.Tensor, torch.Tensor]:
        """One batch."""
        rows = self.transform(self._dataset, self._dataset[index])
        if self._reads_excluded:
            rows = self._with_excluded(rows, self._dataset.history(index))
        target = rows[self.iid_field].clone()
        number = torch.arange(len(index))
        interaction = self.sampling_func(rows, self._sampled[index].T.reshape(-1).long())
        return interaction, number.repeat(self.times), number, target


EvaluationLoader: TypeAlias = FullSortLoader | SampledLoader
#: Of training, validation and test.
Loaders: TypeAlias = tuple[TrainLoader, EvaluationLoader, EvaluationLoader]


def _training_sampler(config: Config, dataset: HistoryDataset, train: HistoryDataset) -> Any:
    """RecBole's sampler of training negatives; None for a model that draws none."""
    arguments = config["train_neg_sample_args"]
    if arguments["distribution"] == "none":
        return None
    kind, data = (RepeatableSampler, dataset) if config["repeatable"] else (SequenceSampler, [train])
    return kind(["train"], data, arguments["distribution"], arguments["alpha"]).set_phase("train")


def train_loader(config: Config, dataset: HistoryDataset) -> TrainLoader:
    """Training batches of a split under different settings than the split was made with."""
    return TrainLoader(config, dataset, _training_sampler(config, dataset, dataset), shuffle=config["shuffle"])


def prepare_data(config: Config, dataset: HistoryDataset, splits: list[HistoryDataset] | None = None) -> Loaders:
    """Split a dataset and make its loaders, as RecBole's ``data_preparation`` does.

    Parameters
    ----------
    config : Config
    dataset : HistoryDataset
    splits : list of HistoryDataset, optional
        Result of ``dataset.build()``, if called before; a dataset can be built only once.

    Returns
    -------
    train, valid, test : loaders
        ``valid`` or ``test`` is None if the split leaves it empty.
    """
    splits = _controlled(config, dataset.build() if splits is None else splits)
    splits[1] = _sampled(config, splits[1])
    train = TrainLoader(config, splits[0], _training_sampler(config, dataset, splits[0]), shuffle=config["shuffle"])
    loaders: list[Any] = []
    for phase, split in zip(("valid", "test"), splits[1:], strict=True):
        if len(split) == 0:
            loaders.append(None)
        elif config["eval_args"]["mode"][phase] == "full":
            loaders.append(FullSortLoader(config, split, None))
            loaders[-1].phase = phase
        else:
            loaders.append(SampledLoader(config, split, phase, splits[0].train_counts))
    return train, loaders[0], loaders[1]


def _sampled(config: Config, split: HistoryDataset) -> HistoryDataset:
    """At most ``valid_users_sample`` rows of the validation split, drawn from the seed."""
    size = config["valid_users_sample"]
    if size is None or len(split) <= int(size):
        return split
    if int(size) < 1:
        raise ConfigError(f"valid_users_sample={size!r} must be at least 1, or ~ for all.")
    generator = torch.Generator().manual_seed(config["seed"])
    rows = torch.randperm(len(split), generator=generator)[: int(size)].sort().values
    getLogger().info(f"Validation on {len(rows)} of {len(split)} users (valid_users_sample), test on all.")
    sample = copy.copy(split)
    sample.inter_feat = take(split.inter_feat, rows)
    return sample


def _controlled(config: Config, splits: list[HistoryDataset]) -> list[HistoryDataset]:
    """Return the splits under a control of the history; the given ones stay unchanged."""
    control = control_of(config)
    if not control.startswith("shuffled_history"):
        return splits
    seed = int(config["control_seed"])
    train, valid, test = splits
    if control == "shuffled_history_train":
        train, valid = with_shuffled_training(train, seed), with_shuffled_histories(valid, seed)
    return [train, valid, with_shuffled_histories(test, seed)]
