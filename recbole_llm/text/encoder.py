"""Texts -> vectors with any encoder: T5, BERT-like, decoder LM or a sentence-transformers pipeline."""

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_llm import distributed
from recbole_llm.errors import ConfigError, DataError, RecBoleLLMError, is_out_of_memory
from recbole_llm.llm.backbone import hidden_size, load_encoder, load_tokenizer
from recbole_llm.llm.dtype import resolve_dtype
from recbole_llm.llm.hf import quiet_transformers
from recbole_llm.llm.resolve import resolve_llm
from recbole_llm.llm.spec import LLMSpec, ResolvedLLM
from recbole_llm.progress import Progress
from recbole_llm.text.cache import EmbeddingCache, text_digest
from recbole_llm.text.pooling import pool_tokens, resolve_pooling, special_ids
from recbole_llm.typing import ModelConfig, Tokenizer

MAX_TOKENS = 128
ENCODING = "Encode item texts"  # name of the pass on the screen
SAVE_EVERY = 16384  # texts: an interrupted run loses at most these

# Tokens of a batch, padding included. A CPU is fastest with batches that fit its caches.
_CPU_TOKENS, _GPU_TOKENS, _MAX_BATCH = 4096, 32768, 1024


class EncodingError(RecBoleLLMError, RuntimeError):
    """Raised for a text without a finite vector, or that does not fit into memory."""


