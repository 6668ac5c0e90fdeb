"""Public lists of benchmarks: where each comes from, and fetching them."""

from pathlib import Path

from dataset.prepare.download import download

HSNET = "https://raw.githubusercontent.com/juhongm999/hsnet/6b1bc12/data/splits"
SCCNET = "https://raw.githubusercontent.com/linhanwang/SCCNet/a0868f7/data/splits"
PATNET = "https://raw.githubusercontent.com/slei109/PATNet/0155c5f/data"

# Benchmark -> address of a folder, and the files below it, which keep their paths.
LISTS: dict[str, tuple[str, list[str]]] = {
    "pascal": (HSNET, [f"pascal/{part}/fold{fold}.txt" for part in ("val", "trn") for fold in range(4)]),
    "coco": (HSNET, [f"coco/{part}/fold{fold}.pkl" for part in ("val", "trn") for fold in range(4)]),
    "fss1000": (HSNET, ["fss/test.txt", "fss/val.txt", "fss/trn.txt"]),
    "isaid5i": (SCCNET, [f"isaid/{part}/fold{fold}.txt" for part in ("val", "trn") for fold in range(3)]),
    "isic2018": (PATNET, ["isic/class_id.csv"]),
}


def list_paths(name: str, folder: Path) -> list[Path]:
    """Where the lists of a benchmark lie in a folder."""
    return [folder / file for file in LISTS[name][1]]


def fetch_lists(name: str, folder: Path, mirror: str | None = None) -> None:
    """Bring the lists of a benchmark into a folder, from `mirror` if given; UserError when one cannot be fetched."""
    address, files = LISTS[name]
    for file, path in zip(files, list_paths(name, folder), strict=True):
        if not path.is_file():
            download(f"{(mirror or address).rstrip('/')}/{file}", path)
