"""What an installation without extras must be able to do: analyse a model, save and load."""

import torch

import unitroles as ur

x, y = torch.arange(160.0).reshape(40, 4).sin(), torch.arange(40) % 2
net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
found = ur.analyze(net, (x[:20], y[:20]), (x[20:], y[20:]), progress=False)
found.save("light.nc")
print(found.layer, len(ur.load("light.nc").to_frame()), len(ur.layers(net, x[:2])))
