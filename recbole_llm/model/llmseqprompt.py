"""LLMSeqPrompt (Harte et al., RecSys 2023, arXiv 2309.09261; Boz et al., arXiv 2402.01339): items by written titles.

    prompt   = instruction, titles of the history [, titles to choose from]
    answer   = one title (GenItem), or 20 numbered titles (GenList, Classify, Rank)
    loss     = -mean log p(token of the answer | prompt, tokens before it), LoRA
    list     = items of the sampled answers: by exact name, then by the nearest text embedding or spelling

After the list come the other items in the order of LLMSeqSim, which also gives GenList's and Rank's training answers
and Rank's candidates. The papers fine-tune paid models; here any causal language model is.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from transformers import GenerationConfig

from recbole_llm.config import Config
from recbole_llm.config.schema import models as schema
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.mask import excluded, whole_history, without
from recbole_llm.errors import ConfigError
from recbole_llm.evaluator.topk import top_items
from recbole_llm.layer.item_table import STAND_IN_LLM
from recbole_llm.llm.backbone import load_tokenizer
from recbole_llm.llm.left_padded import summed_answer_loss
from recbole_llm.llm.lora import (
    check_base,
    load_for_tuning,
    save_adapters,
    tuned_dtype,
    with_adapters,
)
from recbole_llm.llm.micro_batches import MicroBatches
from recbole_llm.llm.resolve import resolve_causal_lm, resolve_llm
from recbole_llm.llm.spec import LLMSpec, ResolvedLLM
from recbole_llm.prompt.answers import AnswerReader, answer_rates
from recbole_llm.prompt.chat import ChatPrompt, TitlePrompts, prompt_limit
from recbole_llm.prompt.decoding import LineEnd, Trie, item_scores
from recbole_llm.prompt.item_names import ItemNames, normalised
from recbole_llm.prompt.nearest import NearestItems, nearest_by_text
from recbole_llm.prompt.pieces import Prompts, cut_titles
from recbole_llm.prompt.representatives import chosen_first, find_representatives
from recbole_llm.prompt.sampling import row_keys, scramble, shuffled
from recbole_llm.prompt.writer import Writer, Writing
from recbole_llm.run import submodel
from recbole_llm.text.item_text import item_text_of

# The papers' models are paid services; this one is open, small, and has a chat template.
STAND_IN_CAUSAL_LM = "Qwen/Qwen2.5-0.5B-Instruct"
# What an item without a title is called in a prompt (the authors' words).
NO_TITLE = "Unknown item"
MAX_NAME_TOKENS = 50
# Lists of names end where this share of the titles would have.
USUAL_TITLE = 0.9


class LLMSeqPrompt(LLMRecommender):
    """A causal language model prompted for titles.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/LLMSeqPrompt.yaml``.
    dataset : HistoryDataset
        Training split.

    Attributes
    ----------
    lm : transformers causal language model, or a PEFT model around it
    prompts : TitlePrompts
    seqsim : LLMSeqSim
        Orders the items behind a list; gives candidates and training answers.
    names : ItemNames

    Raises
    ------
    ConfigError
        For an invalid value, or a model that cannot generate text.
    """

    train_view = "prefix"
    needs_item_text = True
    reads_excluded = True
    evaluates_in_amp = True
    reads_prompts = True

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        self.settings = schema.LLMSeqPrompt.of(config)
        self.config = config
        self.variant = self.settings.variant
        self.mask_history = bool(config["mask_history"])
        self.single = self.variant == "genitem"
        self.k = min(self.settings.list_length, self.n_items - 1)
        self.resolved = self.resolve_llm(config)
        tuned_dtype(self.resolved, config)  # what cannot be trained is refused before anything is
        self._build_seqsim(config, dataset)
        self._build_names(config, dataset)
        self._build_clusters(config)
        self._build_prompts(config)
        self._build_lm(config)
        # A draw of its own, so that a model's random numbers do not depend on the tail of its lists.
        fill = torch.randperm(self.n_items - 1, generator=torch.Generator().manual_seed(int(config["seed"])))
        self.register_buffer("fill", fill, persistent=False)
        self.to(self.device)
        self.start_evaluation()

    @classmethod
    def find_language_models(cls, config: Config, find: Callable[[Any, str, bool], object]) -> None:
        """Fail early if the generating model or the encoder is not available."""
        if not config["item_vectors"]:
            find(config, "llm", True)
        cls.resolve_llm(config)

    @staticmethod
    def resolve_llm(config: Config) -> ResolvedLLM:
        """Return the files of the generating language model."""
        options = {**config.final_config_dict, "llm": None}
        spec = LLMSpec.from_config(options, key="rec_llm", preferred=STAND_IN_CAUSAL_LM)
        return resolve_causal_lm(spec, weights=config["rec_llm_init"] == "pretrained", key="rec_llm", to="write")

    # ---- what it is made of

    def _build_seqsim(self, config: Config, dataset: HistoryDataset) -> None:
        settings = {key: config[key] for key in ("item_pooling", "item_max_tokens")}
        self.seqsim_config = submodel.inner_config("LLMSeqSim", config, settings | self.settings.seqsim_settings)
        config.notices += self.seqsim_config.notices
        self.seqsim = submodel.build(self.seqsim_config, dataset)

    def _build_names(self, config: Config, dataset: HistoryDataset) -> None:
        """Build the names of the items, and the search that resolves any other name."""
        self.tokenizer = load_tokenizer(self.resolved)
        self.item_text = item_text_of(dataset, config, title_only=True)
        titles = [normalised(text) for text in self.item_text.texts]
        if sum(map(bool, titles)) < 2:
            raise ConfigError(
                f"item_title: only {sum(map(bool, titles))} of the items of {dataset.dataset_name} has a title, and "
                "LLMSeqPrompt can name no other. Set item_title to a field that they have."
            )
        self.titles = cut_titles(self.tokenizer, titles, self.settings.max_title_tokens)
        self.popularity = np.asarray(dataset.train_counts)
        self.register_buffer("named", torch.tensor([bool(title) for title in self.titles]), persistent=False)
        self.nearest: NearestItems | None = None
        if self.settings.unknown_names == "nearest" and self.variant in ("genitem", "genlist"):
            resolved = resolve_llm(LLMSpec.from_config(config, preferred=STAND_IN_LLM), logger=self.logger)
            self.nearest = nearest_by_text(self.titles, resolved, self.settings, config, self.device, self.logger)

    def _build_clusters(self, config: Config) -> None:
        """Cluster the item vectors and choose an item to represent each cluster (Classify)."""
        if self.variant != "classify":
            return
        vectors, named = self.seqsim.item_vectors.cpu().double().numpy(), self.named.cpu().numpy()
        found = find_representatives(vectors, named, self.popularity, self.settings.clusters)
        self.k = min(self.k, len(found.items))
        # Saved: a later version of the clustering may find others.
        self.register_buffer("representatives", found.items)
        self.register_buffer("cluster_of", found.cluster_of)
        nearest = found.distance.topk(self.k, largest=False).indices
        self.register_buffer("answers_of", found.items[nearest], persistent=False)

    def _build_prompts(self, config: Config) -> None:
        style = self.settings.prompt_style
        name = self.settings.prompt or f"llmseqprompt_{'completion' if style == 'completion' else self.variant}"
        self.prompt = ChatPrompt.read(str(name), with_candidates=self.variant in ("classify", "rank"))
        recent = min(self.settings.max_history, int(config["MAX_ITEM_LIST_LENGTH"]))
        shown = [title or NO_TITLE for title in self.titles]
        self.prompts = TitlePrompts(self.tokenizer, self.prompt, shown, style, 0 if self.single else self.k, recent)
        # As the model would write them: a tokenizer may know fewer letters than titles have.
        written = self._texts_of_names()
        named = self.named.tolist()
        self.names = ItemNames(
            [text if has else "" for text, has in zip(written, named, strict=True)], self.popularity
        )
        self.reader = AnswerReader(self.names, self.nearest, self.k, self.single)
        longest = min(self.prompts.longest_answer(), MAX_NAME_TOKENS)
        usual = longest if self.single else self.prompts.longest_answer(USUAL_TITLE)
        self.max_new_tokens = self.settings.max_new_tokens or usual
        answer = max(self.max_new_tokens, self.prompts.longest_answer())
        self.prompts.max_length = prompt_limit(self.settings.max_prompt_tokens, answer, self.resolved)

    def _texts_of_names(self) -> list[str]:
        ids = self.tokenizer(self.titles, add_special_tokens=False)["input_ids"]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _build_lm(self, config: Config) -> None:
        pretrained = self.settings.rec_llm_init == "pretrained"
        # A model may also end with the token that ended texts before it learned to chat.
        ends = sorted({self.prompts.end, self.tokenizer.eos_token_id} - {None})
        lm = load_for_tuning(self.resolved, config, pretrained, self.device)
        # A model's own settings, such as a penalty on repetition, would join those of the property file.
        lm.generation_config = GenerationConfig(pad_token_id=self.prompts.pad, eos_token_id=ends)
        vocabulary = lm.get_output_embeddings().weight.shape[0]
        self.lm = with_adapters(lm, self.resolved, config)
        self.micro_batches = MicroBatches.of(self.lm, self.settings)
        trie, line_end = None, None
        if self.settings.decoding == "trie":
            codes = {tuple(code) for code, has in zip(self.prompts.codes(), self.named.tolist(), strict=True) if has}
            trie = Trie([[], *sorted(codes)], vocabulary).to(self.device)
            self.max_new_tokens = trie.max_length
        elif self.single:  # one line; lists and codes end by themselves
            line_end = LineEnd(self.tokenizer, vocabulary).to(self.device)
        writing = Writing(
            self.settings.decoding,
            self.settings.temperature,
            self.settings.top_p,
            self.settings.n_samples if self.single else 1,
            self.max_new_tokens,
            self.settings.generate_batch_size,
        )
        self.writer = Writer(self.lm, self.tokenizer, writing, ends, self.prompts.pad, trie, line_end)

    def batch_costs(self) -> tuple[torch.Tensor, int] | None:
        """Tokens of every item in a prompt, (n_items,), and how many of a history are in one; None: in any order."""
        if not self.settings.length_bucketing:
            return None
        return self.prompts.item_costs(), self.prompts.max_history

    # ---- what is asked and answered

    def _similar(self, interaction: Interaction) -> torch.Tensor:
        """Scores of LLMSeqSim, (B, n_items): ``-inf`` for items that cannot be named or may not be recommended.

        Rank never chooses among items of the history, also where they may be recommended.
        """
        scores = self.seqsim.full_sort_predict(interaction).masked_fill(~self.named, -torch.inf)
        scores = without(scores, excluded(interaction, self.ITEM_SEQ, self.mask_history))
        return without(scores, whole_history(interaction, self.ITEM_SEQ)) if self.variant == "rank" else scores

    def teacher(self, interaction: Interaction) -> torch.Tensor:
        """Answers that training teaches, item ids of shape (B, 1) or (B, list_length); 0-padded at the end.

        GenItem: the target. Classify: representatives of the clusters nearest to it. GenList, Rank: LLMSeqSim's first
        items with the target moved to rank 1, or replacing the last item.
        """
        target = interaction[self.POS_ITEM_ID][:, None]
        if self.single:
            return target
        if self.variant == "classify":
            return self.answers_of[target[:, 0]]
        return top_items(self._similar(interaction).scatter(1, target, torch.inf), self.k)

    def _to_choose_from(self, chosen: torch.Tensor | None, interaction: Interaction, salt: int) -> torch.Tensor | None:
        """Items that the prompt lists, (B, C): the representatives, or LLMSeqSim's first, shuffled; else None."""
        if self.variant == "classify":
            return self.representatives.expand(len(interaction), -1)
        if self.variant != "rank":
            return None
        if chosen is None:
            chosen = top_items(self._similar(interaction), self.k)
        return chosen.gather(1, shuffled(chosen, interaction[self.ITEM_SEQ], salt))

    # ---- training

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Mean negative log-likelihood of the answers' tokens; rows whose target has no title do not count."""
        texts, sizes = self._texts(interaction)
        self._answer_tokens = sizes.sum()
        return self.answer_loss(texts, sizes)

    def _texts(self, interaction: Interaction) -> tuple[Prompts, torch.Tensor]:
        salt = int(torch.randint(2**40, (1,))) if self.variant == "rank" else 0
        answers = self.teacher(interaction)
        candidates = self._to_choose_from(answers, interaction, salt)
        history, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        texts, sizes = self.prompts.with_answers(history, length, candidates, answers)
        return texts, sizes * self.named[interaction[self.POS_ITEM_ID]]

    def training_tokens(self, interaction: Interaction) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each training row's tokens, and how many have logits of the whole vocabulary; (B,) each."""
        texts, sizes = self._texts(interaction)
        return texts.length, sizes + 1

    def loss_weight(self, interaction: Interaction) -> torch.Tensor:
        """Return the number of tokens that the last :meth:`calculate_loss` was averaged over."""
        return self._answer_tokens

    def answer_loss(self, texts: Prompts, sizes: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood of the last ``sizes`` (B,) tokens of left-padded texts."""
        total = int(sizes.sum())
        if not total:
            return sum(p.sum() for p in self.lm.parameters() if p.requires_grad) * 0.0
        self.tokens_read += int(texts.length.sum())
        loss = partial(summed_answer_loss, self.lm)
        return self.micro_batches.summed(loss, texts.ids, texts.mask, sizes, answer=sizes + 1) / total

    # ---- evaluation

    @torch.no_grad()
    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the whole catalogue, shape (B, n_items): places of the list, then of LLMSeqSim's order (``fill``).

        No two items of a row have the same score; padding is ``-inf``.
        """
        candidates = self._to_choose_from(None, interaction, int(self.config["seed"]))
        return self._scores(self._items(self.generate(interaction, candidates), interaction, candidates), interaction)

    def generate(self, interaction: Interaction, candidates: torch.Tensor | None = None) -> list[list[str]]:
        """Generate answers, as many per row as are sampled; prompts of similar length are batched."""
        history, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        prompts = self.prompts(history, length, candidates)
        self.tokens_read += int(prompts.length.sum())
        before = self.writer.tokens
        answers = self.writer.answers(prompts, row_keys(history, int(self.config["seed"])))
        self.tokens_read += self.writer.tokens - before
        return answers

    def input_length(self, interaction: Interaction) -> int:
        """Tokens of a batch's longest prompt."""
        candidates = self._to_choose_from(None, interaction, int(self.config["seed"]))
        prompts = self.prompts(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], candidates)
        return int(prompts.length.max())

    def _items(
        self, answers: list[list[str]], interaction: Interaction, candidates: torch.Tensor | None
    ) -> list[list[int]]:
        """Return the items of answers, best first, and their counts."""
        left_out = excluded(interaction, self.ITEM_SEQ, self.mask_history)
        out = [set(row) - {0} for row in left_out.tolist()]
        had = whole_history(interaction, self.ITEM_SEQ).tolist()
        histories = [items | set(row) - {0} for items, row in zip(out, had, strict=True)]
        choices = None if candidates is None else [[item for item in row if item] for row in candidates.tolist()]
        lists, new = self.reader.read(answers, out, histories, choices)
        if candidates is not None and self.ITEM_ID in interaction:
            target = interaction[self.ITEM_ID].to(candidates.device)[:, None]
            new["reachable"] = int((candidates == target).any(1).sum())
        for name, number in new.items():
            self.counts[name] = self.counts.get(name, 0) + number
        return lists

    def _scores(self, lists: list[list[int]], interaction: Interaction) -> torch.Tensor:
        longest = max(1, *map(len, lists))
        table = torch.tensor([row + [0] * (longest - len(row)) for row in lists], device=self.device)
        # From a number that is the same in every batch.
        place = (self.n_items - torch.arange(longest, device=self.device, dtype=torch.float32)).expand_as(table)
        if self.settings.fill == "random":
            shift = scramble(row_keys(interaction[self.ITEM_SEQ], 0))[:, 0] % (self.n_items - 1)
            return item_scores(table, place, self.fill, shift)
        similar = self.seqsim.full_sort_predict(interaction)
        if self.variant == "classify" and self.settings.classify_expand:
            similar = chosen_first(similar, table, self.cluster_of, len(self.representatives))
        order = similar.sort(dim=1, descending=True, stable=True).indices
        rank = torch.arange(self.n_items, device=self.device, dtype=torch.float32).expand_as(order)
        scores = torch.empty_like(similar, dtype=torch.float32).scatter(1, order, -1 - rank)
        return self.mask_padding(scores.scatter(1, table, place))

    # ---- what is reported

    def start_evaluation(self) -> None:
        """Reset the counts of answers."""
        self.counts: dict[str, int] = {}
        self.writer.tokens = 0

    def evaluation_counts(self) -> Mapping[str, float]:
        """Return counts since :meth:`start_evaluation`; the trainer adds up those of several processes."""
        return {**self.counts, "tokens": self.writer.tokens}

    def evaluation_report(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Rates of :func:`recbole_llm.prompt.answers.answer_rates`."""
        return answer_rates(counts, self.variant in ("classify", "rank"))

    # ---- what a run keeps

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in PEFT's format, if there is one."""
        save_adapters(self.lm, self.config, folder)

    def check_base(self, known: Mapping[str, Any]) -> None:
        """Compare the language model with that of the run whose weights were loaded.

        Raises
        ------
        CheckpointError
            If the adapter would be on another base model, which changes the answers.
        """
        check_base(self.resolved, self.config, known["rec_llm"], known["rec_llm_revision"], "rec_llm")

    def provenance(self) -> Mapping[str, Any]:
        """Return what a result must report about the language models, the prompt and what can be recommended."""
        encoder = self.seqsim.provenance() or {}
        return {
            "llm": encoder["llm"],
            "llm_revision": encoder["llm_revision"],
            "rec_llm": self.resolved.label(),
            "rec_llm_revision": self.resolved.revision,
            "rec_llm_init": self.settings.rec_llm_init,
            "variant": self.variant,
            "prompt": self.prompts.example,
            "item_title": self.item_text.template,
            "item_text_fingerprint": self.item_text.fingerprint(),
            "items_without_text": self.item_text.n_missing,
            "representatives": len(self.representatives) if self.variant == "classify" else None,
            "seqsim": encoder,
        }
