"""Base of hybrids: finished models as members, and settings chosen on validation data rather than learned.

A hybrid trains nothing. Its members are run directories, or models that need no training; its weights file holds the
members' hashes and the chosen setting.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction

from recbole_llm.config import Config
from recbole_llm.config.registry import own_models, stock_models
from recbole_llm.config.values import nearest
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.mask import EXCLUDED, WHOLE_HISTORY, excluded
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.files import file_sha256
from recbole_llm.run import submodel
from recbole_llm.run.results import read_results
from recbole_llm.trainer import checkpoint


class Member:
    """A finished model that scores the outer run's items. No module: a hybrid's checkpoint must not hold its weights.

    Parameters
    ----------
    source : str, path or mapping
        Run directory; name of a model that needs no training; or its settings, with the name in ``model``, by default
        LLMSeqSim.
    config : Config
        Of the hybrid's run.
    dataset : HistoryDataset
        Its training split.

    Raises
    ------
    ConfigError
        For an unknown source, or a model that would have to be trained.
    CheckpointError
        For a run on other data, with another split or with other items; hashes of differing files are named.
    """

    def __init__(self, source: Any, config: Config, dataset: HistoryDataset) -> None:
        settings = dict(source) if isinstance(source, Mapping) else {}
        name = str(settings.pop("model", "LLMSeqSim") if isinstance(source, Mapping) else source)
        self.run_dir = Path(name) if (Path(name) / "config.yaml").is_file() else None
        self.settings = settings
        self.digest: str | None = None
        self.run: dict[str, Any] | None = None
        items = dataset.field2id_token[dataset.iid_field]
        if self.run_dir is not None:
            if settings:
                raise ConfigError(
                    f"The member {name!r} is a finished run; its settings ({', '.join(settings)}) cannot be changed."
                )
            self.model = submodel.load_trained(self.run_dir, config, dataset)
            self.digest = file_sha256(self.run_dir / checkpoint.WEIGHTS)
            self.run = read_results(self.run_dir)
            self.name = str(self.model.config["model"])
            self.label = f"{self.name} ({self.run_dir.name})"
            own_items = self.model.item_tokens
        else:
            self.model = self._untrained(name, settings, config, dataset)
            self.name = name
            self.label = name + (
                f" ({', '.join(f'{key}={value}' for key, value in settings.items())})" * bool(settings)
            )
            own_items = items
        self._length_field = config["ITEM_LIST_LENGTH_FIELD"]
        self._list_suffix = config["LIST_SUFFIX"]
        self._item_list = config["ITEM_ID_FIELD"] + self._list_suffix
        self._own_id = self._translate(own_items, items)

    @staticmethod
    def _untrained(name: str, settings: Mapping[str, Any], config: Config, dataset: HistoryDataset) -> LLMRecommender:
        known = own_models() + stock_models()
        if name not in known and ":" not in name:
            raise ConfigError(
                f"The member {name!r} is neither a run directory (there is no {Path(name) / 'config.yaml'}) nor a "
                f"model.{nearest(name, known)}"
            )
        if name in (config["model"], config.merged["model"]):
            raise ConfigError(f"{name} cannot be a member of itself; give a run directory.")
        model = submodel.build(submodel.inner_config(name, config, settings), dataset)
        if any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError(
                f"The member {name!r} has to be trained: run --model={name} --dataset={config['dataset']} first and "
                "give its run directory."
            )
        return model.eval()

    def _translate(self, own: np.ndarray, outer: np.ndarray) -> torch.Tensor | None:
        """Own id of each item of the run, through raw tokens; None where they are the same."""
        if np.array_equal(own, outer):
            return None
        index = pd.Index(own).get_indexer(pd.Index(outer))
        if (index < 0).any():
            missing = outer[index < 0]
            raise CheckpointError(
                f"{self.label} does not know {len(missing)} items of this run, such as {str(missing[0])!r}. Train it "
                "again with the same filters."
            )
        return torch.from_numpy(index.astype(np.int64))

    def eval(self) -> "Member":
        """Members always are in evaluation mode."""
        return self

    @property
    def needs_item_text(self) -> bool:
        """Whether it reads item text."""
        return self.model.needs_item_text

    @torch.no_grad()
    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the run's items in float32, shape (B, n_items); padding is ``-inf``.

        The member sees as much of the history as in its own run.
        """
        rows = submodel.newest(interaction, self._length_field, self.model.max_seq_length, self._list_suffix)
        if self._own_id is not None:
            own_id = self._own_id.to(rows[self._item_list].device)
            named = (self._item_list, EXCLUDED, WHOLE_HISTORY)
            own = {name: own_id[rows[name]] for name in named if name in rows}
            rows = Interaction({**rows.interaction, **own})
        try:
            scores = self.model.full_sort_predict(rows)
        except NotImplementedError as error:
            raise ConfigError(
                f"{self.name} does not score the whole catalogue at once and cannot be a member."
            ) from error
        scores = scores.view(len(rows), -1).float()
        if self._own_id is not None:
            scores = scores[:, self._own_id.to(scores.device)]
        return LLMRecommender.mask_padding(scores)

    def provenance(self) -> dict[str, Any]:
        """Return what a result must report about this member."""
        return {
            "member": self.label,
            "model": self.name,
            "run_dir": None if self.run_dir is None else str(self.run_dir),
            "weights_sha256": self.digest,
            "settings": self.settings or None,
            "language_models": self.model.provenance(),
            "run_seconds": None if self.run is None else sum(self.run["seconds"].values()),
        }


