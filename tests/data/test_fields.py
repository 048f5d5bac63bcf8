"""Settings that name fields: what RecBole objects to, and what it ignores, names the key and the remedy."""

import numpy as np
import pytest

from recbole_llm.errors import ConfigError, DataError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\tgift:token\ttags:token_seq\n"
ITEM = "item_id:token\tclass:token_seq\tprice:float\tvector:float_seq\n"
ALL = {"inter": "*", "item": "*"}


@pytest.fixture
def gifts(atomic):
    rows = [f"u{n % 4}\ti{n % 7}\t{n % 5}\t{n}\ti{n % 3}\tx y\n" for n in range(40)]
    items = [f"i{n}\tx y\t{n}\t{n} {n + 1}\n" for n in range(7)]
    return atomic(
        inter=INTER + "".join(rows),
        item=ITEM + "".join(items),
        vec="vec_id:token\tvec:float_seq\n" + "".join(f"i{n}\t{n} {n}\n" for n in range(7)),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_col": {"inter": ["user_id", "item_id", "timestamp", "ratin"]}}, "'ratin' .load_col.*mean 'rating'"),
        ({"load_col": {"inter": "*", "item": ["item_id", "clas"]}}, "shop.item has no field 'clas'.*mean 'class'"),
        ({"load_col": {"inter": "*", "items": ["item_id"]}}, "load_col: there is no kind of file 'items'.*'item'"),
        ({"load_col": {"inter": "*", "user": ["user_id"]}}, "no file .*shop.user.*load_col"),
        ({"unload_col": {"inter": ["ratin"]}}, "'ratin' .unload_col.*mean 'rating'"),
        ({"unload_col": {"inter": ["timestamp"]}}, r"unload_col takes out 'timestamp' \(TIME_FIELD\)"),
        (
            {"unload_col": {"inter": ["gift"]}, "load_col": ALL | {"inter": ["user_id", "item_id", "timestamp"]}},
            "both",
        ),
        ({"val_interval": {"ratin": "[1,2]"}, "load_col": ALL}, "val_interval: no field 'ratin'.*mean 'rating'"),
        ({"val_interval": {"rating": "[1,2]"}, "load_col": {"item": "*"}}, "load_col"),
        ({"val_interval": {"gift": "[1,2]"}, "load_col": ALL}, "val_interval of gift: .*must be a list of ids"),
        ({"val_interval": {"tags": ["x"]}, "load_col": ALL}, "val_interval: 'tags' is of type 'token_seq'"),
        ({"val_interval": {"vector": "[0,1]"}, "load_col": ALL}, "val_interval: 'vector' is of type"),
        ({"threshold": {"ratin": 3}, "load_col": ALL}, "threshold: no field 'ratin'"),
        ({"threshold": {"rating": 3, "price": 1}, "load_col": ALL}, "threshold=.*must name one field"),
        ({"threshold": {"timestamp": 3}, "load_col": ALL}, "threshold=.*other than the time"),
        ({"threshold": {"gift": 3}, "load_col": ALL}, "threshold: 'gift' is of type 'token'.*float can"),
        ({"threshold": {"price": 3}, "load_col": ALL}, "threshold: 'price' is a field of the .item file"),
        ({"normalize_field": ["ratin"], "load_col": ALL}, "normalize_field: no field 'ratin'"),
        ({"normalize_field": ["rating"]}, "normalize_field: no field 'rating' is loaded.*load_col"),
        ({"normalize_field": ["gift"], "load_col": ALL}, "normalize_field: 'gift' is of type 'token'"),
        ({"normalize_field": ["rating"], "normalize_all": True, "load_col": ALL}, "normalize_field and normalize_all"),
        ({"numerical_features": ["ratin"], "load_col": ALL}, "numerical_features: no field 'ratin'"),
        ({"numerical_features": ["gift"], "load_col": ALL}, "numerical_features: 'gift' is of type 'token'"),
        ({"discretization": {"price": {"method": "LD"}}, "load_col": ALL}, "discretization: 'price' must be among"),
        (
            {"discretization": {"price": {"method": "ED"}}, "numerical_features": ["price"], "load_col": ALL},
            "discretization of price: .*bucket: N",
        ),
        (
            {"discretization": {"price": {"method": "XD"}}, "numerical_features": ["price"], "load_col": ALL},
            "discretization of price: .*method: LD",
        ),
        ({"alias_of_item_id": ["gif"], "load_col": ALL}, "alias_of_item_id: no field 'gif'.*mean 'gift'"),
        ({"alias_of_item_id": ["rating"], "load_col": ALL}, "alias_of_item_id: 'rating' is of type 'float'"),
        (
            {"alias_of_item_id": ["gift"], "alias_of_user_id": ["gift"], "load_col": ALL},
            "alias_of_item_id: 'gift' is already used by alias_of_user_id",
        ),
        ({"alias_of_user_id": ["item_id"], "load_col": ALL}, "alias_of_user_id: 'item_id' is already used by ITEM_ID"),
        ({"additional_feat_suffix": ["emb"]}, "additional_feat_suffix='emb': there is no file .*shop.emb"),
        ({"additional_feat_suffix": "emb"}, "additional_feat_suffix='emb': there is no file .*shop.emb"),
        ({"additional_feat_suffix": ["item"]}, "additional_feat_suffix='item': the .item file is read anyway"),
        ({"preload_weight": {"item_id": "vecto"}, "load_col": ALL}, "preload_weight: no field 'vecto'"),
        ({"preload_weight": {"gift": "vector"}, "load_col": ALL}, "preload_weight: .*fields of the same file"),
        ({"load_col": {"item": "*"}}, "load_col names no field of the .inter file"),
        ({"load_col": {"inter": []}}, "load_col names no field of the .inter file"),
        ({"USER_ID_FIELD": "item_id"}, "USER_ID_FIELD and ITEM_ID_FIELD are both 'item_id'"),
        ({"ITEM_LIST_LENGTH_FIELD": "item_id"}, "ITEM_ID_FIELD and ITEM_LIST_LENGTH_FIELD are both 'item_id'"),
        ({"unused_col": {"inter": "*"}}, "unused_col: name the fields of the .inter file"),
        ({"unused_col": {"user": ["age"]}}, "unused_col: no .user file is loaded"),
        ({"unused_col": {"inter": ["item_id"]}}, "unused_col: 'item_id' is needed"),
    ],
    ids=str,
)
def test_what_cannot_be_done_names_key_and_remedy(gifts, make_dataset, settings, message):
    with pytest.raises((ConfigError, DataError), match=message):
        make_dataset(**settings).build()


