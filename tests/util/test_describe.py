"""Every key says once what it means and what it is about; help and docs say the same."""

import re

import pytest

from util.arguments import training_arguments
from util.describe import DOCS, PARTS, description, key_help, with_table
from util.keys import TOPICS
from util.schema import Config, keys_of, topics_of


@pytest.mark.parametrize("key", Config.model_fields)
def test_every_key_has_a_meaning_and_a_topic(key: str) -> None:
    assert description(key) and "\n" not in description(key) and "|" not in description(key)
    topic, *more = topics_of(key)
    assert topic in TOPICS and set(more) <= {"base"} and topic not in more
    assert [name for name in TOPICS if key in keys_of(name) and name != "base"] == [topic] * (topic != "base")
    assert (key in keys_of("base")) == ("base" in topics_of(key))


def test_what_cannot_be_told_from_its_name() -> None:
    wanted = {
        "network": "arch backbone width amp val_size",
        "recipe": "data_set split shot batch_size accumulate momentum weight_decay power index_split trunk_lr",
        "base": "base_epochs base_lr_encoder data_set backbone momentum",
        "protocol": "draw_workers protocol metric_size test_episodes area_threshold ann_type",
        "machine": "workers loader_workers device scan",
    }
    for topic, keys in wanted.items():
        assert set(keys.split()) <= set(keys_of(topic)), topic


def test_the_page_is_current() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert text == with_table(text), "renew it by `python -m util.describe`"
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(Config.model_fields)
    assert set(PARTS) <= set(Config.model_fields)


def test_help_lists_all_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        training_arguments("", ["--help-config"])  # nothing else is needed
    assert not stop.value.code and capsys.readouterr().out == key_help()
    assert re.findall(r"^  (\w+) \(", key_help(), re.MULTILINE) == list(Config.model_fields)


def test_the_meaning_stands_in_the_schema_alone() -> None:
    base = (DOCS.parents[1] / "config/base/pascal.yaml").read_text()
    assert not re.search(r"^ +\w+:.*#", base, re.MULTILINE)
