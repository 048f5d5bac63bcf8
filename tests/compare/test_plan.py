import pytest

from recbole_llm.compare.plan import make_plan, options_of
from recbole_llm.config import Config
from recbole_llm.config.arguments import parse_arguments
from recbole_llm.config.registry import props_dir
from recbole_llm.config.values import load_yaml
from recbole_llm.errors import ConfigError


@pytest.fixture(autouse=True)
def _isolated(isolated):
    pass


def plan(*arguments, **more):
    return make_plan(arguments=parse_arguments([f"--{argument}" for argument in arguments]), **more)


def configs(made):
    return {job.label: job.config for job in made.jobs}


def test_models_and_seeds():
    made = plan("model=SASRec,GRU4Rec", "dataset=ml-100k", "seeds=1,2", "epochs=3")
    assert [(job.label, job.seed) for job in made.jobs] == [
        *(("SASRec", 1), ("GRU4Rec", 1), ("SASRec", 2), ("GRU4Rec", 2))
    ]
    assert all(job.config["epochs"] == 3 and job.config["seed"] == job.seed for job in made.jobs)
    assert made.labels == ["SASRec", "GRU4Rec"]
    assert made.warnings == []


def test_one_seed_is_the_default_of_a_run():
    assert [job.seed for job in plan("model=SASRec,GRU4Rec", "dataset=ml-100k").jobs] == [2020, 2020]
    assert [job.seed for job in plan("model=SASRec,GRU4Rec", "dataset=ml-100k", "seed=7").jobs] == [7, 7]


def test_settings_of_one_row():
    made = plan("model=SASRec,LRURec", "dataset=ml-100k", "epochs=9", "LRURec.epochs=4", "LRURec.valid_metric=MRR@10")
    of = configs(made)
    assert (of["SASRec"]["epochs"], of["LRURec"]["epochs"]) == (9, 4)
    # One rule for the best epoch, against LRURec's own file, unless the row says otherwise.
    assert of["SASRec"]["valid_metric"] == "NDCG@10"
    assert of["LRURec"]["valid_metric"] == "MRR@10"
    assert configs(plan("model=SASRec,LRURec", "dataset=ml-100k"))["LRURec"]["valid_metric"] == "NDCG@10"


def test_rows_in_a_file(isolated):
    (isolated / "rows.yaml").write_text(
        """
dataset: ml-100k
hidden_size: 32
seeds: [5]
baselines: [small]
models:
  - model: SASRec
    label: small
  - model: SASRec
    label: large
    hidden_size: 128
  - GRU4Rec
  - config_files: litellm4rec_ml-100k
    label: ours
""",
        encoding="utf-8",
    )
    made = plan("config_files=rows.yaml", "SASRec.n_layers=1")
    of = configs(made)
    assert made.labels == ["small", "large", "GRU4Rec", "ours"]
    assert made.options["baselines"] == ["small"]
    assert [of[label]["hidden_size"] for label in ("small", "large", "GRU4Rec")] == [32, 128, 32]
    assert [of[label]["n_layers"] for label in ("small", "large")] == [1, 1]
    assert of["ours"]["model"] == "LiteLLM4Rec"
    assert of["ours"]["head_init"] == "items"  # from the preset
    assert "n_layers" not in of["GRU4Rec"].merged
    # Rows can be picked by label, and a smoke run is small whatever the file says.
    picked = plan("config_files=rows.yaml", "model=large,BERT4Rec", "smoke", "large.n_heads=1", "baselines=BERT4Rec")
    assert picked.labels == ["large", "BERT4Rec"]
    assert configs(picked)["large"]["hidden_size"] == 128
    file = isolated / "rows.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "epochs: 50\n", encoding="utf-8")
    assert configs(plan("config_files=rows.yaml", "smoke"))["small"]["epochs"] == 1


def test_rows_from_python():
    rows = ["GRU4Rec", {"model": "SASRec", "label": "two layers", "n_layers": 2}]
    made = make_plan(rows, "ml-100k", config_dict={"epochs": "3", "seeds": [1]})
    assert made.labels == ["GRU4Rec", "two layers"]
    assert {job.config["epochs"] for job in made.jobs} == {3}