@dataclass(frozen=True)
class TopList:
    """A model's best items that can be recommended.

    Attributes
    ----------
    items, scores : torch.Tensor, shape (B, k)
        Best first, equal scores by smaller id; ``-inf`` where there are fewer than k.
    excluded, excluded_scores : torch.Tensor, shape (B, W)
        Items that cannot be recommended, padded with 0, and the model's scores of them.
    """

    items: torch.Tensor
    scores: torch.Tensor
    excluded: torch.Tensor
    excluded_scores: torch.Tensor


class Hybrid(LLMRecommender):
    """Base of the models that combine finished ones.

    Parameters
    ----------
    config : Config
    dataset : HistoryDataset
        Training split.
    sources : list
        Of the members, see :class:`Member`.
    choices : list of list of float
        Settings to choose from on validation data; a single one is used as is. :meth:`combine` takes a setting.
    """

    reads_excluded = True
    choices: torch.Tensor
    setting: torch.Tensor
    member_digests: torch.Tensor

    def __init__(
        self, config: Config, dataset: HistoryDataset, sources: Sequence[Any], choices: Sequence[Sequence[float]]
    ) -> None:
        super().__init__(config, dataset)
        self.mask_history = bool(config["mask_history"])
        self.members = [Member(source, config, dataset) for source in sources]
        self.needs_item_text = any(member.needs_item_text for member in self.members)
        self.choices = torch.tensor([list(choice) for choice in choices], dtype=torch.float64)
        self.register_buffer("setting", self.choices[0].clone())
        digests = [bytes.fromhex(member.digest or "") or bytes(32) for member in self.members]
        self.register_buffer("member_digests", torch.tensor([list(digest) for digest in digests], dtype=torch.uint8))

    # ---- what a hybrid is

    def parts(self, interaction: Interaction) -> Any:
        """Return what all settings share: the members' scores, prepared."""
        raise NotImplementedError

    def combine(self, parts: Any, setting: torch.Tensor) -> torch.Tensor:
        """Return new scores of all items from ``parts`` under a setting, shape (B, n_items); padding is ``-inf``."""
        raise NotImplementedError

    def describe(self, setting: torch.Tensor) -> dict[str, Any]:
        """Describe a setting in terms of the property file."""
        raise NotImplementedError

    # ---- choosing

    def full_sort_choices(self, interaction: Interaction) -> Iterator[torch.Tensor]:
        """Yield scores (B, n_items) under each of ``choices`` in turn; the members score once."""
        parts = self.parts(interaction)
        for setting in self.choices:
            yield self.combine(parts, setting)

    def choose(self, index: int) -> None:
        """Use one of ``choices``."""
        self.setting.copy_(self.choices[index])

    # ---- RecBole's interface

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the whole catalogue, shape (B, n_items); padding is ``-inf``."""
        return self.combine(self.parts(interaction), self.setting)

    # ---- shared steps

    def recommendable(self, interaction: Interaction) -> torch.Tensor:
        """Items that may be recommended, bool of shape (B, n_items)."""
        left_out = excluded(interaction, self.ITEM_SEQ, self.mask_history)
        allowed = torch.ones(len(left_out), self.n_items, dtype=torch.bool, device=left_out.device)
        allowed.scatter_(1, left_out, False)
        allowed[:, 0] = False
        return allowed

    def best(self, scores: torch.Tensor, interaction: Interaction, k: int) -> TopList:
        """Return the ``k`` recommendable items with the highest scores."""
        values, items = scores.masked_fill(~self.recommendable(interaction), -torch.inf).topk(k)
        by_id = items.argsort(dim=1)
        values, items = values.gather(1, by_id), items.gather(1, by_id)
        order = values.argsort(dim=1, descending=True, stable=True)
        values, items = values.gather(1, order), items.gather(1, order)
        left_out = excluded(interaction, self.ITEM_SEQ, self.mask_history)
        return TopList(items, values, left_out, scores.gather(1, left_out))

    # ---- files

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of torch, but members that are no longer those of the saved hybrid are refused.

        Raises
        ------
        CheckpointError
            With both hashes of the member's weights.
        """
        saved = state_dict.get("member_digests")
        for number, member in enumerate(self.members):
            if saved is None or saved.shape != self.member_digests.shape:
                break  # torch says what is wrong with shapes
            now = self.member_digests[number]
            if not torch.equal(saved[number].to(now.device), now):
                then = bytes(saved[number].tolist()).hex()
                raise CheckpointError(
                    f"The weights of {member.label} are no longer those this hybrid was made of: SHA-256 {then} then, "
                    f"{bytes(now.tolist()).hex()} now. Restore that run, or run the hybrid again."
                )
        return super().load_state_dict(state_dict, strict, assign)

    def provenance(self) -> dict[str, Any]:
        """Return what a result must report about the members and the chosen setting."""
        members = [member.provenance() for member in self.members]
        llms = [member["language_models"]["llm"] for member in members if (member["language_models"] or {}).get("llm")]
        return {
            "llm": " + ".join(dict.fromkeys(llms)) or None,
            "setting": self.describe(self.setting),
            "members": members,
        }


