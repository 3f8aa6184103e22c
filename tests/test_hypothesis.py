"""Properties that hold for any input: prompts, windows, metrics, pairing of masks, the feature store.

More of them stand beside the examples of test_faults_*.py (damaged files, names, windows as a loop), test_metrics.py (parity,
transforms), test_prompts.py and test_properties_*.py.
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures import tiny
from fixtures.trees import save
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sklearn.metrics import average_precision_score, roc_auc_score

from vlmad_utils import bootstrap, data, features, metrics, prompts
from vlmad_utils.methods import winclip
from vlmad_utils.windows import window_indices


def examples(n):
    return settings(max_examples=n, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


# ---- prompts -------------------------------------------------------------------------------------------------------------


class Letters:
    """A text model whose embedding depends on the characters only and has any length; it remembers what it was asked."""

    def __init__(self):
        self.seen = []

    def encode_text(self, texts):
        self.seen += texts
        return torch.tensor(np.array([np.random.default_rng(list(t.encode())).normal(size=6) * (1 + len(t)) for t in texts]))


words = st.text("abc xyz", min_size=1, max_size=6)
entries = st.builds(lambda before, after: f"{before}{{}}{after}", st.text("abc ", max_size=4), st.text("xyz ", max_size=4))
sides = st.lists(entries, min_size=1, max_size=4)
ensembles = st.fixed_dictionaries({"normal": sides, "anomalous": sides, "templates": st.lists(entries, min_size=1, max_size=3)})


@examples(60)
@given(words, ensembles, st.booleans(), st.randoms(use_true_random=False))
def test_prototypes_are_unit_vectors_that_no_order_changes(name, ensemble, first, random):
    model = Letters()
    found = prompts.prototypes(model, name, ensemble, first)
    assert found.shape == (2, 6) and found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)
    asked = [text for side in prompts.compose(name, ensemble) for text in side]
    assert len(model.seen) == len(set(model.seen)) and set(model.seen) == set(asked)  # each distinct prompt once
    mixed = {key: random.sample(values, len(values)) for key, values in ensemble.items()}
    assert torch.allclose(prompts.prototypes(Letters(), name, mixed, first), found, atol=1e-5)
    doubled = {key: values * 2 for key, values in ensemble.items()}  # the same weight for each
    assert torch.allclose(prompts.prototypes(Letters(), name, doubled, first), found, atol=1e-5)


@examples(60)
@given(words, ensembles, st.fixed_dictionaries({}, optional={"normal": sides, "anomalous": sides}))
def test_prompts_are_all_pairs_of_state_and_template(name, ensemble, extra):
    for side, found in zip(("normal", "anomalous"), prompts.compose(name, ensemble, extra_states=extra)):
        states = ensemble[side] + extra.get(side, [])
        assert len(found) == len(states) * len(ensemble["templates"])
        assert found == [t.replace("{}", s.replace("{}", name)) for s in states for t in ensemble["templates"]]


@examples(40)
@given(ensembles, st.sampled_from(["normal", "anomalous", "templates"]), st.sampled_from(["", "no mark", "{} and {}", "{", 3, None]))
def test_an_entry_without_just_one_mark_is_refused(ensemble, key, entry):
    with pytest.raises(ValueError, match="one '{}'"):
        prompts.compose("x", {**ensemble, key: [*ensemble[key], entry]})


@examples(25)
@given(st.dictionaries(st.integers(), st.tuples(words, ensembles), min_size=1, max_size=4))
def test_many_are_those_of_each_and_share_their_prompts(requests):
    model = Letters()
    found = prompts.many(model, requests)
    assert len(model.seen) == len(set(model.seen))
    assert all(torch.equal(found[key], prompts.prototypes(Letters(), *request)) for key, request in requests.items())


# ---- windows -------------------------------------------------------------------------------------------------------------

grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


@examples(60)
@given(grids, st.integers(1, 9))
def test_windows_cover_every_patch_as_often_as_it_has_places_for_them(grid, k):
    k = min(k, *grid)
    indices = window_indices(grid, k)
    assert indices.shape == ((grid[0] - k + 1) * (grid[1] - k + 1), k * k) and len({tuple(w) for w in indices.tolist()}) == len(indices)
    rows, columns = indices // grid[1], indices % grid[1]
    for line in (rows, columns):
        assert (line.amax(1) - line.amin(1) == k - 1).all()
    places = [np.minimum.reduce([np.arange(n) + 1, np.arange(n, 0, -1), np.full(n, k), np.full(n, n - k + 1)]) for n in grid]
    assert torch.bincount(indices.flatten(), minlength=grid[0] * grid[1]).reshape(grid).tolist() == np.outer(*places).tolist()


@examples(60)
@given(grids, st.integers(1, 9), st.integers(1, 9))
def test_sparse_windows_are_some_of_all_and_leave_no_patch_out(grid, k, stride):
    k = min(k, *grid)
    stride = min(stride, k)
    every, sparse = ({tuple(w) for w in window_indices(grid, spec).tolist()} for spec in (k, f"{k}s{stride}"))
    assert sparse <= every and {p for w in sparse for p in w} == set(range(grid[0] * grid[1]))
    assert len(sparse) == len(window_indices(grid, k, stride)) and (stride > 1 or sparse == every)


@examples(60)
@given(grids, st.integers(1, 5), st.integers(0, 10**6), st.floats(0.01, 1))
def test_harmonic_mean_is_bounded_monotone_and_keeps_constants(grid, k, seed, value):
    k = min(k, *grid)
    indices = window_indices(grid, k)
    scores = torch.rand(2, len(indices), generator=torch.Generator().manual_seed(seed))
    found = winclip.harmonic(scores, indices, grid)
    for mean in ("arithmetic", "normality"):  # low votes win in the harmonic mean, high ones in that of normality
        assert (winclip.spread(scores, indices, grid, mean) >= found - 1e-6).all()
    for b, patch in ((b, p) for b in range(2) for p in range(grid[0] * grid[1])):
        votes = scores[b, (indices == patch).any(dim=1)]
        assert votes.min() - 1e-6 <= found.flatten(1)[b, patch] <= votes.max() + 1e-6
    assert torch.allclose(winclip.harmonic(torch.full((1, len(indices)), value), indices, grid), torch.full((1, *grid), value))
    assert torch.allclose(winclip.harmonic(scores * value, indices, grid), found * value, atol=1e-6)
    assert (winclip.harmonic(scores + 0.1, indices, grid) > found).all()
    assert (winclip.harmonic(scores * 0, indices, grid) == 0).all()


@examples(40)
@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_scales_combine_in_any_order_between_their_lowest_and_highest(values, random):
    maps = torch.tensor(values)[:, None, None, None].expand(-1, 1, 2, 2)
    mixed = torch.tensor(random.sample(values, len(values)))[:, None, None, None].expand(-1, 1, 2, 2)
    for mean in winclip.MEANS:
        found = winclip.combine(maps, mean)
        assert min(values) - 1e-5 <= found.min() and found.max() <= max(values) + 1e-5
        assert torch.allclose(found, winclip.combine(mixed, mean), atol=1e-5)


# ---- metrics -------------------------------------------------------------------------------------------------------------

scored = st.lists(st.tuples(st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6)), st.booleans()), min_size=2, max_size=40)


def parted(pairs):
    scores, labels = np.array([s for s, _ in pairs]), np.array([y for _, y in pairs])
    assume(0 < labels.sum() < len(labels))
    return scores, labels


@examples(150)
@given(scored)
def test_image_metrics_equal_scikit_learns_and_keep_their_bounds(pairs):
    scores, labels = parted(pairs)
    area = metrics.auroc(scores, labels)
    assert area == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert area + metrics.auroc(-scores, labels) == pytest.approx(1, abs=1e-12) and area + metrics.auroc(scores, ~labels) == pytest.approx(1)
    assert metrics.chance("f1max", labels) - 1e-12 <= metrics.f1max(scores, labels) <= 1
    ranks = np.unique(scores, return_inverse=True)[1]  # any increasing transform: only the order matters
    for metric in (metrics.auroc, metrics.average_precision, metrics.f1max, metrics.aupr_trapezoid):
        value = metric(scores, labels)
        assert 0 <= value <= 1 and metric(ranks, labels) == metric(ranks * 1000.0 - 5, labels) == pytest.approx(value, abs=1e-12)
        assert metric(np.tile(scores, 3), np.tile(labels, 3)) == pytest.approx(value, abs=1e-12)  # more of the same
    assert metrics.auroc(scores * 0, labels) == 0.5 and metrics.average_precision(scores * 0, labels) == pytest.approx(labels.mean())


@examples(60)
@given(scored)
def test_the_best_threshold_gives_the_best_f1(pairs):
    scores, labels = parted(pairs)
    marked = scores >= metrics.f1max_threshold(scores, labels)
    assert 2 * (marked & labels).sum() / (marked.sum() + labels.sum()) == pytest.approx(metrics.f1max(scores, labels))


levels = arrays(np.float32, (2, 5, 6), elements=st.integers(-4, 4).map(float))
drawings = arrays(bool, (2, 5, 6), elements=st.booleans()).filter(lambda y: y.any() and not y.all())


@examples(80)
@given(levels, drawings, st.floats(0.01, 1), st.data())
def test_pixel_metrics_are_bounded_and_never_fall_when_a_defect_gets_hotter(maps, masks, limit, draw):
    rising = (metrics.auroc, metrics.f1max, lambda m, y: metrics.aupro(m, y, limit=limit))  # AP may fall: a new tie with a normal pixel
    everything = (*rising, metrics.average_precision)
    before = [metric(maps, masks) for metric in everything]
    assert all(0 <= value <= 1 for value in before)
    flipped, turned = maps[:, ::-1], masks[:, ::-1]  # where a pixel lies does not matter, only what it touches
    assert [metric(flipped, turned) for metric in everything] == pytest.approx(before, abs=1e-12)
    hotter = maps.copy()
    hotter[tuple(draw.draw(st.sampled_from(np.argwhere(masks).tolist())))] += draw.draw(st.integers(1, 8))
    assert all(metric(hotter, masks) >= value - 1e-12 for metric, value in zip(rising, before))
    assert metrics.aupro(masks.astype(float), masks, limit=limit) == pytest.approx(1)
    assert metrics.aupro(maps * 0, masks, limit=limit) == pytest.approx(metrics.chance("aupro", limit=limit))


@examples(40)
@given(levels, st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=8, unique=True))
def test_aupro_of_single_pixels_is_auroc(maps, spots):
    masks = np.zeros(maps.shape, bool)
    for b, row, column in spots:
        masks[b, 2 * row, 2 * column] = True  # none touches another: each region is one pixel
    assert metrics.aupro(maps, masks, limit=1) == pytest.approx(metrics.auroc(maps, masks), abs=1e-12)


@examples(25)
@given(levels, drawings, st.integers(0, 99))
def test_bootstrap_intervals_hold_their_order_and_the_exact_value(maps, masks, seed):
    assume(not masks.all(axis=(1, 2)).any())  # else a draw may be without normal pixels
    found = bootstrap.pixel_bootstrap(maps, masks, n=20, seed=seed)
    assert found == bootstrap.pixel_bootstrap(maps, masks, n=20, seed=seed)
    exact = {"pixel_auroc": metrics.auroc, "pixel_ap": metrics.average_precision, "pixel_f1max": metrics.f1max, "aupro": metrics.aupro}
    for name, interval in found.items():
        assert interval.value == pytest.approx(exact[name](maps, masks), abs=1e-12)
        assert 0 <= interval.low <= interval.high <= 1 + 1e-9


@examples(40)
@given(scored, st.integers(0, 99))
def test_a_paired_difference_turns_its_sign_with_the_methods(pairs, seed):
    a, labels = parted(pairs)
    b = np.random.default_rng(seed).permutation(a)
    one, other = (bootstrap.paired({"x": (*both, labels)}, n=200, seed=seed) for both in ((a, b), (b, a)))
    assert one.value == pytest.approx(metrics.auroc(a, labels) - metrics.auroc(b, labels), abs=1e-12)
    assert (one.value, one.low, one.high, one.p) == pytest.approx((-other.value, -other.high, -other.low, other.p), abs=1e-9)
    assert bootstrap.paired({"x": (a, a, labels)}, n=50)[:] == (0, 0, 0, 1)


# ---- data sets -----------------------------------------------------------------------------------------------------------

stems = st.sampled_from(["a", "b", "a_mask", "a_mask_mask", "0", "00", "b 1", "ü", "a.b", "x'y", "A1"])
pictures = st.dictionaries(stems, st.tuples(st.sampled_from([".png", ".bmp", ".PNG", ".tif"]), st.booleans()), max_size=5)
trees = st.fixed_dictionaries({
    "good": st.sampled_from(["good", "OK", "normal"]), "truth": st.sampled_from(["ground_truth", "masks", None]),
    "suffix": st.sampled_from(["_mask", ""]), "normal": pictures,
    "kinds": st.dictionaries(st.sampled_from(["bad", "scratch", "bad/hole", "scratch/deep"]), pictures, min_size=1, max_size=3)})


def plant(root, tree):
    """Write a folder of own images; picture number n is of brightness n, its mask has n pixels. {path: number}, those with mask."""
    numbers, masked = {}, set()
    for place, files in [(tree["good"], tree["normal"]), *tree["kinds"].items()]:
        for stem, (extension, has_mask) in files.items():
            number = len(numbers) + 1
            path = save(root / place / f"{stem}{extension}", np.full((8, 8), number, np.uint8))
            numbers[str(path)] = number
            if place != tree["good"] and tree["truth"] and has_mask:
                mask = (np.arange(64) < number).reshape(8, 8)
                save(root / tree["truth"] / place / f"{stem}{tree['suffix']}.png", mask.astype(np.uint8) * 255)
                masked.add(str(path))
    return numbers, masked


@examples(60)
@given(trees)
def test_every_mask_goes_to_its_image_and_no_image_is_lost(tree):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(folder).resolve() / "parts"
        (root / tree["good"]).mkdir(parents=True)  # beside it every folder is a kind of defect
        numbers, masked = plant(root, tree)
        truth = bool(tree["truth"]) and (root / tree["truth"]).is_dir()
        try:
            index = data.index("folder", root, on_error="skip")
        except data.DataError as error:  # nothing is left to test
            assert not tree["normal"] and (not numbers or truth) and str(root) in str(error)
            return
        skipped = [path for path, _ in index.attrs["skipped"]]
        assert sorted([*index["image_path"], *skipped]) == sorted(numbers)  # each once
        for row in index.itertuples():
            good = Path(row.image_path).parent.name == tree["good"]
            assert row.label == (not good) and row.defect == ("good" if good else Path(row.image_path).parent.name)
            assert data.read_image(row.image_path)[0, 0, 0] == numbers[row.image_path]
            if good or not truth:
                assert row.mask_path is None
            else:
                assert data.read_mask(row.mask_path).sum() == numbers[row.image_path]
            assert row.split == "test" or good
        if truth and tree["suffix"] == "_mask":  # a plain name may be taken for another's mask, and is then reported
            assert {p for p in index["image_path"] if index.set_index("image_path")["label"][p]} == masked
        assert (index["split"] == "train").sum() == len(tree["normal"]) // 2


tables = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["train", "test"]), st.sampled_from(["good", "x", "y"])),
                  min_size=1, max_size=25)


def table(rows):
    return pd.DataFrame([("d", c, s, int(k != "good"), k, f"/{c}/{s}/{k}/{i}.png", None, c) for i, (c, s, k) in enumerate(rows)],
                        columns=data.COLUMNS)


@examples(40)
@given(tables, st.integers(1, 12), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_limit_takes_a_part_of_a_larger_one_whatever_the_order(rows, limit, seed, random):
    index = table(rows)
    found, more = (data.subset(index, n, seed) for n in (limit, limit + 1))
    assert (found["split"] == "test").sum() == min(limit, (index["split"] == "test").sum())
    assert set(found["image_path"]) <= set(more["image_path"]) <= set(index["image_path"]) and found["image_path"].is_unique
    assert (found["split"] == "train").sum() == (index["split"] == "train").sum()
    mixed = index.iloc[random.sample(range(len(index)), len(index))]
    assert set(data.subset(mixed, limit, seed)["image_path"]) == set(found["image_path"])
    counts = found[found["split"] == "test"].groupby("category").size()
    if len(set(index.loc[index["split"] == "test", "category"])) == 2 and counts.max() - counts.get(counts.idxmin(), 0) > 1:
        full = index[index["split"] == "test"].groupby("category").size()
        assert counts.min() == full[counts.idxmin()]  # uneven only where one category has no more


@examples(40)
@given(tables, st.integers(0, 4), st.integers(0, 3), st.randoms(use_true_random=False))
def test_references_are_normal_train_images_and_fewer_are_a_part_of_more(rows, k, seed, random):
    index = table(rows)
    normal = index[(index["split"] == "train") & (index["label"] == 0)].groupby("category").size()
    if normal.reindex(index["category"].unique(), fill_value=0).min() < k:
        with pytest.raises(data.DataError, match=f"{k} references wanted"):
            data.split_references(index, k, seed)
        return
    found = data.split_references(index, k, seed)
    assert (found.groupby("category").size() == k).all() and len(found) == k * index["category"].nunique()
    assert set(found["split"]) <= {"train"} and set(found["label"]) <= {0}
    mixed = index.iloc[random.sample(range(len(index)), len(index))]
    assert list(data.split_references(mixed, k, seed)["image_path"]) == list(found["image_path"])
    if k:
        assert set(data.split_references(index, k - 1, seed)["image_path"]) <= set(found["image_path"])


# ---- the feature store ---------------------------------------------------------------------------------------------------

numbers = st.one_of(arrays(np.float16, array_shapes(max_dims=3, max_side=5), elements=st.floats(width=16)),
                    arrays(np.float32, array_shapes(max_dims=2, min_side=0, max_side=5), elements=st.floats(width=32)))
names = st.tuples(st.sampled_from(["image", "patches", "tokens-2"]), st.sampled_from(["ab" * 20, "ab" + "c" * 38, "0" * 40]))


class Store(RuleBasedStateMachine):
    """Whatever is written, read, deleted and damaged, in any order: a store on disk gives what a dict would, or None."""

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.memory, self.wanted = features.MemoryStore(), {}

    def opened(self):
        return features.DiskStore(self.folder.name, "fingerprint")  # anew each time, as another process would

    @rule(name=names, array=numbers, turned=st.booleans())
    def put(self, name, array, turned):
        array = array.T if turned else array
        self.opened().put(*name, array)
        self.memory.put(*name, array)
        self.wanted[name] = array

    @rule(name=names)
    def delete(self, name):
        self.opened().path(*name).unlink(missing_ok=True)
        self.wanted.pop(name, None)

    @rule(name=names, position=st.integers(0, 10**6), bit=st.integers(0, 7))
    def damage(self, name, position, bit):
        path = self.opened().path(*name)
        if name in self.wanted:
            content = bytearray(path.read_bytes())
            content[position % len(content)] ^= 1 << bit
            path.write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = self.opened().get(*name)
            if found is None:  # else the bit said nothing: a blank in the header
                assert not self.opened().has(*name)
                del self.wanted[name]

    @invariant()
    def holds_what_was_written(self):
        for name in [(kind, key) for kind in ("image", "patches", "tokens-2") for key in ("ab" * 20, "ab" + "c" * 38, "0" * 40)]:
            found, wanted = self.opened().get(*name), self.wanted.get(name)
            assert (found is None) == (wanted is None) and self.opened().has(*name) == (wanted is not None)
            for other in [] if wanted is None else [found, self.memory.get(*name)]:
                assert other.dtype == wanted.dtype and other.shape == wanted.shape and other.tobytes() == wanted.tobytes()

    def teardown(self):
        if hasattr(self, "folder"):
            left = [path for path in Path(self.folder.name).rglob("*") if path.is_file() and path.suffix != ".safetensors"]
            self.folder.cleanup()
            assert not left


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=15, stateful_step_count=12, deadline=None, derandomize=True)

IMAGES = [np.random.default_rng(i).integers(0, 256, (12, 9, 3), dtype=np.uint8) for i in range(4)]


@examples(12)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(1, 4), st.booleans())
def test_features_do_not_depend_on_order_repetition_batches_or_store(order, batch_size, on_disk):
    alone = features.encode(tiny.model(), IMAGES, store=None, windows=(2,), batch_size=1, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        found = features.encode(tiny.model(), [IMAGES[i] for i in order], store=folder if on_disk else None, windows=(2,),
                                batch_size=batch_size, progress=False)
        for kind in found.kinds:
            assert torch.allclose(found.read(kind), alone.read(kind)[order], atol=2e-3)  # float16; batches differ in the last bit
        some = found[[len(order) - 1, 0]]
        assert torch.equal(some.patches, found.patches[[len(order) - 1, 0]])
