"""The contract suite finds what it promises to find: a sound model passes, and every flaw fails its own check."""

import pytest
import torch
from torch import nn

from recbole_llm.contract import LLMRecommender
from recbole_llm.testing import ContractError, check_model


class Sound(LLMRecommender):
    """Scores items after the newest one."""

    defaults = {"learning_rate": 0.01, "epochs": 2}
    scores_are_products = True

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.inputs, self.outputs = nn.Embedding(self.n_items, 4), nn.Embedding(self.n_items, 4)

    def user_vectors(self, interaction):
        newest = interaction[self.ITEM_SEQ_LEN][:, None] - 1
        return self.inputs(interaction[self.ITEM_SEQ].gather(1, newest)[:, 0])

    def catalogue_vectors(self):
        return self.outputs.weight

    def calculate_loss(self, interaction):
        logits = self.user_vectors(interaction) @ self.outputs.weight.T
        return nn.functional.cross_entropy(logits, interaction[self.POS_ITEM_ID])


class HidesAHook(Sound):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.members = nn.Linear(2, 2)


class TooNarrow(Sound):
    def full_sort_predict(self, interaction):
        return super().full_sort_predict(interaction)[:, :-1]


class RecommendsPadding(Sound):
    def full_sort_predict(self, interaction):
        scores = super().full_sort_predict(interaction)
        scores[:, 0] = 1e9
        return scores


class Flat(Sound):
    def full_sort_predict(self, interaction):
        return super().full_sort_predict(interaction).reshape(-1)


class NoMask(Sound):
    def full_sort_predict(self, interaction):
        return self.user_vectors(interaction) @ self.outputs.weight.T


class SameForEverybody(Sound):
    def user_vectors(self, interaction):
        return super().user_vectors(interaction) * 0 + self.inputs.weight.mean(0)


class ReadAtTheEnd(Sound):
    """An RNN at -1 has forgotten the history over the padding."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.inputs = nn.Embedding(self.n_items, 4, padding_idx=0)
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def user_vectors(self, interaction):
        return self.rnn(self.inputs(interaction[self.ITEM_SEQ]))[0][:, -1]


class SaysItReadsNothing(Sound):
    reads_history = False


class OneListForAll(SameForEverybody):
    reads_history = False


class StartsAtZero(Sound):
    """Equal scores before the first step are no mistake."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.outputs.weight.data.zero_()


class StoresCounts(Sound):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.register_buffer("counts", torch.arange(self.n_items).float())


