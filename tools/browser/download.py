"""The results of a tab as one file: what predict.py writes for the same supports and images."""

import re
import shutil
from argparse import Namespace
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from dataset.lists import class_lines
from prediction.command import finish
from prediction.formats.table import check_places, chosen_formats
from prediction.manifest import write_manifest
from prediction.outputs import Outputs
from prediction.settings import contents_of, fingerprint, write_settings
from prediction.support import SupportClass
from tools.browser.segment import Network, Session
from util.errors import UserError
from util.files import atomic_write, own_name
from util.image import read_image

LONGEST = 80  # characters of the classes in the archive's name


def write_zip(session: Session, network: Network, threshold: float, formats: Sequence[str], folder: Path) -> Path:
    """What `predict.py --html --format ...` writes, in an archive named after the classes and the day.

    Where two images have one name, all are numbered. UserError if nothing was segmented yet, if supports or network
    have changed since, and as `chosen_formats` and `check_places`.
    """
    if not session.answers or session.is_stale:
        what = "supports or network have changed" if session.answers else "nothing is segmented yet"
        raise UserError(f"{what}; press Find the object, then there is something to download")
    check_places(chosen_formats(",".join(formats)), False, [answer.path for answer in session.answers])
    names = [own_name(answer.path.name) for answer in session.answers]
    if len(set(names)) < len(names):
        names = [f"{number}_{name}" for number, name in enumerate(names, 1)]
    title = re.sub(r"[^\w-]+", "_", "_".join(session.values()))[:LONGEST] + f"_{date.today()}"
    with TemporaryDirectory(dir=folder) as work:
        place, images, values = Path(work, title), Path(work, "images"), session.values()
        outputs, records, shots = Outputs(place, names), {}, session.shots
        images.mkdir()
        for name, answer in zip(names, session.answers, strict=True):
            (images / name).symlink_to(answer.path)
            image, about = read_image(answer.path), contents_of(answer.path)
            found = answer.prediction(threshold, image)
            records[name] = outputs.write(name, image, found, values, answer.seconds, about)
        write_manifest(place, records)
        atomic_write(place / "classes.txt", class_lines({value: name for name, value in values.items()}))
        support = [SupportClass(shot.class_name, values[shot.class_name], [shot.path], [shot.mask]) for shot in shots]
        settings = fingerprint(network.cfg, network.weights, support, images)
        write_settings(place, settings | {"threshold": threshold})
        finish(Namespace(out=place, format=",".join(formats), html=True))
        return Path(shutil.make_archive(str(Path(mkdtemp(dir=folder), title)), "zip", place))
