"""LiteLLM4Rec (Wang et al., arXiv 2402.09543): items as vectors, sequences through an encoder, one projection.

    H   = adapt(pool(ItemLLM(tokens of the item's text)))       (n_items, d)      Eq. 1-3
    z   = RecLLM(inputs_embeds=H[history], mask)                (B, L, d)         Eq. 4
    h_u = mean of z over the history                            (B, d)
    y   = h_u W^T, without bias                                 (B, n_items)      Eq. 5
    loss = cross-entropy over all items, one target a sequence                    Eq. 6

What the paper leaves open is a switch in props/model/LiteLLM4Rec.yaml; none of it was checked against the authors'
code.
"""

from collections.abc import Sequence
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from recbole_llm.config.values import choice
from recbole_llm.data.candidates import CANDIDATES
from recbole_llm.errors import ConfigError
from recbole_llm.layer.adaptor import build_adaptor
from recbole_llm.layer.item_loss import ItemLoss
from recbole_llm.layer.precision import product
from recbole_llm.llm.backbone import hidden_size, load_encoder, load_tokenizer
from recbole_llm.llm.resolve import resolve_llm
from recbole_llm.llm.spec import LLMSpec
from recbole_llm.model.base import LLMRecommender
from recbole_llm.text.item_text import item_text_of
from recbole_llm.text.item_vectors import item_vectors_of
from recbole_llm.text.pooling import pool_tokens, resolve_pooling

PAPER_LLM = "google-t5/t5-small"
FINETUNE = "stage2"
STAGES = {
    "frozen": ["train"],
    "two_stage": ["train", FINETUNE],
    "joint": ["train"],
    "joint_then_two_stage": ["train", FINETUNE],
}
# Items that go through the Item LLM at once in joint mode; above it activations are recomputed, not stored.
ITEM_CHUNK = 512
# Initial standard deviation of the items' own vectors: RecBole's, BERT's.
ID_STD = 0.02


