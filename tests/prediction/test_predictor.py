import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dataset.dataset import EvaluationEpisodes
from engine.evaluation import make_episodes, run_episodes
from model.build import build_model
from model.released import load_weights
from prediction import predictor as predictor_module
from prediction.masks import mask_from_boxes, object_mask
from prediction.outputs import save_probability
from prediction.predictor import Found, Prediction, Predictor
from tests.toy import draw_image, generator, random_network, toy_config, write_weights
from util.config import Config
from util.distributed import ProcessGroup
from util.errors import UserError


def shapes(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image with one object, and its mask of 0 and 1."""
    image, mask = draw_image(generator(), height, width, [3])
    return image, (mask == 3).astype(np.uint8)


def same(a: Prediction, b: Prediction) -> bool:
    """Equal but for what rounding does."""
    close = np.abs(a.class_probabilities - b.class_probabilities).max() < 1e-4
    return a.names == b.names and close and (a.mask != b.mask).mean() < 0.01


@pytest.mark.parametrize(("arch", "shot"), [("HMNet", 1), ("HMNet", 3), ("BAM", 1)])
def test_agrees_with_testing(
    experiment: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, shot: int
) -> None:
    """The same episodes by test.py's way and from files, of squashed (HMNet) and of padded images (BAM)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = experiment[1].parents[6]
    cfg = toy_config(folder, shot=shot, arch=arch)
    weights = write_weights(cfg)
    model = build_model(cfg, pretrained=False)
    load_weights(model, weights)
    episode_set = make_episodes(cfg, seed=3, count=4)
    tested: dict[int, np.ndarray] = {}
    process_group = ProcessGroup(torch.device("cpu"))
    run_episodes(
        model, cfg, episode_set, process_group, observe=lambda o: tested.update({o.number: o.prediction.numpy()})
    )
    predictor = Predictor.from_checkpoint(cfg, weights, "cpu")
    dataset = EvaluationEpisodes(cfg, *episode_set)
    for number, episode in enumerate(episode_set.episodes):
        query, *supports = (episode_set.files[name] for name in dataset[number]["names"])
        predictor.set_support([image for image, _ in supports], [(mask, episode.class_id) for _, mask in supports])
        found = predictor.predict(query[0]).mask
        assert (found != tested[number][: found.shape[0], : found.shape[1]]).mean() < 0.01


@pytest.mark.parametrize(
    ("height", "width"), [(33, 33), (90, 40), (32, 400), (300, 200), (8, 8), pytest.param(4000, 3000)]
)
def test_any_size_and_shape(predictor: Predictor, height: int, width: int) -> None:
    predictor.set_support(*([part] for part in shapes(50, 70)))
    prediction = predictor.predict(shapes(height, width)[0])
    assert prediction.mask.shape == prediction.probability.shape == (height, width)
    assert prediction.mask.dtype == np.uint8 and set(np.unique(prediction.mask)) <= {0, 1}
    undecided = np.abs(prediction.probability - 0.5) < 1e-6
    assert np.array_equal((prediction.mask == 1)[~undecided], (prediction.probability > 0.5)[~undecided])
    assert prediction.probability.min() >= 0 and prediction.probability.max() <= 1
    if prediction.mask.any():
        assert prediction.score == pytest.approx(prediction.probability[prediction.mask == 1].mean(), abs=1e-5)


def test_any_kind_of_image(predictor: Predictor, tmp_path: Path) -> None:
    image, mask = shapes(60, 44)
    predictor.set_support([image], [mask])
    expected = predictor.predict(image)
    Image.fromarray(image).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    Image.fromarray(np.rot90(image)).save(tmp_path / "turned.png", exif=exif)
    cv2.imwrite(str(tmp_path / "deep.tif"), (image[..., ::-1].astype(np.uint16) << 8) + 7)
    alpha = np.dstack([image, np.full((60, 44), 255, np.uint8)])
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    files: list[Any] = [tmp_path / "a.png", str(tmp_path / "turned.png"), tmp_path / "deep.tif"]
    for kind in (*files, Image.fromarray(image), alpha, tensor, tensor / 255):
        assert same(predictor.predict(kind), expected)
    grey = image.mean(2).astype(np.uint8)
    assert same(predictor.predict(grey), predictor.predict(np.dstack([grey] * 3)))


def test_kinds_of_masks(tmp_path: Path) -> None:
    mask = shapes(60, 44)[1]
    index = mask * 7
    index[0] = 9
    index[-1] = 255
    Image.fromarray(mask * 255).save(tmp_path / "binary.png")
    Image.fromarray(mask * 255).save(tmp_path / "binary.jpg", quality=30)
    Image.fromarray(index).convert("P").save(tmp_path / "index.png")
    soft = cv2.resize(mask * 255, (440, 600), interpolation=cv2.INTER_CUBIC)

    def read(source: Any) -> np.ndarray:
        return object_mask(source, (60, 44), "here")

    for kind in (mask, mask * 255, mask == 1, torch.from_numpy(mask), mask.astype(np.float32), mask * 5.0 / 5):
        assert np.array_equal(read(kind), mask)
    for kind in (tmp_path / "binary.png", Image.fromarray(mask * 255), Image.fromarray(mask == 1), mask[..., None]):
        assert np.array_equal(read(kind), mask)
    assert (read(tmp_path / "binary.jpg") != mask).mean() < 0.02
    assert (object_mask(soft, (600, 440), "here")[5::10, 5::10] != mask).mean() < 0.02
    expected = np.where(index == 255, 255, index == 7)
    assert np.array_equal(read((tmp_path / "index.png", 7)), expected)
    assert np.array_equal(read((index, 7)), expected)
    assert np.array_equal(read((np.where(mask, np.uint8(15), np.uint8(0)), 15)), mask)
    one_class = np.where(index == 9, 0, index).astype(np.uint8)
    assert np.array_equal(read(one_class), np.where(one_class == 255, 255, one_class == 7))


def test_boxes() -> None:
    mask = mask_from_boxes([(2, 1, 5, 4), [10.2, 0, 12.9, 30]], (30, 20), "here")
    expected = np.zeros((30, 20), np.uint8)
    expected[1:4, 2:5] = 1
    expected[:, 10:13] = 1
    assert np.array_equal(mask, expected)
    for wrong in ([(5, 1, 2, 4)], [(0, 0, 21, 5)], [(-1, 0, 5, 5)], [(1, 2, 3)], [(0, 0, 5, np.nan)], []):
        with pytest.raises(UserError, match="here"):
            mask_from_boxes(wrong, (30, 20), "here")


def test_a_box_is_the_filled_mask(predictor: Predictor) -> None:
    image, _ = shapes(60, 44)
    filled = np.zeros((60, 44), np.uint8)
    filled[10:50, 5:30] = 1
    predictor.set_support([image], [filled])
    expected = predictor.predict(image)
    predictor.set_support([image], [[(5, 10, 30, 50)]])
    assert same(predictor.predict(image), expected)


def test_batches_are_single_predictions(predictor: Predictor) -> None:
    predictor.set_support(*zip(*(shapes(50, 60) for _ in range(3)), strict=True))
    images = [shapes(*size)[0] for size in ((40, 40), (90, 30), (33, 120))]
    for together, image in zip(predictor.predict_batch(images), images, strict=True):
        assert same(together, predictor.predict(image))


def test_several_classes_compete(predictor: Predictor) -> None:
    supports = {name: shapes(50, 60) for name in ("cat", "dog", "cow")}
    query = shapes(64, 48)[0]
    margins = []
    for image, mask in supports.values():
        predictor.set_support([image], [mask])
        probability = predictor.predict(query).probability.astype(np.float64)
        margins.append(np.log(probability / (1 - probability)))  # score of the object over the background
    scores = np.stack([np.zeros((64, 48)), *margins])
    predictor.set_support({name: ([image], [mask]) for name, (image, mask) in supports.items()})
    prediction = predictor.predict(query)
    assert prediction.names == ("cat", "dog", "cow")
    assert (prediction.mask != scores.argmax(0)).mean() < 0.01
    shares = np.exp(scores) / np.exp(scores).sum(0)
    assert np.abs(prediction.class_probabilities - shares[1:]).max() < 1e-4
    assert np.abs(prediction.probability - (1 - shares[0])).max() < 1e-4


def test_what_was_found() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[2:5, 3:10], mask[10, 29] = 2, 1
    probabilities = np.asarray(generator().random((3, 20, 30)) / 1000, np.float32)
    for value in (1, 2):
        probabilities[value - 1, mask == value] += 0.9
    prediction = Prediction(("a", "b", "c"), mask, probabilities)
    a, b = prediction.found()
    assert a == Found("a", 1, 1, a.score, (29, 10, 30, 11))
    assert b == Found("b", 2, 21, b.score, (3, 2, 10, 5))
    assert a.score == pytest.approx(probabilities[0, 10, 29])
    assert b.score == pytest.approx(probabilities[1, 2:5, 3:10].mean(), abs=1e-6)
    assert Prediction(("a",), np.zeros_like(mask), probabilities[:1]).score == 0.0


def test_numbers_of_a_large_image_are_those_of_all_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = generator()
    mask = rng.integers(0, 3, (90, 70)).astype(np.uint8)
    mask[:40], mask[:, 60:] = 0, 0
    probabilities = (rng.random((3, 90, 70)) / 3).astype(np.float32)
    whole = Prediction(("a", "b", "c"), mask, probabilities)
    found, certainty, other = whole.found(), whole.certainty, whole.at(0.3)
    for name, value in (("a", 1), ("b", 2)):
        item, inside = found[value - 1], mask == value
        rows, columns = np.nonzero(inside)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert item[:3] == (name, value, inside.sum()) and item.box == box
        assert item.score == pytest.approx(float(probabilities[value - 1][inside].mean()), rel=1e-5)
    assert len(found) == 2
    any_class, inside = probabilities.sum(0), mask > 0
    expected = any_class[inside].sum() / (inside.sum() + any_class[~inside].sum())
    assert certainty == pytest.approx(float(expected), rel=1e-5)
    rounded = [each._replace(score=round(each.score, 4)) for each in found]
    monkeypatch.setattr(predictor_module, "STRIP", 200)
    assert [each._replace(score=round(each.score, 4)) for each in whole.found()] == rounded
    assert whole.certainty == pytest.approx(certainty)
    assert (whole.at(0.3).mask == other.mask).all()


def test_half_precision_holds_sums_beyond_its_range(tmp_path: Path) -> None:
    ones: Any = np.ones((1, 300, 300), np.float16)  # float16 ends at 65504
    found = Prediction(("a",), np.ones((300, 300), np.uint8), ones)
    assert found.certainty == found.score == found.found()[0].score == 1
    save_probability(tmp_path / "p.png", found.probability)
    assert (cv2.imread(str(tmp_path / "p.png"), cv2.IMREAD_UNCHANGED) == 65535).all()


@pytest.mark.parametrize("trained", [1, 3])
@pytest.mark.parametrize("given", [1, 2, 5])
def test_any_number_of_supports(
    experiment: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: int, given: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cfg = toy_config(experiment[1].parents[6], shot=trained)
    predictor = Predictor(random_network(cfg), cfg.val_size, trained, torch.device("cpu"))
    image, mask = shapes(50, 60)
    query = shapes(50, 60)[0]
    predictor.set_support([image] * trained, [mask] * trained)
    expected = predictor.predict(query)
    predictor.set_support([image] * given, [mask] * given)
    assert same(predictor.predict(query), expected)
    predictor.set_support(*zip(*(shapes(50, 60) for _ in range(given)), strict=True))
    assert np.abs(predictor.predict(query).probability - expected.probability).max() > 1e-4


def test_support_work_is_done_once(predictor: Predictor) -> None:
    predictor.set_support(*zip(*(shapes(50, 60) for _ in range(3)), strict=True))
    seen: list[int] = []
    backbone = predictor.model.backbone
    backbone.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    for _ in range(2):
        predictor.predict(shapes(50, 60)[0])
    assert seen == [1, 1]


def test_mistakes_are_named(predictor: Predictor, tmp_path: Path) -> None:
    image, mask = shapes(40, 50)
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    with pytest.raises(UserError, match="set_support"):
        predictor.predict(image)
    predictor.set_support([path], [mask])
    expected = predictor.predict(image)
    several = mask.copy()
    several[:3] = 7
    tiny = np.zeros((400, 500), np.uint8)
    tiny[3, 3] = 1
    wrong: list[tuple[Any, Any, str]] = [
        ([path], [mask.T], r"photo\.png: is 50x40 as shown, but its mask is 40x50"),
        ([path], [mask * 0], r"photo\.png: its mask marks no object"),
        ([path], [(mask, 4)], r"no object of class 4"),
        ([path], [several], r"classes \[1, 7\]"),
        ([path, path], [mask], "2 images and 1 masks"),
        ([], [], "0 images"),
        ([np.zeros((400, 500))], [tiny], "too small"),
        ([tmp_path / "absent.jpg"], [mask], r"absent\.jpg"),
        ([path], [tmp_path / "absent.png"], r"absent\.png: no such mask"),
        ([path], [[(0, 0, 60, 10)]], "no box"),
    ]
    for images, masks, message in wrong:
        with pytest.raises(UserError, match=message):
            predictor.set_support(images, masks)
    with pytest.raises(UserError, match="0 classes"):
        predictor.set_support({})
    assert same(predictor.predict(image), expected)  # the former support is still there


def test_only_what_changed_is_computed_again(experiment: tuple[Config, Path]) -> None:
    """The backbone sees an image once; an unchanged class is not encoded again; and nothing comes out differently."""
    remembering, plain = (Predictor.from_checkpoint(*experiment, device="cpu", cache_mb=mb) for mb in (50, 0))
    seen: list[int] = []
    remembering.model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    one, two, three = (([image], [mask]) for image, mask in (shapes(50, 60) for _ in range(3)))
    query = shapes(40, 70)[0]

    def look(classes: dict[str, tuple[list[np.ndarray], list[np.ndarray]]]) -> int:
        """How many images the backbone has seen for it."""
        seen.clear()
        remembering.set_support(classes)
        found = remembering.predict(query)
        plain.set_support(classes)
        assert same(found, plain.predict(query))
        return sum(seen)

    assert look({"a": one, "b": two}) == 3
    kept = remembering.states["a"]
    assert look({"a": one, "b": two}) == 0
    assert look({"a": one, "b": (two[0] + three[0], two[1] + three[1])}) == 1
    assert remembering.states["a"] is kept and remembering.states["b"] is not kept
    assert look({"a": (one[0], [1 - one[1][0]])}) == 0  # another mask
    assert remembering.states["a"] is not kept


def test_a_threshold_of_one_half_is_the_networks_own(predictor: Predictor) -> None:
    predictor.set_support({name: ([image], [mask]) for name in "ab" for image, mask in [shapes(50, 60)]})
    prediction = predictor.predict(shapes(45, 70)[0])
    assert prediction.at(0.5) is prediction
    assert (prediction.at(0.5 + 1e-6).mask != prediction.mask).mean() < 0.01
    assert not prediction.at(1).mask.any() and prediction.at(0).mask.all()


def test_arguments_of_every_kind(predictor: Predictor, tmp_path: Path) -> None:
    """Whatever says the same gives the same."""
    image, mask = shapes(40, 50)
    rows, columns = np.nonzero(mask == 1)
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    filled = np.zeros_like(mask)
    filled[box[1] : box[3], box[0] : box[2]] = 1
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(filled).save(tmp_path / "b.png")
    file = io.BytesIO((tmp_path / "b.png").read_bytes())
    query = image[::-1].copy()
    predictor.set_support([image], [filled])
    expected = predictor.predict(query).class_probabilities
    tensor = torch.from_numpy(filled)
    arguments: list[tuple[Any, ...]] = [
        (image, filled), (str(tmp_path / "a.png"), tmp_path / "b.png"), ([image], [box]), (image, box),
        ([image], [np.array([box])]), ([image], [torch.tensor([box])]), ([image], [list(box)]), ([image], [(box,)]),
        ((x for x in [image]), (x for x in [filled])), (image[None], filled[None]), ([image], [tensor.bfloat16()]),
        ([image], [file]), ({"object": ([image], [filled])},), ({"object": [image, filled]},), ([image], [(filled, 1)]),
    ]  # fmt: skip
    for given in arguments:
        predictor.set_support(*given)
        assert np.array_equal(predictor.predict(query).class_probabilities, expected)
    wrong: list[tuple[Any, ...]] = [
        ([image], [None]), ({"cat": [image]},), ({"cat": None},), (7, filled), ([image], [(filled, "x")]), (None, None),
        ([image], [io.BytesIO()]), ([image], ["absent.png"]), ([image], [(1, 2, 3)]), ([None], [filled]), ([], []),
    ]  # fmt: skip
    for given in wrong:
        with pytest.raises(UserError) as caught:
            predictor.set_support(*given)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"a\.png: has no mask, nor any box; give one"):
        predictor.set_support(tmp_path / "a.png")
    assert np.array_equal(predictor.predict(query).class_probabilities, expected)
    assert predictor.predict_batch([]) == [] and len(predictor.predict_batch(x for x in [image, query])) == 2
    assert len(predictor.predict_batch(str(tmp_path / "a.png"))) == 1
