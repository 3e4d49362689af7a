"""A healthy, an asymmetric and an off-minimum slice
=================================================

What the loss around a network looks like before training, after it, and along the gains of its
batch norms. No callback and no logger: `analyze` measures, and its results show themselves in a
notebook.
"""

# %%
# A network with batch norm on digits, a fifth of the labels scrambled, trained for 30 epochs.
import copy

import torch
import torch.nn.functional as F
from noisy_digits import Digits, noisy_digits

from lightning_landscape import analyze

torch.manual_seed(0)
batches = list(zip(*(tensor.split(64) for tensor in noisy_digits(0)[0].tensors), strict=True))[:20]
net = Digits().net
start = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}


def loss(module, batch):
    return F.cross_entropy(module(batch[0]), batch[1])


optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
for _ in range(30):
    for k in torch.randperm(len(batches)):
        optimizer.zero_grad()
        loss(net, batches[k]).backward()
        optimizer.step()
    schedule.step()
untouched = copy.deepcopy(net.state_dict())

# %%
# **Off-minimum**: at the first weights many directions lead downhill.
report = analyze(net, batches, at=start, families=["gaussian"], loss_fn=loss)
report.families["gaussian"]

# %%
# **Healthy**: at the trained weights both sides rise alike.
report = analyze(net, batches, families=["gaussian", "uniform@norm"], loss_fn=loss)
report.families["gaussian"]

# %%
# **Asymmetric**: smaller gains of the batch norm cost more than larger ones.
report.families["uniform@norm"]

# %%
# The network is what it was, to the last bit.
assert all(torch.equal(untouched[name], tensor) for name, tensor in net.state_dict().items())
for name, found in report.families.items():
    area, low, high = found.area
    print(
        f"{name:14} area {area:+.2f} [{low:+.2f}, {high:+.2f}], asymmetric {found.rate['rate']:.0%}"
    )
print("The network is as it was.")

# sphinx_gallery_thumbnail_path = 'pictures/three-slices.png'
