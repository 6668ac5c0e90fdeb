"""The decoder against its description: branches, widths, biases, the residual, and where dropout acts."""

import torch
from torch.nn import functional as F

from model.parts.decoder import ASPP, DILATIONS, Decoder


def test_aspp_branches() -> None:
    aspp = ASPP(5).double()
    x = torch.randn(2, 5, 9, 9, dtype=torch.float64)
    weights, biases = ([getattr(conv, name) for conv in aspp.branches] for name in ("weight", "bias"))
    mean = x.mean((2, 3))  # (B, C)
    expected = [F.relu(mean @ weights[0][:, :, 0, 0].T + biases[0])[..., None, None].expand(2, 5, 9, 9)]
    expected.append(F.relu(torch.einsum("bchw,oc->bohw", x, weights[1][:, :, 0, 0]) + biases[1][:, None, None]))
    for dilation, weight, bias in zip((6, 12, 18), weights[2:], biases[2:], strict=True):
        padded = F.pad(x, [dilation] * 4)
        total = bias[:, None, None].expand(2, 5, 9, 9)
        for i in range(3):
            for j in range(3):
                window = padded[..., i * dilation : i * dilation + 9, j * dilation : j * dilation + 9]
                total = total + torch.einsum("bchw,oc->bohw", window, weight[:, :, i, j])
        expected.append(F.relu(total))
    torch.testing.assert_close(aspp(x), torch.cat(expected, 1))
    assert DILATIONS == (6, 12, 18)


def test_aspp_starts_kaiming_normal() -> None:
    weight = torch.cat([ASPP(64).get_parameter("branches.2.weight").flatten() for _ in range(3)])
    assert abs(weight.std().item() / (2 / (64 * 9)) ** 0.5 - 1) < 0.05 and abs(weight.mean().item()) < 0.002


def test_parameters() -> None:
    """C = 256: five branches with bias; 1x1 5C -> C; three 3x3 without bias; 1x1 to two classes with bias."""
    shapes = {name: tuple(p.shape) for name, p in Decoder(8).named_parameters()}
    assert shapes["merge.0.weight"] == (8, 40, 1, 1) and shapes["classifier.3.weight"] == (2, 8, 1, 1)
    biased = {name.rsplit(".", 1)[0] for name in shapes if name.endswith("bias")}
    assert biased == {*(f"aspp.branches.{i}" for i in range(5)), "classifier.3"}


def test_residual_and_dropout() -> None:
    decoder = Decoder(8)
    x = torch.randn(2, 8, 12, 12)
    decoder.eval()
    merged = decoder.merge(decoder.aspp(F.relu(x)))
    torch.testing.assert_close(decoder(x), decoder.classifier(merged + decoder.refine(merged)))
    torch.testing.assert_close(decoder(x), decoder(x))
    decoder.train()
    dropped = []
    decoder.classifier[2].register_forward_hook(lambda _layer, inputs, out: dropped.append((inputs[0], out)))
    decoder(x.repeat(100, 1, 1, 1))
    ((before, after),) = dropped
    kept = after.flatten(2).any(2)  # (200, 8): whole channels are dropped, one of ten
    torch.testing.assert_close(after, before / 0.9 * kept[..., None, None])
    live = before.flatten(2).any(2)
    assert 0.03 < (live & ~kept).sum() / live.sum() < 0.2