class LiteLLM4Rec(LLMRecommender):
    """Encoder-only LLM over item vectors with an item projection head.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/LiteLLM4Rec.yaml`` and the ``llm`` keys of ``props/overall.yaml``.
    dataset : recbole Dataset
        Its folder holds the ``.item`` file with the texts.

    Raises
    ------
    ConfigError
        For a value that is not allowed, or switches that contradict each other.
    """

    needs_item_text = True
    accepts_new_items = True
    evaluates_in_amp = True
    rec_llm: Any
    item_llm: Any
    item_vectors: torch.Tensor

    @classmethod
    def view_for(cls, config: Any) -> str:
        """``_sampling`` trains on random segments, ``_all`` on every prefix (Sec. 4.4)."""
        return {"sampling": "segment", "all": "prefix"}[choice(config, "train_strategy", ["sampling", "all"])]

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.item_loss = ItemLoss.from_config(config, dataset)
        self.item_llm_mode = choice(config, "item_llm_mode", list(STAGES))
        self.seq_pool = choice(config, "seq_pool", ["mean", "last"])
        self.task = choice(config, "task", ["sequential", "topn"])
        if self.task == "topn" and self.item_loss.loss != "ce":
            raise ConfigError(
                f"loss={self.item_loss.loss!r} contradicts task='topn', which has candidates: use loss=ce."
            )
        self.topn_input = choice(config, "topn_input", ["history_candidates", "candidates"])
        self.joint = self.item_llm_mode.startswith("joint")
        self.training_stages = STAGES[self.item_llm_mode][-1:] if self.task == "topn" else STAGES[self.item_llm_mode]
        if config["share_llm"] and not self.joint:
            raise ConfigError(
                f"share_llm=True needs item_llm_mode=joint, not {self.item_llm_mode!r}: frozen vectors have no "
                f"Item LLM "
                "to share."
            )

        places = choice(config, "dropout_place", ["t5", "vectors", "pooled", "vectors+pooled"])
        rate = float(config["dropout"])
        self.vector_dropout = nn.Dropout(rate if "vectors" in places else 0.0)
        self.pooled_dropout = nn.Dropout(rate if "pooled" in places else 0.0)
        inner = rate if places == "t5" else 0.0

        # Recommendation LLM
        scratch = choice(config, "rec_llm_init", ["pretrained", "scratch"]) == "scratch"
        rec_spec = LLMSpec.from_config(config, key="rec_llm", preferred=PAPER_LLM)
        self.rec_resolved = resolve_llm(rec_spec, logger=self.logger, weights=not scratch)
        self.rec_llm = load_encoder(self.rec_resolved, not scratch, dropout=inner, shape=config["scratch_shape"])
        self.hidden_size = hidden_size(self.rec_llm)
        token_embedding = self.rec_llm.get_input_embeddings().weight
        token_rms = token_embedding.detach().float().square().mean().sqrt().item()
        # Its pooler, and without sharing its token table, play no part: a sequence enters as vectors.
        if getattr(self.rec_llm, "pooler", None) is not None:
            self.rec_llm.pooler = None
        if not config["share_llm"]:
            self.rec_llm.set_input_embeddings(nn.Embedding(1, self.hidden_size))
            self.rec_llm.get_input_embeddings().weight.requires_grad_(False)
        if config["fix_rec_llm"]:
            self.rec_llm.requires_grad_(False)

        # Item LLM
        if self.joint:
            self._build_item_llm(config, dataset, inner)
        else:
            found = item_vectors_of(dataset, config, PAPER_LLM, self.logger)
            self.source, self._encode, self.item_width = found.provenance, found.encode, found.vectors.shape[1]
            self.register_buffer("item_vectors", torch.from_numpy(found.vectors))
        self._build_adaptor(config)
        self.item_embedding: nn.Embedding | None = None
        self._eval_vectors: torch.Tensor | None = None

        # Scale of the vectors, and head; both may start from the item vectors.
        self._build_scale(choice(config, "input_scale", ["none", "rms", "learned"]), token_rms)
        self.head = nn.Linear(self.hidden_size, self.n_items, bias=False)
        self.head_init = choice(config, "head_init", ["default", "items"])
        if self.head_init == "items":
            with torch.no_grad():
                self.head.weight.copy_(self._all_item_vectors())
        if config["fix_head"]:
            self.head.weight.requires_grad_(False)
        self.scores_are_products = self.task == "sequential"
        self.to(self.device)
        if self.task == "topn" and self.training_stages == [FINETUNE]:
            self._use_item_table()

    # ---- items

    def _build_adaptor(self, config: Any) -> None:
        same = self.item_width == self.hidden_size
        kind = config["adaptor"] or ("none" if same else "linear")
        if kind == "none" and not same:
            raise ConfigError(
                f"adaptor=none: the item vectors have {self.item_width} columns and rec_llm takes {self.hidden_size}. "
                "Choose linear, mlp or moe, or leave the key alone."
            )
        keys = ("adaptor_hidden_size", "adaptor_experts", "adaptor_dropout")
        adaptor = build_adaptor(
            {"adaptor": kind, **{key: config[key] for key in keys}}, self.item_width, self.hidden_size
        )
        self.adapted = adaptor is not None or bool(config["residual_id"])
        self.adapt: nn.Module = nn.Identity() if adaptor is None else adaptor
        self.item_ids: nn.Embedding | None = None
        if config["residual_id"]:
            self.item_ids = nn.Embedding(self.n_items, self.hidden_size, padding_idx=0)
            nn.init.normal_(self.item_ids.weight, std=ID_STD)

    def _vector_of(self, text: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Text vectors (..., item_width) of items (...), adapted, and the items' own vectors added; (..., d)."""
        vectors = self.adapt(text)
        return vectors if self.item_ids is None else vectors + self.item_ids(items)

    def _build_item_llm(self, config: Any, dataset: Any, dropout: float) -> None:
        """The Item LLM as a module, and the tokens of every item; poolings with a gradient only."""
        text = item_text_of(dataset, config)
        self.item_resolved = resolve_llm(LLMSpec.from_config(config, "llm", PAPER_LLM), logger=self.logger)
        self.item_pooling = resolve_pooling(str(config["item_pooling"]), self.item_resolved)
        self.item_max_tokens = int(config["item_max_tokens"])
        self.source = {
            "llm": self.item_resolved.label(),
            "llm_revision": self.item_resolved.revision,
            "item_text": text.template,
            "item_text_fingerprint": text.fingerprint(),
            "items_without_text": text.n_missing,
        }
        if self.item_pooling == "sentence":
            raise ConfigError(
                "item_pooling=sentence runs a pipeline without gradient; with item_llm_mode="
                f"{self.item_llm_mode} choose mean, cls, pooler or last."
            )
        if config["share_llm"]:
            if self.item_resolved.path != self.rec_resolved.path:
                raise ConfigError(
                    f"share_llm=True needs one model, but llm={self.item_resolved.name!r} and "
                    f"rec_llm={self.rec_resolved.name!r}."
                )
            self.item_llm = self.rec_llm
        else:
            self.item_llm = load_encoder(self.item_resolved, dropout=dropout)
            if self.item_pooling != "pooler" and getattr(self.item_llm, "pooler", None) is not None:
                self.item_llm.pooler = None
        self.tokenizer = load_tokenizer(self.item_resolved)
        self.special_ids = tuple(self.tokenizer.all_special_ids)
        # Not saved: they come from the texts and the tokenizer, which the run records.
        for name, values in self._tokens_of(text.texts).items():
            self.register_buffer(name, values, persistent=False)
        self.item_width = hidden_size(self.item_llm)

    def _tokens_of(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        tokens = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.item_max_tokens,
            padding="max_length" if self.item_pooling == "mean_padded" else True,
            return_tensors="pt",
        )
        return {
            "item_tokens": tokens["input_ids"].to(torch.int32),
            "item_token_count": tokens["attention_mask"].sum(1),
            "item_has_text": torch.tensor([bool(text) for text in texts]),
        }

    def _through_item_llm(self, items: torch.Tensor) -> torch.Tensor:
        """Vectors of distinct items with gradient, shape (items, width); chunks of similar text length."""
        order = self.item_token_count[items].argsort()
        chunks = items[order].split(ITEM_CHUNK)
        parts = []
        for chunk in chunks:
            if len(chunks) > 1 and torch.is_grad_enabled():
                parts.append(checkpoint(self._encode_chunk, chunk, use_reentrant=False))
            else:
                parts.append(self._encode_chunk(chunk))
        vectors = torch.empty_like(torch.cat(parts))
        return vectors.index_copy(0, order, torch.cat(parts))

    def _encode_chunk(self, items: torch.Tensor) -> torch.Tensor:
        width = self.item_tokens.shape[1]
        if self.item_pooling != "mean_padded":
            width = int(self.item_token_count[items].max())
        ids = self.item_tokens[items, :width].long()
        mask = (torch.arange(width, device=ids.device) < self.item_token_count[items][:, None]).long()
        output = self.item_llm(input_ids=ids, attention_mask=mask)
        vectors = pool_tokens(output, ids, mask, self.item_pooling, self.special_ids)
        return vectors * self.item_has_text[items][:, None]

    def _all_item_vectors(self) -> torch.Tensor:
        """Adapted vectors of the whole catalogue, shape (n_items, d), without gradient; PAD is zero."""
        if self.item_embedding is not None:
            return self.item_embedding.weight
        everything = torch.arange(self.n_items, device=(self.item_tokens if self.joint else self.item_vectors).device)
        if not self.joint:
            return self._zero_pad(self._vector_of(self.item_vectors, everything))
        with torch.no_grad():
            return self._zero_pad(self._vector_of(self._through_item_llm(everything), everything))

    @staticmethod
    def _zero_pad(vectors: torch.Tensor) -> torch.Tensor:
        keep = torch.ones(len(vectors), 1, device=vectors.device)
        keep[0] = 0
        return vectors * keep

    def _vectors_of(self, items: torch.Tensor) -> torch.Tensor:
        """Adapted vectors of a batch's items, shape (\\*items.shape, d); padding is masked later."""
        if self.item_embedding is not None:
            return self.item_embedding(items)
        if not self.joint:
            return self._vector_of(self.item_vectors[items], items)
        if self.training:
            # Algorithm 1, line 7; every distinct item of the batch once.
            distinct, where = torch.unique(items, return_inverse=True)
            return self._vector_of(self._through_item_llm(distinct), distinct)[where]
        if self._eval_vectors is None:
            self._eval_vectors = self._all_item_vectors()
        return self._eval_vectors[items]

    def train(self, mode: bool = True) -> "LiteLLM4Rec":
        """As ``nn.Module.train``; item vectors kept for an evaluation end with it."""
        self._eval_vectors = None
        return super().train(mode)

    def start_stage(self, name: str) -> None:
        """Enter a stage of training; the second one fine-tunes the item vectors themselves (Sec. 4.4)."""
        if name == FINETUNE and self.item_embedding is None:
            self._use_item_table()

    def _use_item_table(self) -> None:
        was_training = self.training
        self.eval()
        with torch.no_grad():
            vectors = self._all_item_vectors().clone()
        self.item_embedding = nn.Embedding.from_pretrained(vectors, freeze=False, padding_idx=0)
        # The adaptor is folded into the table, the Item LLM has done its work.
        self.adapt, self.item_ids = nn.Identity(), None
        if self.joint:
            if self.item_llm is self.rec_llm:
                self.rec_llm.set_input_embeddings(nn.Embedding(1, self.hidden_size).to(vectors.device))
                self.rec_llm.get_input_embeddings().weight.requires_grad_(False)
            del self.item_llm, self.item_tokens, self.item_token_count, self.item_has_text
        else:
            del self.item_vectors
        self.train(was_training)

    # ---- sequences

    def _build_scale(self, kind: str, token_rms: float) -> None:
        self.learned_scale = nn.Parameter(torch.ones(())) if kind == "learned" else None
        self.fixed_scale = 1.0
        if kind == "rms":
            with torch.no_grad():
                vector_rms = self._all_item_vectors()[1:].square().mean().sqrt().item()
            self.fixed_scale = token_rms / max(vector_rms, 1e-12)

    def forward(
        self, item_seq: torch.Tensor, item_seq_len: torch.Tensor, candidates: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Sequence vectors h_u.

        Parameters
        ----------
        item_seq : torch.LongTensor, shape (B, L), right padded with 0
        item_seq_len : torch.LongTensor, shape (B,)
        candidates : torch.LongTensor, shape (B, C), optional
            Items of the top-N task; they follow the history in the input.

        Returns
        -------
        torch.Tensor, shape (B, d)
        """
        items = item_seq if candidates is None else torch.cat([item_seq, candidates], dim=1)
        mask = items > 0
        vectors = self._vectors_of(items) * self.fixed_scale
        if self.learned_scale is not None:
            vectors = vectors * self.learned_scale
        vectors = self.vector_dropout(vectors) * mask[..., None]
        states = self.rec_llm(
            inputs_embeds=vectors.to(next(self.rec_llm.parameters()).dtype), attention_mask=mask.long()
        ).last_hidden_state
        if self.seq_pool == "last" and candidates is None:
            pooled = self.gather_indexes(states, item_seq_len - 1)
        else:
            weight = mask[..., None].to(states.dtype)
            pooled = (states * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.pooled_dropout(pooled.float())

    def _sequence_vectors(self, interaction: Interaction) -> torch.Tensor:
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        if self.task == "sequential":
            return self.forward(item_seq, length)
        candidates = interaction[CANDIDATES]
        if self.topn_input == "candidates":
            item_seq = item_seq[:, :0]
        return self.forward(item_seq, length, candidates)

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Mean loss of the target: cross-entropy over the catalogue (Eq. 6), or over the top-N task's candidates."""
        h = self._sequence_vectors(interaction)
        target = interaction[self.POS_ITEM_ID]
        if self.task == "sequential":
            return self.item_loss(h, self.head.weight, target)
        candidates = interaction[CANDIDATES]
        logits = torch.einsum("bd,bcd->bc", h, self.head.weight[candidates])
        return functional.cross_entropy(logits, (candidates == target[:, None]).long().argmax(1))

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Score of ``ITEM_ID`` for every row, shape (B,)."""
        h = self._sequence_vectors(interaction)
        return (h * self.head.weight[interaction[self.ITEM_ID]]).sum(-1)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the whole catalogue, shape (B, n_items); padding and, in the top-N task, other items are "
        "``-inf``."""
        logits = self.mask_padding(product(self._sequence_vectors(interaction), self.head.weight))
        if self.task == "topn":
            candidates = interaction[CANDIDATES]
            rest = torch.full_like(logits, -torch.inf)
            return rest.scatter(1, candidates, logits.gather(1, candidates))
        return logits

    # ---- serving

    def user_vectors(self, interaction: Interaction) -> torch.Tensor:
        """h_u, (B, d): scores are products with :meth:`catalogue_vectors`."""
        return self._sequence_vectors(interaction)

    def catalogue_vectors(self) -> torch.Tensor:
        """Rows of the item projection head, (n_items, d)."""
        return self.head.weight

    @torch.no_grad()
    def append_items(self, texts: Sequence[str]) -> None:
        """Grow the catalogue by items known by their texts: their vectors are inputs and, as at the start, head rows.

        Raises
        ------
        ConfigError
            If a head row has nothing to do with the item's vector, or the way from text to vector is gone.
        """
        if self.head_init != "items":
            raise ConfigError(
                "With head_init=default a row of the head is learned from an item's interactions, and a new item has "
                "none: train with head_init=items, where it starts from the vector of the item's text."
            )
        if self.item_embedding is not None and (self.joint or self.adapted):
            raise ConfigError(
                f"item_llm_mode={self.item_llm_mode!r} ends with a table of vectors, and what led from a text to them "
                "is not kept: train with item_llm_mode=frozen or joint to score new items."
            )
        if self.joint:
            for name, new in self._tokens_of(texts).items():
                old = getattr(self, name)
                if old.ndim == 2:
                    pad, width = self.tokenizer.pad_token_id or 0, max(old.shape[1], new.shape[1])
                    old, new = (functional.pad(part, (0, width - part.shape[1]), value=pad) for part in (old, new))
                setattr(self, name, torch.cat([old, new.to(old)]))
        else:
            old = self.item_vectors if self.item_embedding is None else self.item_embedding.weight
            grown = torch.cat([old, torch.from_numpy(self._encode(texts)).to(old)])
            if self.item_embedding is None:
                self.item_vectors = grown
            else:
                self.item_embedding = nn.Embedding.from_pretrained(grown, freeze=False, padding_idx=0)
        if self.item_ids is not None:
            grown = functional.pad(self.item_ids.weight, (0, 0, 0, len(texts)))
            self.item_ids = nn.Embedding.from_pretrained(grown, freeze=False, padding_idx=0)
        self._eval_vectors = None
        self.n_items += len(texts)
        rows = self._all_item_vectors()[-len(texts) :]
        self.head.weight = nn.Parameter(torch.cat([self.head.weight, rows.to(self.head.weight)]))

    def provenance(self) -> dict[str, Any]:
        """What a result must say about the language models and the texts."""
        return {
            **self.source,
            "rec_llm": self.rec_resolved.label(),
            "rec_llm_revision": self.rec_resolved.revision,
        }
