"""The one schema in which results of tests and trainings are written and read.

A test leaves `result_test_*.json`, a `OneClassResult`, and beside it a line for every episode, an `EpisodeRow`.
"""

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dataset.episode import Episode
from util.config import Config, restore_config
from util.errors import UserError
from util.files import atomic_write, file_digest
from util.schema import RENAMED_KEYS, UNUSED_KEYS

EPISODES = ".episodes.jsonl"

Pixels = list[list[int]]  # background and foreground, each [intersection, union]


class Record(BaseModel):
    """A part of a result; keys that it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Moment(Record):
    """Mean over seeds and sample standard deviation, None for one seed."""

    mean: float | None
    std: float | None = None


class Difference(Record):
    """A difference of mIoU, as a fraction, and its 95 % interval."""

    mean: float
    low: float
    high: float

    def text(self) -> str:
        """In points, as +1.2 [-0.3, +2.7]."""
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"

    def negative(self) -> "Difference":
        """The difference the other way round, without negative zeros."""
        return Difference(mean=0.0 - self.mean, low=0.0 - self.high, high=0.0 - self.low)


class Metrics(Record):
    """Metrics of one evaluation, all IoUs as fractions; what no episode shows is None."""

    miou: float  # mean over the classes that were drawn
    fb_iou: float  # mean of foreground and background
    piou: float  # the foreground part of fb_iou
    class_iou: dict[int, float | None]  # by class number
    class_episodes: dict[int, int]
    class_pixels: dict[int, Pixels] = {}  # sums over the episodes of each class
    mean_episode_iou: float
    interval: tuple[float, float] | None  # 95 % bootstrap interval of mean_episode_iou; None for one query image
    query_images: int | None = None  # distinct ones; None in former versions, whose interval resampled episodes
    episode_iou: list[float | None]  # in episode order
    episode_pixels: list[Pixels] = Field([], exclude=True)  # (E, 2, 2) as `engine.metric.count_pixels`
    episode_query: list[str] = Field([], exclude=True)  # names of the query images
    episode_class: list[int] = []
    episode_hard: list[bool] = []  # whether the query shows another annotated class
    hard_miou: float | None = None  # miou of the hard episodes alone: only they need the support to tell the class
    hard_class_iou: dict[int, float | None] = {}
    seconds: float  # from the first to the last episode, loading included
    seconds_per_episode: float  # in the network and the resize of its scores


class SeedMetrics(Metrics):
    """Metrics of the episodes that one seed drew."""

    seed: int


class SupportDrop(Record):
    """What mIoU loses by wrong supports, of all and of hard episodes, and the metrics with them, one for each seed."""

    miou_drop: Difference | None = Field(validation_alias=AliasChoices("miou_drop", "fall"))
    hard_miou_drop: Difference | None = Field(validation_alias=AliasChoices("hard_miou_drop", "hard_fall"))
    results: list[Metrics] = []


class TestProtocol(Record):
    """What metrics of a test depend on besides the network: where, how drawn, at which size, how trained."""

    set: str
    fold: int
    protocol: str
    variant: str
    size: int
    metric_size: str
    trained_on: str
    train_list: str
    notes: list[str]


class ResultFile(Record):
    """What all results have in common."""

    path: Path = Field(Path(), exclude=True)

    @property
    def time(self) -> float:
        """When the file was written, in seconds since 1970."""
        return self.path.stat().st_mtime


class AnyTest(ResultFile):
    """What every test says of how it was made."""

    method: Annotated[str, AfterValidator(lambda name: "HMNet" if name == "hmnet" else name)]  # as in model.methods
    weights: str | None = None
    weights_digest: str | None = None  # SHA-256 of that file
    versions: dict[str, str] | None = None
    config: dict[str, Any]  # every key: network, recipe, protocol, seeds
    test: TestProtocol | None = None
    classes: dict[int, str] = {}
    aggregate: dict[str, Moment] = {}  # over the seeds, by the metric's name

    @cached_property
    def cfg(self) -> Config:
        """The configuration of the test; UserError names the key that this version does not know."""
        content = {key: value for key, value in self.config.items() if key not in UNUSED_KEYS}
        if str(content.get("arch")).removesuffix("AMP") != self.method:
            content["arch"] = self.method  # former versions had a network's there for methods without training
        if (cfg := restore_config(content)) is not None:
            return cfg
        unknown = sorted(content.keys() - Config.model_fields.keys() - RENAMED_KEYS.keys())
        reason = f"unknown key {unknown[0]!r}" if unknown else "values that this version does not take"
        raise UserError(f"{self.path}: config: {reason}; remove the file or test again")


class OneClassResult(AnyTest):
    """A test of one class at a time, as `test.py` writes it."""

    kind: Literal["test"]
    left_out: list[str] = []  # classes with fewer images than min_class_images
    results: list[SeedMetrics] = Field(min_length=1)
    support_check: dict[str, SupportDrop] = {}

    @property
    def episodes_path(self) -> Path:
        """Where its episodes stand, a line for each."""
        return self.path.with_suffix(EPISODES)


class SeveralRun(Record):
    """Metrics of one seed's episodes of several classes."""

    seed: int
    class_iou: dict[int, float | None]
    query_images: int | None = None
    miou: float | None = None  # N-way: wrong pixels counted where the truth has the class
    miou_everywhere: float | None = None  # N-way: all counted
    miou_novel: float | None = None  # generalized
    miou_base: float | None = None
    miou_all: float | None = None


