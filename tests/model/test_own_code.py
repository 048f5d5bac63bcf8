"""A mistake in a user's own class ends as one message that names class, method, line, cause and remedy."""

import pytest
from torch import nn

from recbole_llm.config.registry import get_model
from recbole_llm.contract import LLMRecommender
from recbole_llm.errors import ModelError, RecBoleLLMError
from recbole_llm.model.lrurec import LRURec
from recbole_llm.quick_start import run
from recbole_llm.recommend import Recommender
from tests.worlds import write_cycle


class Sound(LLMRecommender):
    defaults = {"learning_rate": 0.01, "epochs": 1, "width": 4}
    scores_are_products = True

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.inputs = nn.Embedding(self.n_items, config["width"])
        self.outputs = nn.Embedding(self.n_items, config["width"])

    def user_vectors(self, interaction):
        newest = interaction[self.ITEM_SEQ_LEN][:, None] - 1
        return self.inputs(interaction[self.ITEM_SEQ].gather(1, newest)[:, 0])

    def catalogue_vectors(self):
        return self.outputs.weight

    def calculate_loss(self, interaction):
        logits = self.user_vectors(interaction) @ self.outputs.weight.T
        return nn.functional.cross_entropy(logits, interaction[self.POS_ITEM_ID])


class NoSuper(Sound):
    def __init__(self, config, dataset):
        self.logger.info("early")


class NoSuperAtAll(Sound):
    def __init__(self, config, dataset):
        pass


class OneArgument(Sound):
    def __init__(self, config):
        super().__init__(config, None)


class HidesAHook(Sound):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.prepare = nn.Linear(2, 2)


class WrongField(Sound):
    def calculate_loss(self, interaction):
        return self.outputs.weight[interaction["pos_item"]].sum()


class NeedsNegatives(Sound):
    def calculate_loss(self, interaction):
        return self.outputs.weight[interaction[self.NEG_ITEM_ID]].sum()


class Raises(Sound):
    def catalogue_vectors(self):
        return [vector for vector in self.helper()]

    def helper(self):
        raise ZeroDivisionError("a number\nby nothing")


class LossOfARowEach(Sound):
    def calculate_loss(self, interaction):
        return (self.user_vectors(interaction) ** 2).sum(1)


class LossIsANumber(Sound):
    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction).item()


class LossWithoutGradient(Sound):
    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction).detach()


class NoLoss(Sound):
    calculate_loss = LLMRecommender.calculate_loss


class NoFlag(Sound):
    scores_are_products = False


class NoUserVectors(Sound):
    user_vectors = LLMRecommender.user_vectors

    def calculate_loss(self, interaction):
        return self.outputs.weight.sum()


class NoCatalogueVectors(Sound):
    catalogue_vectors = LLMRecommender.catalogue_vectors


class OneStateAPosition(Sound):
    def calculate_loss(self, interaction):
        return self.outputs.weight.sum()

    def user_vectors(self, interaction):
        return self.inputs(interaction[self.ITEM_SEQ])


class WithoutPadding(Sound):
    def catalogue_vectors(self):
        return self.outputs.weight[1:]


class FlatScores(Sound):
    def full_sort_predict(self, interaction):
        return super().full_sort_predict(interaction).reshape(-1)


class NarrowScores(Sound):
    def full_sort_predict(self, interaction):
        return super().full_sort_predict(interaction)[:, 1:]


class WholeNumbers(Sound):
    def full_sort_predict(self, interaction):
        return super().full_sort_predict(interaction).long()


class Nan(Sound):
    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction) * float("nan")


class OfRecBole(get_model("GRU4Rec").adapts):  # RecBole's own class
    def calculate_loss(self, interaction):
        return interaction["nothing"]


class OfOurs(LRURec):
    def calculate_loss(self, interaction):
        return interaction["nothing"]


@pytest.fixture
def settings(tmp_path):
    write_cycle(tmp_path / "data")
    given = {"data_path": str(tmp_path / "data"), "use_gpu": False, "show_progress": False, "train_batch_size": 64}
    return {**given, "checkpoint_dir": str(tmp_path / "saved"), "epochs": 1}


