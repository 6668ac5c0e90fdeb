"""Every mistake in a config file or an override is one line that names the file, the key and the remedy."""

import re
from pathlib import Path

import pytest

from util.config import load_config
from util.errors import UserError

BASES = Path(__file__).resolve().parent.parent.parent / "config" / "base"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Train:\n  epoch: 3\n", "{file}: unknown key 'epoch' (value 3); nearest is 'epochs'"),
        ("subepoch_val: True\n", "{file}: unknown key 'subepoch_val' (value True); nearest is 'SubEpoch_val'"),
        ("Train:\n  more:\n    shot: 1\n", "{file}: unknown key 'more' (value {{'shot': 1}}); nearest is "),
        ("3: 4\n", "{file}: unknown key 3 (value 4); nearest is "),
        ("shot: many\n", "{file}: shot: 'many' should be a valid integer"),
        ("shot: 1.5\n", "{file}: shot: 1.5 should be a valid integer"),
        ("shot: True\n", "{file}: shot: True should be a number"),
        ("shot: 0\n", "{file}: shot: 0 should be greater than 0"),
        ("shot: [1]\n", "{file}: shot: [1] should be a valid integer"),
        ("shot: {a: 1}\n", "{file}: shot: {{'a': 1}} should be a valid integer"),
        ("base_lr: fast\n", "{file}: base_lr: 'fast' should be a valid number"),
        ("base_lr: .inf\n", "{file}: base_lr: inf should be a finite number"),
        ("vgg: 3\n", "{file}: vgg: 3 should be a valid boolean"),
        ("weight: 12\n", "{file}: weight: 12 should be a valid string"),
        ("ann_type: boxes\n", "{file}: ann_type: 'boxes' should be 'mask' or 'bbox'"),
        ("seeds: [1, two]\n", "{file}: seeds: 'two' should be a valid integer"),
        (f"seeds: [1, {2**63}]\n", f"{{file}}: seeds: {2**63} should be less than or equal to {10**18}"),
        ("manual_seed: -1\n", "{file}: manual_seed: -1 should be greater than or equal to 0"),
        ("seeds: []\n", "{file}: seeds: [] "),
        ("data_set: ../mine\n", "{file}: data_set: '../mine' "),
        ("data_set: mine\ntest_fold: 4\n", "{file}: test_fold: 4 should be below folds (4)"),
        ("data_set: mine\nsplit: 4\n", "{file}: split: 4 should be below folds (4)"),
        ("train_h: 472\ntrain_w: 472\n", "{file}: train_h: 472 should be a multiple of 8 plus 1, such as 465 or 473"),
        ("train_h: 1\ntrain_w: 1\n", "{file}: train_h: 1 should be a multiple of 8 plus 1, such as 9 or 17"),
        ("val_size: 500\n", "{file}: val_size: 500 should be a multiple of 8 plus 1, such as 497 or 505"),
        ("base_train_h: 400\n", "{file}: base_train_h: 400 should be"),
        ("train_w: 225\n", "{file}: train_w: 225 should equal train_h (473)"),
        ("scale_min: 1.2\n", "{file}: scale_min: 1.2 should be at most scale_max (1.1)"),
        ("shot: 5\ntrained_shot: 3\n", "{file}: trained_shot: 3 should be empty, 1 or shot (5)"),
        (
            "fusion: cross_attention\nwidth: 20\n",
            "{file}: width: 20 should be a multiple of 8, the heads of fusion cross_attention",
        ),
        ("layers: 18\n", "{file}: layers: 18 should be 50 or 101"),
        ("feature_size: 30\n", "{file}: feature_size: 30 should be a multiple of patch_ratio (4)"),
        ("num_classes: 21\n", "{file}: num_classes: 21 should be 20 for data_set pascal"),
        ("folds: 1\n", "{file}: folds: 1 should be from 2 to num_classes (20)"),
        ("base: [a]\n", "{file}: base: ['a'] should be the path of a config file"),
        ("base: other.yaml\n", "{file}: base: there is no file {folder}/other.yaml"),
        ("a list\n", "{file}: a config file should hold `key: value` lines, not a str"),
        ("Train:\n  shot: 1\n   epochs: 2\n", "{file}: line 3: not valid YAML: "),
        ("shot: 1\n\tepochs: 2\n", "{file}: line 2: not valid YAML: "),
        ("shot: !!python/object/apply:os.getcwd []\n", "{file}: line 1: not valid YAML: "),
        ("resume: 2024-13-45\n", "{file}: not valid YAML: "),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "mistaken.yaml", text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    message_line = str(caught.value)
    assert message_line.startswith(message.format(file=path, folder=tmp_path)) and "\n" not in message_line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shot", "5", "epochs"], "--opts: should be pairs of key and value, but 'epochs' has no partner"),
        (["shots", "5"], "--opts: unknown key 'shots' (value 5); nearest is 'shot'"),
        (["base", "x.yaml"], "--opts: unknown key 'base'"),
        (["shot", "x"], "--opts: shot: 'x' should be a valid integer"),
        (["split", "9"], "--opts: split: 9 should be below folds (4)"),
        (["weight", "[}"], "--opts weight: line 1: not valid YAML: "),
    ],
)
def test_mistakes_in_overrides(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(BASES / "pascal.yaml", words)
    assert str(caught.value).startswith(message)


def test_unreadable_files(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "absent.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: cannot read this config file: {reason}"):
            load_config(path)
    (tmp_path / "latin.yaml").write_bytes("weight: é\n".encode("latin-1"))
    with pytest.raises(UserError, match="latin.yaml: this config file is not UTF-8 text"):
        load_config(tmp_path / "latin.yaml")


def test_cycle(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: ./a.yaml\n")
    with pytest.raises(UserError, match=r"b.yaml: base: .*a.yaml -> .*b.yaml -> .*a.yaml is a cycle"):
        load_config(tmp_path / "a.yaml")


def test_a_mistake_is_told_of_the_file_that_holds_it(tmp_path: Path) -> None:
    root = write(tmp_path / "root.yaml", "epochs: few\n")
    leaf = write(tmp_path / "leaf.yaml", "base: root.yaml\nshot: 5\n")
    with pytest.raises(UserError, match=f"^{re.escape(str(root))}: epochs: 'few'"):
        load_config(leaf)
    assert load_config(leaf, ["epochs", "2"]).epochs == 2


def test_aliases_that_unfold_without_end_and_keys_twice(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    levels = [f"&a{n} [{', '.join([f'*a{n - 1}'] * 10 if n else ['l'] * 10)}]" for n in range(12)]
    for text, problem in (
        (f"exp: [{', '.join(levels)}]", "line 1: .*more than 10000 values"),
        (f"? [{', '.join(levels)}]\n: 1", "line 1: .*more than 10000 values"),
        ("seeds: &s [1, *s]", "line 1: .*an alias of what it is in"),
        ("epochs: 3\nshot: 1\n'epochs': 3", "line 3: .*the key epochs is there twice"),
        ("Train:\n  epochs: 3\nMethod:\n  epochs: 5", "the key 'epochs' is there twice, in two sections"),
        ("epochs: 3\nMethod:\n  epochs: 5", "the key 'epochs' is there twice, in two sections"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {problem}") as caught:
            load_config(path)
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    path.write_text("common: &c\n  epochs: 3\nTrain:\n  <<: *c\n  shot: 5\n")
    assert (load_config(path).epochs, load_config(path).shot) == (3, 5)
    path.write_text("epochs: [" + "0, " * 4000 + "0]")
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert len(str(caught.value)) < 400
