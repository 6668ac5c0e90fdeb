"""A tab as one file: its results, as predict.py writes them for the same supports and images; or all that it holds."""

import json
import re
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from zipfile import ZipFile

import numpy as np

from prediction.command import finish
from prediction.evidence import VIEWS
from prediction.formats.table import check_places, chosen_formats
from prediction.manifest import Part
from prediction.outputs import Outputs
from prediction.plan import WHOLE, PredictionPlan, begin
from prediction.queries import Queries
from prediction.settings import contents_of, fingerprint, read_settings, write_settings
from tools.browser.answer import ORDERS, Display
from tools.browser.session import Network, Session, read_upload
from util.errors import UserError
from util.files import own_name
from util.image import read_image
from util.visualize import encode_image

LONGEST = 80  # characters of the classes in the archive's name
SESSION = "session.json"
EXAMPLE, EXAMPLE_SESSION = Path(__file__).parent / "example", "session.zip"
MASK_VALUES = (0, 1, 255)


def title_of(session: Session) -> str:
    """The classes and the day, as a file name without suffix."""
    return re.sub(r"[^\w-]+", "_", "_".join(session.values()))[:LONGEST] + f"_{date.today()}"


def save_session(session: Session, folder: Path) -> Path:
    """An archive of the supports with masks and classes, and of the settings; UserError where there is no support."""
    if not session.shots:
        raise UserError("there is no support image yet, and so nothing to save")
    path, supports = Path(mkdtemp(dir=folder), f"session_{title_of(session)}.zip"), []
    try:
        with ZipFile(path, "w") as archive:
            for number, shot in enumerate(session.shots):
                supports.append({"class": shot.class_name, "image": own_name(shot.path.name)})
                archive.write(shot.path, f"{number}/{supports[-1]['image']}")
                archive.writestr(f"{number}.png", encode_image(shot.mask))
            settings = {"network": session.network, **session.display._asdict(), "supports": supports}
            archive.writestr(SESSION, json.dumps(settings, indent=1))
    except OSError as error:
        raise UserError(f"{error.strerror}: a support image is no longer there; add it again") from None
    return path


def open_session(session: Session, path: str) -> str:
    """Put what `save_session` wrote in place of what a tab holds, but for its network, whose name is returned.

    UserError, and nothing changed, where it is no such file.
    """
    place, limits = Path(mkdtemp(dir=Path(path).parent)), session.limits
    opened = Session(limits, session.network, counter=session.counter)
    try:
        with ZipFile(path) as archive:
            if sum(file.file_size for file in archive.infolist()) > limits.supports * limits.megapixels * 4e6:
                raise UserError(f"{Path(path).name}: holds more than {limits.supports} images can take")
            archive.extractall(place)
        saved = json.loads((place / SESSION).read_bytes())
        opened.display = view, threshold, order = Display(*(saved[key] for key in Display._fields))
        for number, item in enumerate(saved["supports"]):
            file = place / str(number) / own_name(item["image"])
            image, mask = (read_upload(each, limits) for each in (file, place / f"{number}.png"))
            assert mask.shape == image.shape and np.isin(mask, MASK_VALUES).all() and item["class"].strip()
            opened.add_shot(file, image, np.ascontiguousarray(mask[..., 0]), item["class"])
        assert opened.shots and view in VIEWS and order in ORDERS and 0 < threshold < 1
        network = str(saved["network"])
    except UserError:
        raise
    except Exception:  # whatever the file may hold
        raise UserError(f"{Path(path).name}: is no session, or damaged; take a file that Save session wrote") from None
    vars(session).update(vars(opened))
    return network


def open_example(session: Session, folder: Path) -> list[str]:
    """Put supports of coins in place of what a tab holds; returns copies of photographs to search."""
    place = shutil.copytree(EXAMPLE, Path(mkdtemp(dir=folder), EXAMPLE.name))
    open_session(session, str(place / EXAMPLE_SESSION))
    return sorted(map(str, place.glob("*.jpg")), reverse=True)


def write_zip(session: Session, network: Network, formats: Sequence[str], folder: Path) -> Path:
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
    title, threshold = title_of(session), session.display.threshold
    with TemporaryDirectory(dir=folder) as work:
        place, images, support = Path(work, title), Path(work, "images"), session.support()
        plan = PredictionPlan(support, Queries(images, names), WHOLE, Outputs(place, names), names, [])
        images.mkdir()
        begin(plan, fingerprint(network.source, support, images) | {"threshold": threshold}, overwrite=False)
        with Part(place, WHOLE) as part:
            for name, answer in zip(names, session.answers, strict=True):
                (images / name).symlink_to(answer.path)
                image, about = read_image(answer.path), contents_of(answer.path)
                found = answer.evidence.prediction(threshold, image)
                part.append(plan.outputs.write(name, image, found, plan.values, answer.seconds, about))
        finish(place, ",".join(formats), html=True)
        write_settings(place, read_settings(place) | {"query": ".", "files": names})  # as on the user's machine
        for file in place.glob("labelme/*.json"):
            content = json.loads(file.read_bytes())
            file.write_text(json.dumps(content | {"imagePath": Path(content["imagePath"]).name}, indent=1) + "\n")
        return Path(shutil.make_archive(str(Path(mkdtemp(dir=folder), title)), "zip", place))
