"""A trained network through a folder, and through a hub on this machine, to the same predictions."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from engine.evaluation import describe_test
from engine.results import Moment
from model.build import build_model
from model.released import load_weights
from prediction.predictor import Predictor
from tests.toy import CLASSES, ROOT, draw_image, generator, torchvision_vgg, toy_config, write_experiment, write_toy
from tests.written import seed_metrics, write_test
from tools.share import main
from util.config import Config
from util.errors import UserError

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A toy experiment with random weights and its config where training leaves it."""
    return write_experiment(tmp_path_factory.mktemp("share"), split=1, manual_seed=7)[0]


def weights(cfg: Config) -> Path:
    return cfg.experiment_dir / "snapshot/best_1shot.pth"


def probability(predictor: Predictor, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    predictor.set_support([image], [(np.where(mask == 255, 0, mask), 1)])
    return predictor.predict(image[::-1].copy()).probability


def test_a_folder_predicts_the_same(cfg: Config, tmp_path: Path) -> None:
    main([str(weights(cfg)), "--out", str(tmp_path / "mine"), "--licence", "mit"])
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"model.safetensors", "config.yaml", "README.md"}
    image = draw_image(generator(), 50, 60, list(range(1, len(CLASSES) - 4)))
    first = probability(Predictor.from_checkpoint(cfg, weights(cfg), "cpu"), *image)
    second = probability(Predictor.from_pretrained(tmp_path / "mine", "cpu"), *image)
    assert first.std() > 0
    np.testing.assert_array_equal(first, second)
    shared = yaml.safe_load((tmp_path / "mine/config.yaml").read_text())
    assert not {"amp", "metric_size", "test_episodes"} & shared.keys()  # worked out again, whatever is put on top
    assert (shared["split"], shared["feature_size"]) == (1, 8)
    assert str(tmp_path.parent) not in (tmp_path / "mine/config.yaml").read_text()
    with safe_open(tmp_path / "mine/model.safetensors", "pt") as file:
        assert file.metadata()["data_set"] == "toy"


def test_without_what_training_needs(cfg: Config, tmp_path: Path) -> None:
    """Optimiser states stay behind; released names and prefixes are understood; tensors are bit for bit the same."""
    content = torch.load(weights(cfg), weights_only=True)
    state = {f"module.{key}": value for key, value in content["state_dict"].items()}
    moments = {"state": {0: torch.randn(500_000)}}
    torch.save({"state_dict": state, "optimizer": moments, "epoch": 3}, tmp_path / "train_epoch_3_0.5.pth")
    config = str(cfg.experiment_dir / "config.yaml")
    main([str(tmp_path / "train_epoch_3_0.5.pth"), "--config", config, "--out", str(tmp_path / "out")])
    size = sum(value.nbytes for value in state.values())
    assert size < (tmp_path / "out/model.safetensors").stat().st_size < size + 100_000
    first, second = (build_model(cfg, pretrained=False) for _ in range(2))
    load_weights(first, weights(cfg))
    load_weights(second, tmp_path / "out/model.safetensors")
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def leave_test(cfg: Config, name: str, **about: Any) -> Path:
    """A test of 7 episodes with two seeds, of novel classes 3 and 4, of which 4 was never drawn."""
    moments = {"miou": Moment(mean=0.6123, std=0.01), "fb_iou": Moment(mean=0.7891)}
    rows = [seed_metrics(seed, class_iou={3: 0.5, 4: None}) for seed in (3, 4)]
    path = cfg.experiment_dir / f"result_test_{name}.json"
    names = {3: "thing3", 4: "thing4"}
    return write_test(cfg, *rows, path=path, aggregate=moments, classes=names, left_out=["thing9"], **about)


