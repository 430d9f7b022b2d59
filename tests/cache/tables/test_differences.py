"""Messages name only what tells two feature sets or runs apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from thinkjepa.cache import CacheError, FeatureSet, differing, set_differences
from thinkjepa.cache.tables.catalog import choose_set, find_set

Build = Callable[..., FeatureSet]


def test_only_what_differs_is_kept_by_dotted_name() -> None:
    one = {"seed": 0, "model": {"width": 8, "depth": 2}, "same": [1, 2]}
    other = {"seed": 1, "model": {"width": 8, "depth": 3}, "same": [1, 2], "new": None, "added": "x"}
    assert differing([one, other]) == [
        {"seed": 0, "model.depth": 2, "added": None},
        {"seed": 1, "model.depth": 3, "added": "x"},
    ]
    assert differing([one, one]) == [{}, {}]


def test_sets_of_one_prompt_are_distinguished_by_their_other_settings(thinker_set: Build) -> None:
    sets = [thinker_set(dtype="float32"), thinker_set(dtype="bfloat16"), thinker_set(layers=(0, 2))]
    apart = set_differences(sets)
    assert [apart[item.name] for item in sets] == [
        "layers 0,1,2, dtype 'float32'",
        "layers 0,1,2, dtype 'bfloat16'",
        "layers 0,2, dtype 'float32'",
    ]


def test_digests_are_named_only_where_nothing_readable_differs(encoder_set: Build) -> None:
    def encoder(model: str, weights: str, observed: int) -> FeatureSet:
        item = encoder_set()
        sampling = {"rule": "window", "observed": observed, "fingerprint": f"of {observed}"}
        origin = {**item.origin, "weights": weights * 64, "sampling": sampling}
        return replace(item, name=f"encoder-{weights}{observed:011d}", origin=origin, source={"model": model})

    by_model = set_differences([encoder("small", "a", 8), encoder("large", "b", 16)])
    assert list(by_model.values()) == [
        "model 'small', sampling.observed 8",
        "model 'large', sampling.observed 16",
    ]
    one_model = set_differences([encoder("m", "a", 8), encoder("/home/me/m", "a", 16)])
    assert not any("model" in text for text in one_model.values())
    by_weights = set_differences([encoder("small", "a", 8), encoder("small", "b", 8)])
    assert list(by_weights.values()) == ["weights aaaaaaaaaaaa", "weights bbbbbbbbbbbb"]


def test_a_cache_of_several_sets_says_how_they_differ(thinker_set: Build, encoder_set: Build) -> None:
    sets = {item.name: item for item in (thinker_set(prompt="a"), thinker_set(prompt="b"), encoder_set())}
    with pytest.raises(CacheError, match=r"2 thinker sets.*\(prompt 'a'\); thinker-\w+ \(prompt 'b'\)$"):
        choose_set(sets, "thinker", (), filled=list(sets))
    with pytest.raises(CacheError, match=r"names no feature set.*\(prompt 'a'\).*encoder-\w+ \(tiny\)$"):
        find_set(sets, "nothing")
