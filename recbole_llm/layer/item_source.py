"""Where LiteLLM4Rec's item vectors come from: three modules with one interface.

    items(ids)   ids (...) -> vectors (..., d), with gradient in training
    table()      vectors of all items, (n_items, d), with gradient in training
    catalogue()  the same without gradient; padding is 0
    append(texts)  add items by their texts

:class:`FrozenItems` reads encoded texts from the cache, :class:`ItemLLM` runs the language model, and both adapt what
they get to the width d of the Recommendation LLM; :class:`ItemTable` is what they leave behind for a stage that trains
the vectors themselves.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from recbole_llm.config import Config
from recbole_llm.config.schema.blocks import Adaptor
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError
from recbole_llm.layer.adaptor import build_adaptor
from recbole_llm.llm.backbone import hidden_size, load_encoder, load_tokenizer
from recbole_llm.llm.dtype import dtype_to_train
from recbole_llm.llm.resolve import resolve_llm
from recbole_llm.llm.spec import LLMSpec
from recbole_llm.text.item_text import item_text_of
from recbole_llm.text.item_vectors import item_vectors_of
from recbole_llm.text.pooling import pool_tokens, pooling_of, special_ids
from recbole_llm.typing import LanguageModel

# Items that go through the Item LLM at once; above it activations are recomputed, not stored.
ITEM_CHUNK = 512
# Initial standard deviation of the items' own vectors: RecBole's, BERT's.
ID_STD = 0.02


class ItemSource(nn.Module):
    """Base of the three.

    Attributes
    ----------
    n_items : int
        Padding included.
    provenance : dict
        What a result must report about language model and texts.
    """

    n_items: int
    provenance: dict[str, Any]

    def items(self, ids: torch.Tensor) -> torch.Tensor:
        """Return vectors of items (...), shape (..., d); those of padding are to be masked by the caller."""
        raise NotImplementedError

    def table(self) -> torch.Tensor:
        """Return vectors of all items, shape (n_items, d), with gradient in training; padding is anything."""
        raise NotImplementedError

    def catalogue(self) -> torch.Tensor:
        """Return vectors of all items, shape (n_items, d), without gradient; padding is 0."""
        raise NotImplementedError

    def own_vectors(self) -> Sequence[nn.Parameter]:
        """Return the vectors that are trained themselves, one a row, rather than made from texts; by default none."""
        return []

    def append(self, texts: Sequence[str]) -> None:
        """Grow by items known by their texts.

        Raises
        ------
        ConfigError
            If texts can no longer be encoded.
        """
        raise NotImplementedError


class TextItems(ItemSource):
    """Vectors of texts, adapted to width d, and with ``residual_id`` a trained vector of each item added.

    A subclass gives vectors of texts in :meth:`text`, and their ``width``. The adaptor is made by :meth:`adapt_to`,
    which comes last.
    """

    width: int
    adapt: nn.Module
    ids: nn.Embedding | None
    adapts: bool
    _kept: torch.Tensor | None = None

    def text(self, ids: torch.Tensor) -> torch.Tensor:
        """Return vectors of the texts of items (...), shape (..., width)."""
        raise NotImplementedError

    def adapt_to(self, d: int, settings: Adaptor) -> None:
        """Create the adaptor and, if enabled, the items' own vectors.

        Raises
        ------
        ConfigError
            For ``adaptor: none`` between different widths.
        """
        kind = settings.adaptor or ("none" if self.width == d else "linear")
        if kind == "none" and self.width != d:
            raise ConfigError(
                f"adaptor=none: the item vectors have {self.width} columns and rec_llm takes {d}. Choose linear, mlp "
                "or moe, or leave the key alone."
            )
        adaptor = build_adaptor(replace(settings, adaptor=kind), self.width, d)
        self.adapt = nn.Identity() if adaptor is None else adaptor
        self.ids = None
        if settings.residual_id:
            self.ids = nn.Embedding(self.n_items, d, padding_idx=0)
            nn.init.normal_(self.ids.weight, std=ID_STD)
        self.adapts = adaptor is not None or self.ids is not None

    def items(self, ids: torch.Tensor) -> torch.Tensor:
        """Return adapted vectors of items (...), shape (..., d)."""
        return self._adapted(self.text(ids), ids)

    def table(self) -> torch.Tensor:
        """Return adapted vectors of all items, shape (n_items, d); in evaluation they are kept."""
        if self.training:
            return self.items(torch.arange(self.n_items, device=next(self.buffers()).device))
        if self._kept is None:
            self._kept = self.catalogue()
        return self._kept

    def train(self, mode: bool = True) -> "TextItems":
        """Set the mode as ``nn.Module.train``; drop vectors cached for an evaluation."""
        self._kept = None
        return super().train(mode)

    @torch.no_grad()
    def catalogue(self) -> torch.Tensor:
        """Return adapted vectors of all items, shape (n_items, d); padding is 0."""
        everything = torch.arange(self.n_items, device=next(self.buffers()).device)
        was_training = self.training
        self.eval()
        vectors = self._adapted(self.text(everything), everything)
        self.train(was_training)
        return vectors.index_fill(0, everything[:1], 0.0)

    def own_vectors(self) -> Sequence[nn.Parameter]:
        """Return those that ``residual_id`` adds."""
        return [] if self.ids is None else list(self.ids.parameters())

    def append(self, texts: Sequence[str]) -> None:
        """Add items by their texts; they have no vectors of their own."""
        self._append_texts(texts)
        self._kept = None
        if self.ids is not None:
            grown = functional.pad(self.ids.weight, (0, 0, 0, len(texts)))
            self.ids = nn.Embedding.from_pretrained(grown, freeze=False, padding_idx=0)
        self.n_items += len(texts)

    def _append_texts(self, texts: Sequence[str]) -> None:
        raise NotImplementedError

    def _adapted(self, text: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        vectors = self.adapt(text)
        return vectors if self.ids is None else vectors + self.ids(ids)


class FrozenItems(TextItems):
    """Texts that were encoded once: the Item LLM is not trained (``item_llm_mode: frozen``, ``table``, ``two_stage``).

    Parameters
    ----------
    config, dataset
        Of the model.
    preferred : str
        What ``llm: auto`` stands for.
    logger : logging.Logger
    """

    vectors: torch.Tensor

    def __init__(self, config: Config, dataset: HistoryDataset, preferred: str, logger: Any) -> None:
        super().__init__()
        found = item_vectors_of(dataset, config, preferred, logger)
        self.provenance, self.encode = found.provenance, found.encode
        self.n_items, self.width = found.vectors.shape
        self.register_buffer("vectors", torch.from_numpy(found.vectors))

    def text(self, ids: torch.Tensor) -> torch.Tensor:
        """Return vectors from the cache."""
        return self.vectors[ids]

    def _append_texts(self, texts: Sequence[str]) -> None:
        self.vectors = torch.cat([self.vectors, torch.from_numpy(self.encode(texts)).to(self.vectors)])


class ItemLLM(TextItems):
    """The Item LLM inside the batch loop (Algorithm 1, line 7), with gradient; every distinct item of a batch once.

    In evaluation the vectors of the catalogue are computed once and kept until training goes on.

    Parameters
    ----------
    config, dataset
        Of the model.
    preferred : str
        What ``llm: auto`` stands for.
    logger : logging.Logger
    dropout : float
        Inside the language model.
    shared : tuple of ResolvedLLM and module, optional
        The Recommendation LLM, which is then the Item LLM as well (``share_llm``).

    Raises
    ------
    ConfigError
        For a pooling without gradient, or a shared model of another name.
    """

    llm: LanguageModel
    tokens: torch.Tensor
    token_count: torch.Tensor
    has_text: torch.Tensor

    def __init__(
        self,
        config: Config,
        dataset: HistoryDataset,
        preferred: str,
        logger: Any,
        dropout: float,
        shared: tuple[Any, Any] | None,
    ) -> None:
        super().__init__()
        text = item_text_of(dataset, config)
        resolved = resolve_llm(LLMSpec.from_config(config, "llm", preferred), logger=logger)
        self.pooling = pooling_of(config, resolved, gradient=True)
        self.max_tokens = int(config["item_max_tokens"])
        self.provenance = {
            "llm": resolved.label(),
            "llm_revision": resolved.revision,
            "item_text": text.template,
            "item_text_fingerprint": text.fingerprint(),
            "items_without_text": text.n_missing,
        }
        if self.pooling == "sentence":
            raise ConfigError(
                "item_pooling=sentence runs a pipeline without gradient; with item_llm_mode="
                f"{config['item_llm_mode']} choose mean, cls, pooler or last."
            )
        if shared is None:
            self.llm = load_encoder(resolved, dtype=dtype_to_train(resolved), dropout=dropout)
            if self.pooling != "pooler" and getattr(self.llm, "pooler", None) is not None:
                self.llm.pooler = None
        elif shared[0].path != resolved.path:
            raise ConfigError(
                f"share_llm=True needs one model, but llm={resolved.name!r} and rec_llm={shared[0].name!r}."
            )
        else:
            self.llm = shared[1]
        self.tokenizer = load_tokenizer(resolved)
        self.special_ids = special_ids(self.tokenizer)
        # Not saved: they come from the texts and the tokenizer, which the run records.
        for name, values in self._tokenized(text.texts).items():
            self.register_buffer(name, values, persistent=False)
        self.n_items, self.width = len(text.texts), hidden_size(self.llm)

    def items(self, ids: torch.Tensor) -> torch.Tensor:
        """Return adapted vectors of items (...), shape (..., d)."""
        if self.training:
            distinct, place = torch.unique(ids, return_inverse=True)
            return super().items(distinct)[place]
        return self.table()[ids]

    def text(self, ids: torch.Tensor) -> torch.Tensor:
        """Return vectors of distinct items (n,), shape (n, width), from chunks of similar length."""
        order = self.token_count[ids].argsort()
        chunks = ids[order].split(ITEM_CHUNK)
        again = len(chunks) > 1 and torch.is_grad_enabled()
        parts = [
            checkpoint(self._encode, part, use_reentrant=False) if again else self._encode(part) for part in chunks
        ]
        vectors = torch.cat(parts)
        return torch.empty_like(vectors).index_copy(0, order, vectors)

    def _encode(self, ids: torch.Tensor) -> torch.Tensor:
        width = self.tokens.shape[1]
        if self.pooling != "mean_padded":
            width = int(self.token_count[ids].max())
        tokens = self.tokens[ids, :width].long()
        mask = (torch.arange(width, device=ids.device) < self.token_count[ids][:, None]).long()
        output = self.llm(input_ids=tokens, attention_mask=mask)
        return pool_tokens(output, tokens, mask, self.pooling, self.special_ids) * self.has_text[ids][:, None]

    def _tokenized(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        tokens = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_tokens,
            padding="max_length" if self.pooling == "mean_padded" else True,
            return_tensors="pt",
        )
        return {
            "tokens": tokens["input_ids"].to(torch.int32),
            "token_count": tokens["attention_mask"].sum(1),
            "has_text": torch.tensor([bool(text) for text in texts]),
        }

    def _append_texts(self, texts: Sequence[str]) -> None:
        new, pad = self._tokenized(texts), self.tokenizer.pad_token_id or 0
        width = max(self.tokens.shape[1], new["tokens"].shape[1])
        old, fresh = (
            functional.pad(tokens, (0, width - tokens.shape[1]), value=pad)
            for tokens in (self.tokens, new["tokens"].to(self.tokens))
        )
        self.tokens = torch.cat([old, fresh])
        self.token_count = torch.cat([self.token_count, new["token_count"].to(self.token_count)])
        self.has_text = torch.cat([self.has_text, new["has_text"].to(self.has_text)])


class ItemTable(ItemSource):
    """The vectors of a first stage as a table that is trained itself (Sec. 4.4); adaptor and Item LLM are gone.

    Parameters
    ----------
    source : TextItems
    """

    def __init__(self, source: TextItems) -> None:
        super().__init__()
        self.provenance = source.provenance
        # A text still leads to a row where nothing was learned on the way.
        self.encode = source.encode if isinstance(source, FrozenItems) and not source.adapts else None
        self.n_items = source.n_items
        self.rows = nn.Embedding.from_pretrained(source.catalogue(), freeze=False, padding_idx=0)

    def items(self, ids: torch.Tensor) -> torch.Tensor:
        """Return rows of the table, (..., d)."""
        return self.rows(ids)

    def table(self) -> torch.Tensor:
        """Return the table, (n_items, d)."""
        return self.rows.weight

    def catalogue(self) -> torch.Tensor:
        """Return the table, (n_items, d), without gradient."""
        return self.rows.weight.detach()

    def own_vectors(self) -> Sequence[nn.Parameter]:
        """Return the table."""
        return list(self.rows.parameters())

    def append(self, texts: Sequence[str]) -> None:
        """Add the vectors of texts, if the table started from such vectors."""
        if self.encode is None:
            raise ConfigError(
                "item_llm_mode: a second stage ends with a table of vectors, and what led from a text to them is not "
                "kept: train with item_llm_mode=frozen or joint to score new items."
            )
        old = self.rows.weight
        grown = torch.cat([old, torch.from_numpy(self.encode(texts)).to(old)])
        self.rows = nn.Embedding.from_pretrained(grown, freeze=False, padding_idx=0)
        self.n_items += len(texts)
