"""Methods compute where the features lie; on the pretend GPU they give the numbers of the CPU."""

import copy
import pickle

import numpy as np
import pytest
import torch
from fixtures import tiny
from fixtures.pretend_gpu import on_gpu, pretend_gpu
from method_inputs import draw, planted, random_features

from vlmad_utils import features
from vlmad_utils.features import Arrays
from vlmad_utils.methods import (
    Scores,
    anomaly_probability,
    anomalyclip,
    april_gan,
    clip_ac,
    memory_bank,
    neighbours,
    smooth,
    tiling,
    training,
    winclip,
)
from vlmad_utils.models.text_towers import OpenClipText

TEXT, NORMAL = random_features(2, seed=9).image, random_features(5, seed=1)
LAYERS = april_gan.LinearLayers((1, 2), 12, 8)
METHODS = {
    "clip_ac": lambda f: clip_ac.zero_shot(f, TEXT, top=3),
    "clip_ac dense": lambda f: clip_ac.zero_shot(f, TEXT, dense=draw(len(f), 20, 8)),
    "one_class": lambda f: clip_ac.one_class(f, TEXT[:1]),
    "winclip": lambda f: winclip.zero_shot(f, TEXT, within="normality", across="normality"),
    "winclip crops": lambda f: winclip.zero_shot(f, TEXT, crops=draw(len(f), 5, 8)),
    "winclip+": lambda f: winclip.few_shot(f, NORMAL, TEXT),
    "winclip+ cache": lambda f: winclip.few_shot(
        f, NORMAL, TEXT, within="arithmetic", cache=memory_bank.DistanceCache()
    ),
    "april_gan": lambda f: april_gan.zero_shot(f, TEXT, LAYERS, (30, 24), image_from="map"),
    "april_gan+": lambda f: april_gan.few_shot(f, NORMAL, TEXT, LAYERS, (30, 24)),
    "transductive": lambda f: april_gan.few_shot(f, NORMAL, TEXT, LAYERS, transductive=True),
    "anomalyclip": lambda f: anomalyclip.zero_shot(f, TEXT, size=(37, 41)),
    "memory_bank": lambda f: memory_bank.few_shot(f, NORMAL, block=(1, 2)),
    "memory_bank k": lambda f: memory_bank.few_shot(f, NORMAL, block=1, k=3, mask=True),
    "coreset": lambda f: memory_bank.few_shot(f, NORMAL, block=1, coreset_size=9),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_gives_the_scores_of_the_cpu_and_keeps_them(name):
    """Prototypes, references and layers lie on the CPU, the features of 70 images on the GPU."""
    some = random_features(70)
    expected = METHODS[name](some)
    with pretend_gpu() as gpu:
        found = METHODS[name](some.to(gpu))
        assert on_gpu([found.image, found.maps])
        found = found.cpu()
    assert not on_gpu(found.image)
    assert torch.allclose(found.image, expected.image, atol=1e-6)
    assert torch.allclose(found.maps, expected.maps, atol=2e-6)


def test_stored_features_are_scored_on_the_gpu_with_and_without_a_cache(tmp_path):
    images = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8) for i in range(9)]
    text, cache = tiny.arrays("inputs")["text_prototypes"], memory_bank.DistanceCache()
    feats = features.encode(
        tiny.model(), images, (2, "final"), (2, 3), store=tmp_path, progress=False
    )
    expected = winclip.few_shot(feats[:6], feats[6:], text, token=2, cache=cache)
    with pretend_gpu() as gpu:
        test, references = feats.to(gpu)[:6], feats[6:]
        plain = winclip.few_shot(test, references, text, token=2)
        for _ in range(2):  # the CPU's distances are not taken for these; then from the cache
            found = winclip.few_shot(test, references, text, token=2, cache=cache)
            assert on_gpu(found.maps) and torch.equal(found.cpu().maps, plain.cpu().maps)
        assert torch.allclose(found.cpu().maps, expected.maps, atol=1e-6)
    assert len(cache) == 2 * 3 * 3  # devices, kinds, references


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_types_stay_and_half_precision_is_widened(dtype):
    some = random_features(20)
    other = Arrays(
        some.image.to(dtype),
        some.grid,
        some.patches.to(dtype),
        {b: x.to(dtype) for b, x in some.tokens.items()},
        {k: x.to(dtype) for k, x in some.windows.items()},
    )
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    for name in ("clip_ac", "winclip+", "april_gan+", "memory_bank", "coreset", "anomalyclip"):
        scores, usual = METHODS[name](other), METHODS[name](some)
        assert scores.image.dtype == scores.maps.dtype == wanted
        assert torch.allclose(scores.maps.float(), usual.maps, atol=0.1)
    assert anomaly_probability(TEXT.numpy().astype(int), TEXT, 1).dtype == torch.float32