def test_unload_col_takes_out_what_it_names_and_nothing_else(gifts, make_dataset):
    dataset = make_dataset(unload_col={"inter": ["gift", "tags"]})
    dataset.build()
    assert set(dataset.flat.columns) == {"user_id", "item_id", "rating", "timestamp"}
    dataset = make_dataset(unload_col={"item": ["vector"]})
    dataset.build()
    assert set(dataset.flat.columns) == {"user_id", "item_id", "timestamp"}
    assert set(dataset.item_feat.columns) == {"item_id", "class", "price"}


@pytest.mark.parametrize("suffix", ["vec", ["vec"]])
def test_an_additional_file_is_loaded(gifts, make_dataset, suffix):
    settings = {"alias_of_item_id": ["vec_id"], "preload_weight": {"vec_id": "vec"}}
    dataset = make_dataset(additional_feat_suffix=suffix, **settings)
    dataset.build()
    assert dataset.id2token("item_id", dataset.vec_feat["vec_id"]).tolist() == [f"i{n}" for n in range(7)]
    numbers = [int(token[1:]) for token in dataset.field2id_token["item_id"][1:]]
    assert dataset.get_preload_weight("vec_id")[1:, 0].tolist() == numbers


def test_a_field_of_two_files_is_refused(gifts, make_dataset):
    (gifts / "shop" / "shop.extra").write_text("item_id:token\tprice:float\ni1\t3\n", encoding="utf-8")
    with pytest.raises(DataError, match="shop.extra has a field 'item_id', and so has a file.*alias_of_item_id"):
        make_dataset(additional_feat_suffix=["extra"])