def failing(cls, method, cause):
    return rf"{cls}\.{method} fails in .*test_own_code\.py, line \d+ \({cause}.*check_model\('test_own_code:{cls}'\)"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NoSuper, failing("NoSuper", "__init__", "AttributeError")),
        (NoSuperAtAll, r"The constructor of NoSuperAtAll must call super\(\).__init__\(config, dataset\) first"),
        (
            OneArgument,
            r"The constructor of OneArgument takes \(config\): define it as __init__\(self, config, dataset",
        ),
        (HidesAHook, "HidesAHook has .* called 'prepare'.*name of a hook"),
        (WrongField, failing("WrongField", "calculate_loss", "KeyError: 'pos_item'")),
        (NeedsNegatives, failing("NeedsNegatives", "calculate_loss", "KeyError: 'neg_item_id'")),
        (Raises, failing("Raises", "catalogue_vectors", "ZeroDivisionError: a number by nothing")),
        (LossOfARowEach, r"LossOfARowEach.calculate_loss returned a tensor of the shape \(64,\): it must .* scalar"),
        (LossIsANumber, "LossIsANumber.calculate_loss returned float: it must return a scalar tensor"),
        (LossWithoutGradient, "LossWithoutGradient.calculate_loss returned a loss without gradient"),
        (NoLoss, r"NoLoss has nothing to train.*calculate_loss\(self, interaction\).*or set epochs=0"),
        (NoFlag, "NoFlag does not say how it scores: set scores_are_products = True"),
        (NoUserVectors, r"NoUserVectors .*does not define user_vectors\(self, interaction\)"),
        (NoCatalogueVectors, r"NoCatalogueVectors .*does not define catalogue_vectors\(self\)"),
        (OneStateAPosition, r"OneStateAPosition.user_vectors returned the shape \(40, 50, 4\), not \(40, 4\)"),
        (WithoutPadding, r"returned scores of the shape \(40, 30\) .* = \(40, 31\).*catalogue_vectors needs a row"),
        (FlatScores, r"FlatScores.full_sort_predict returned scores of the shape \(1240,\)"),
        (NarrowScores, r"NarrowScores.full_sort_predict returned scores of the shape \(40, 30\)"),
        (WholeNumbers, "WholeNumbers.full_sort_predict returned torch.int64: it must return a float tensor"),
        (Nan, r"training loss of epoch 1 is nan.*check_model\('test_own_code:Nan'"),
        (OfRecBole, failing("OfRecBole", "calculate_loss", "KeyError: 'nothing'")),
        (OfOurs, failing("OfOurs", "calculate_loss", "KeyError: 'nothing'")),
    ],
)
def test_a_mistake_is_named(model, message, settings):
    with pytest.raises(RecBoleLLMError, match=message) as error:
        run(model, "cycle", config_dict=settings)
    assert "\n" not in str(error.value)


def test_the_exception_and_the_fields_of_the_batch_are_kept(settings):
    with pytest.raises(ModelError, match="The batch has the fields .*item_length, item_id_list") as error:
        run(WrongField, "cycle", config_dict=settings)
    assert isinstance(error.value.__cause__, KeyError)
    with pytest.raises(ModelError, match=r"input_type = InputType\.PAIRWISE"):
        run(NeedsNegatives, "cycle", config_dict=settings)
    with pytest.raises(ModelError, match=r"must call super\(\)\.__init__\(config, dataset\) first"):
        run(NoSuper, "cycle", config_dict=settings)


def test_our_own_mistakes_keep_their_traceback(settings, monkeypatch):
    monkeypatch.setattr("recbole_llm.model.lrurec.Packing", None)
    with pytest.raises(AttributeError):
        run("LRURec", "cycle", config_dict=settings)


def test_recommending_and_loading_name_it_too(settings, monkeypatch):
    run_dir = run(Sound, "cycle", config_dict=settings)["run_dir"]
    recommender = Recommender.load(run_dir, Sound)
    for method in ("user_vectors", "catalogue_vectors"):
        with monkeypatch.context() as patch:
            patch.setattr(Sound, method, lambda self, *_: self.helper())
            patch.setattr(Sound, "helper", Raises.helper, raising=False)
            with pytest.raises(ModelError, match=r"Sound\.(<lambda>|helper) fails in .*\(ZeroDivisionError"):
                Recommender.load(run_dir, Sound).recommend([["i1"]])
    assert len(recommender.recommend([["i1"]], k=3)[0]) == 3
    monkeypatch.setattr(Sound, "__init__", NoSuper.__init__)
    with pytest.raises(ModelError, match="Sound.__init__ fails"):
        Recommender.load(run_dir, Sound)