def test_values_on_a_gpu_are_checked_when_they_come_to_the_host():
    bad = torch.tensor([0.5, torch.nan])
    with pretend_gpu() as gpu:
        scores = Scores(bad.to(gpu), torch.zeros(2, 3, 3).to(gpu), "m", "training-free")
        with pytest.raises(ValueError, match=r"image scores of images \[1\] are not finite"):
            scores.cpu()
        indices = winclip.window_indices((5, 4), 2)
        maps = winclip.harmonic(torch.tensor([[-1.0] + [1.0] * 11]).to(gpu), indices, (5, 4)).cpu()
    assert maps.isnan().sum() == 4  # the patches of the window of negative score
    whole = Scores(torch.zeros(2), torch.zeros(2, 3, 3), "m", "training-free")
    assert whole.cpu() is whole


@pytest.mark.parametrize("shape, sigma", [((3, 30, 31), 2.5), ((2, 5, 4), 9.0), ((1, 64, 64), 4)])
def test_smoothing_by_products_equals_scipy(shape, sigma):
    maps = draw(*shape)
    with pretend_gpu() as gpu:
        found = smooth(maps.to(gpu), sigma)
        assert on_gpu(found)
        assert torch.allclose(found.cpu(), smooth(maps, sigma), atol=1e-6)


