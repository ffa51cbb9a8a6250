"""Models in wrappers are analysed without them, and come back in them."""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import unitroles as ur
from forcing import quietly

pytestmark = pytest.mark.usefixtures("one_thread")


def build() -> nn.Sequential:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
    return nn.Sequential(inner, nn.Linear(6, 3))


def data():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(12, 5, generator=draw), torch.arange(12) % 3


def reversed_backend(graph, example):
    raise AssertionError("nothing is compiled here")


@pytest.fixture
def group():
    """A group of this process alone."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def parallel(model):
    return nn.DataParallel(model)


def distributed(model):
    return nn.parallel.DistributedDataParallel(model)


def compiled(model):
    return torch.compile(model, backend=reversed_backend)


def compiled_inside(model):
    model[0] = torch.compile(model[0], backend=reversed_backend)
    return model


def compiled_in_place(model):
    model.compile(backend=reversed_backend)
    model[0].compile(backend=reversed_backend)
    return model


def parallel_inside(model):
    model[0] = nn.DataParallel(model[0])
    return model


def twice(model):
    return nn.DataParallel(compiled(model))


WRAPPERS = {
    parallel: "module.0.1",
    compiled: "_orig_mod.0.1",
    compiled_inside: "0._orig_mod.1",
    compiled_in_place: "0.1",
    parallel_inside: "0.module.1",
    twice: "module._orig_mod.0.1",
}


def equals_plain(wrap, path):
    x, y = data()
    plain = quietly(ur.analyze, build(), (x, y), (x, y), layer="0.1")
    model = wrap(build())
    before = [(name, id(module)) for name, module in model.named_modules()]
    calls = [vars(module).get("_compiled_call_impl") for module in model.modules()]
    for layer in (path, "0.1", None):
        found = quietly(ur.analyze, model, (x, y), (x, y), layer=layer)
        np.testing.assert_array_equal(found.data.loss, plain.data.loss)
        assert found.layer == "0.1"
        assert found.data.attrs["plan"] == "additive"
        assert found.provenance["model"] == plain.provenance["model"]
    assert [(name, id(module)) for name, module in model.named_modules()] == before
    assert [vars(module).get("_compiled_call_impl") for module in model.modules()] == calls
    assert ur.layers(model, x[:2]).layer.tolist() == ur.layers(build(), x[:2]).layer.tolist()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_model_is_its_inside(wrap):
    equals_plain(wrap, WRAPPERS[wrap])


def test_a_distributed_model_is_its_inside(group):
    equals_plain(distributed, "module.0.1")


def test_a_sharded_model_is_refused(group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = build()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    x, y = data()
    with pytest.raises(ur.InputError, match="sharded over processes .*full state dict"):
        ur.analyze(model, (x, y), (x, y), layer="0.1")


def test_a_model_without_numbers_is_refused():
    x, y = data()
    with pytest.raises(ur.InputError, match="'0.0.weight' of the model is on the meta device"):
        ur.analyze(build().to("meta"), (x, y), (x, y), layer="0.1")


def test_wrappers_come_back_after_an_error():
    model = compiled_inside(build())
    child = model[0]
    x, y = data()
    with pytest.raises(ur.InputError):
        ur.analyze(model, (x[:, :3], y), (x[:, :3], y), layer="0.1")
    assert model[0] is child


def test_a_wrapper_inside_can_be_named_as_the_layer():
    x, y = data()
    model = parallel_inside(build())
    found = quietly(ur.analyze, model, (x, y), (x, y), layer=model[0])
    assert found.layer == "0"
