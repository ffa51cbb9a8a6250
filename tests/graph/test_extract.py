"""Parts of an exported graph, run on their own."""

import pytest
import torch
from torch import Tensor, nn

from unitroles.graph.extract import CannotCut, ancestors, descendants, extract
from unitroles.graph.ops import _OPS, _TABLE


class Net(nn.Module):
    """A sum over windows of rows, and a value made of the number of rows alone."""

    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        count = torch.arange(x.shape[0], dtype=x.dtype).view(-1, 1)
        return h.view(2 * x.shape[0], 2).relu().view(x.shape[0], 4) + count


class OneMore(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.relu(), x.new_zeros(x.shape[0] + 1, 3)])


def exported(model: nn.Module, x: Tensor):
    rows = torch.export.Dim("rows", min=2)
    module = torch.export.export(model, (x,), dynamic_shapes=({0: rows},)).graph_module
    nodes = {str(node.target): node for node in module.graph.nodes}
    return module, nodes, module.graph.output_node().all_input_nodes[0]


def test_a_part_counts_the_rows_it_is_given_and_runs_nothing_before_it():
    x = torch.randn(3, 4)
    module, nodes, result = exported(Net(), x)
    h = nodes["aten.mul.Tensor"]
    part = extract(module, [h], result)
    for rows in (2, 5):
        value = torch.randn(rows, 4)
        wanted = value.relu() + torch.arange(rows).view(-1, 1)
        assert torch.equal(part(value), wanted)
    assert all(node.target is not h.target for node in part.graph.nodes)


def test_several_results_come_as_a_tuple_in_the_order_asked_for():
    x = torch.randn(3, 4)
    module, nodes, result = exported(Net(), x)
    (place,) = module.graph.find_nodes(op="placeholder")
    both = extract(module, [place], (result, nodes["aten.mul.Tensor"]))(x)
    assert torch.equal(both[0], Net()(x))
    assert torch.equal(both[1], 2 * x)


def test_sizes_are_no_way_from_one_value_to_another():
    module, nodes, result = exported(Net(), torch.randn(3, 4))
    (place,) = module.graph.find_nodes(op="placeholder")
    count = nodes["aten.arange.default"]
    assert place not in ancestors(count)
    assert count not in descendants(module.graph, [place])
    assert result in descendants(module.graph, [place])
    h = nodes["aten.mul.Tensor"]
    assert place not in ancestors(result, stop=[h])


def test_a_size_that_is_no_multiple_of_the_rows_is_refused():
    module, nodes, result = exported(OneMore(), torch.randn(3, 3))
    with pytest.raises(CannotCut, match="no multiple of the batch"):
        extract(module, [nodes["aten.relu.default"]], result)


def test_every_operation_stands_in_one_row_of_the_table():
    names = [name for _, names in _TABLE for name in names.split()]
    assert len(names) == len(set(names)) == len(_OPS) - 1  # and the indexing of Python
