"""The decoder: ASPP (Chen et al., 2018) and convolutions, from the enhanced query to meta logits."""

from torch import Tensor, nn
from torch.nn import functional as F

from model.tensors import stack_maps

DILATIONS = (6, 12, 18)


class ASPP(nn.Module):
    """A global-average branch, a 1x1 branch and three dilated 3x3 branches, concatenated: C to 5C channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        pointwise = [nn.Conv2d(width, width, 1) for _ in range(2)]
        dilated = [nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in DILATIONS]
        for conv in pointwise + dilated:
            nn.init.kaiming_normal_(conv.weight)
        self.branches = nn.ModuleList(pointwise + dilated)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, f, f)` to `(B, 5C, f, f)`."""
        average, *local = self.branches
        everywhere = F.relu(average(x.mean((-2, -1), keepdim=True)))
        return stack_maps(everywhere, *(F.relu(conv(x)) for conv in local))


class Decoder(nn.Module):
    """Enhanced query `(B, C, f, f)` to meta logits `(B, 2, f, f)`, background first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.aspp = width, ASPP(width)
        self.merge = nn.Sequential(nn.Conv2d(5 * width, width, 1, bias=False), nn.ReLU())
        self.refine, self.classifier = refinement(width), classifier(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.merge(self.aspp(F.relu(x)))
        x = x + self.refine(x)
        return self.classifier(x)


def refinement(width: int) -> nn.Sequential:
    """Two 3x3 convolutions with ReLU, whose result is added to their input; `(B, C, h, w)` to the same."""
    return nn.Sequential(_conv3x3(width), nn.ReLU(), _conv3x3(width), nn.ReLU())


def classifier(width: int) -> nn.Sequential:
    """`(B, C, h, w)` to logits `(B, 2, h, w)`, background first."""
    return nn.Sequential(_conv3x3(width), nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(width, 2, 1))


def _conv3x3(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, padding=1, bias=False)
