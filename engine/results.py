"""The one schema in which results of tests and trainings are written and read.

A test leaves `result_test_*.json`, a `OneClassResult`, and beside it a line for every episode, an `EpisodeRow`.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from dataset.episode import Episode
from util.config import Config, restore_config
from util.errors import UserError
from util.files import atomic_write
from util.schema import RENAMED_KEYS, UNUSED_KEYS

EPISODES = ".episodes.jsonl"
ROUNDING = 1e-6  # by which mIoU computed again may differ

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

    method: str  # its name in model.methods
    weights: str | None = None
    weights_digest: str | None = None  # SHA-256 of that file
    versions: dict[str, str] = {}
    config: dict[str, Any]  # every key: network, recipe, protocol, seeds
    test: TestProtocol | None = None
    classes: dict[int, str] = {}
    aggregate: dict[str, Moment] = {}  # over the seeds, by the metric's name

    @field_validator("method")
    @classmethod
    def _method(cls, value: str) -> str:
        return "HMNet" if value == "hmnet" else value  # as former versions called it

    @field_validator("versions", mode="before")
    @classmethod
    def _versions(cls, value: Any) -> Any:
        return value or {}

    @cached_property
    def cfg(self) -> Config:
        """The configuration of the test; UserError names the key that this version does not know."""
        content = {RENAMED_KEYS.get(key, key): value for key, value in self.config.items() if key not in UNUSED_KEYS}
        if str(content.get("arch")).removesuffix("AMP") != self.method:
            content["arch"] = self.method  # former versions had a network's there for methods without training
        if (cfg := restore_config(content)) is not None:
            return cfg
        unknown = sorted(content.keys() - Config.model_fields.keys())
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


KINDS: dict[str, type[ResultFile]] = {"test": OneClassResult, "training": TrainingResult}
KINDS |= {"ways": SeveralClassesResult, "generalized": SeveralClassesResult}
Result = TypeVar("Result", bound=ResultFile)


def read_result(path: Path, kind: type[Result]) -> Result:
    """A result of this kind; UserError for a file that cannot be read, is of another kind or has an unknown key."""
    found = read_any(path)
    if not isinstance(found, kind):
        raise UserError(f"{path}: not {_called(kind)} (its kind is {getattr(found, 'kind', None)!r})")
    return found


def read_any(path: Path) -> ResultFile:
    """A result of any kind; UserError for a file that cannot be read or has an unknown key."""
    content = read_json(path)
    kind = KINDS.get(str(content.get("kind")))
    if kind is None:
        raise UserError(f"{path}: not a result (its kind is {content.get('kind')!r}); move it elsewhere")
    try:
        return kind.model_validate({**content, "path": path})
    except ValidationError as error:
        raise UserError(f"{path}: {_problem(error)}; remove the file or make it again") from None


def results_below(folder: Path, kind: type[Result]) -> Iterator[Result]:
    """All results of a kind below a folder, in the order of their paths; UserError for one that cannot be read."""
    return (found for path in sorted(folder.rglob("result*.json")) if isinstance(found := read_any(path), kind))


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; UserError for what is no mapping in JSON or cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a result as test.py or train.py writes it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error}); remove it or make it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a result but a {type(content).__name__}; remove it or make it again")
    return content


def read_rows(path: Path) -> list[EpisodeRow]:
    """The episodes of a test; UserError names a line that is damaged."""
    rows: list[EpisodeRow] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            rows.append(EpisodeRow.model_validate_json(line))
    except ValidationError as error:
        raise UserError(f"{path}:{len(rows) + 1}: not an episode of a test ({_problem(error)}); test again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no readable episodes there ({error}); test again") from None
    return rows


def checked_rows(result: OneClassResult) -> dict[int, list[EpisodeRow]]:
    """The episodes of a test by seed; UserError where they are not those of the result, or lack their pixels."""
    path, by_seed = result.episodes_path, dict[int, list[EpisodeRow]]()
    for row in read_rows(path):
        by_seed.setdefault(row.seed, []).append(row)
        if row.intersection is None or row.union is None:
            raise UserError(f"{path}: no pixels of episode {row.number}; test again")
    for metrics in result.results:
        own = f"{path}: not the episodes of {result.path.name}: seed {metrics.seed}"
        if metrics.seed not in by_seed:
            raise UserError(f"{own} is missing; test again")
        found = _miou(by_seed[metrics.seed])
        if abs(found - metrics.miou) > ROUNDING:
            raise UserError(f"{own} has mIoU {100 * found:.2f}, not {100 * metrics.miou:.2f}; test again")
    return by_seed


def _miou(rows: Sequence[EpisodeRow]) -> float:
    sums: dict[int, Any] = {}
    for row in rows:
        assert row.intersection and row.union
        sums[row.class_id] = sums.get(row.class_id, 0) + np.array([row.intersection[1], row.union[1]])
    return float(np.mean([inside / union for inside, union in sums.values() if union]))


def write_result(result: AnyTest | TrainingResult, rows: Sequence[EpisodeRow] | None = None) -> None:
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


def of_seed(seed: int, metrics: Metrics) -> SeedMetrics:
    """Metrics with the seed that drew the episodes."""
    return SeedMetrics(seed=seed, **metrics.model_dump())


def file_digest(path: Path) -> str:
    """SHA-256 of a file, computed again only when it has changed."""
    stat = path.stat()
    return _file_digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _file_digest(path: Path, _size: int, _time: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def stale(result: AnyTest, weights: Path | None = None) -> str | None:
    """Why a result says nothing of the weights that lie where its own were (or of `weights`), in one line; or None.

    They are another file by the digest, or, in results of former versions, one that was written later.
    """
    path = weights or (Path(result.weights) if result.weights else None)
    if path is None or not path.is_file():
        return None
    if result.weights_digest is None:
        same, reason = path.stat().st_mtime <= result.time, "is older than"
    else:
        same, reason = file_digest(path) == result.weights_digest, "is of other weights than"
    return None if same else f"{result.path}: {reason} {path}; not used: test again"


def without_stale(results: Iterator[Result]) -> Iterator[Result]:
    """The results, but for those that say nothing of the weights at their path now; each of these is a warning."""
    for result in results:
        reason = stale(result) if isinstance(result, AnyTest) else None
        if reason is None:
            yield result
        else:
            warnings.warn(reason, stacklevel=2)


def _called(kind: type[ResultFile]) -> str:
    return "the result of a training" if kind is TrainingResult else "the result of a test"


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    *outer, last = [str(part) for part in first["loc"]] or [""]
    where = ".".join([*outer, last])
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    return f"{where!r} is missing" if first["type"] == "missing" else f"{where}: {first['msg']}"
