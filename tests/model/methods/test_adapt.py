"""The adapted discriminant: an easy case, the plain formula, and what must not matter."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.methods.adapt import (
    DECAY,
    NEIGHBOURS_OF_ALL,
    RICH_NEIGHBOURS,
    RIDGE,
    Adapt,
    discriminant,
    first_margin,
    fit,
    likeness,
    logistic_regression,
    margins_of,
    nearest_margin,
    refit,
)
from tests.model.methods.test_hmnet import episode, small
from util.image import MEAN, STD


def adapt() -> Adapt:
    model = small("arch", "adapt", "ensemble", "False")
    assert isinstance(model, Adapt) and not model.is_trained
    return model


def noise_with_object(count: int, size: int = 65) -> tuple[Tensor, Tensor]:
    """Images (count, 3, size, size) of faint noise with a coarse pattern as object, and its masks; the same always."""
    noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    images, masks = 0.3 * noise, torch.zeros(count, size, size, dtype=torch.uint8)
    stripes = torch.where(torch.arange(size) % 8 < 4, 2.0, -2.0)
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        top, left = 7 * number % (size - 32), 13 * number % (size - 32)
        window = (slice(top, top + 32), slice(left, left + 32))
        image[(slice(None), *window)] += stripes[:32].expand(3, 32, 32)
        mask[window] = 1
    return images, masks


def iou(scores: Tensor, masks: Tensor) -> float:
    found, truth = scores[:, 1] > scores[:, 0], masks == 1
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize("shot", [1, 4])
@torch.inference_mode()
def test_an_easy_object_is_found(shot: int) -> None:
    model, (images, masks) = adapt(), noise_with_object(4 + shot)
    state = model.encode_support(images[None, 4:], masks[None, 4:])
    for number in range(4):
        scores = model.score(model.embed_query(images[number : number + 1]), state).resize(65)
        found = iou(scores.final, masks[number : number + 1])
        assert found > 0.5


@torch.inference_mode()
def test_the_discriminant_is_that_of_the_plain_formula() -> None:
    rows, weights = torch.randn(200, 6, dtype=torch.float64), torch.rand(2, 200, dtype=torch.float64)
    rows[100:] += 3  # the object's, so that the classes differ
    weights[0, 100:], weights[1, :100] = 0, 0
    head = fit(rows, weights, 2)
    means, covariance, direction = (head[name] for name in ("means", "covariance", "direction"))
    x, w = rows.double().numpy(), weights.double().numpy()
    expected = [np.cov(x.T, aweights=w[i], ddof=0) for i in (0, 1)]
    np.testing.assert_allclose(covariance, sum(expected) / 2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(means, [np.average(x, axis=0, weights=w[i]) for i in (0, 1)], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(margins_of(means, discriminant(means, covariance)), torch.tensor([-0.5, 0.5]).double())
    unit = F.normalize(rows[:, -2:], dim=1)
    background, object_ = (F.normalize((weights[i][:, None] * unit).sum(0), dim=0) for i in (0, 1))
    torch.testing.assert_close((object_ - background) @ direction, torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(head["size"], weights[1].sum() / weights.sum())


@torch.inference_mode()
def test_prototype_and_neighbours_count_more_for_a_small_object() -> None:
    generator = torch.Generator().manual_seed(0)
    x, head = torch.randn(6, 8, 8, generator=generator), {"size": torch.tensor(0.01), "shot": torch.tensor(1)}
    head |= {name: torch.randn(7, generator=generator) for name in ("linear", "logistic")}
    head |= {"direction": torch.randn(2, generator=generator), "examples": torch.randn(2, 9, 6, generator=generator)}
    other = {**head, "linear": -head["linear"], "logistic": -head["logistic"]}
    torch.testing.assert_close(first_margin(x, head, 2), first_margin(x, other, 2))  # with one shot nothing else counts
    for change in ({"size": torch.tensor(0.5)}, {"shot": torch.tensor(5)}):
        assert (first_margin(x, head | change, 2) - first_margin(x, other | change, 2)).abs().max() > 0.1


def test_the_logistic_regression_is_at_the_minimum_of_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 4, dtype=torch.float64, generator=generator)
    rows[150:] += torch.tensor([1.0, 0, 0.5, 0])
    weights = torch.stack([torch.arange(300) < 150, torch.arange(300) >= 150]) / 150.0
    found = logistic_regression(rows, weights.double())
    margin = rows @ found[:-1] + found[-1]
    torch.testing.assert_close(margin[150:].mean() - margin[:150].mean(), torch.ones((), dtype=torch.float64))

    deviation = rows.std(0)
    scale = torch.linspace(0.5, 20, 2000, dtype=torch.float64)  # the formula's minimum is a multiple of what was found
    logits = scale[:, None] * margin
    losses = F.softplus(logits[:, :150]).mean(1) / 2 + F.softplus(-logits[:, 150:]).mean(1) / 2
    losses = losses + DECAY * scale.square() * (found[:-1] * deviation).square().sum()
    w = (found * scale[losses.argmin()]).requires_grad_()
    margin = rows @ w[:-1] + w[-1]
    loss = F.softplus(margin[:150]).mean() / 2 + F.softplus(-margin[150:]).mean() / 2
    (loss + DECAY * (w[:-1] * deviation).square().sum()).backward()
    assert w.grad is not None and w.grad.abs().max() < 2e-3


def test_the_nearest_examples_tell_object_from_background() -> None:
    x = torch.zeros(4, 7, 9)  # odd sides: the last positions have no neighbour to be averaged with
    x[0], x[2] = 1, 1
    x[:, 4:, 4:] = torch.tensor([0.0, 1, 0, 1])[:, None, None]
    examples = torch.zeros(2, 10, 4)
    examples[0, 0], examples[1, 0] = x[:, 0, 0], x[:, 6, 8]
    margin = nearest_margin(x, examples, 2).view(7, 9)
    highest = (RICH_NEIGHBOURS + NEIGHBOURS_OF_ALL) / 2
    torch.testing.assert_close(margin[[0, 6, 6], [0, 0, 8]], highest * torch.tensor([-1.0, -1, 1]))
    assert torch.equal(margin > 0, x[1] > 0)


def test_the_refit_is_half_way_to_the_plain_formula_of_evenly_drawn_sure_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6000, 4, dtype=torch.float64, generator=generator)
    rows[2500:5000] += torch.tensor([2.0, 0, 1, 0])
    margin = torch.tensor([-1.0, 1, 0]).double().repeat_interleave(torch.tensor([2500, 2500, 1000]))  # the last unsure
    head = {"means": torch.zeros(2, 4).double(), "covariance": torch.eye(4).double()}
    head["means"][1] = 1
    drawn = [rows[:2500:6].numpy(), rows[2500:5000:6].numpy()]  # 417 of each
    means = (head["means"].numpy() + [each.mean(0) for each in drawn]) / 2
    covariance = (np.eye(4) + sum(np.cov(each.T, ddof=0) for each in drawn) / 2) / 2
    direction = np.linalg.solve(covariance + np.trace(covariance) / 4 * RIDGE * np.eye(4), means[1] - means[0])
    expected = (rows.numpy() - means.mean(0)) @ direction / ((means[1] - means[0]) @ direction)
    np.testing.assert_allclose(refit(rows, margin, torch.ones(6000), head), expected, atol=1e-6)


@torch.inference_mode()
def test_a_batch_is_its_samples_and_a_second_fit_the_first() -> None:
    model, inputs = adapt(), episode(shot=3)
    together = model(**inputs)
    assert together.final.shape == (2, 2, 65, 65)
    assert torch.equal(model(**inputs).final, together.final)
    for i in range(2):
        alone = model(**{name: x[i : i + 1] for name, x in inputs.items()})
        torch.testing.assert_close(together.final[i : i + 1], alone.final, atol=1e-3, rtol=1e-3)
    state = model.encode_support(inputs["support"], inputs["support_mask"])
    assert all(len(part) == 2 for part in state.values())
    explained = model.explain(model.embed_query(inputs["query"]), state)
    torch.testing.assert_close(explained.scores.resize(65).final, together.final)
    assert len(explained.maps) == 2


@torch.inference_mode()
def test_nothing_is_found_where_nothing_is_like_the_object() -> None:
    model, (images, masks) = adapt(), noise_with_object(2)
    state, query = model.encode_support(images[None, 1:], masks[None, 1:]), model.embed_query(images[:1])
    assert model.score(query, state).margin_at().max() > 0
    margin = model.score(query, {**state, "object": -state["object"]}).margin_at()
    assert margin.max() < 0 < margin.std()
    rows = torch.tensor([[1.0, 3, 4], [1, 0, 5], [1, 5, 0]])  # the last is padding
    assert likeness(rows, torch.tensor([1, 1, 0]), torch.tensor([1.0, 0])) == pytest.approx(0.6)


@torch.inference_mode()
def test_ignored_pixels_of_supports_count_for_nothing() -> None:
    model, (images, masks) = adapt(), noise_with_object(3)
    ignored = masks[None, 1:].clone()
    ignored[..., 32:] = torch.where(ignored[..., 32:] == 1, 1, 255)
    plain = model.encode_support(images[None, 1:], masks[None, 1:])
    kept = model.encode_support(images[None, 1:], ignored)
    torch.testing.assert_close(kept["means"][:, 1], plain["means"][:, 1])
    assert not torch.allclose(kept["means"][:, 0], plain["means"][:, 0])


@torch.inference_mode()
def test_padding_is_not_what_a_query_is_refitted_to() -> None:
    model = adapt()
    images = torch.randn(1, 3, 64, 64)
    images[:, :, 40:] = torch.from_numpy(-MEAN / STD)[:, None, None]
    images[:, :, 10, 10] = torch.from_numpy(-MEAN / STD)  # a black pixel is no padding
    shown = model.features(images, "query")["shown"]
    assert shown.shape == (1, 1, 8, 8)
    assert torch.equal(shown[0, 0], torch.arange(8).lt(5).float()[:, None].expand(8, 8))


@torch.inference_mode()
def test_an_object_of_no_position_gives_finite_scores() -> None:
    model, inputs = adapt(), episode()
    inputs["support_mask"].zero_()
    assert model(**inputs).final.isfinite().all()