def test_ids_and_numbers_can_be_filtered_by_value(gifts, make_dataset):
    dataset = make_dataset(load_col=ALL, val_interval={"gift": ["i1"], "rating": "[2,3);[4,4]"})
    assert set(dataset.inter_feat["rating"]) == {2, 4}
    assert dataset.field2id_token["gift"].tolist() == ["[PAD]", "i1"]


def test_a_label_by_threshold(gifts, make_dataset):
    dataset = make_dataset(load_col=ALL, threshold={"rating": 3})
    dataset.build()
    assert sorted(set(dataset.flat["label"].tolist())) == [0, 1]
    assert "rating" not in dataset.flat.columns


@pytest.mark.parametrize("field", ["vector", "price"])
def test_numbers_of_items_can_be_normalized(gifts, make_dataset, field):
    dataset = make_dataset(load_col=ALL, normalize_field=[field])
    dataset.build()
    values = dataset.get_item_feature()[field][1:]
    assert (values.min(), values.max()) == (0, 1)


@pytest.mark.parametrize("settings", [{}, {"discretization": {"price": {"method": "ED", "bucket": 3}}}])
def test_numerical_features(gifts, make_dataset, settings):
    dataset = make_dataset(load_col=ALL, numerical_features=["price"], **settings)
    dataset.build()
    assert dataset.get_item_feature()["price"].shape == (8, 2)


def test_preloaded_vectors(gifts, make_dataset):
    dataset = make_dataset(load_col=ALL, preload_weight={"item_id": "vector"})
    dataset.build()
    assert np.array_equal(dataset.get_preload_weight("item_id")[1:], [[n, n + 1] for n in range(7)])


def test_settings_without_effect_are_said(gifts, make_dataset):
    dataset = make_dataset(seq_len={"tag": 1}, unused_col={"inter": ["ratin"], "item": None}, load_col=ALL)
    dataset.build()
    assert dataset.config.notices == [
        "seq_len: no field 'tag' is loaded; it has no effect.",
        "unused_col: there is no field 'ratin' in the .inter data; it has no effect.",
    ]


def test_interactions_that_the_item_file_does_not_list_are_counted(gifts, make_dataset):
    (gifts / "shop" / "shop.item").write_text(ITEM + "i1\tx\t1\t1 2\ni2\ty\t2\t3 4\n", encoding="utf-8")
    dataset = make_dataset(load_col=ALL)
    assert any(notice.startswith("28 of 40 interactions are left out") for notice in dataset.config.notices)
    assert dataset.item_num == 3


@pytest.mark.parametrize(
    ("inter", "item", "message"),
    [
        ("u\ta\0\t1\nu\ta\t2\nu\tb\t3\n", "", "'item_id': an id contains a NUL character"),
        ("u\ta\t1e300\nu\tb\t2\nu\tc\t3\n", "", "'timestamp' has numbers beyond 3.4e38"),
        ("u\ta\t1\nu\tb\t2\nu\tc\t3\n", "a\t\nb\t\nc\t\n", "'price' of the .item data has no value at all"),
    ],
)
def test_values_that_cannot_be_used(atomic, make_dataset, inter, item, message):
    atomic(inter="user_id:token\titem_id:token\ttimestamp:float\n" + inter, item="item_id:token\tprice:float\n" + item)
    load = {"inter": "*", "item": "*"} if item else None
    with pytest.raises(DataError, match=message):
        make_dataset(load_col=load).build()


def test_a_loaded_field_called_like_a_list(atomic, make_dataset):
    header = "user_id:token\titem_id:token\ttimestamp:float\titem_id_list:token_seq\n"
    atomic(inter=header + "u\ta\t1\tb c\n")
    with pytest.raises(DataError, match="'item_id_list' is what the list of 'item_id' is called.*benchmark_filename"):
        make_dataset(load_col={"inter": "*"})
