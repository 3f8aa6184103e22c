"""Settings of the whole process while a model or a method computes."""

import threading

import torch
from fixtures.pretend_gpu import pretend_gpu

from vlmad_utils.models import attention
from vlmad_utils.models.cores import HALF_SUMS, exact, own_precision

OWNER = torch.backends.cuda.matmul


def test_sums_of_half_products_are_full_on_cuda_and_a_callers_choice_comes_back(monkeypatch):
    before = {name: getattr(OWNER, name) for name in HALF_SUMS}
    assert any(before.values())
    with exact("cpu"):
        assert {name: getattr(OWNER, name) for name in HALF_SUMS} == before
    try:
        OWNER.allow_fp16_accumulation = True
        with own_precision("cuda"), exact("cuda"):
            assert not any(getattr(OWNER, name) for name in HALF_SUMS)
            assert not torch.is_autocast_enabled("cuda")
        assert {name: getattr(OWNER, name) for name in HALF_SUMS} == {
            **before,
            "allow_fp16_accumulation": True,
        }
    finally:
        OWNER.allow_fp16_accumulation = before["allow_fp16_accumulation"]


def test_a_setting_holds_until_the_last_thread_is_out():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with exact("cpu"):
            inside.set()
            leave.wait(10)

    torch.set_float32_matmul_precision("medium")
    try:
        with exact("cpu"):
            thread = threading.Thread(target=other)
            thread.start()
            assert inside.wait(10)
        assert torch.get_float32_matmul_precision() == "highest"
        leave.set()
        thread.join()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        leave.set()
        torch.set_float32_matmul_precision("highest")


def test_cudnn_does_not_attend_packed_windows():
    def allowed():
        return torch.backends.cuda.mem_efficient_sdp_enabled(), [
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.cudnn_sdp_enabled(),
        ]

    before = allowed()
    with pretend_gpu() as gpu:
        with attention.kernel_of_windows(10, gpu):
            assert allowed() == (True, [False, False])
        assert allowed() == before
        with attention.kernel_of_windows(50, gpu):  # fills a tile, and goes alone
            assert allowed() == before
    with attention.kernel_of_windows(10, torch.device("cpu")):
        assert allowed() == before
