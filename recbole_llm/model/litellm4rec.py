"""LiteLLM4Rec (Wang et al., arXiv 2402.09543): items as vectors, sequences through an encoder, one projection.

    H   = adapt(pool(ItemLLM(tokens of the item's text)))       (n_items, d)      Eq. 1-3
    z   = RecLLM(inputs_embeds=H[history], mask)                (B, L, d)         Eq. 4
    h_u = mean of z over the history                            (B, d)
    y   = W_proj h_u, without bias                              (B, n_items)      Eq. 5
    loss = cross-entropy over all items, one target a sequence                    Eq. 6

What the paper leaves open is a switch in props/model/LiteLLM4Rec.yaml; none of it was checked against the authors'
code. :mod:`recbole_llm.layer.item_source` computes H.

Beyond the paper: with ``rec_llm_attention: causal`` a position attends only to those before it, as in a decoder.
Then one pass gives h_u of every prefix, ``train_strategy: all`` trains on whole sequences with a target at every
position, and the mean of Eq. 4 is a running one. ``head: tied`` scores against H itself (as HLLM does, arXiv
2409.12740), so that items without interactions are scored and the head costs no weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn import functional

from recbole_llm.config import Config
from recbole_llm.config.schema import models as schema
from recbole_llm.contract import TRAIN_STAGE, LLMRecommender
from recbole_llm.data.candidates import CANDIDATES
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.rows import NEXT
from recbole_llm.errors import ConfigError
from recbole_llm.layer.item_loss import ItemLoss
from recbole_llm.layer.item_source import FrozenItems, ItemLLM, ItemSource, ItemTable, TextItems
from recbole_llm.layer.rec_llm import causal_states, keep_layers, reads_others, states
from recbole_llm.llm.backbone import hidden_size, load_encoder
from recbole_llm.llm.dtype import dtype_to_train
from recbole_llm.llm.lora import add_lora, check_base, save_adapters
from recbole_llm.llm.resolve import resolve_llm
from recbole_llm.llm.spec import LLMSpec
from recbole_llm.precision import product
from recbole_llm.typing import LanguageModel

PAPER_LLM = "google-t5/t5-small"
FINETUNE = "stage2"
STAGES = {
    "frozen": [TRAIN_STAGE],
    "two_stage": [TRAIN_STAGE, FINETUNE],
    "table": [FINETUNE],
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
        H; a separate table in the second stage.
    rec_llm : transformers encoder
        With ``fix_rec_llm`` it is a fixed function: frozen weights, and no dropout inside.
    W_proj : torch.nn.Linear or None
        The head, ``weight`` of shape (n_items, d); None with ``head: tied``.

    Raises
    ------
    ConfigError
        For an invalid value, or settings that contradict each other.
    """

    needs_item_text = True
    accepts_new_items = True
    evaluates_in_amp = True
    rec_llm: LanguageModel
    item_source: ItemSource

    @classmethod
    def view_for(cls, config: Config) -> str:
        """Return the view: random segments (``sampling``); all prefixes (``all``, Sec. 4.4), at once if causal."""
        settings = schema.LiteLLM4Rec.of(config)
        every = "sequence" if settings.rec_llm_attention == "causal" else "prefix"
        return {"sampling": "segment", "all": every}[settings.train_strategy]

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        self.settings = settings = schema.LiteLLM4Rec.of(config)
        self.item_loss = ItemLoss.from_config(config, dataset)
        self.item_llm_mode, self.seq_pool = settings.item_llm_mode, settings.seq_pool
        self.causal = settings.rec_llm_attention == "causal"
        self.tied = settings.head == "tied"
        self._read_task(config)
        self._refuse_contradictions(config)
        self.training_stages = STAGES[self.item_llm_mode][-1:] if self.task == "topn" else STAGES[self.item_llm_mode]

        places, rate = settings.dropout_place, settings.dropout
        self.vector_dropout = nn.Dropout(rate if "vectors" in places else 0.0)
        self.pooled_dropout = nn.Dropout(rate if "pooled" in places else 0.0)
        inner = rate if places == "t5" else 0.0

        token_rms = self._build_rec_llm(config, inner)
        self.item_source = self._build_item_source(config, dataset, inner)
        self._build_scale(settings.input_scale, token_rms)
        self._build_head()
        self.to(self.device)
        if self.training_stages == [FINETUNE]:
            self.start_stage(FINETUNE)

    def _read_task(self, config: Config) -> None:
        self.task, self.topn_input = self.settings.task, self.settings.topn_input
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

    def _refuse_contradictions(self, config: Config) -> None:
        if config["train_view"] == "sequence" and not self.causal:
            raise ConfigError(
                "train_view=sequence contradicts rec_llm_attention=bidirectional, where a position sees its target: "
                "set rec_llm_attention=causal."
            )
        attention = LLMSpec.from_config(config, key="rec_llm", preferred=PAPER_LLM).attn_implementation
        if self.causal and attention == "flash_attention_2":
            raise ConfigError(
                "rec_llm_attention=causal packs sequences by a mask, which flash_attention_2 does not take: use "
                "rec_llm_attn_implementation=sdpa or eager."
            )
        if self.task == "topn" and (self.causal or self.tied):
            raise ConfigError("task=topn needs the paper's rec_llm_attention=bidirectional and head=projection.")
        if self.tied and self.settings.fix_head:
            raise ConfigError("fix_head=True contradicts head=tied, which has no separate weights.")
        if self.tied and self.item_llm_mode.startswith("joint"):
            raise ConfigError(
                f"head=tied with item_llm_mode={self.item_llm_mode!r} would run the whole catalogue through the Item "
                "LLM at every step: use item_llm_mode=frozen, table or two_stage."
            )
        if self.settings.share_llm and self.settings.rec_llm_layers is not None:
            raise ConfigError("rec_llm_layers contradicts share_llm=True, whose Item LLM needs all layers.")
        if self.settings.rec_llm_tuning == "lora":
            others = {"share_llm": True, "fix_rec_llm": True, "rec_llm_init": "scratch"}
            for key, value in others.items():
                if getattr(self.settings, key) == value:
                    raise ConfigError(f"rec_llm_tuning=lora contradicts {key}={value}: use rec_llm_tuning=full.")

    # ---- what it is made of

    def _build_rec_llm(self, config: Config, dropout: float) -> float:
        """Load the Recommendation LLM; returns the root mean square of its token embeddings."""
        settings = self.settings
        scratch = settings.rec_llm_init == "scratch"
        spec = LLMSpec.from_config(config, key="rec_llm", preferred=PAPER_LLM)
        self.rec_resolved = resolve_llm(spec, logger=self.logger, weights=not scratch)
        self.lora, self.fix_rec_llm = settings.rec_llm_tuning == "lora", settings.fix_rec_llm
        dtype = None if self.lora or self.fix_rec_llm else dtype_to_train(self.rec_resolved)
        self.rec_llm = load_encoder(self.rec_resolved, not scratch, dtype, dropout, settings.scratch_shape)
        self.hidden_size = hidden_size(self.rec_llm)
        token_rms = self.rec_llm.get_input_embeddings().weight.detach().float().square().mean().sqrt().item()
        # Its pooler, and without sharing its token table, play no part: a sequence enters as vectors.
        if getattr(self.rec_llm, "pooler", None) is not None:
            self.rec_llm.pooler = None
        if not settings.share_llm:
            self._drop_token_table()
        if settings.rec_llm_layers is not None:
            keep_layers(self.rec_llm, settings.rec_llm_layers, self.rec_resolved.name)
        self._check_attention()
        if self.fix_rec_llm:
            self.rec_llm.requires_grad_(False)
        if self.lora:
            shape = settings.lora_r, settings.lora_alpha, settings.lora_dropout
            targets = settings.lora_target_modules
            self.rec_llm = add_lora(self.rec_llm, self.rec_resolved, *shape, targets, "FEATURE_EXTRACTION")
        return token_rms

    def _check_attention(self) -> None:
        """Check the attention: decoders are causal anyway, encoders become so by a mask if they heed it."""
        if self.rec_resolved.family == "decoder" and not self.causal:
            raise ConfigError(
                f"rec_llm_attention=bidirectional: {self.rec_resolved.name} is a decoder, which reads from left to "
                "right. Set rec_llm_attention=causal, or use an encoder as rec_llm."
            )
        if self.causal and reads_others(self.rec_llm, self.hidden_size):
            raise ConfigError(
                f"rec_llm_attention=causal: {self.rec_resolved.name} does not honour a causal mask. Use a T5, a "
                "BERT-type encoder or a decoder as rec_llm."
            )

    def _drop_token_table(self) -> None:
        self.rec_llm.set_input_embeddings(nn.Embedding(1, self.hidden_size, device=self.rec_llm.device))
        self.rec_llm.get_input_embeddings().weight.requires_grad_(False)

    def _build_item_source(self, config: Config, dataset: HistoryDataset, dropout: float) -> TextItems:
        joint = self.item_llm_mode.startswith("joint")
        if self.settings.share_llm and not joint:
            raise ConfigError(
                f"share_llm=True needs item_llm_mode=joint, not {self.item_llm_mode!r}: frozen vectors have no Item "
                "LLM to share."
            )
        source: TextItems
        if joint:
            shared = (self.rec_resolved, self.rec_llm) if self.settings.share_llm else None
            source = ItemLLM(config, dataset, PAPER_LLM, self.logger, dropout, shared)
        else:
            source = FrozenItems(config, dataset, PAPER_LLM, self.logger)
        source.adapt_to(self.hidden_size, self.settings)
        return source

    def _build_scale(self, kind: str, token_rms: float) -> None:
        self.learned_scale = nn.Parameter(torch.ones(())) if kind == "learned" else None
        self.fixed_scale = 1.0
        if kind == "rms":
            vector_rms = self.item_source.catalogue()[1:].square().mean().sqrt().item()
            self.fixed_scale = token_rms / max(vector_rms, 1e-12)

    def _build_head(self) -> None:
        self.head_init = self.settings.head_init
        self.W_proj: nn.Linear | None = None
        if self.tied:
            return
        self.W_proj = nn.Linear(self.hidden_size, self.n_items, bias=False)
        if self.head_init == "items":
            with torch.no_grad():
                self.W_proj.weight.copy_(self.item_source.catalogue())
        if self.settings.fix_head:
            self.W_proj.weight.requires_grad_(False)

    def train(self, mode: bool = True) -> "LiteLLM4Rec":
        """As ``nn.Module.train``; a fixed Recommendation LLM stays in evaluation mode."""
        super().train(mode)
        if self.fix_rec_llm:
            self.rec_llm.eval()
        return self

    def own_learning_rates(self) -> Mapping[nn.Parameter, float]:
        """Return the item vectors that are trained themselves with ``item_learning_rate``, if it is set."""
        rate = self.settings.item_learning_rate
        return {} if rate is None else {table: rate for table in self.item_source.own_vectors()}

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
        if self.causal:
            return self.gather_indexes(self.prefix_vectors(item_seq), item_seq_len - 1)
        items = item_seq if candidates is None else torch.cat([item_seq, candidates], dim=1)
        z, mask = self._states(items)
        if self.seq_pool == "last" and candidates is None:
            h_u = self.gather_indexes(z, item_seq_len - 1)
        else:
            weight = mask[..., None].to(z.dtype)
            h_u = (z * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.pooled_dropout(h_u.float())

    def prefix_vectors(self, item_seq: torch.Tensor) -> torch.Tensor:
        """Return h_u of every prefix, from one causal pass: (B, L) -> (B, L, d)."""
        z, mask = self._states(item_seq)
        if self.seq_pool == "mean":
            weight = mask[..., None].float()
            z = (z.float() * weight).cumsum(1) / weight.cumsum(1).clamp(min=1)
        return self.pooled_dropout(z.float())

    def _states(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return outputs z of the Recommendation LLM, (B, L, d), and which positions are real, (B, L)."""
        mask = items > 0
        x = self.item_source.items(items) * self.fixed_scale  # Eq. 1-3
        if self.learned_scale is not None:
            x = x * self.learned_scale
        x = self.vector_dropout(x) * mask[..., None]
        return (causal_states if self.causal else states)(self.rec_llm, x, mask), mask  # Eq. 4

    def user_vectors(self, interaction: Interaction) -> torch.Tensor:
        """Return h_u, shape (B, d)."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        if self.task == "sequential":
            return self.forward(item_seq, length)
        seen = item_seq if self.topn_input == "history_candidates" else item_seq[:, :0]
        return self.forward(seen, length, interaction[CANDIDATES])

    def catalogue_vectors(self) -> torch.Tensor:
        """Return the rows of W_proj, or H, shape (n_items, d): their products with h_u are the scores (Eq. 5)."""
        return self.item_source.table() if self.W_proj is None else self.W_proj.weight

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Mean loss of the targets: cross-entropy over the catalogue (Eq. 6), or over the top-N task's candidates."""
        if NEXT + self.ITEM_SEQ in interaction:
            target = interaction[NEXT + self.ITEM_SEQ]
            h_u = self.prefix_vectors(interaction[self.ITEM_SEQ])
            return self.item_loss(h_u[target > 0], self.catalogue_vectors(), target[target > 0])
        h_u, target = self.user_vectors(interaction), interaction[self.POS_ITEM_ID]
        if self.task == "sequential":
            return self.item_loss(h_u, self.catalogue_vectors(), target)
        candidates = interaction[CANDIDATES]
        logits = torch.einsum("bd,bcd->bc", h_u, self.catalogue_vectors()[candidates])
        return functional.cross_entropy(logits, (candidates == target[:, None]).long().argmax(1))

    def loss_weight(self, interaction: Interaction) -> torch.Tensor | float:
        """Return how many targets :meth:`calculate_loss` averaged over."""
        following = NEXT + self.ITEM_SEQ
        return (interaction[following] > 0).sum() if following in interaction else len(interaction)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Return the scores of the catalogue, (B, n_items); padding, and in the top-N task other items, ``-inf``."""
        if self.task == "sequential":
            return super().full_sort_predict(interaction)
        candidates = interaction[CANDIDATES]
        scores = self.mask_padding(product(self.user_vectors(interaction), self.catalogue_vectors()))
        return torch.full_like(scores, -torch.inf).scatter(1, candidates, scores.gather(1, candidates))

    # ---- what a run keeps

    @torch.no_grad()
    def append_items(self, texts: Sequence[str]) -> None:
        """Add items to the catalogue by their texts: their vectors are inputs and, as at the start, head rows.

        Raises
        ------
        ConfigError
            If head rows do not depend on item vectors, or texts can no longer be encoded.
        """
        if self.W_proj is not None and self.head_init != "items":
            raise ConfigError(
                "With head_init=default a row of the head is learned from an item's interactions, and a new item has "
                "none: train with head_init=items, where it starts from the vector of the item's text, or head=tied."
            )
        self.item_source.append(texts)
        self.n_items += len(texts)
        if self.W_proj is None:
            return
        rows = self.item_source.catalogue()[-len(texts) :]
        self.W_proj.weight = nn.Parameter(torch.cat([self.W_proj.weight, rows.to(self.W_proj.weight)]))

    def save_adapter(self, folder: Path) -> None:
        """Write the adapters of the Recommendation LLM in PEFT's format, if it has any."""
        if self.lora:
            save_adapters(self.rec_llm, {"tuning": "lora"}, folder)

    def check_base(self, known: Mapping[str, Any]) -> None:
        """Compare the Recommendation LLM with that of the run whose weights were loaded.

        Raises
        ------
        CheckpointError
            If its weights were not saved with the run and have changed since.
        """
        if self.lora or self.fix_rec_llm:
            check_base(self.rec_resolved, {"tuning": "lora"}, known["rec_llm"], known["rec_llm_revision"], "rec_llm")

    def provenance(self) -> dict[str, Any]:
        """Return what a result must report about the language models and the texts."""
        return {
            **self.item_source.provenance,
            "rec_llm": self.rec_resolved.label(),
            "rec_llm_revision": self.rec_resolved.revision,
        }
