"""COCO -> PASCAL: a network of a COCO fold on the VOC classes that the fold has not seen, by three conventions."""

from dataset.benchmarks.base import ImageIndex, Mode
from dataset.benchmarks.pascal import Pascal, pascal_lines
from dataset.lists import read_labelled

FPTRANS = ((1, 4, 9, 11, 12, 15), (2, 6, 13, 18), (3, 7, 16, 17, 19, 20), (5, 8, 10, 14))
CAR, CAT = 7, 8


class Coco2Pascal(Pascal):
    """VOC's validation images; variant A is FPTrans's (unseen classes), B RePRI's, C PASCAL-5i's folds.

    B exchanges car and cat in A, whose tables differ; C has classes that COCO's fold was trained on.
    """

    EPISODES, VARIANTS = 5000, ("A", "B", "C")

    def wanted(self, mode: Mode) -> list[int]:
        fold = self.cfg.split
        if self.variant == "C":
            return list(range(5 * fold + 1, 5 * fold + 6))
        exchanged = {CAR: CAT, CAT: CAR} if self.variant == "B" else {}
        return sorted(exchanged.get(c, c) for c in FPTRANS[fold])

    def public_index(self) -> ImageIndex:
        """HSNet's: the lines of these classes in all its training and validation lists."""
        lists = [self.public_list(part, fold) for part in ("trn", "val") for fold in range(4)]
        lines = [line for path in lists for line in read_labelled(path)]
        wanted = self.wanted("test")
        return pascal_lines([line for line in lines if line[1] in wanted], wanted)

    def notes(self) -> list[str]:
        kind = {
            "A": "classes unseen by the COCO fold (FPTrans)",
            "B": "as A with car and cat exchanged (RePRI), which COCO's fold has seen",
            "C": "PASCAL-5i's folds, which hold classes that COCO's fold was trained on",
        }
        drawn = {
            "hsnet": "HSNet's training and validation images; its number of episodes and their order are unverified",
            "fptrans": "draws by FPTrans's rule, not compared with its own",
        }.get(self.cfg.protocol, f"draws of protocol {self.cfg.protocol}, which no paper has used here")
        return [f"convention {self.variant}: {kind[self.variant]}", drawn]