def test_a_key_that_only_some_rows_read_is_given_to_those(caplog):
    made = plan("model=SASRec,LRURec", "dataset=ml-100k", "state_size=16")
    of = configs(made)
    assert of["LRURec"]["state_size"] == 16
    assert "state_size" not in of["SASRec"].merged
    assert made.warnings == [] and all(config.notices == [] for config in of.values())
    with pytest.raises(ConfigError, match="'hiden_size' is not known. Did you mean 'hidden_size'"):
        plan("model=SASRec,LRURec", "dataset=ml-100k", "hiden_size=3")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dataset=ml-100k", "seeds=1,2"], "No models are given"),
        (["model=SASRec,GRU4Rec"], "No dataset is given"),
        (["model=SASRec,GRU4Rek", "dataset=ml-100k"], "Did you mean 'GRU4Rec'"),
        (["model=SASRec,SASRec", "dataset=ml-100k"], "'SASRec' names two rows"),
        (
            ["model=SASRec,GRU4Rec", "dataset=ml-100k", "SASRek.epochs=3"],
            "'SASRek' is not a row. Did you mean 'SASRec'?",
        ),
        (["model=SASRec,GRU4Rec", "dataset=ml-100k", "seeds=1,1"], "different whole numbers"),
        (["model=SASRec,GRU4Rec", "dataset=ml-100k", "seeds=a"], "invalid value for seeds[0]: 'a'"),
        (["model=SASRec,GRU4Rec", "dataset=ml-100k", "baselines=GRU"], "'GRU' is not a row"),
        (["model=SASRec,GRU4Rec", "dataset=ml-100k", "significance_test=z"], "choose from 't-test', 'permutation'"),
        (["model=SASRec,GRU4Rec", "dataset=ml-100k", "significance_level=5"], "above 0 and below 1"),
        (["model=SASRec,GRU4Rec", "dataset=ml-100k", "reuse=maybe"], "'maybe'"),
        (["model=SASRec,GRU4Rec", "dataset=ml-100k", "epochs=many"], "SASRec: invalid value for epochs: 'many'"),
        (
            ["model=SASRec,GRU4Rec", "dataset=ml-100k", "GRU4Rec.mask_history=False"],
            "would not be evaluated in the same way: mask_history=True and False",
        ),
        (
            ["model=SASRec,LiteLLM4Rec", "dataset=ml-100k", "task=topn"],
            "would not be evaluated in the same way: task=None and",
        ),
    ],
)
def test_errors_come_before_anything_runs(arguments, says):
    with pytest.raises(ConfigError) as caught:
        plan(*arguments)
    assert says in str(caught.value)


def test_a_row_without_a_model(isolated):
    with pytest.raises(ConfigError, match="names no model"):
        make_plan([{"epochs": 3}], "ml-100k")
    with pytest.raises(ConfigError, match="must be a name or a mapping"):
        make_plan([3], "ml-100k")


def test_the_same_command_has_the_same_folder():
    folders = [
        plan("model=SASRec,GRU4Rec", "dataset=ml-100k", *more).directory
        for more in ([], ["show_progress=False", "use_gpu=False"], ["epochs=3"], ["seeds=1"])
    ]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3
    assert folders[0].parent.name == "saved"
    assert str(plan("model=SASRec,GRU4Rec", "dataset=ml-100k", "comparison_dir=here").directory) == "here"


def test_every_key_has_a_comment_and_a_default():
    keys = load_yaml(props_dir() / "compare.yaml")
    lines = (props_dir() / "compare.yaml").read_text(encoding="utf-8").splitlines()
    for key in keys:
        (line,) = [line for line in lines if line.startswith(f"{key}:")]
        assert "# (" in line, line
        assert len(line) < 120
    assert options_of({}) == keys


def test_a_control_stands_in_the_label():
    rows = ["SASRec", {"model": "SASRec", "control": "shuffled_history"}, {"model": "GRU4Rec", "label": "gru"}]
    assert make_plan(rows, "ml-100k").labels == ["SASRec", "SASRec [shuffled_history]", "gru"]
    made = plan("model=SASRec,GRU4Rec", "dataset=ml-100k", "GRU4Rec.control=shuffled_history")
    assert made.labels == ["SASRec", "GRU4Rec [shuffled_history]"]


@pytest.mark.parametrize("file", ["preset/ladder_ml-100k.yaml", "paper/ladder_ml-1m.yaml"])
def test_the_ladder_from_generation_to_item_vectors(file):
    made = make_plan(config_file_list=[props_dir() / file], arguments={"dataset": "ml-100k"})
    steps = [f"{name}{step}" for name in ("P5", "POD") for step in ("", " w/o_d", " w/o_d_TID")]
    assert [label.partition(" (")[0] for label in made.labels] == [*steps, "LiteLLM4Rec"]
    assert made.warnings == []
    for label, config in configs(made).items():
        assert config["timing_batches"] > 0
        assert (config["rec_llm_init"] == "scratch") == ("(scratch" in label)
        if config["model"] == "POD":
            assert (config["head"] == "projection") == ("w/o_d" in label)
            assert (config["item_repr"] == "title") == ("TID" in label)
            assert (config["soft_prompts"] == 0) == label.startswith("P5")


@pytest.mark.parametrize("preset", sorted(path.stem for path in (props_dir() / "preset").glob("*.yaml")))
def test_presets_are_runs_or_comparisons_that_can_be_made(preset):
    settings = load_yaml(props_dir() / "preset" / f"{preset}.yaml")
    if "models" in settings:
        made = plan(f"config_files={preset}")
        assert len(made.labels) == len(settings["models"]) == len(set(made.labels))
        assert set(made.options["baselines"] or []) <= set(made.labels)
        assert made.warnings == []
    else:
        config = Config(config_dict={"config_files": preset})
        assert (config["model"], config["dataset"]) == (settings["model"], settings["dataset"])


def test_the_quick_start_has_what_text_is_to_beat():
    of = configs(plan("config_files=quickstart"))
    first, ids, *text = of.values()
    assert first["model"] == "MostPopular" and ids["llm_init"] is False
    assert [config["model"] for config in text] == ["LLM2GRU4Rec", "LiteLLM4Rec"]
    assert of["LiteLLM4Rec (causal, 5 epochs)"]["epochs"] == 5  # the preset has more
