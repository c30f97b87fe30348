"""The same loop on several processes: torchrun --standalone --nproc-per-node=2 examples/train_ddp.py"""

import os

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

EPOCHS, BATCH_SIZE = 2, 64  # the global batch: all ranks together

local_rank = int(os.environ["LOCAL_RANK"])  # the number of the process on this machine
on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])  # one GPU for each process, or none
device = torch.device("cuda", local_rank) if on_gpus else torch.device("cpu")
if on_gpus:
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if on_gpus else "gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
assert BATCH_SIZE % world_size == 0
torch.manual_seed(0)
data = TensorDataset(torch.randn(512, 20), torch.randint(5, (512,)))
model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5))
model = DistributedDataParallel(model.to(device))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
sampler = DistributedSampler(data, shuffle=True, drop_last=True)
loader = DataLoader(data, batch_size=BATCH_SIZE // world_size, sampler=sampler)

for epoch in range(EPOCHS):
    sampler.set_epoch(epoch)
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
    if rank == 0:
        print(f"epoch {epoch + 1}: loss of rank 0's part of the last batch {loss.item():.4f}")

if rank == 0:
    torch.save(model.module.state_dict(), "checkpoints/example.pt")
dist.destroy_process_group()