def test_the_card_holds_the_metrics_of_these_weights(cfg: Config, tmp_path: Path) -> None:
    place, digest = str(weights(cfg)), hashlib.sha256(weights(cfg).read_bytes()).hexdigest()
    about = describe_test(cfg).model_copy(update={"notes": ["only a part of the set: 12 of 364 images of fold 1"]})
    leave_test(cfg, "1shot", weights=place, weights_digest=digest, test=about)
    leave_test(cfg, "1shot_copy", weights="moved.pth", weights_digest=digest)
    leave_test(cfg, "1shot_other", weights="other.pth")
    leave_test(cfg, "1shot_prior", weights=place, weights_digest=digest, method="prior")
    stale = leave_test(cfg, "1shot_before", weights=place, weights_digest="0" * 64)
    words = [str(weights(cfg)), "--out", str(tmp_path / "mine"), "--licence", "Apache License: 2.0"]
    with pytest.warns(UserWarning, match=r"result_test_1shot_before.json: is of other weights than .*; .*test again"):
        main(words)
    with pytest.raises(UserError, match=r"--results: .*_before.json: is of other weights than"):
        main([*words[:2], str(tmp_path / "again"), "--results", str(stale)])
    for path in cfg.experiment_dir.glob("result_test*"):
        path.unlink()
    assert not (tmp_path / "again").exists()
    card = (tmp_path / "mine/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "Apache License: 2.0" and front["pipeline_tag"] == "image-segmentation"
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("|")]
    row = ["toy, 1 shot, mask", "1 of 3", "3, 4", "7", "5/5", "61.23 ± 1.00", "78.91"]
    assert [line for line in lines if "1 shot, mask" in line[0]] == [row, row]
    assert ["novel classes, which it has not seen", "thing3, thing4"] in lines
    for note in ("only a part of the set", "left out, with too few images: thing9", "never drawn: thing4"):
        assert sum(line.startswith("- test_1shot") and note in line for line in card.splitlines()) > 0, note


