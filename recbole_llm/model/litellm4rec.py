"""LiteLLM4Rec (Wang et al., arXiv 2402.09543): items as vectors, sequences through an encoder, one projection.

    H   = adapt(pool(ItemLLM(tokens of the item's text)))       (n_items, d)      Eq. 1-3
    z   = RecLLM(inputs_embeds=H[history], mask)                (B, L, d)         Eq. 4
    h_u = mean of z over the history                            (B, d)
    y   = W_proj h_u, without bias                              (B, n_items)      Eq. 5
    loss = cross-entropy over all items, one target a sequence                    Eq. 6

What the paper leaves open is a switch in props/model/LiteLLM4Rec.yaml; none of it was checked against the authors'
code. Where H comes from is the business of :mod:`recbole_llm.layer.item_source`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn import functional

from recbole_llm.config.values import choice
from recbole_llm.data.candidates import CANDIDATES
from recbole_llm.errors import ConfigError
from recbole_llm.layer.item_loss import ItemLoss
from recbole_llm.layer.item_source import FrozenItems, ItemLLM, ItemSource, ItemTable, TextItems
from recbole_llm.layer.precision import product
from recbole_llm.llm.backbone import dtype_to_train, hidden_size, load_encoder
from recbole_llm.llm.resolve import resolve_llm
from recbole_llm.llm.spec import LLMSpec
from recbole_llm.model.base import TRAIN_STAGE, LLMRecommender

PAPER_LLM = "google-t5/t5-small"
FINETUNE = "stage2"
STAGES = {
    "frozen": [TRAIN_STAGE],
    "two_stage": [TRAIN_STAGE, FINETUNE],
    "joint": [TRAIN_STAGE],
    "joint_then_two_stage": [TRAIN_STAGE, FINETUNE],
}


class LiteLLM4Rec(LLMRecommender):
    """Encoder-only LLM over item vectors with an item projection head.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/LiteLLM4Rec.yaml`` and the ``llm`` keys of ``props/overall.yaml``.
    dataset : recbole Dataset
        Its folder holds the ``.item`` file with the texts.

    Attributes
    ----------
    item_source : ItemSource
        H; a table of its own in the second stage.
    rec_llm : transformers encoder
        With ``fix_rec_llm`` it is a fixed function: frozen weights, and no dropout inside.
    W_proj : torch.nn.Linear
        The head, ``weight`` of shape (n_items, d).

    Raises
    ------
    ConfigError
        For a value that is not allowed, or switches that contradict each other.
    """

    needs_item_text = True
    accepts_new_items = True
    evaluates_in_amp = True
    rec_llm: Any
    item_source: ItemSource

    @classmethod
    def view_for(cls, config: Any) -> str:
        """``_sampling`` trains on random segments, ``_all`` on every prefix (Sec. 4.4)."""
        return {"sampling": "segment", "all": "prefix"}[choice(config, "train_strategy", ["sampling", "all"])]

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.item_loss = ItemLoss.from_config(config, dataset)
        self.item_llm_mode = choice(config, "item_llm_mode", list(STAGES))
        self.seq_pool = choice(config, "seq_pool", ["mean", "last"])
        self._read_task(config)
        self.training_stages = STAGES[self.item_llm_mode][-1:] if self.task == "topn" else STAGES[self.item_llm_mode]

        places = choice(config, "dropout_place", ["t5", "vectors", "pooled", "vectors+pooled"])
        rate = float(config["dropout"])
        self.vector_dropout = nn.Dropout(rate if "vectors" in places else 0.0)
        self.pooled_dropout = nn.Dropout(rate if "pooled" in places else 0.0)
        inner = rate if places == "t5" else 0.0

        token_rms = self._build_rec_llm(config, inner)
        self.item_source = self._build_item_source(config, dataset, inner)
        self._build_scale(choice(config, "input_scale", ["none", "rms", "learned"]), token_rms)
        self.W_proj = nn.Linear(self.hidden_size, self.n_items, bias=False)
        self.head_init = choice(config, "head_init", ["default", "items"])
        if self.head_init == "items":
            with torch.no_grad():
                self.W_proj.weight.copy_(self.item_source.catalogue())
        if config["fix_head"]:
            self.W_proj.weight.requires_grad_(False)
        self.to(self.device)
        if self.training_stages == [FINETUNE]:
            self.start_stage(FINETUNE)

    def _read_task(self, config: Any) -> None:
        self.task = choice(config, "task", ["sequential", "topn"])
        self.topn_input = choice(config, "topn_input", ["history_candidates", "candidates"])
        self.scores_are_products = self.task == "sequential"
        if self.task == "topn" and self.item_loss.loss != "ce":
            raise ConfigError(
                f"loss={self.item_loss.loss!r} contradicts task='topn', which has candidates: use loss=ce."
            )
        if self.task == "topn" and not config["init_from"]:
            notice = (
                "task=topn without init_from: the paper fine-tunes a trained sequential model (Sec. 5.4), this run "
                "starts from the language model alone. Give --init_from=RUN_DIR of a run with task=sequential."
            )
            self.logger.warning(notice)
            if notice not in getattr(config, "notices", [notice]):
                config.notices.append(notice)

    # ---- what it is made of

    def _build_rec_llm(self, config: Any, dropout: float) -> float:
        """Load the Recommendation LLM; returns the root mean square of its token embeddings."""
        scratch = choice(config, "rec_llm_init", ["pretrained", "scratch"]) == "scratch"
        spec = LLMSpec.from_config(config, key="rec_llm", preferred=PAPER_LLM)
        self.rec_resolved = resolve_llm(spec, logger=self.logger, weights=not scratch)
        dtype = None if config["fix_rec_llm"] else dtype_to_train(self.rec_resolved)
        self.rec_llm = load_encoder(self.rec_resolved, not scratch, dtype, dropout, config["scratch_shape"])
        self.hidden_size = hidden_size(self.rec_llm)
        token_rms = self.rec_llm.get_input_embeddings().weight.detach().float().square().mean().sqrt().item()
        # Its pooler, and without sharing its token table, play no part: a sequence enters as vectors.
        if getattr(self.rec_llm, "pooler", None) is not None:
            self.rec_llm.pooler = None
        if not config["share_llm"]:
            self._drop_token_table()
        self.fix_rec_llm = bool(config["fix_rec_llm"])
        if self.fix_rec_llm:
            self.rec_llm.requires_grad_(False)
        return token_rms

    def _drop_token_table(self) -> None:
        self.rec_llm.set_input_embeddings(nn.Embedding(1, self.hidden_size, device=self.rec_llm.device))
        self.rec_llm.get_input_embeddings().weight.requires_grad_(False)

    def _build_item_source(self, config: Any, dataset: Any, dropout: float) -> TextItems:
        joint = self.item_llm_mode.startswith("joint")
        if config["share_llm"] and not joint:
            raise ConfigError(
                f"share_llm=True needs item_llm_mode=joint, not {self.item_llm_mode!r}: frozen vectors have no Item "
                "LLM to share."
            )
        source: TextItems
        if joint:
            shared = (self.rec_resolved, self.rec_llm) if config["share_llm"] else None
            source = ItemLLM(config, dataset, PAPER_LLM, self.logger, dropout, shared)
        else:
            source = FrozenItems(config, dataset, PAPER_LLM, self.logger)
        source.adapt_to(self.hidden_size, config)
        return source

    def _build_scale(self, kind: str, token_rms: float) -> None:
        self.learned_scale = nn.Parameter(torch.ones(())) if kind == "learned" else None
        self.fixed_scale = 1.0
        if kind == "rms":
            vector_rms = self.item_source.catalogue()[1:].square().mean().sqrt().item()
            self.fixed_scale = token_rms / max(vector_rms, 1e-12)

    def train(self, mode: bool = True) -> "LiteLLM4Rec":
        """As ``nn.Module.train``; a fixed Recommendation LLM stays in evaluation mode."""
        super().train(mode)
        if self.fix_rec_llm:
            self.rec_llm.eval()
        return self

    def start_stage(self, name: str) -> None:
        """Enter a stage of training; the second one fine-tunes the item vectors themselves (Sec. 4.4)."""
        if name != FINETUNE or not isinstance(self.item_source, TextItems):
            return
        shared = isinstance(self.item_source, ItemLLM) and self.item_source.llm is self.rec_llm
        self.item_source = ItemTable(self.item_source)
        if shared:
            self._drop_token_table()

    # ---- Eq. 1-6

    def forward(
        self, item_seq: torch.Tensor, item_seq_len: torch.Tensor, candidates: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return sequence vectors h_u.

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
        x = self._scaled(self.item_source.items(items))  # Eq. 1-3, (B, L, d)
        x = self.vector_dropout(x) * mask[..., None]
        z = self._through_rec_llm(x, mask)  # Eq. 4, (B, L, d)
        if self.seq_pool == "last" and candidates is None:
            h_u = self.gather_indexes(z, item_seq_len - 1)
        else:
            weight = mask[..., None].to(z.dtype)
            h_u = (z * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.pooled_dropout(h_u.float())

    def _scaled(self, vectors: torch.Tensor) -> torch.Tensor:
        vectors = vectors * self.fixed_scale
        return vectors if self.learned_scale is None else vectors * self.learned_scale

    def _through_rec_llm(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x.to(next(self.rec_llm.parameters()).dtype)
        return self.rec_llm(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state

    def user_vectors(self, interaction: Interaction) -> torch.Tensor:
        """Return h_u, shape (B, d)."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        if self.task == "sequential":
            return self.forward(item_seq, length)
        seen = item_seq if self.topn_input == "history_candidates" else item_seq[:, :0]
        return self.forward(seen, length, interaction[CANDIDATES])

    def catalogue_vectors(self) -> torch.Tensor:
        """Return the rows of W_proj, shape (n_items, d): their products with h_u are the scores (Eq. 5)."""
        return self.W_proj.weight

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Mean loss of the target: cross-entropy over the catalogue (Eq. 6), or over the top-N task's candidates."""
        h_u = self.user_vectors(interaction)
        target = interaction[self.POS_ITEM_ID]
        if self.task == "sequential":
            return self.item_loss(h_u, self.W_proj.weight, target)
        candidates = interaction[CANDIDATES]
        logits = torch.einsum("bd,bcd->bc", h_u, self.W_proj.weight[candidates])
        return functional.cross_entropy(logits, (candidates == target[:, None]).long().argmax(1))

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Return the scores of the catalogue, (B, n_items); padding, and in the top-N task other items, ``-inf``."""
        if self.task == "sequential":
            return super().full_sort_predict(interaction)
        candidates = interaction[CANDIDATES]
        scores = self.mask_padding(product(self.user_vectors(interaction), self.W_proj.weight))
        return torch.full_like(scores, -torch.inf).scatter(1, candidates, scores.gather(1, candidates))

    # ---- what a run keeps

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
        self.item_source.append(texts)
        self.n_items += len(texts)
        rows = self.item_source.catalogue()[-len(texts) :]
        self.W_proj.weight = nn.Parameter(torch.cat([self.W_proj.weight, rows.to(self.W_proj.weight)]))

    def provenance(self) -> dict[str, Any]:
        """Return what a result must say about the language models and the texts."""
        return {
            **self.item_source.provenance,
            "rec_llm": self.rec_resolved.label(),
            "rec_llm_revision": self.rec_resolved.revision,
        }