class SeveralClassesResult(AnyTest):
    """A test of several classes at a time: N-way, or base and novel classes together."""

    kind: Literal["ways", "generalized"]
    ways: int | None = None
    first: Literal["novel", "base"] = "novel"  # which of them has a pixel that both claim
    metric_size: str
    runs: list[SeveralRun]


class TrainingResult(ResultFile):
    """The course of a training."""

    kind: Literal["training"]
    finished: bool = True
    epochs: int | None = None  # finished ones
    miou: float | None = None  # the best of the validations, as a fraction
    epoch: float | None = None  # of the best
    weights: str | None = None  # the best
    validations: list[dict[str, float]] = []  # epoch and metrics


class EpisodeRow(Record):
    """One episode of a test: a line of its .episodes.jsonl."""

    seed: int
    number: int  # in the list of episodes
    class_name: str = Field(alias="class")
    query: str
    class_id: int
    support: list[str]
    hard: bool = False  # whether the query shows another annotated class
    iou: float | None  # of the object; None where there is nothing to judge
    intersection: tuple[int, int] | None = None  # background, foreground
    union: tuple[int, int] | None = None

    @property
    def key(self) -> tuple[str, int, tuple[str, ...]]:
        """Query, class and supports, by which episodes of two tests are the same."""
        return self.query, self.class_id, tuple(self.support)


AnyResult = Annotated[OneClassResult | SeveralClassesResult | TrainingResult, Field(discriminator="kind")]
RESULT: TypeAdapter[AnyResult] = TypeAdapter(AnyResult)
Result = TypeVar("Result", bound=ResultFile)
Read = TypeVar("Read")


def read_json(path: Path, adapter: TypeAdapter[Read]) -> Read:
    """A JSON file as a type; UserError where it cannot be read, is something else or has a key that is not known."""
    try:
        return adapter.validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a result as test.py or train.py writes it") from None
    except ValidationError as error:
        raise UserError(f"{path}: {_reason(error)}; remove the file or make it again") from None


def read_result(path: Path, kind: type[Result]) -> Result:
    """A result of this kind, or of any for `ResultFile`; UserError as `read_json`, and for one of another kind."""
    found = read_json(path, RESULT)
    if not isinstance(found, kind):
        named = "training" if issubclass(kind, TrainingResult) else "test"
        raise UserError(f"{path}: not the result of a {named} (its kind is {found.kind!r})")
    return found.model_copy(update={"path": path})


def current_results(files: Iterable[Path], kind: type[Result]) -> Iterator[Result]:
    """The results of a kind among files, in the order of their paths; UserError for one that cannot be read.

    A warning names each that says nothing of the weights that lie at their path now; it is left out.
    """
    for path in sorted(files):
        result = read_result(path, ResultFile)
        if not isinstance(result, kind):
            continue
        if isinstance(result, AnyTest) and (reason := stale(result)):
            warnings.warn(reason, stacklevel=2)
        else:
            yield result


def read_rows(path: Path) -> list[EpisodeRow]:
    """The episodes of a test; UserError names a line that is damaged."""
    rows: list[EpisodeRow] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            rows.append(EpisodeRow.model_validate_json(line))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}:{len(rows) + 1}: not an episode of a test ({_reason(error)}); test again") from None
    return rows


def write_result(result: ResultFile, rows: Sequence[EpisodeRow] | None = None) -> None:
    """Write a result to its path, and the episodes of a test beside it."""
    if rows is not None:
        lines = (row.model_dump_json(by_alias=True) + "\n" for row in rows)
        atomic_write(result.path.with_suffix(EPISODES), "".join(lines))
    content = result.model_dump(mode="json", exclude_unset=True)
    atomic_write(result.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def episode_rows(
    seed: int, episodes: Sequence[Episode], metrics: Metrics, names: Mapping[int, str]
) -> list[EpisodeRow]:
    """The lines of one evaluation's episodes; `names` are those of classes."""
    rows = []
    found = zip(episodes, metrics.episode_iou, metrics.episode_pixels, strict=True)
    for number, (episode, iou, pixels) in enumerate(found):
        intersection, union = zip(*pixels, strict=True)
        about = {"seed": seed, "number": number, "class": names[episode.class_id], **episode.fields()}
        rows.append(EpisodeRow(**about, hard=episode.hard, iou=iou, intersection=intersection, union=union))
    return rows


def stale(result: AnyTest, weights: Path | None = None) -> str | None:
    """Why a result says nothing of the weights that lie where its own were (or of `weights`), in one line; or None.

    They are another file by the digest, or, in results of former versions, one that was written later.
    """
    path = weights or Path(result.weights or "")
    if not path.is_file():
        return None
    if result.weights_digest is None:
        same, reason = path.stat().st_mtime <= result.time, "is older than"
    else:
        same, reason = file_digest(path) == result.weights_digest, "is of other weights than"
    return None if same else f"{result.path}: {reason} {path}; not used: test again"


def _reason(error: Exception) -> str:
    """What is wrong with a file, in one line; of a result's content the first that is."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    where = re.sub(r"^(test|ways|generalized|training)\.", "", ".".join(map(str, first["loc"])))
    if first["type"].startswith("union_tag"):
        return f"not a result (its kind is {first['input'].get('kind')!r})"
    texts = {"extra_forbidden": f"unknown key {where!r}", "missing": f"{where!r} is missing"}
    return texts.get(first["type"], f"{where}: {first['msg']}".removeprefix(": "))
