"""Choosing device, precision, activation and image size when a backbone is loaded."""

import warnings

import open_clip
import pytest
import torch
from fixtures import tiny

from vlmad_utils.models import OpenClip, loading


def test_a_gpu_gets_float16_and_a_cpu_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.choose_device() == ("cuda", "fp16")
    assert loading.choose_device("cpu") == ("cpu", "fp32")


def test_bfloat16_that_the_card_emulates_brings_a_warning(monkeypatch):
    """A T4 (7.5) or V100 only emulates it. The card that is meant is asked, not the first one."""
    cards = {"cuda:0": (9, 0), "cuda:1": (7, 5)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda card: cards[str(card)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loading.choose_device("cuda:0", "bf16") == ("cuda:0", "bf16")
        assert loading.choose_device("cuda:1") == ("cuda:1", "fp16")
    with pytest.warns(UserWarning, match="cuda:1.*no instructions for bf16.*fp32"):
        assert loading.choose_device("cuda:1", "bf16") == ("cuda:1", "bf16")


@pytest.mark.parametrize("flag, warned", [("avx512_bf16", 0), ("amx_bf16", 0), ("avx2", 1)])
def test_bfloat16_that_the_processor_emulates_brings_a_warning(monkeypatch, flag, warned):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {flag: True}, raising=False)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        assert loading.choose_device("cpu", "bf16") == ("cpu", "bf16")
    assert len(found) == warned and all("emulates" in str(each.message) for each in found)


class Built(Exception):
    """Stops open_clip where it would build a model."""


@pytest.fixture
def built(monkeypatch):
    """Activation of the model that a load would build; nothing is fetched or built."""

    def stop(*_, quick_gelu=False, **__):
        raise Built(quick_gelu)

    for kind in ("CLIP", "CustomTextCLIP", "CoCa"):
        monkeypatch.setattr(open_clip.factory, kind, stop)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: "weights.pt")

    def load(name, pretrained, **options):
        with pytest.raises(Built) as found:
            loading.load(name, pretrained, device="cpu", **options)
        return found.value.args[0]

    return load


def vits():
    """(model, tag) of all ViT towers of open_clip that were published."""
    for name, tag in open_clip.list_pretrained():
        vision = open_clip.get_model_config(name)["vision_cfg"]
        if isinstance(vision.get("layers"), int) and "timm_model_name" not in vision:
            yield name, tag


@pytest.mark.parametrize("name, tag", list(vits()))
def test_every_published_vit_gets_the_activation_of_its_weights(name, tag, built):
    """open_clip itself warns where model and weights disagree."""
    with warnings.catch_warnings():
        # open_clip's own model has QuickGELU, its tag does not say so
        warnings.simplefilter("ignore" if name == "roberta-ViT-B-32" else "error")
        quick = built(name, tag)
    makers = ("openai", "metaclip", "dfn2b", "dfn5b", "laion400m")
    known = name.endswith("-quickgelu") or name == "roberta-ViT-B-32"
    assert not quick or known or tag.startswith(makers)
    assert quick or not (known or tag == "openai")


@pytest.fixture
def local(tmp_path):
    path = tmp_path / "copy of a checkpoint.safetensors"
    path.touch()
    return str(path)


def test_a_local_file_warns_where_nothing_says_which_activation_it_needs(built, local):
    with pytest.warns(UserWarning, match=r"openai.*laion2b_e16.*quick_gelu=True/False"):
        assert built("ViT-B-32", local) is False
    with pytest.warns(UserWarning, match="QuickGELU is used.*quick_gelu=True/False"):
        assert built("ViT-L-14-336", local) is True  # all that was ever published


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("ViT-B-32", {"quick_gelu": True}, True),
        ("ViT-B-32", {"quick_gelu": False}, False),
        ("ViT-B-32-quickgelu", {}, True),
        ("ViT-B-32-quickgelu", {"quick_gelu": False}, False),
        ("ViT-B-16-plus-240", {}, False),
        ("ViT-S-32-alt", {}, False),  # never published
    ],
)
def test_a_local_file_is_silent_where_its_activation_is_said(name, options, expected, built, local):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert built(name, local, **options) is expected


def test_the_caller_may_ask_for_the_wrong_activation(built):
    """APRIL-GAN's official results come from exact GELU with OpenAI's weights."""
    with pytest.warns(UserWarning, match="QuickGELU mismatch"):
        assert built("ViT-L-14-336", "openai", quick_gelu=False) is False


def test_an_unknown_tag_names_those_that_exist():
    with pytest.raises(ValueError, match="laion9b.*openai.*checkpoint"):
        loading.load("ViT-B-32", "laion9b")


@pytest.mark.parametrize("size, nearest", [(250, 256), (247, 240), ((240, 250), 256), (7, 16)])
def test_an_image_size_that_the_patches_do_not_cover_is_refused(size, nearest, built):
    """Otherwise the border is unseen and the map is stretched over it."""
    with pytest.raises(ValueError, match=f"multiple of 16 .*the nearest is {nearest}"):
        loading.load("ViT-B-16-plus-240", "random", image_size=size, device="cpu")
    built("ViT-B-16-plus-240", "random", image_size=256)


def test_a_tower_whose_patches_do_not_cover_its_image_is_refused():
    model = tiny.model().model
    size, model.visual.image_size = model.visual.image_size, (100, 96)
    try:
        with pytest.raises(ValueError, match="multiple of 16 .*found 100; the nearest is 96"):
            OpenClip(model, None, name="tiny")
    finally:
        model.visual.image_size = size


def test_a_repeated_load_gives_a_model_that_nobody_changed():
    first = loading.load("ViT-S-32-alt", "random", device="cpu")
    first.n_windows_per_pass, first.precision = 7, "bf16"
    with torch.no_grad():
        first.visual.proj.zero_()
    again = loading.load("ViT-S-32-alt", "random", device="cpu")
    assert again is not first and again.visual.proj.abs().sum() > 0
    assert again.precision == "fp32" and again.n_windows_per_pass is None


def test_parameters_of_a_loaded_model_are_frozen():
    model = loading.load("ViT-S-32-alt", "random", device="cpu")
    assert not any(p.requires_grad for p in model.model.parameters())