class StoresWhatItLearns(Sound):
    """Small buffers, and those that training changes, belong into the checkpoint."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("seen", torch.zeros(self.n_items))

    def calculate_loss(self, interaction):
        self.norm(self.user_vectors(interaction))
        self.seen += torch.bincount(interaction[self.POS_ITEM_ID], minlength=self.n_items)
        return super().calculate_loss(interaction)


class WrongField(Sound):
    def calculate_loss(self, interaction):
        return interaction["pos_item"]


class NoConstructor(Sound):
    def __init__(self, config):
        super().__init__(config, None)


class NoWayToScore(Sound):
    scores_are_products = False


class PredictsOtherwise(Sound):
    def predict(self, interaction):
        return super().predict(interaction) + 1


class NormalisesOverTheBatch(Sound):
    def user_vectors(self, interaction):
        users = super().user_vectors(interaction)
        return users - users.mean(0)


class ReadsPadding(Sound):
    def user_vectors(self, interaction):
        return self.inputs(interaction[self.ITEM_SEQ]).mean(1)


class ReadsTheTarget(Sound):
    def user_vectors(self, interaction):
        return self.inputs(interaction[self.ITEM_ID])


class NeverLearns(Sound):
    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction) * 0 + self.outputs.weight.sum() * 0 + 1


class LossOfARowEach(Sound):
    def calculate_loss(self, interaction):
        logits = self.user_vectors(interaction) @ self.outputs.weight.T
        return nn.functional.cross_entropy(logits, interaction[self.POS_ITEM_ID], reduction="none")


class WeighsOtherwise(Sound):
    def loss_weight(self, interaction):
        return float(interaction[self.POS_ITEM_ID].sum())


class ForgetsAWeight(Sound):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.shift = torch.randn(self.n_items, generator=torch.Generator().manual_seed(id(self) % 2**31))

    def catalogue_bias(self):
        return self.shift


class OtherVectors(Sound):
    def full_sort_predict(self, interaction):
        return 2 * super().full_sort_predict(interaction)


class NewItemsMoveOthers(Sound):
    accepts_new_items = True

    def append_items(self, texts):
        self.n_items += len(texts)
        self.outputs = nn.Embedding(self.n_items, 4)
        self.inputs = nn.Embedding(self.n_items, 4)


class TellsNothingPlain(Sound):
    def provenance(self):
        return {"llm": object()}


class DrawsInEvaluation(Sound):
    def user_vectors(self, interaction):
        users = super().user_vectors(interaction)
        return users if self.training else users + torch.randn_like(users)


def test_a_sound_model_passes_everything():
    outcomes = check_model(Sound)
    assert {name for name, outcome in outcomes.items() if outcome != "passed"} == {"new_items"}


@pytest.mark.parametrize(
    ("model", "check", "message"),
    [
        (HidesAHook, "names", "'members'"),
        (TooNarrow, "scores", r"must return \(B, n_items\)"),
        (Flat, "scores", r"must return \(B, n_items\)"),
        (Flat, "batching", r"must return \(B, n_items\)"),
        (RecommendsPadding, "scores", r"padding, is not -inf: return self.mask_padding\(scores\)"),
        (NoMask, "scores", r"padding, is not -inf: return self.mask_padding\(scores\)"),
        (SameForEverybody, "histories", "set.* reads_history = False"),
        (ReadAtTheEnd, "histories", "the newest item is at ITEM_SEQ_LEN - 1, not at -1"),
        (ReadAtTheEnd, "padding", "the newest item is at ITEM_SEQ_LEN - 1, not at -1"),
        (SaysItReadsNothing, "histories", "reads_history is False, yet"),
        (StoresCounts, "stored", r"\['counts'\] are stored .* persistent=False"),
        (WrongField, "loss", r"WrongField.calculate_loss fails in .*KeyError.*The batch has the fields"),
        (NoConstructor, "names", r"NoConstructor takes \(config\)"),
        (NoWayToScore, "scores", "does not say how it scores"),
        (PredictsOtherwise, "predict", "predict differs"),
        (NormalisesOverTheBatch, "batching", "alone than in a batch"),
        (ReadsPadding, "padding", "three more columns"),
        (ReadsTheTarget, "target", "ITEM_ID"),
        (NeverLearns, "loss", "took the loss from 1 to 1"),
        (LossOfARowEach, "loss", "must return a scalar"),
        (WeighsOtherwise, "loss_weight", "must count the targets"),
        (ForgetsAWeight, "weights", "loaded weights score otherwise"),
        (OtherVectors, "vectors", "are not the scores"),
        (NewItemsMoveOthers, "new_items", "change the scores of the others"),
        (DrawsInEvaluation, "loading", "the loaded run gives"),
    ],
)
def test_a_flaw_fails_its_check(model, check, message):
    with pytest.raises(ContractError, match=message) as error:
        check_model(model, checks=[check])
    assert f"{model.__qualname__} fails the check {check!r}" in str(error.value)
    assert "The promise: " in str(error.value)


@pytest.mark.parametrize(
    ("model", "check", "outcome"),
    [
        (StartsAtZero, "histories", "passed"),
        (StoresWhatItLearns, "stored", "passed"),
        (OneListForAll, "histories", "does not apply: its scores do not depend on the history"),
        ("MostPopular", "histories", "does not apply: its scores do not depend on the history"),
    ],
)
def test_what_is_no_flaw_passes(model, check, outcome):
    assert check_model(model, checks=[check]) == {check: outcome}


def test_provenance_that_is_not_plain_is_found():
    with pytest.raises(ContractError, match="JSON"):
        check_model(TellsNothingPlain, checks=["provenance"])