def compose(top: TopList, items: torch.Tensor, chosen: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Scores of lists that start with chosen items and continue in the order of ``base``.

    Excluded items stand above as many chosen items as have a smaller score in the model of ``top``, so that a ranking
    without history mask is what that model would give.

    Parameters
    ----------
    top : TopList
    items : torch.LongTensor, shape (B, k)
        The items of ``top`` in the desired order.
    chosen : torch.BoolTensor, shape (B, k)
        Which of ``items``.
    base : torch.Tensor, shape (B, n_items)
        Scores of all others.

    Returns
    -------
    torch.Tensor, shape (B, n_items)
        Strictly decreasing along the chosen items, and above all others there.
    """
    k = items.shape[1]
    highest = base.amax(1, keepdim=True)
    # Steps that float32 still tells apart beside the highest score.
    step = highest.abs().clamp(min=1) * 1e-4
    place = chosen.cumsum(1) - 1
    scores = base.scatter(1, items, torch.where(chosen, highest + step * (k - place), base.gather(1, items)))
    marks = torch.zeros_like(base, dtype=torch.bool).scatter_(1, items, chosen)
    known = top.scores.masked_fill(~marks.gather(1, top.items), -torch.inf).sort(dim=1, descending=True).values
    above = torch.searchsorted(-known, -top.excluded_scores.contiguous())
    between = (above < chosen.sum(1, keepdim=True)) & (top.excluded > 0)
    raised = highest + step * (k - above + 0.5)
    return scores.scatter_(1, top.excluded, torch.where(between, raised, base.gather(1, top.excluded)))


def numbers(
    config: Config, key: str, grid_key: str, low: float, high: float, whole: bool = False
) -> list[list[float]]:
    """``config[key]``, or the list ``config[grid_key]`` to choose from: settings of one number each.

    Raises
    ------
    ConfigError
        For a value that is not a number between ``low`` and ``high``.
    """
    name, values = (key, [config[key]]) if config[grid_key] is None else (grid_key, config[grid_key])
    values = values if isinstance(values, (list, tuple)) else [values]
    allowed = (int,) if whole else (int, float)
    for value in values:
        if type(value) not in allowed or not low <= value <= high:
            kind = "whole number" if whole else "number"
            raise ConfigError(f"{name}={config[name]!r}: {value!r} is not a {kind} between {low} and {high}.")
    if not values:
        raise ConfigError(f"{name}=[] has nothing to choose from.")
    return [[float(value)] for value in values]


def session_popularity(dataset: HistoryDataset) -> torch.Tensor:
    """Share of the training sessions that contain each item, shape (n_items,)."""
    sessions = dataset.inter_matrix(form="csr")
    sessions.data[:] = 1
    n_sessions = max(1, int((np.diff(sessions.indptr) > 0).sum()))
    return torch.from_numpy(np.asarray(sessions.sum(axis=0)).reshape(-1) / n_sessions)


def popularity_quantiles(popularity: torch.Tensor, quantile: torch.Tensor) -> torch.Tensor:
    """Popularity at a quantile over the items that have any; 0 at quantile 0, and above all at quantile 1."""
    quantile = quantile.reshape(()).to(popularity)
    value = torch.quantile(popularity[popularity > 0], quantile)
    return value.masked_fill(quantile <= 0, 0).masked_fill(quantile >= 1, torch.inf)
