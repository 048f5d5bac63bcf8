"""What hybrids share: finished models as members, and settings that are chosen on validation data, not learned.

A hybrid trains nothing. Its members are run directories, or models that need no training; its weights file holds the
members' hashes and the chosen setting.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_llm import rundir, submodel
from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.llm.fingerprint import file_sha256
from recbole_llm.parameters import nearest
from recbole_llm.registry import own_models, stock_models
from recbole_llm.trainer import checkpoint


class Member:
    """A finished model that scores the outer run's items. No module: a hybrid's checkpoint must not hold its weights.

    Parameters
    ----------
    source : str, path or mapping
        Run directory; name of a model that needs no training; or its settings, with the name in ``model``.
    config : Config
        Of the hybrid's run.
    dataset : HistoryDataset
        Its training split.
    default_model : str
        Model of a mapping without ``model``.

    Raises
    ------
    ConfigError
        For what is neither, or a model that would have to be trained.
    CheckpointError
        For a run on other data, with another split or with other items; hashes of differing files are named.
    """

    def __init__(self, source: Any, config: Config, dataset: HistoryDataset, default_model: str = "LLMSeqSim") -> None:
        settings = dict(source) if isinstance(source, Mapping) else {}
        name = str(settings.pop("model", default_model) if isinstance(source, Mapping) else source)
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
            self.run = rundir.read_results(self.run_dir)
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
    def _untrained(name: str, settings: Mapping[str, Any], config: Config, dataset: HistoryDataset) -> Any:
        known = own_models() + stock_models()
        if name not in known:
            raise ConfigError(
                f"The member {name!r} is neither a run directory (there is no {Path(name) / 'config.yaml'}) nor a "
                f"model.{nearest(name, known)}"
            )
        if name == config["model"]:
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
        return bool(getattr(self.model, "needs_item_text", False))

    @torch.no_grad()
    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the run's items in float32, shape (B, n_items); padding is ``-inf``.

        The member sees as much of the history as in its own run.
        """
        rows = submodel.newest(interaction, self._length_field, self.model.max_seq_length, self._list_suffix)
        if self._own_id is not None:
            own_id = self._own_id.to(rows[self._item_list].device)
            rows = Interaction({**rows.interaction, self._item_list: own_id[rows[self._item_list]]})
        try:
            scores = self.model.full_sort_predict(rows)
        except NotImplementedError as error:
            raise ConfigError(
                f"{self.name} does not score the whole catalogue at once and cannot be a member."
            ) from error
        scores = scores.view(len(rows), -1).float()
        if self._own_id is not None:
            scores = scores[:, self._own_id.to(scores.device)]
        scores[:, 0] = -torch.inf
        return scores

    def provenance(self) -> dict[str, Any]:
        """What a result must say about this member."""
        return {
            "member": self.label,
            "model": self.name,
            "run_dir": None if self.run_dir is None else str(self.run_dir),
            "weights_sha256": self.digest,
            "settings": self.settings or None,
            "language_models": self.model.provenance() if hasattr(self.model, "provenance") else None,
            "run_seconds": None if self.run is None else sum(self.run["seconds"].values()),
        }


class Hybrid(SequentialRecommender):
    """Base of the models that combine finished ones.

    Parameters
    ----------
    config : Config
    dataset : HistoryDataset
        Training split.
    sources : list
        Of the members, see :class:`Member`.
    choices : list of list of float
        Settings to choose from on validation data; of one, that one is taken. A setting is what :meth:`combine` takes.
    """

    input_type = InputType.POINTWISE
    setting: torch.Tensor
    member_digests: torch.Tensor

    def __init__(
        self, config: Any, dataset: HistoryDataset, sources: Sequence[Any], choices: Sequence[Sequence[float]]
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
        """What every setting shares: the members' scores, prepared."""
        raise NotImplementedError

    def combine(self, parts: Any, setting: torch.Tensor) -> torch.Tensor:
        """New scores of all items from ``parts`` under a setting, shape (B, n_items); padding is ``-inf``."""
        raise NotImplementedError

    def describe(self, setting: torch.Tensor) -> dict[str, Any]:
        """A setting in the words of the property file."""
        raise NotImplementedError

    # ---- choosing

    def full_sort_choices(self, interaction: Interaction) -> Iterator[torch.Tensor]:
        """Scores (B, n_items) under each of ``choices`` in turn; the members score once."""
        parts = self.parts(interaction)
        for setting in self.choices:
            yield self.combine(parts, setting)

    def choose(self, index: int) -> None:
        """Take one of ``choices``."""
        self.setting.copy_(self.choices[index])

    # ---- RecBole's interface

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """There is no loss."""
        raise ConfigError(f"{type(self).__name__} has nothing to train: set epochs=0.")

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Score of ``ITEM_ID`` for every row, shape (B,)."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None])[:, 0]

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the whole catalogue, shape (B, n_items); padding is ``-inf``."""
        return self.combine(self.parts(interaction), self.setting)

    # ---- shared steps

    def recommendable(self, interaction: Interaction) -> torch.Tensor:
        """Items that may be recommended, bool of shape (B, n_items): no padding, and no history under mask_history."""
        items = interaction[self.ITEM_SEQ]
        allowed = torch.ones(len(items), self.n_items, dtype=torch.bool, device=items.device)
        allowed[:, 0] = False
        if self.mask_history:
            allowed.scatter_(1, items, False)
        return allowed

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
        """What a result must say about the members and the chosen setting."""
        members = [member.provenance() for member in self.members]
        llms = [member["language_models"]["llm"] for member in members if (member["language_models"] or {}).get("llm")]
        return {
            "llm": " + ".join(dict.fromkeys(llms)) or None,
            "setting": self.describe(self.setting),
            "members": members,
        }


def compose(first: torch.Tensor, chosen: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Scores of lists that start with given items and go on in the order of ``base``.

    Parameters
    ----------
    first : torch.LongTensor, shape (B, k)
        Items in the order they shall stand in; none twice in a row.
    chosen : torch.BoolTensor, shape (B, k)
        Which of them.
    base : torch.Tensor, shape (B, n_items)
        Scores of all others.

    Returns
    -------
    torch.Tensor, shape (B, n_items)
        Strictly decreasing along the chosen items, and above all others there.
    """
    k = first.shape[1]
    top = base.amax(1, keepdim=True)
    # Steps that float32 still tells apart beside the largest score.
    step = top.abs().clamp(min=1) * 1e-4
    raised = top + step * torch.arange(k, 0, -1, device=base.device)
    scores = base.clone()
    return scores.scatter_(1, first, torch.where(chosen, raised, base.gather(1, first)))