@pytest.mark.parametrize("block", [(2**27, 2**11), (200, 7), (1, 1)])
def test_distances_to_each_image_do_not_depend_on_device_or_block(block, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_GPU", block)
    query, images = draw(3, 11, 6), draw(5, 8, 6, seed=1)
    expected = torch.stack([neighbours.nearest(query, x)[0][..., 0] for x in images], dim=-1)
    assert torch.equal(neighbours.nearest_per_image(query, images), expected)
    distance, index = neighbours.nearest(query, images.flatten(0, 1), 3)
    with pretend_gpu() as gpu:
        found = neighbours.nearest_per_image(query.to(gpu), images)
        near, row = neighbours.nearest(query.to(gpu), images.flatten(0, 1), 3)
        assert on_gpu([found, near, row])
        assert torch.allclose(found.cpu(), expected, atol=1e-6)
        assert torch.allclose(near.cpu(), distance, atol=1e-6) and torch.equal(row.cpu(), index)
    with pytest.raises(ValueError, match="width 6, memory vectors 5"):
        neighbours.nearest_per_image(query, images[..., :5])


def test_a_coreset_and_tiles_on_the_gpu():
    memory = draw(300, 200)
    scores = Scores(draw(2), draw(2, 4, 4), "m", "training-free")
    boxes = tiling.tiles(10, 15)
    image, maps = tiling.merge_tiles(scores, boxes, (10, 15))
    with pretend_gpu() as gpu:
        assert torch.equal(
            memory_bank.coreset(memory.to(gpu), 20).cpu(), memory_bank.coreset(memory, 20)
        )
        there = Scores(scores.image.to(gpu), scores.maps.to(gpu), "m", "training-free")
        found = tiling.merge_tiles(there, boxes, (10, 15))
        assert on_gpu(found) and torch.allclose(found[1].cpu(), maps)
        assert torch.allclose(found[0].cpu(), image)


def test_layers_keep_their_copy_on_a_device_until_weights_change():
    layers = april_gan.LinearLayers((1, 2), 12, 8)
    names = list(layers.state_dict())
    with pretend_gpu() as gpu:
        there = draw(1).to(gpu)
        first = layers.beside(there)
        assert on_gpu(list(first.parameters())) and layers.beside(there) is first
        assert layers.beside(draw(1)) is layers
        with torch.no_grad():
            layers.fc[0].weight.mul_(2)
        second = layers.beside(there)
        assert second is not first and layers.beside(there) is second
        assert torch.equal(second.fc[0].weight.cpu(), layers.fc[0].weight)
        layers.fc[1] = torch.nn.Linear(12, 8)
        assert torch.equal(layers.beside(there).fc[1].weight.cpu(), layers.fc[1].weight)
        assert list(layers.state_dict()) == names
        assert pickle.loads(pickle.dumps(layers))._copies == {}


# ---- training ------------------------------------------------------------------------------------
def test_april_gan_trains_where_the_features_lie(tmp_path):
    some, masks, _, text = planted(12)[:4]
    expected, losses = april_gan.train(some, masks, text, (1, 2), epochs=2, progress=False)
    with pretend_gpu() as gpu:
        there = some.to(gpu)
        layers, history = april_gan.train(there, masks, text, (1, 2), epochs=2, progress=False)
        assert on_gpu(list(layers.parameters())) and np.allclose(history, losses, atol=1e-5)
        april_gan.save(layers, tmp_path / "a.safetensors")
        loaded, _ = april_gan.load(tmp_path / "a.safetensors", gpu)
        assert on_gpu(list(loaded.parameters()))
        assert on_gpu(april_gan.zero_shot(there, text, loaded).maps)
    loaded, _ = april_gan.load(tmp_path / "a.safetensors")
    for name, weight in expected.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], weight, atol=1e-5)


def test_losses_of_an_epoch_are_read_once():
    """Each read would make the host wait for the device."""
    layer, reads = torch.nn.Linear(2, 1), []

    class Loss(torch.Tensor):
        def item(self):
            reads.append(1)
            return super().item()

    def loss_of(rows):
        reads.append(0)
        return layer(torch.ones(2, 2)).sum().as_subclass(Loss)

    training.fit(layer, 6, loss_of, 2, 2, 0.1, 0, "fit", False)
    assert reads == [0, 0, 0, 1, 1, 1] * 2


def test_a_callers_autocast_does_not_reach_training():
    some, masks, _, text = planted(6)[:4]
    options = {"epochs": 1, "progress": False}
    _, expected = april_gan.train(some, masks, text, (1, 2), **options)
    with torch.autocast("cpu", torch.bfloat16):
        _, found = april_gan.train(some, masks, text, (1, 2), **options)
    assert found == expected


def test_anomalyclip_learns_prompts_where_the_tower_lies():
    some, words = tiny.encoded("test"), {"n_vectors": 4, "depth": 2, "length": 2}
    labels, masks = np.arange(len(some)) % 2, torch.zeros(len(some), 24, 24, dtype=torch.bool)
    masks[1::2, 4:9, 5:12] = True
    tower = copy.deepcopy(tiny.model().model)

    def train(where):
        text = OpenClipText(tower, tiny.model().tokenizer)
        return anomalyclip.train(text, where, masks, labels, epochs=2, progress=False, **words)

    learner, losses = train(some)
    expected = learner.prototypes()
    with pretend_gpu() as gpu:
        tower.to(gpu)
        learner, history = train(some)  # each batch goes there
        assert on_gpu(list(learner.parameters())) and np.allclose(history, losses, atol=1e-4)
        found = learner.prototypes()
        assert not on_gpu(found) and torch.allclose(found, expected, atol=1e-4)
        assert train(some.to(gpu))[1] == history