def test_a_folder_of_ones_own_is_left_alone(cfg: Config, tmp_path: Path) -> None:
    words = [str(weights(cfg)), "--out", str(tmp_path / "mine")]
    main(words)
    main([*words, "--licence", "mit"])  # what this command has written it may write again
    assert "license: mit" in (tmp_path / "mine/README.md").read_text()
    (tmp_path / "mine/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"mine: holds \w+.\w+, which this program did not write; give another --out"):
        main(words)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*: (Not a directory|File exists); fix that, then give another --out"):
        main([*words[:2], str(tmp_path / "file/sub")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.pth", "--out", "o"], "absent.pth: no such file"),
        (["{weights}", "--out", "{full}"], "full: holds image.jpg, which this program did not write; give"),
        (["{weights}", "--out", "o", "--opts", "width", "24"], "do not fit this configuration: misshapen"),
        (["{weights}", "--out", "o", "--results", "{list}"], "list.json: Input should be an object"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/image.jpg").touch()
    (tmp_path / "list.json").write_text("[1]")
    monkeypatch.chdir(tmp_path)
    places = {"weights": weights(cfg), "full": tmp_path / "full", "list": "list.json"}
    with pytest.raises(UserError, match=message):
        main([word.format(**places) for word in words])
    assert not Path("o").exists() and [path.name for path in Path("full").iterdir()] == ["image.jpg"]


def test_what_is_no_shared_network(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no model\.safetensors; give a folder or repository"):
        Predictor.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="nowhere: no file or folder, no repository"):
        Predictor.from_pretrained("nowhere")


def test_without_a_backbone_that_torchvision_provides(tmp_path: Path) -> None:
    """The same predictions with torchvision's file at hand; another file, or a trained backbone, is one line."""
    write_toy(tmp_path / "toy", 4, 4)
    cfg = toy_config(tmp_path, backbone="vgg", ensemble=False)
    provided, file = torchvision_vgg(), tmp_path / "initmodel/vgg16_bn.pth"
    for tensor in provided.features.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.01, 0.05)
    file.parent.mkdir()
    torch.save({f"features.{key}": value for key, value in provided.features.state_dict().items()}, file)
    model = build_model(cfg)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    (tmp_path / "config.yaml").write_text(cfg.to_yaml())
    words = [str(tmp_path / "w.pth"), "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "mine")]
    main([*words, "--without-backbone", "--opts", "exp", "elsewhere"])
    with safe_open(tmp_path / "mine/model.safetensors", "pt") as shared:
        assert not any(key.startswith(("layer", "backbone")) for key in shared.keys())  # noqa: SIM118
    assert "| vgg, not in this folder: torchvision's, `" in (tmp_path / "mine/README.md").read_text()
    again = Predictor.from_checkpoint(cfg, tmp_path / "mine/model.safetensors", "cpu")
    image = draw_image(generator(), 50, 60, [1, 2])
    first = probability(Predictor.from_checkpoint(cfg, tmp_path / "w.pth", "cpu"), *image)
    np.testing.assert_array_equal(first, probability(again, *image))
    with torch.no_grad():
        provided.features[0].weight[0, 0, 0, 0] += 1
    torch.save({f"features.{key}": value for key, value in provided.features.state_dict().items()}, file)
    with pytest.raises(UserError, match=r"model.safetensors: was trained on another backbone than .*vgg16_bn.pth"):
        Predictor.from_checkpoint(cfg, tmp_path / "mine/model.safetensors", "cpu")
    with pytest.raises(UserError, match="--without-backbone: these weights' is not torchvision's vgg; share it whole"):
        main([*words[:-1], str(tmp_path / "other"), "--without-backbone"])
    assert not (tmp_path / "other").exists()


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A hub with one repository: its address, and the files that have been uploaded."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer: dict[str, object] = {"errors": [], "warnings": [], "url": f"{url}/user/net"}
            if self.headers.get("Authorization") != "Bearer hf_secret":
                self.send_error(401)
                return
            if "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                answer = {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                answer = {"commitUrl": f"{url}/user/net/commit/{SHA}", "commitOid": SHA, "success": True}
            self.answer(json.dumps(answer).encode())

        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            if self.path.startswith("/api/models/user/net/tree/"):
                sizes = {name: len(content) for name, content in files.items()}
                rows = [{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in sizes.items()]
                self.answer(json.dumps(rows).encode())
            elif self.path.startswith("/api/models/user/net/"):
                siblings = [{"rfilename": name} for name in files]
                self.answer(json.dumps({"id": "user/net", "sha": SHA, "siblings": siblings}).encode())
            elif f"/user/net/resolve/{SHA}/" in self.path and name in files:
                self.answer(files[name], hashlib.sha1(files[name]).hexdigest())
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def answer(self, content: bytes, etag: str = "") -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(content)), "ETag": f'"{etag}"', "X-Repo-Commit": SHA}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}).start()
        yield url, files
        http.shutdown()


@pytest.mark.slow
def test_through_a_hub(cfg: Config, hub: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    """Push, fetch in another process, predict the same; without a token one line."""
    url, files = hub
    env = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *words], cwd=ROOT, env=env | more, capture_output=True, text=True)

    words = ["-m", "tools.share", str(weights(cfg)), "--out", str(tmp_path / "mine"), "--push", "user/net"]
    done = run(*words, HF_TOKEN="hf_other")
    assert (done.returncode, files) == (2, {})
    assert done.stderr.splitlines()[-1].startswith("error: --push user/net: the hub refused: ")
    done = run(*words, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "mine"), f"{url}/user/net"]
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    image, mask = draw_image(generator(), 40, 50, [1, 2])
    np.savez(tmp_path / "in.npz", image=image, mask=mask)
    code = f"""
import numpy as np
from prediction.predictor import Predictor
from tests.tools.test_share import probability
found = np.load("{tmp_path}/in.npz")
predictor = Predictor.from_pretrained("user/net", "cpu")
np.save("{tmp_path}/out.npy", probability(predictor, found["image"], found["mask"]))
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    expected = probability(Predictor.from_checkpoint(cfg, weights(cfg), "cpu"), image, mask)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
