"""LlamaRec (Yue et al., arXiv 2311.02089): a retriever selects candidates, a causal language model ranks them.

    c      = first 20 items of the retriever, the user's history excluded               Sec. 3.1
    prompt = instruction, titles of the newest 20 items of the history, (A) c_1 ... (T) c_20
    l_i    = logit of letter i behind the prompt, in one pass                            Sec. 3.2.3
    result = the retriever's ranking with c in the order of l

Trained on prompts with the next item among 19 random ones, by cross-entropy on the letter and the end token. Stages:
``retriever`` (skipped if a finished run is given) and ``ranker``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch.nn import functional

from recbole_llm.config import Config
from recbole_llm.config.schema import models as schema
from recbole_llm.contract import Reranker
from recbole_llm.data.candidates import CANDIDATES
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.mask import excluded, without
from recbole_llm.errors import ConfigError
from recbole_llm.evaluator.topk import top_items
from recbole_llm.layer.ranking import reorder
from recbole_llm.llm.backbone import (
    causal_lm_skeleton,
    load_tokenizer,
    position_limit,
    require_bitsandbytes,
)
from recbole_llm.llm.lora import (
    check_base,
    load_for_tuning,
    lora_targets,
    save_adapters,
    tuned_dtype,
    with_adapters,
)
from recbole_llm.llm.micro_batches import MicroBatches
from recbole_llm.llm.resolve import resolve_causal_lm
from recbole_llm.llm.spec import LLMSpec, ResolvedLLM
from recbole_llm.model.retriever import get_retriever
from recbole_llm.precision import full_precision
from recbole_llm.prompt.letter_reader import LetterReader, content_free_prompts
from recbole_llm.prompt.letters import PromptComposer, PromptTemplate
from recbole_llm.prompt.pieces import Prompts
from recbole_llm.prompt.sampling import shuffled
from recbole_llm.prompt.verbalizer import label_words
from recbole_llm.run import submodel
from recbole_llm.text.item_text import item_text_of
from recbole_llm.trainer.checkpoint import fingerprint

RETRIEVER, RANKER = "retriever", "ranker"
PREFERRED = "meta-llama/Llama-2-7b-hf"


class LlamaRec(Reranker):
    """A retriever and a language model that reranks its candidates, as one model.

    Until the stage ``ranker`` begins, the model is its retriever and the language model is not loaded.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/LlamaRec.yaml``.
    dataset : HistoryDataset
        Training split.

    Attributes
    ----------
    retriever : recbole SequentialRecommender
    ranker : transformers causal language model, or a PEFT model around it; None before its stage.
    composer : PromptComposer
    reranks : int
        Candidates that are ranked; 0 before the stage of the ranker.

    Raises
    ------
    ConfigError
        For an invalid value, or a model that cannot rank.
    """

    train_view = "prefix"
    needs_item_text = True
    draws_negatives = True
    reads_excluded = True
    evaluates_in_amp = True
    stages_start_afresh = True

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        self.settings = schema.LlamaRec.of(config)
        self.config = config
        self.resolved = self.resolve_llm(config)
        tuned_dtype(self.resolved, config)  # what cannot be trained is refused before anything is
        # Before the retriever is trained, which may take hours.
        if self.settings.load_in_4bit:
            require_bitsandbytes()
        if self.settings.tuning == "lora":
            skeleton, settings = causal_lm_skeleton(self.resolved), self.settings
            lora_targets(skeleton, self.resolved, settings.lora_target_modules, settings.lora_layers)
        self.ranker: Any = None
        self.mask_history = bool(config["mask_history"])
        self.n_candidates = self.settings.n_candidates
        self._build_prompts(config, dataset)
        self._build_retriever(config, dataset)
        pools = {"random": 0, "retriever": self.settings.negative_pool, "retrieved": self.n_candidates}
        self.pools = pools[self.settings.train_negatives]
        self.trains_on_retrieved = self.settings.train_negatives == "retrieved"
        self.shuffles_retrieved = self.settings.shuffle_candidates

    @classmethod
    def find_language_models(cls, config: Config, find: Callable[[Any, str, bool], object]) -> None:
        """Fail early if the language model is not available."""
        cls.resolve_llm(config)

    @staticmethod
    def resolve_llm(config: Config) -> ResolvedLLM:
        """Return the files of the language model."""
        spec = LLMSpec.from_config(config, preferred=PREFERRED)
        return resolve_causal_lm(spec, weights=config["llm_init"] == "pretrained")

    # ---- the two models

    def _build_retriever(self, config: Config, dataset: HistoryDataset) -> None:
        found = get_retriever(self.settings.retriever, self.settings.retriever_settings, config, dataset)
        self.retriever, self.retriever_config, self.retriever_from = found.model, found.config, found.run_dir
        trained = found.run_dir is not None
        self.training_stages = [RANKER] if trained else [RETRIEVER, RANKER]
        self.learned_earlier: tuple[str, ...] = () if trained else ("retriever.",)

    def stage_config(self, name: str) -> Any:
        """Return the settings of a stage: the retriever's own property file, or ours for the ranker."""
        return self.retriever_config if name == RETRIEVER else None

    def start_stage(self, name: str) -> None:
        """Enter a stage; the ranker's loads the language model and freezes the retriever."""
        if name != RANKER or self.ranker is not None:
            return
        config = self.config
        self.retriever.requires_grad_(False)
        ranker = load_for_tuning(self.resolved, config, self.settings.llm_init == "pretrained", self.device)
        ranker.config.use_cache = False
        self.ranker = ranker = with_adapters(ranker, self.resolved, config)
        self.micro_batches = MicroBatches.of(ranker, self.settings)
        self.reads_prompts = True
        self.train(self.training)
        trained = sum(p.numel() for p in ranker.parameters() if p.requires_grad)
        getLogger().info(
            f"Ranker {self.resolved.label()}: {trained:,} trainable parameters, tuning={config['tuning']}"
        )

    def train(self, mode: bool = True) -> "LlamaRec":
        """Set the mode as ``nn.Module.train``; a retriever that is no longer trained stays in evaluation mode."""
        super().train(mode)
        if self.ranker is not None:
            self.retriever.eval()
        return self

    # ---- prompts

    def _build_prompts(self, config: Config, dataset: HistoryDataset) -> None:
        tokenizer = load_tokenizer(self.resolved)
        self.item_text = item_text_of(dataset, config, title_only=True)
        titles = self.item_text.names(dataset.field2id_token[dataset.iid_field])
        words = label_words(self.settings.label_words, self.n_candidates)
        template = PromptTemplate.read(self.settings.prompt)
        limit, positions = self.settings.max_prompt_length, position_limit(self.resolved)
        if positions is not None and limit + 2 > positions:
            raise ConfigError(
                f"max_prompt_length={limit} is beyond the {positions} positions of {self.resolved.name}, which a "
                f"prompt shares with the answer: set it to {positions - 2} or less."
            )
        recent = min(self.settings.max_history, int(config["MAX_ITEM_LIST_LENGTH"]))
        self.composer = PromptComposer(
            tokenizer, template, titles, words, recent, limit, self.settings.max_title_tokens
        )
        example = self.composer.text([], [min(1, self.n_items - 1)])
        in_context, calibration = self.settings.verbalizer == "in_context", self.settings.calibration
        self.reader = LetterReader(
            tokenizer, self.composer, example, self.settings.ranker_loss, in_context, calibration != "none"
        )
        self._content_free: list[Prompts] = []
        if calibration == "content_free":
            self._content_free = content_free_prompts(tokenizer, template, words, recent, limit)
        elif calibration == "shuffled":
            generator = torch.Generator().manual_seed(int(config["seed"]))
            rows = torch.randperm(len(dataset), generator=generator)[: self.settings.calibration_prompts]
            self._calibration_rows = dataset[rows.sort().values]

    def batch_costs(self) -> tuple[torch.Tensor, int] | None:
        """Tokens of every item in a prompt, (n_items,), and how many of a history are in one; None: in any order."""
        if not self.settings.length_bucketing:
            return None
        return self.composer.item_costs(), self.composer.max_history

    # ---- training

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Return the retriever's loss in its stage; then the mean cross-entropy of the answers (Sec. 3.2.3)."""
        if self.ranker is None:
            return self.retriever.calculate_loss(interaction)
        candidates, target = interaction[CANDIDATES], interaction[self.POS_ITEM_ID]
        self.reader.forget_bias()
        label = (candidates == target[:, None]).long().argmax(1)
        prompts = self._prompts(interaction)
        return self.answer_loss(prompts.ids, prompts.mask, label, candidates > 0)

    def training_tokens(self, interaction: Interaction) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each training row's tokens, and how many have logits of the whole vocabulary; (B,) each."""
        length = self._prompts(interaction).length
        return length + self.reader.answers - 1, torch.full_like(length, self.reader.whole_logits)

    def _prompts(self, interaction: Interaction) -> Prompts:
        return self.composer(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], interaction[CANDIDATES])

    def loss_weight(self, interaction: Interaction) -> Any:
        """Return what :meth:`calculate_loss` averages over: the retriever's targets, or rows."""
        return self.retriever.loss_weight(interaction) if self.ranker is None else len(interaction)

    def answer_loss(
        self, ids: torch.Tensor, mask: torch.Tensor, label: torch.Tensor, here: torch.Tensor
    ) -> torch.Tensor:
        """Mean cross-entropy of the right answers; parameters as :meth:`LetterReader.summed_loss`."""
        self.tokens_read += int(mask.sum())
        loss = partial(self.reader.summed_loss, self.ranker)
        total = self.micro_batches.summed(loss, ids, mask, label, here, answer=self.reader.whole_logits)
        return total / (self.reader.answers * len(ids))

    # ---- evaluation

    @property
    def reranks(self) -> int:
        """Number of candidates to rerank."""
        return self.n_candidates if self.ranker is not None else 0

    def reranks_retrieved_only(self, phase: str) -> bool:
        """Whether to skip users whose target, which this reads, is not among the candidates."""
        when = self.settings.skip_users_without_target
        return when == "always" or when == phase

    def retriever_key(self) -> str:
        """Return a key of the retriever's weights, for its stored candidates."""
        return fingerprint(self.retriever)

    @torch.no_grad()
    def retriever_scores(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the retriever, shape (B, n_items), padding ``-inf``; in full precision."""
        recent = submodel.newest(interaction, self.ITEM_SEQ_LEN, int(self.retriever.max_seq_length))
        with full_precision(self.device):
            scores = self.retriever.full_sort_predict(recent)
        return self.mask_padding(scores.view(len(interaction), self.n_items).float())

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the whole catalogue, shape (B, n_items): the retriever's, the candidates' in the ranker's order.

        Candidates come with the batch; otherwise they are the retriever's first recommendable items.
        """
        scores = self.retriever_scores(interaction)
        if self.ranker is None:
            return scores
        candidates = interaction[CANDIDATES] if CANDIDATES in interaction else self._candidates(scores, interaction)
        ranking = torch.full(candidates.shape, -torch.inf, device=scores.device)
        rows = (candidates > 0).any(1).nonzero()[:, 0]
        if len(rows):
            ranking[rows] = self.rank(
                interaction[self.ITEM_SEQ][rows],
                interaction[self.ITEM_SEQ_LEN][rows],
                candidates[rows],
                scores[rows].gather(1, candidates[rows]),
            )
        return reorder(scores, candidates, ranking)

    def _candidates(self, scores: torch.Tensor, interaction: Interaction) -> torch.Tensor:
        left_out = excluded(interaction, self.ITEM_SEQ, self.mask_history)
        return top_items(without(scores, left_out), self.n_candidates)

    @torch.no_grad()
    def rank(
        self, history: torch.Tensor, length: torch.Tensor, candidates: torch.Tensor, retrieved: torch.Tensor
    ) -> torch.Tensor:
        """Scores of candidates.

        Parameters
        ----------
        history : torch.LongTensor, shape (B, L)
            Item ids, oldest first, right padded.
        length : torch.LongTensor, shape (B,)
        candidates : torch.LongTensor, shape (B, C)
            In the retriever's order; 0 at the end where there are fewer.
        retrieved : torch.Tensor, shape (B, C)
            The retriever's scores of them.

        Returns
        -------
        torch.Tensor, shape (B, C)
            Larger is better; ``-inf`` at padding.
        """
        if self.reader.needs_bias:
            self.reader.calibrate(self.ranker, self._calibration_prompts(), self.settings.rank_batch_size)
        here = candidates > 0
        weight = self.settings.retriever_weight
        total = torch.zeros(candidates.shape, device=candidates.device)
        orders = [self._order(number, history, candidates) for number in range(self.settings.permutations)]
        shown = [candidates.gather(1, order) for order in orders]
        for order, logits in zip(orders, self._letter_logits(history, length, shown), strict=True):
            known = functional.log_softmax(self.reader.unbiased(logits), dim=1)
            total.scatter_add_(1, order, known.masked_fill(~here, 0.0))
        total = (total / len(orders)).masked_fill(~here, -torch.inf)
        if weight:
            known = functional.log_softmax(retrieved.masked_fill(~here, -torch.inf), dim=1)
            total = ((1 - weight) * total + weight * known).masked_fill(~here, -torch.inf)
        return total

    def input_length(self, interaction: Interaction) -> int:
        """Tokens of a batch's longest prompt."""
        candidates = self._candidates(self.retriever_scores(interaction), interaction)
        prompts = self.composer(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], candidates)
        return int(prompts.length.max())

    def _order(self, number: int, history: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Return the order of the candidates in the prompt, (B, C): depends on row, number and seed, not the batch."""
        if number == 0 and not self.settings.shuffle_candidates:
            return torch.arange(candidates.shape[1], device=candidates.device).expand_as(candidates)
        return shuffled(candidates, history, int(self.config["seed"]) * 1_000_003 + number)

    def _letter_logits(
        self, history: torch.Tensor, length: torch.Tensor, orders: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Logits of the letters for each order of candidates, (B, C); ``-inf`` where there is no candidate."""
        prompts = [self.composer(history, length, candidates) for candidates in orders]
        self.tokens_read += sum(int(each.length.sum()) for each in prompts)
        logits = self.reader.by_length(self.ranker, prompts, orders[0].shape[1], self.settings.rank_batch_size)
        return [each.masked_fill(order == 0, -torch.inf) for each, order in zip(logits, orders, strict=True)]

    def _calibration_prompts(self) -> list[Prompts]:
        """Prompts that say what letters have by themselves: without content, or with shuffled candidates."""
        if self._content_free:
            return [Prompts(*(part.to(self.device) for part in prompts)) for prompts in self._content_free]
        rows = self._calibration_rows.to(self.device)
        candidates = self._candidates(self.retriever_scores(rows), rows)
        rows, candidates = rows[(candidates > 0).all(1)], candidates[(candidates > 0).all(1)]
        history = rows[self.ITEM_SEQ]
        order = shuffled(candidates, history, int(self.config["seed"]))
        return [self.composer(history, rows[self.ITEM_SEQ_LEN], candidates.gather(1, order))]

    # ---- what a run keeps

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in PEFT's format, if there is one."""
        if self.ranker is not None:
            save_adapters(self.ranker, self.config, folder)

    def check_base(self, known: Mapping[str, Any]) -> None:
        """Compare the language model with that of the run whose weights were loaded.

        Raises
        ------
        CheckpointError
            If the adapter would be on another base model, which changes the scores.
        """
        check_base(self.resolved, self.config, known["llm"], known["llm_revision"], "llm")

    def provenance(self) -> Mapping[str, Any]:
        """Return what a result must report about the two models and the prompt."""
        return {
            "llm": self.resolved.label(),
            "llm_revision": self.resolved.revision,
            "llm_init": self.settings.llm_init,
            "retriever": self.retriever_config["model"],
            "retriever_from": self.retriever_from,
            "retriever_key": self.retriever_key(),
            "verbalizer": dict(zip(self.composer.words, self.reader.letter_ids.tolist(), strict=True)),
            "prompt": self.composer.text([], [1]),
            "item_title": self.item_text.template,
            "item_text_fingerprint": self.item_text.fingerprint(),
            "items_without_text": self.item_text.n_missing,
        }
