"""What P5, POD and LightLM share: a T5 that reads a prompt with the user and the history and writes the next item.

    x    = [soft prompts, E[tokens] + W[whole-word ids]]        (B, P + T, d)
    z    = encoder(x)                                           (B, P + T, d)
    loss = -log p(code of the target, end token | z)            the decoder, teacher forced
    list = the best beams of the decoder that are items

With ``head: projection`` (the w/o_d steps of arXiv 2402.09543, Sec. 3.3) the decoder is gone and scores are
W_proj mean(z), trained with cross-entropy over the catalogue; with ``item_repr: title`` (w/o_d_TID) the history shows
titles in place of codes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn import functional

from recbole_llm.config import Config
from recbole_llm.config.schema import models as schema
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.candidates import CANDIDATES, UnseenNegatives
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.mask import excluded
from recbole_llm.layer.code_loss import NO_TOKEN, CodeLoss
from recbole_llm.llm.backbone import load_tokenizer
from recbole_llm.llm.head import float32_logits
from recbole_llm.llm.resolve import resolve_llm
from recbole_llm.llm.spec import LLMSpec
from recbole_llm.llm.t5 import load_t5, redraw_numbers
from recbole_llm.precision import product
from recbole_llm.prompt.decoding import (
    DecodingCounts,
    Trie,
    beam_search,
    count_beams,
    exact_scores,
    item_scores,
)
from recbole_llm.prompt.item_index import Histories, ItemIndex, build_item_index, labels_of, pack, unpack
from recbole_llm.prompt.p5 import PromptTable, WordPrompts
from recbole_llm.prompt.templates import Templates
from recbole_llm.text.item_text import item_text_of

PAPER_LLM = "google-t5/t5-small"
AROUND_CANDIDATES = 128  # tokens of a prompt that are kept for words and history beside candidates


class GenerativeRecommender(LLMRecommender):
    """A T5 over prompts; its subclasses are property files more than code.

    Parameters
    ----------
    config : Config
        Keys of the model's property file and the ``llm`` keys of ``props/overall.yaml``.
    dataset : HistoryDataset
        A training split: item indexes are built from it.

    Raises
    ------
    ConfigError
        For an invalid value, or a language model that is not a T5.
    """

    needs_item_text = True
    reads_excluded = True
    valid_figures = ("loss",)
    evaluates_in_amp = True

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        self.settings = settings = schema.Generative.of(config)
        self.task, self.head_kind, self.decoding = settings.task, settings.head, settings.decoding
        self.k = max(config["topk"])
        self.mask_history = bool(config["mask_history"])
        self.max_prompt_tokens = settings.max_prompt_tokens
        self.tasks = self.train_tasks(config)
        self.templates = Templates.of(config, self.template_keys(config), self.task, self.test_template_key(config))
        self._separators = list(settings.separators)

        spec = LLMSpec.from_config(config, key="llm", preferred=PAPER_LLM)
        self.resolved = resolve_llm(spec, logger=self.logger, weights=settings.rec_llm_init == "pretrained")
        self.tokenizer = load_tokenizer(self.resolved)
        # With codes in the place of texts nothing is read: a control of the text would change nothing.
        by_text = self.reads_item_text(config)
        self.item_text = item_text_of(dataset, config, for_prompt=True) if by_text else None
        self.titles = self.item_text.names(dataset.field2id_token[dataset.iid_field]) if self.item_text else []
        index = build_item_index(
            settings.item_index,
            Histories.of(dataset),
            settings.item_index_seed,
            self.titles,
            **self._index_options(settings),
        )
        if index.leak == "leaky":
            self.logger.warning(
                f"item_index={index.scheme} is LEAKY: its numbers follow the test items, so that even 'largest number "
                "of the history plus one' finds them. Rows with it do not compare with anything else."
            )
        if index.new_tokens:
            self.tokenizer.add_tokens(index.new_tokens)

        self.t5 = load_t5(self.resolved, settings)
        self.d = self.t5.config.d_model
        if self.head_kind == "projection":
            self.projection = nn.Linear(self.d, self.n_items, bias=False)
        if index.new_tokens and len(self.tokenizer) > self.t5.get_input_embeddings().num_embeddings:
            self.t5.resize_token_embeddings(len(self.tokenizer))
        if settings.digit_embedding_range is not None:
            redraw_numbers(self.t5, self.tokenizer, settings.digit_embedding_range)
        self.whole_word_embedding = nn.Embedding(settings.whole_word_size, self.d)
        nn.init.normal_(self.whole_word_embedding.weight, std=settings.whole_word_std)
        shape = (len(self.tasks), settings.soft_prompts, self.d)
        self.soft_prompt = nn.Parameter(torch.empty(shape).uniform_(-0.1, 0.1)) if shape[1] else None
        self.register_buffer("index_codes", pack(index))
        self._use_index(index)
        self.code_loss = CodeLoss(
            settings.loss_reduction, self.tokenizer.pad_token_id if settings.pad_in_loss else None
        )
        self.negatives = self._negatives(config, dataset)
        self.reports_loss = str(config["valid_metric"]).lower() == "loss"
        self.start_evaluation()
        # A draw of its own, so that a model's random numbers do not depend on the tail of its lists.
        fill = torch.randperm(self.n_items - 1, generator=torch.Generator().manual_seed(int(config["seed"])))
        self.register_buffer("fill", fill, persistent=False)
        self.to(self.device)

    @classmethod
    def reads_item_text(cls, config: Config) -> bool:
        """Return whether the prompt shows titles, or codes are titles."""
        return "title" in (config["item_repr"], config["item_index"])

    # ---- tasks: what the subclasses differ in

    def train_tasks(self, config: Config) -> list[str]:
        """Return the tasks that training takes in turn, each with its own soft prompts: only the evaluated one."""
        return [self.task]

    def template_keys(self, config: Config) -> dict[str, str]:
        """Return the setting with the training templates of every task."""
        keys = {"sequential": "templates", "topn": "topn_templates"}
        return {task: keys[task] for task in self.tasks}

    def test_template_key(self, config: Config) -> str:
        """Return the setting with the evaluation template."""
        return "topn_test_template" if self.task == "topn" else "test_template"

    def n_negatives(self, config: Config) -> int:
        """Return the number of unseen items that come with a training row; 0: none."""
        return self.settings.topn_negatives if "topn" in self.tasks and self.task != "topn" else 0

    def _negatives(self, config: Config, dataset: HistoryDataset) -> UnseenNegatives | None:
        wanted = self.n_negatives(config)
        if not wanted:
            return None
        room = (self.max_prompt_tokens - AROUND_CANDIDATES) // self.prompt_table.longest_item
        if room <= wanted:
            self.logger.info(
                f"max_prompt_tokens={self.max_prompt_tokens} holds {max(room, 2)} of {wanted + 1} candidates in "
                "training prompts."
            )
        return UnseenNegatives(dataset, min(wanted, max(room - 1, 1)))

    @staticmethod
    def _index_options(settings: schema.Generative) -> dict[str, Any]:
        clusters, quantisation = ("clusters", "cluster_size"), ("factors", "subspaces", "codewords")
        names = {"collaborative": clusters, "sci": clusters, "gci": quantisation}.get(settings.item_index, ())
        options = {name: getattr(settings, f"item_index_{name}") for name in names}
        return {name: value for name, value in options.items() if value is not None}

    # ---- item index: part of what a run must keep, whatever a later version of a clustering finds

    def _use_index(self, index: ItemIndex) -> None:
        self.index = index
        by_title = self.settings.item_repr == "title"
        shown = self.titles if by_title else index.items
        mark = ("[", "]") if by_title else (self.settings.item_prefix or "", "")
        self.prompt_table = PromptTable(
            self.tokenizer,
            self.templates.texts,
            [mark[0] + text + mark[1] for text in shown],
            [f"user_{code}" for code in index.users],
            separators=self._separators,
            rule=self.settings.whole_word,
            items_are_entities=by_title,
        )
        end = [self.tokenizer.eos_token_id]
        targets = [(self.settings.target_prefix or "") + code for code in index.items]
        self.codes = [tokens + end for tokens in self.tokenizer(targets, add_special_tokens=False).input_ids]
        self.codes[0] = []
        vocabulary = max(self.t5.get_input_embeddings().num_embeddings, len(self.tokenizer))
        self.trie = Trie(self.codes, vocabulary) if self.head_kind == "decoder" else None
        self.register_buffer("labels", labels_of(self.codes), persistent=False)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        stored, own = state_dict.get(prefix + "index_codes"), self.index_codes
        if stored is not None and stored.shape == own.shape and not torch.equal(stored.cpu(), own.cpu()):
            self._use_index(unpack(stored, self.index))
            self.to(self.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    # ---- prompts

    def prompts(self, interaction: Interaction, task: str | None = None) -> WordPrompts:
        """Return prompts of a batch: a random template each in training, ``test_template`` in evaluation.

        The top-N task shows its candidates, the others the history. ``task`` defaults to the evaluated one.
        """
        task = task or self.task
        if task == "topn":
            items = self.candidates_of(interaction)
            length = (items > 0).sum(1)
        else:
            items, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        if self.training:
            template = self.templates.draw(task, len(items), len(self._separators))
        else:
            template = torch.full((len(items),), self.templates.test * len(self._separators))
        user = interaction[self.USER_ID]
        return self.prompt_table.build(user, items, length, template, self.max_prompt_tokens, self.settings.prompt_cut)

    def candidates_of(self, interaction: Interaction) -> torch.Tensor:
        """Return the items to choose from, (B, C), 0 at the end where there are fewer: the batch's, or drawn ones."""
        if CANDIDATES not in interaction:
            assert self.negatives is not None
            user, target = interaction[self.USER_ID], interaction[self.POS_ITEM_ID]
            drawn = torch.cat([target[:, None], self.negatives.draw(user, target)], dim=1)
            order = torch.rand(drawn.shape, device=drawn.device).masked_fill(drawn == 0, 2.0).argsort(dim=1)
            interaction.update(Interaction({CANDIDATES: drawn.gather(1, order)}))
        return interaction[CANDIDATES]

    def forward(self, prompts: WordPrompts, task: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return encoder states and what the decoder may attend to.

        Parameters
        ----------
        prompts : WordPrompts
        task : str, optional
            Task whose soft prompts come first; default: the evaluated one.

        Returns
        -------
        hidden : torch.Tensor, shape (B, P + T, d)
        mask : torch.LongTensor, shape (B, P + T)
        """
        x = self.t5.get_input_embeddings()(prompts.input_ids)
        if self.settings.whole_word != "none" and (self.training or self.settings.whole_word_at_test):
            ids = prompts.whole_word_ids.clamp(max=self.whole_word_embedding.num_embeddings - 1)
            x = x + self.whole_word_embedding(ids)
        mask = prompts.attention_mask
        if self.soft_prompt is not None:
            soft = self.soft_prompt[self.tasks.index(task or self.task)]
            x = torch.cat([soft.expand(len(x), -1, -1), x], dim=1)
            mask = functional.pad(mask, (len(soft), 0), value=1)
        encoder = self.t5.get_encoder() if self.head_kind == "decoder" else self.t5
        hidden = encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state
        return hidden, torch.ones_like(mask) if self.settings.unmasked_cross_attention else mask

    # ---- training

    def next_task(self) -> str:
        """Return the task of the next batch."""
        return self.task

    def training_rows(self, interaction: Interaction, task: str) -> tuple[WordPrompts, torch.Tensor]:
        """Return the prompts of a batch, and the tokens of the answers, (B, T), -100 behind their end."""
        return self.prompts(interaction, task), self.labels[interaction[self.POS_ITEM_ID]]

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Negative log-likelihood of the target's code, or cross-entropy over the catalogue (``head: projection``)."""
        task = self.next_task()
        prompts, labels = self.training_rows(interaction, task)
        self._weight = self._weight_of(labels)
        return self._loss(*self.forward(prompts, task), labels, interaction, task)

    def loss_weight(self, interaction: Interaction) -> torch.Tensor | float:
        """Return how many tokens, or rows, :meth:`calculate_loss` averaged over."""
        return self._weight

    def _weight_of(self, labels: torch.Tensor) -> torch.Tensor | float:
        return len(labels) if self.head_kind == "projection" else self.code_loss.weight(labels)

    def _loss(
        self, hidden: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, interaction: Interaction, task: str
    ) -> torch.Tensor:
        if self.head_kind == "decoder":
            longest = int((labels != NO_TOKEN).sum(1).max())
            return self.code_loss(self.t5, hidden, mask, labels[:, :longest])
        target, scores = interaction[self.POS_ITEM_ID], self._project(hidden, mask)
        if task == "topn":
            candidates = interaction[CANDIDATES]
            listed = scores.gather(1, candidates).masked_fill(candidates == 0, -torch.inf)
            return functional.cross_entropy(listed, (candidates == target[:, None]).long().argmax(1))
        return functional.cross_entropy(scores[:, 1:], target - 1)

    # ---- evaluation

    def _project(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weight = mask[..., None].to(hidden.dtype)
        return product((hidden * weight).sum(1) / weight.sum(1), self.projection.weight)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the whole catalogue, shape (B, n_items).

        Items that no beam reached score far below the others, in a seeded order per user; padding and,
        in the top-N task, everything but the candidates is ``-inf``.
        """
        return self.scores_of(self.prepare(interaction), interaction)

    def prepare(self, interaction: Interaction) -> WordPrompts:
        """Return the prompts of a batch."""
        return self.prompts(interaction)

    def scores_of(self, prepared: WordPrompts, interaction: Interaction) -> torch.Tensor:
        """Return :meth:`full_sort_predict` of a batch from its prompts."""
        hidden, mask = self.forward(prepared)
        if self.reports_loss and self.ITEM_ID in interaction:
            self._count_loss(hidden, mask, interaction)
        if self.head_kind == "projection":
            scores = self.mask_padding(self._project(hidden, mask))
        elif self.decoding == "exact":
            with float32_logits(self.t5):
                scores = exact_scores(self.t5, hidden, mask, self.codes)
        else:
            assert self.trie is not None
            with float32_logits(self.t5):
                item, score = beam_search(
                    self.t5,
                    hidden,
                    mask,
                    self.trie,
                    self.settings.beams,
                    constrained=self.decoding == "trie",
                    max_length=self.settings.max_new_tokens,
                    length_penalty=self.settings.length_penalty,
                    early_stopping=self.settings.early_stopping,
                )
            history = interaction[self.ITEM_SEQ]
            left_out = excluded(interaction, self.ITEM_SEQ, self.mask_history)
            count_beams(self.counts, item, history, left_out, self.k)
            shift = (history.sum(1) * 7919) % (self.n_items - 1)
            scores = item_scores(item, score, self.fill, shift)
        if self.task == "topn":
            candidates = interaction[CANDIDATES]
            scores = torch.full_like(scores, -torch.inf).scatter(1, candidates, scores.gather(1, candidates))
        return scores

    def input_length(self, interaction: Interaction) -> int:
        """Tokens of a batch's longest prompt, soft prompts not counted."""
        return self.prompts(interaction).input_ids.shape[1]

    def _count_loss(self, hidden: torch.Tensor, mask: torch.Tensor, interaction: Interaction) -> None:
        """Add the loss of the targets of evaluated rows, teacher forced."""
        labels = self.labels[interaction[self.POS_ITEM_ID]]
        weight = float(self._weight_of(labels))
        loss = float(self._loss(hidden, mask, labels, interaction, self.task))
        self.counts.add(loss_sum=loss * weight, loss_weight=weight)

    def start_evaluation(self) -> None:
        """Reset the counts of beams and the sum of losses."""
        self.counts = DecodingCounts()

    def evaluation_counts(self) -> Mapping[str, float]:
        """Return counts since :meth:`start_evaluation`; the trainer adds up those of several processes."""
        return dict(self.counts.counts)

    def evaluation_report(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Rates of invalid, repeated and already-seen beams and of list places by their origin, and the mean ``loss``.

        The loss is included if ``valid_metric`` names it.
        """
        rates = DecodingCounts(dict(counts)).rates() if counts.get("beams") else {}
        weight = counts.get("loss_weight", 0)
        return {**rates, **({"loss": counts["loss_sum"] / weight} if weight else {})}

    def provenance(self) -> dict[str, Any]:
        """Return what a result must report about language model, item codes and decoding."""
        return {
            "llm": self.resolved.label(),
            "llm_revision": self.resolved.revision,
            "rec_llm_init": self.settings.rec_llm_init,
            "item_index": self.index.scheme,
            "item_index_leak": self.index.leak,
            "item_index_info": self.index.info,
            "item_text": self.item_text and self.item_text.template,
            "item_text_fingerprint": self.item_text and self.item_text.fingerprint(),
            "decoding": self.decoding if self.head_kind == "decoder" else None,
        }
