"""What other methods' authors publish: said, unpacked and looked at."""

import zipfile
from pathlib import Path

import pytest

from tools.prepare import main
from tools.published import PUBLICATIONS, unpack_published
from util.errors import UserError


def archive(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, name)


def test_files_of_the_usual_layout_go_to_where_the_configs_look(tmp_path: Path) -> None:
    names = {
        "exp/pascal/BAM/split0/resnet50/snapshot/train_epoch_107_0.6897.pth": "pascal/{}/split0/resnet50/snapshot/{}",
        "a/coco/x/split3/vgg/train5_epoch_38.5_0.4702.pth": "coco/{}/split3/vgg/snapshot/{}",
        "win8/pascal/split1/resnet50/win8_train_epoch_124_0.7262.pth": "pascal/{}/split1/resnet50/snapshot/{}",
    }
    archive(tmp_path / "sccan.zip", [*names, "readme.txt", "pascal/split9/vgg/train_epoch_1_0.5.pth"])
    assert unpack_published("sccan", tmp_path, tmp_path / "exp") == 3
    for name, place in names.items():
        path = tmp_path / "exp" / place.format("SCCAN", name.rpartition("/")[2].removeprefix("win8_"))
        assert path.read_text() == name
    assert unpack_published("bam", tmp_path, tmp_path / "exp") == 0
    archive(tmp_path / "bam.zip", ["readme.txt"])
    with pytest.raises(UserError, match=r"bam\.zip: has no file such as"):
        unpack_published("bam", tmp_path, tmp_path / "exp")


@pytest.mark.parametrize("method", PUBLICATIONS)
def test_what_is_published_is_said_and_looked_for(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["weights", "--method", method, "--archives", str(tmp_path)]
    places = ["initmodel", str(tmp_path / "initmodel"), "exp", str(tmp_path / "exp")]
    assert main([*words, "--opts", *places]) == 0
    printed = capsys.readouterr().out
    one = PUBLICATIONS[method]
    assert one.repository in printed and f"{tmp_path}/exp/pascal/{one.arch}/split3" in printed and "absent" in printed
    with pytest.raises(UserError, match="followed in a browser"):
        main([*words, "--download"])