class TextEncoder:
    """A language model that gives one vector per text.

    Parameters
    ----------
    resolved : ResolvedLLM
        From :func:`recbole_llm.llm.backbone.resolve_llm`.
    pooling : str
        * "mean": over the outputs of all real tokens, ``</s>``, [CLS] and [SEP] included;
        * "mean_no_eos": the same without the special tokens that the tokenizer adds;
        * "mean_padded": every text is padded to `max_tokens` and all positions count, padding too (the literal reading
          of a formula without a mask);
        * "cls": first token; "last": last real token; "pooler": the model's own pooler (BERT);
        * "sentence": the sentence-transformers pipeline with its own pooling and normalisation;
        * "auto": sentence for such a pipeline, last for a decoder LM, else mean.
    max_tokens : int
        Longer texts are cut (the model's own limit also applies).
    device : str or torch.device
        Where to compute.
    dtype : str, optional
        "float32", "bfloat16", "float16" or "auto"; default: that of the spec.
    prompt : str, optional
        Put before every text.
    normalize : bool
        Scale vectors to length 1.
    logger : logging.Logger, optional
        Takes messages.

    Attributes
    ----------
    dim : int
        Width d of the vectors.

    Raises
    ------
    ConfigError
        A parameter is not allowed, or the model has no pooler.
    ModelNotFoundError
        The model cannot be loaded.
    """

    def __init__(
        self,
        resolved: ResolvedLLM,
        pooling: str = "auto",
        max_tokens: int = MAX_TOKENS,
        device: str | torch.device = "cpu",
        dtype: str | None = None,
        prompt: str | None = None,
        normalize: bool = False,
        logger: logging.Logger | None = None,
    ):
        self.resolved = resolved
        self.pooling = resolve_pooling(pooling, resolved)
        self.device = torch.device(device)
        self.prompt = prompt or ""
        self.normalize = normalize
        self.logger = logger or logging.getLogger(__name__)
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            raise ConfigError(
                f"invalid value for item_max_tokens: {max_tokens!r} (choose a whole number of at least 1)."
            )
        if self.pooling == "sentence":
            self._pipeline = _load_pipeline(resolved, self.device, dtype)
            limit = self._pipeline.max_seq_length or max_tokens
            self._pipeline.max_seq_length = self.max_tokens = min(max_tokens, limit)
            self.dim = int(_pipeline_dim(self._pipeline))
        else:
            self.tokenizer = load_tokenizer(resolved)
            self.model = load_encoder(resolved, dtype=dtype).to(self.device)
            self.dim = hidden_size(self.model)
            self._special_ids = special_ids(self.tokenizer)
            self.max_tokens = min(max_tokens, _position_limit(self.model, self.tokenizer))
            if self.pooling == "pooler" and getattr(self.model, "pooler", None) is None:
                raise ConfigError(f"item_pooling: {resolved.name} has no trained pooler; choose cls or mean.")

    def encode(
        self,
        texts: Sequence[str],
        batch_size: int | str = "auto",
        show_progress: bool = True,
        passed: Progress | None = None,
    ) -> np.ndarray:
        """Return one vector per text, (n, d) float32, in the order of `texts`.

        A text without tokens (empty or blank) gives a zero vector. Batches hold texts of similar length; how they are
        formed changes a vector by rounding only.

        Parameters
        ----------
        texts : sequence of str
            The texts, without the prompt.
        batch_size : int or "auto"
            Texts of a batch; "auto" fills batches up to a number of tokens. A batch that does not fit into memory is
            halved, and the smaller size kept.
        show_progress : bool
            Show a bar where standard error is a terminal.
        passed : Progress, optional
            Where to count the texts; default: one of this call's own.

        Raises
        ------
        EncodingError
            A vector is not finite, or one text alone does not fit into memory.
        ConfigError
            `batch_size` is not allowed.
        """
        if batch_size != "auto" and (
            isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
        ):
            raise ConfigError(
                f"invalid value for item_batch_size: {batch_size!r} (choose auto or a whole number of at least 1)."
            )
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        filled = [i for i, text in enumerate(texts) if text.strip()]
        tokens = self._tokenize([texts[i] for i in filled])
        # longest first: if memory is too small, that shows at once
        order = sorted((k for k in range(len(filled)) if len(tokens[k])), key=lambda k: -len(tokens[k]))
        budget = _GPU_TOKENS if self.device.type == "cuda" else _CPU_TOKENS
        largest = _MAX_BATCH if batch_size == "auto" else int(batch_size)
        done = 0
        whole = passed or Progress(len(order), ENCODING, "texts", show_progress)
        with nullcontext(whole) if passed else whole:
            while done < len(order):
                longest = self.max_tokens if self.pooling == "mean_padded" else len(tokens[order[done]])
                size = min(max(budget // longest, 1), largest) if batch_size == "auto" else largest
                batch = order[done : done + size]
                try:
                    pooled = self._embed([texts[filled[k]] for k in batch], [tokens[k] for k in batch])
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    if len(batch) == 1:
                        raise EncodingError(
                            f"Out of memory while encoding one text of {len(tokens[batch[0]])} tokens with "
                            f"{self.resolved.name} on {self.device}: {texts[filled[batch[0]]][:80]!r}. Lower "
                            "item_max_tokens, set llm_dtype: bfloat16, choose a smaller llm or another device."
                        ) from error
                    largest = len(batch) // 2
                    self.logger.warning(
                        "Out of memory while encoding %d texts; going on with %d.", len(batch), largest
                    )
                    continue
                rows = [filled[k] for k in batch]
                self._check_finite(pooled, rows, texts)
                vectors[rows] = pooled
                done += len(batch)
                whole.update(len(batch))
        return vectors

    def _tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids of each text; in chunks, because Python lists of them would fill memory."""
        if self.pooling == "sentence":  # it tokenizes by itself: zeros as many as the tokens there may be
            sizes = (len((self.prompt + text).encode("utf-8", "replace")) // 3 + 2 for text in texts)
            return [np.zeros(min(size, self.max_tokens), dtype=np.int32) for size in sizes]
        ids: list[np.ndarray] = []
        with quiet_transformers():
            for start in range(0, len(texts), 1024):
                chunk = [self.prompt + text for text in texts[start : start + 1024]]
                encoded = self.tokenizer(chunk, truncation=True, max_length=self.max_tokens)["input_ids"]
                ids.extend(np.asarray(row, dtype=np.int32) for row in encoded)
        n_full = sum(len(row) == self.max_tokens for row in ids)
        if n_full:
            self.logger.info(
                "%d of %d texts fill item_max_tokens=%d and may be cut.", n_full, len(ids), self.max_tokens
            )
        return ids

    @torch.inference_mode()
    def _embed(self, texts: list[str], tokens: list[np.ndarray]) -> np.ndarray:
        """Return the vectors (B, d) of one batch."""
        if self.pooling == "sentence":
            vectors = self._pipeline.encode(
                texts,
                batch_size=len(texts),
                prompt=self.prompt or None,
                convert_to_tensor=True,
                show_progress_bar=False,
            ).float()
        else:
            length = self.max_tokens if self.pooling == "mean_padded" else max(len(row) for row in tokens)
            pad = self.tokenizer.pad_token_id or 0
            ids = torch.full((len(tokens), length), pad, dtype=torch.long)
            mask = torch.zeros((len(tokens), length), dtype=torch.long)
            for i, row in enumerate(tokens):
                ids[i, : len(row)] = torch.from_numpy(row.astype(np.int64))
                mask[i, : len(row)] = 1
            ids, mask = ids.to(self.device), mask.to(self.device)
            output = self.model(input_ids=ids, attention_mask=mask)
            vectors = pool_tokens(output, ids, mask, self.pooling, self._special_ids)
        if self.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu().numpy()

    def _check_finite(self, pooled: np.ndarray, rows: list[int], texts: Sequence[str]) -> None:
        bad = np.flatnonzero(~np.isfinite(pooled).all(axis=1))
        if len(bad):
            row = rows[int(bad[0])]
            raise EncodingError(
                f"{self.resolved.name} gave {len(bad)} vectors that are not finite, first for text {row} "
                f"({texts[row][:80]!r}). Half precision overflows in many models, T5 above all: set llm_dtype to "
                "bfloat16 or float32."
            )


def encode_items(
    texts: Sequence[str],
    llm: ResolvedLLM | LLMSpec,
    *,
    pooling: str = "auto",
    max_tokens: int = MAX_TOKENS,
    prompt: str | None = None,
    normalize: bool = False,
    dtype: str | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | str = "auto",
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
    logger: logging.Logger | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the vectors of a catalogue's texts, from the cache if they are there.

    Neither model nor tokenizer is loaded when every text is in the cache. Equal texts are encoded once. Of several
    processes that start on a cold cache one encodes, in one run the first on each machine; the others wait and read.

    Parameters
    ----------
    texts : sequence of str
        One per internal item id; ``texts[0]`` (PAD) is empty.
    llm : ResolvedLLM or LLMSpec
        The model.
    pooling, max_tokens, prompt, normalize, dtype, device
        As for :class:`TextEncoder`.
    batch_size, show_progress
        As for :meth:`TextEncoder.encode`.
    cache_dir : str or Path, optional
        Default: :func:`recbole_llm.text.cache.default_cache_dir`.
    logger : logging.Logger, optional
        Takes messages.

    Returns
    -------
    vectors : numpy.ndarray, shape (n, d), float32
        The row of an empty text, and so that of PAD, is zero.
    info : dict
        name, revision, source, label, pooling, max_tokens, prompt, normalize, dtype, dim, n_texts, n_encoded (distinct
        texts the model read), n_cached (distinct texts found in the cache), n_empty, seconds, cache_file (folder).

    Raises
    ------
    DataError
        No text at all.
    ConfigError, ModelNotFoundError, EncodingError
        As :class:`TextEncoder`.
    """
    started = time.perf_counter()
    logger = logger or logging.getLogger(__name__)
    resolved = resolve_llm(llm, logger) if isinstance(llm, LLMSpec) else llm
    pooling = resolve_pooling(pooling, resolved)
    key = {
        "name": resolved.name,
        "revision": resolved.revision,
        "pooling": pooling,
        "prompt": prompt or "",
        "max_tokens": max_tokens,
        "dtype": str(resolve_dtype(resolved, dtype)).removeprefix("torch."),
        "normalize": normalize,
    }
    cache = EmbeddingCache(key, cache_dir, logger)
    digest_of = {text: text_digest(text) for text in dict.fromkeys(texts) if text.strip()}
    if not digest_of:
        raise DataError("No item has a text, so there is nothing to encode.")
    text_of = {digest: text for text, digest in digest_of.items()}
    n_encoded = 0
    with distributed.main_of_machine_first():
        found = cache.lookup(list(text_of))
        if len(found) < len(text_of):
            with cache.lock():
                found = cache.lookup(list(text_of), locked=True)  # another process may have been faster
                absent = [digest for digest in text_of if digest not in found]
                n_encoded = len(absent)
                if absent:
                    logger.info("Encoding %d texts with %s (%d cached).", n_encoded, resolved.label(), len(found))
                    encoder = TextEncoder(resolved, pooling, max_tokens, device, dtype, prompt, normalize, logger)
                with Progress(n_encoded, ENCODING, "texts", show_progress) as passed:
                    for start in range(0, n_encoded, SAVE_EVERY):
                        part = absent[start : start + SAVE_EVERY]
                        vectors = encoder.encode([text_of[digest] for digest in part], batch_size, passed=passed)
                        cache.add(part, vectors)
                        found.update(zip(part, vectors, strict=True))
    dim = len(next(iter(found.values())))
    result = np.zeros((len(texts), dim), dtype=np.float32)
    for row, text in enumerate(texts):
        if text in digest_of:
            result[row] = found[digest_of[text]]
    info = {
        **key,
        "source": resolved.source,
        "label": resolved.label(),
        "dim": dim,
        "n_texts": len(texts),
        "n_encoded": n_encoded,
        "n_cached": len(text_of) - n_encoded,
        "n_empty": sum(text not in digest_of for text in texts),
        "seconds": time.perf_counter() - started,
        "cache_file": str(cache.folder),
    }
    return result, info


def _load_pipeline(resolved: ResolvedLLM, device: torch.device, dtype: str | None) -> Any:
    from sentence_transformers import SentenceTransformer  # seconds to import, so only where it is used

    from recbole_llm.errors import ModelNotFoundError

    try:
        with quiet_transformers():
            return SentenceTransformer(
                resolved.path,
                device=str(device),
                local_files_only=True,
                trust_remote_code=resolved.spec.trust_remote_code,
                model_kwargs={"dtype": resolve_dtype(resolved, dtype), "use_safetensors": True},
            ).eval()
    except Exception as error:
        raise ModelNotFoundError(
            f"llm: the sentence-transformers pipeline in {resolved.path} cannot be loaded ({type(error).__name__}: "
            f"{error}). Fetch the model again, or set item_pooling: mean to use its transformer alone."
        ) from error


def _pipeline_dim(pipeline: Any) -> int:
    # renamed in sentence-transformers 5.4
    get = getattr(pipeline, "get_embedding_dimension", None) or pipeline.get_sentence_embedding_dimension
    return get()


def _position_limit(model: torch.nn.Module, tokenizer: Tokenizer) -> int:
    """Return how many tokens the model can read; T5 has no limit."""
    config: ModelConfig = model.config
    limits = [tokenizer.model_max_length]  # a huge number where the tokenizer does not say
    if config.model_type not in ("t5", "mt5", "umt5", "longt5") and isinstance(
        getattr(config, "max_position_embeddings", None), int
    ):
        limits.append(config.max_position_embeddings)
    return min(limits)
