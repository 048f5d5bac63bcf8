"""The model contract: everything that the rest of the package may use of a model, with a default for each.

A custom model subclasses :class:`LLMRecommender` and overrides what differs; ``docs/add-a-model.md`` is the
checklist and :func:`recbole_llm.testing.check_model` the test suite. RecBole's own models meet the contract through
:func:`recbole_llm.config.adapter.adapt`, which derives a class and leaves RecBole untouched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn

from recbole_llm.errors import ConfigError, ModelError, UnsupportedError
from recbole_llm.precision import product

TRAIN_STAGE = "train"


class LLMRecommender(SequentialRecommender):  # type: ignore[misc]
    """Base class of the models of this package and of custom models.

    A model scores in one of two ways. Either it sets ``scores_are_products = True`` and gives :meth:`user_vectors` and
    :meth:`catalogue_vectors`; scores, :meth:`predict` and serving by vectors follow. Or it overrides
    :meth:`full_sort_predict`. To be trained it overrides :meth:`calculate_loss`.

    Parameters
    ----------
    config : Config
        Settings, read like a dictionary.
    dataset : HistoryDataset
        Training split.

    Examples
    --------
    >>> import torch
    >>> from recbole_llm import run
    >>> class Numbers(LLMRecommender):
    ...     defaults = {"epochs": 0}
    ...     reads_history = False
    ...
    ...     def full_sort_predict(self, interaction):
    ...         scores = torch.arange(self.n_items, dtype=torch.float32)
    ...         return self.mask_padding(scores.repeat(len(interaction), 1))
    >>> result = run(Numbers, "ml-100k", config_dict={"smoke": True, "show_progress": False}, saved=False)
    >>> "recall@10" in result["test_result"]
    True
    """

    # ---- Training

    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings of the model and their default values; over those of a YAML file beside its module."""

    config_keys: ClassVar[Sequence[str]] = ()
    """Additional keys that the model reads, without default; they are not reported as unknown."""

    input_type: ClassVar[InputType | None] = InputType.POINTWISE
    """POINTWISE: no negatives are sampled unless ``train_neg_sample_args`` enables them. PAIRWISE: every training row
    comes with a sampled negative item, as RecBole's BPR models read it. None: ``loss_type`` decides, as in RecBole."""

    train_view: ClassVar[str] = "prefix"
    """What a training row is, see :mod:`recbole_llm.data.views`: ``prefix``, ``segment``, ``p5`` or ``sequence``."""

    @classmethod
    def view_for(cls, config: Any) -> str:
        """Return the training view under a configuration; by default :attr:`train_view`."""
        return cls.train_view

    def calculate_loss(self, interaction: Interaction) -> Any:
        """Return the mean loss of a batch, a scalar tensor, or a tuple of scalars that are added up.

        Raises
        ------
        ConfigError
            By default: the model has nothing to train.
        """
        raise ConfigError(
            f"{type(self).__name__} has nothing to train, since it does not define calculate_loss(self, interaction): "
            "override it, or set epochs=0."
        )

    def loss_weight(self, interaction: Interaction) -> torch.Tensor | float:
        """Return how many targets :meth:`calculate_loss` averaged over; by default one per row.

        Gradients of several processes and accumulated batches are weighted by it. It is called after
        :meth:`calculate_loss` of the same batch.
        """
        return len(interaction)

    def own_learning_rates(self) -> Mapping[nn.Parameter, float]:
        """Return the trained parameters that do not take the stage's learning rate, each with its own.

        It follows the stage's schedule. By default none.
        """
        return {}

    def row_sparse_parameters(self) -> list[torch.Tensor]:
        """Return the trained parameters with row-sparse gradients: tables of which training reads rows only.

        See :func:`recbole_llm.layer.gathering.gather_rows`. By default those of embeddings with ``sparse=True`` and of
        models inside this one.
        """
        found = [each.weight for each in self.modules() if isinstance(each, nn.Embedding) and each.sparse]
        for child in self.children():
            if isinstance(child, LLMRecommender):
                found.extend(child.row_sparse_parameters())
        return list({id(each): each for each in found if each.requires_grad}.values())

    tokens_read: int = 0
    """Number of tokens that a language model has read so far, for the pace in the log; 0: not counted."""

    reads_prompts: bool = False
    """Whether a language model reads prompts in this stage: the model then has :meth:`training_tokens`."""

    def training_tokens(self, interaction: Interaction) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each training row's tokens, and how many have logits of the whole vocabulary; (B,) each."""
        raise UnsupportedError(f"{type(self).__name__} reads no prompts.")

    def batch_costs(self) -> tuple[torch.Tensor, int] | None:
        """Return the cost of items in a row, so that rows of similar length are batched; None: batch in any order.

        Returns
        -------
        costs : torch.Tensor, shape (n_items,)
            What an item adds to the length of a row.
        recent : int
            Number of newest history items that count.
        """
        return None

    # ---- Stages

    training_stages: Sequence[str] = (TRAIN_STAGE,)
    """Names of the stages of training, in order. Each starts from the best weights of the one before, with its own
    optimizer, schedule and patience; ``<name>_learning_rate`` and ``<name>_epochs`` override those settings where they
    are among the model's :attr:`defaults`."""

    stages_start_afresh: ClassVar[bool] = False
    """Whether the next stage starts with a fresh best validation score."""

    learned_earlier: Sequence[str] = ()
    """Prefixes of the names of parameters that an earlier stage learned and a later one keeps frozen: they belong to
    the checkpoint, unlike other frozen parameters."""

    def start_stage(self, name: str) -> None:
        """Enter a stage of training; the weights are those that the stage starts from."""

    def stage_config(self, name: str) -> Any | None:
        """Return the settings of a stage, with its own batches, optimizer and view; None: those of the run."""
        return None

    # ---- Evaluation

    reads_history: ClassVar[bool] = True
    """Whether scores depend on the history; False: every user gets the same list, as with MostPopular."""

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Return the scores of the whole catalogue, shape (B, n_items); padding (item 0) is ``-inf``."""
        if self.scores_are_products is not True:
            raise UnsupportedError(
                f"{type(self).__name__} does not say how it scores: set scores_are_products = True and define "
                "user_vectors and catalogue_vectors, or define full_sort_predict."
            )
        users, items, bias = self.user_vectors(interaction), self.catalogue_vectors(), self.catalogue_bias()
        # Else torch would complain about a product deep inside this package.
        shapes = {
            "user_vectors": (users, (len(interaction), items.shape[-1])),
            "catalogue_vectors": (items, items.shape[-2:]),
        }
        shapes |= {"catalogue_bias": (bias, items.shape[:1])} if bias is not None else {}
        for method, (found, shape) in shapes.items():
            if found.shape != shape:
                raise ModelError(
                    f"{type(self).__name__}.{method} returned the shape {tuple(found.shape)}, not {tuple(shape)}: "
                    "user_vectors are (B, d), catalogue_vectors (n_items, d), catalogue_bias (n_items,)."
                )
        return self.mask_padding(product(users, items, bias))

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Return the score of ``ITEM_ID`` for every row, shape (B,)."""
        item = interaction[self.ITEM_ID]
        if self.scores_are_products is not True:
            return self.full_sort_predict(interaction).gather(1, item[:, None])[:, 0]
        scores = (self.user_vectors(interaction).float() * self.catalogue_vectors()[item].float()).sum(-1)
        bias = self.catalogue_bias()
        return scores if bias is None else scores + bias[item]

    @staticmethod
    def mask_padding(scores: torch.Tensor) -> torch.Tensor:
        """Set the scores (..., n_items) of the padding item to ``-inf``, in place."""
        scores[..., 0] = -torch.inf
        return scores

    evaluates_in_amp: ClassVar[bool] = False
    """Whether ``amp`` holds in evaluation, too: for models whose scores come out of it in float32, through
    ``recbole_llm.precision.product`` or ``recbole_llm.llm.head.float32_logits``. 16 bits are refused."""

    reads_excluded: ClassVar[bool] = False
    """Whether the model chooses items before it scores: batches then have the field
    ``recbole_llm.data.mask.EXCLUDED`` with the items that it must not choose."""

    def start_evaluation(self) -> None:
        """Reset the counts of :meth:`evaluation_counts`; called before every evaluation."""

    def evaluation_counts(self) -> Mapping[str, float]:
        """Return counts since :meth:`start_evaluation`; the trainer adds up those of all processes."""
        return {}

    def evaluation_report(self, counts: Mapping[str, float]) -> dict[str, Any] | None:
        """Turn the counts of a whole evaluation into figures for the results; None: nothing to report."""
        return None

    valid_figures: ClassVar[Sequence[str]] = ()
    """Figures of :meth:`evaluation_report` that ``valid_metric`` may name; the smallest is the best."""

    choices: Sequence[Any] | torch.Tensor = ()
    """Settings to choose from by validation instead of training; with :meth:`full_sort_choices`, :meth:`choose` and
    :meth:`describe`."""

    def full_sort_choices(self, interaction: Interaction) -> Iterator[torch.Tensor]:
        """Yield scores (B, n_items) under each of :attr:`choices` in turn."""
        raise UnsupportedError(f"{type(self).__name__} has no settings to choose from.")

    def choose(self, index: int) -> None:
        """Use one of :attr:`choices`."""
        raise UnsupportedError(f"{type(self).__name__} has no settings to choose from.")

    def describe(self, setting: Any) -> dict[str, Any]:
        """Describe one of :attr:`choices` in terms of the property file."""
        raise UnsupportedError(f"{type(self).__name__} has no settings to choose from.")

    members: Sequence[Any] = ()
    """Finished models that this one combines (:class:`recbole_llm.model.hybrid.Member`); evaluated beside it."""

    def prepare(self, interaction: Interaction) -> Any:
        """Return the input of :meth:`scores_of`, such as prompts; preparing it does not count as inference time."""
        return interaction

    def scores_of(self, prepared: Any, interaction: Interaction) -> torch.Tensor:
        """Return :meth:`full_sort_predict` of a batch, from the result of :meth:`prepare`."""
        return self.full_sort_predict(interaction)

    def input_length(self, interaction: Interaction) -> int:
        """Return the number of positions of a batch's padded input; by default its longest history."""
        return int(interaction[self.ITEM_SEQ_LEN].max())

    # ---- Serving

    scores_are_products: bool | None = False
    """Whether ``full_sort_predict`` is ``user_vectors @ catalogue_vectors.T + catalogue_bias`` but for padding. None:
    not known; a batch of real histories decides."""

    def user_vectors(self, interaction: Interaction) -> torch.Tensor:
        """Return vectors of the histories, shape (B, d)."""
        raise UnsupportedError(
            f"{type(self).__name__} has no vectors of users: it does not define user_vectors(self, interaction)."
        )

    def catalogue_vectors(self) -> torch.Tensor:
        """Return vectors of all items, shape (n_items, d), padding included.

        Raises
        ------
        UnsupportedError
            If the model has none.
        """
        raise UnsupportedError(
            f"{type(self).__name__} has no vectors of items that could be compared: it does not define "
            "catalogue_vectors(self)."
        )

    def catalogue_bias(self) -> torch.Tensor | None:
        """Return the bias of each item's score, shape (n_items,); None: no bias."""
        return None

    accepts_new_items: ClassVar[bool] = False
    """Whether :meth:`append_items` is defined."""

    def append_items(self, texts: Sequence[str]) -> None:
        """Add items to the catalogue by their texts alone, without training.

        Raises
        ------
        UnsupportedError
            If the model knows items by their ids only.
        ConfigError
            If the model could under other settings.
        """
        raise UnsupportedError(
            f"{type(self).__name__} learns an item from its interactions. A model that can score an item by its text "
            "sets accepts_new_items = True and defines append_items(self, texts)."
        )

    # ---- Provenance

    needs_item_text: bool = False
    """Whether the model reads the texts of the ``.item`` file, under some settings at least."""

    @classmethod
    def reads_item_text(cls, config: Any) -> bool:
        """Return whether the model reads the texts of the ``.item`` file under these settings."""
        return cls.needs_item_text

    @classmethod
    def find_language_models(cls, config: Any, find: Callable[[Any, str, bool], object]) -> None:
        """Fail early if a language model is not available; called before any data is read.

        By default checks ``llm`` and, if the model has it, ``rec_llm`` of models with :attr:`needs_item_text`.

        Parameters
        ----------
        config : Config
        find : callable
            :func:`recbole_llm.run.experiment.find_named`, which looks for the model that a setting names, with or
            without weights. It leaves ``auto`` to the model's constructor.

        Raises
        ------
        ModelNotFoundError
            Naming the key and the remedy.
        """
        if not cls.needs_item_text:
            return
        # Vectors from a file take the place of the model that encodes texts.
        keys = ["llm"] if not config["item_vectors"] else []
        for key in keys + ["rec_llm"] * ("rec_llm" in config.model_keys):
            find(config, key, key == "llm" or config["rec_llm_init"] != "scratch")

    def check_base(self, known: Mapping[str, Any]) -> None:
        """Compare the language models with those of the run whose weights were loaded (its :meth:`provenance`).

        Raises
        ------
        CheckpointError
            If adapters would be loaded onto another base model.
        """

    def provenance(self) -> Mapping[str, Any] | None:
        """Return what a result must report about language models, texts and vectors; None: the model has none."""
        return None

    def save_adapter(self, folder: Path) -> None:
        """Write adapters in PEFT's format into a folder, if the model has any."""


