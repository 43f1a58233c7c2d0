import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frozen_jax.errors import UserError
from frozen_jax.state import FROZEN, TRAINABLE, flatten, match_rules, merge, split, unflatten

PARAMS = {"lm": {"a": jnp.ones(2), "b": {"c": jnp.zeros(3)}}, "vision": {"a": jnp.ones(4)}}


def test_the_first_matching_rule_labels_a_leaf():
    labels = match_rules(PARAMS, [("lm/a", 1), ("lm/.*", 2), ("vision/.*", 3)], what="test")
    assert labels == {"lm": {"a": 1, "b": {"c": 2}}, "vision": {"a": 3}}


def test_a_rule_must_match_the_whole_path():
    with pytest.raises(UserError, match="no rule covers parameter 'vision/a'"):
        match_rules(PARAMS, [("lm/.*", 1), ("vision", 1)], what="test")


def test_an_unused_rule_is_an_error():
    with pytest.raises(UserError, match="rule 'vison/.*' matches no parameter"):
        match_rules(PARAMS, [("(lm|vision)/.*", 1), ("vison/.*", 2)], what="test")


def test_split_and_merge_are_inverse():
    labels = match_rules(PARAMS, [("lm/b/.*", TRAINABLE), (".*", FROZEN)], what="test")
    trainable, frozen = split(PARAMS, labels)
    assert set(flatten(trainable)) == {"lm/b/c"} and set(flatten(frozen)) == {"lm/a", "vision/a"}
    joined = flatten(merge(trainable, frozen))
    assert joined.keys() == flatten(PARAMS).keys() and all(joined[k] is flatten(PARAMS)[k] for k in joined)


names = st.text("abc", min_size=1, max_size=3)
trees = st.recursive(st.integers(), lambda t: st.dictionaries(names, t, min_size=1, max_size=3), max_leaves=12)


@given(st.dictionaries(names, trees, min_size=1, max_size=3))
def test_flatten_and_unflatten_are_inverse(tree):
    assert unflatten(flatten(tree)) == tree
