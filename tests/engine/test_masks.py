"""Orders as a tree: every set that an order begins with is there once, and is found again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unitroles.engine.masks import Tree


@st.composite
def orders(draw):
    """Some orders of the same units, some of them alike."""
    units = draw(st.integers(1, 9))
    kinds = draw(st.lists(st.permutations(range(units)), min_size=1, max_size=5))
    return np.array(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=12)))


def sets_of(tree):
    return tree.retrieved_in(slice(None))[:, 0].numpy()


@given(orders(), st.data())
def test_the_sets_of_an_order_are_its_first_units(given_orders, data):
    units = given_orders.shape[1]
    points = sorted(data.draw(st.sets(st.integers(0, units), min_size=1)))
    tree, columns = Tree.of(given_orders, points)
    sets = sets_of(tree)
    assert len(sets) == len(tree) == sum(tree.sizes[n] for n in points) == columns.max() + 1
    for order, row in zip(given_orders, columns, strict=True):
        for n, column in zip(points, row, strict=True):
            assert set(np.flatnonzero(sets[column])) == set(order[:n].tolist())


@given(orders())
def test_no_set_is_there_twice(given_orders):
    points = list(range(given_orders.shape[1] + 1))
    tree, _ = Tree.of(given_orders, points)
    sets = sets_of(tree)
    assert len(np.unique(sets, axis=0)) == len(sets)
    wanted = {frozenset(order[:n].tolist()) for order in given_orders for n in points}
    assert len(sets) == len(wanted)


def test_equal_orders_share_everything():
    order = np.random.default_rng(0).permutation(70)
    tree, columns = Tree.of(np.stack([order] * 4), range(71))
    assert tree.sizes == [1] * 71
    assert (columns == np.arange(71)).all()