class Reranker(LLMRecommender):
    """Base class of models that rerank the candidates of another model, the retriever.

    The candidates of a split are computed once and come with the batches, in the field
    ``recbole_llm.data.candidates.CANDIDATES``: LongTensor of shape (B, ``reranks``), 0 at the end where there are
    fewer.
    """

    draws_negatives: ClassVar[bool] = False
    """Whether training rows come with random negatives as candidates."""

    pools: int = 0
    """Number of retrieved items that training negatives are drawn from; 0: from the whole catalogue."""

    trains_on_retrieved: bool = False
    """Whether training candidates are these ``pools`` items, best first; rows whose target is missing are left out."""

    shuffles_retrieved: bool = False
    """Whether these are in random order, instead."""

    @property
    def reranks(self) -> int:
        """Number of candidates in the current stage; 0: the retriever itself is being trained."""
        raise NotImplementedError

    def retriever_scores(self, interaction: Interaction) -> torch.Tensor:
        """Return the retriever's scores, shape (B, n_items), in float32; padding is ``-inf``."""
        raise NotImplementedError

    def retriever_key(self) -> str:
        """Return a key of the retriever's weights; stored candidates are reused while it is unchanged."""
        raise NotImplementedError

    def reranks_retrieved_only(self, phase: str) -> bool:
        """Whether to leave rows whose target is not among the candidates to the retriever in a phase."""
        return False
