"""The pretend GPU behaves as the tests of devices need it to."""

import threading

import pytest
import torch
from fixtures.pretend_gpu import on_gpu, pretend_gpu
from torch import nn


def test_it_computes_as_the_cpu_and_says_cuda():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with pretend_gpu() as gpu:
        y = x.to(gpu)
        found = (y @ y.T).softmax(-1)
        assert on_gpu([y, found, y[:2], torch.zeros(2, device="cuda"), y.topk(1).values])
        assert torch.equal(found.cpu(), (x @ x.T).softmax(-1))
        assert type(found.cpu()) is torch.Tensor


def test_it_refuses_tensors_of_both_devices_and_numpy():
    with pretend_gpu() as gpu:
        x = torch.ones(3, device=gpu)
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(3)[x.long()]
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert on_gpu(x[torch.tensor([0])])  # as CUDA does


def test_modules_learn_on_it():
    with pretend_gpu() as gpu:
        layer = nn.Linear(4, 2).to(gpu)
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
        losses = []
        for _ in range(3):
            loss = layer(torch.ones(5, 4, device=gpu)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert on_gpu(list(layer.parameters()))
        assert losses[2] < losses[0]


def test_another_thread_can_bring_its_tensors_back():
    found = []
    with pretend_gpu() as gpu:
        x = torch.ones(3, device=gpu)
        thread = threading.Thread(target=lambda: found.append((x * 2).to("cpu").numpy().sum()))
        thread.start()
        thread.join()
    assert found == [6]
