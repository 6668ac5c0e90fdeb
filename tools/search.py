"""A recipe without a look at novel classes: `python -m tools.search --config FILE --try key=value[,key=value] ...`.

Trains the config as it is and with each change, and tests all of them, with the support check, on base-class images
that no training saw. Prints them side by side, the first ahead of the others; what is done already is not done again.
"""

from pathlib import Path

from engine.identity import method_name, result_name
from engine.results import OneClassResult, read_result, stale
from model.methods import find_method
from tools.demo import step
from tools.paper.paired import comparison_table, read_tests
from tools.paper.runs import differences
from util.arguments import Parser
from util.config import Config, load_config
from util.errors import UserError, run_main
from util.files import atomic_write
from util.schema import topics_of

# Keys that change no result: where runs write and look, how often they save, what they run on
NO_MATTER = {
    *("exp", "initmodel", "resume", "weight", "crop_folder", "print_freq", "save_freq", "save_minutes", "keep"),
    *("device", "loader_workers", "feature_cache_mb", "checkpoint_blocks", "compile"),
}
KEYS = tuple(key for key in Config.model_fields if key not in NO_MATTER)
OF_STAGE_1 = {key for key in KEYS if topics_of(key)[0] == "base"}


def changes(text: str) -> list[str]:
    """`key=value,key=value` as words for --opts; UserError for what is not of this form."""
    words = [word for pair in text.split(",") for word in pair.partition("=")[::2]]
    if not all(words):
        raise UserError(f"--try {text}: should be key=value, several separated by commas")
    return words


def is_done(cfg: Config, path: Path) -> bool:
    """Whether the result of a candidate is there, of the weights that lie there now.

    UserError where its folder holds a training or a test with other settings than the config has now; those of stage 1
    are none where no base learner takes part.
    """
    idle = set() if find_method(cfg.arch).has_base_learner(cfg) else OF_STAGE_1
    keys = [key for key in KEYS if key not in idle]
    saved, result = cfg.experiment_dir / "config.yaml", read_result(path, OneClassResult) if path.is_file() else None
    made = {path: result.cfg} if result else {}
    for file, other in (made | ({saved: load_config(saved)} if saved.is_file() else {})).items():
        if changed := differences(other, cfg, keys):
            raise UserError(
                f"{file}: made with {', '.join(changed)}; remove {cfg.exp}, or give what is changed a name of its own"
            )
    return result is not None and stale(result) is None


def main() -> None:
    """Train and test each candidate, then print the table."""
    parser = Parser(prog="python -m tools.search", description="Compare recipes on base classes.")
    parser.add_argument("--config", required=True, help="experiment file, such as config/small/pascal_split1.yaml")
    parser.add_argument("--try", dest="candidates", nargs="+", default=[], metavar="KEY=VALUE", help="one change each")
    arguments = parser.parse_args()
    common = ["test_classes", "base", "ensemble", "False"]
    candidates = {"as it is": [], **{text: changes(text) for text in arguments.candidates}}
    folder = Path(load_config(arguments.config).exp, "search")
    left, results = [], {}
    for name, words in candidates.items():  # all mistakes come before the work
        opts = ["--opts", *common, *words, "exp", str(folder / "".join(c if c.isalnum() else "_" for c in name))]
        cfg = load_config(arguments.config, opts[1:])
        found = result_name(cfg, method_name(cfg), arguments.config, cfg.best_weights(cfg.shot))
        results[name] = cfg.experiment_dir / f"result_{found}.json"
        left += [] if is_done(cfg, results[name]) else [(name, opts)]
    for number, (name, opts) in enumerate(left, 1):
        title = f"{number} of {len(left)}: {name}"
        step(title, "train.py", *opts, "resume", "auto", config=arguments.config)
        step(f"{title}, test", "test.py", "--support-check", *opts, config=arguments.config)
    tests = {name: read_tests(path) for name, path in results.items()}
    text = comparison_table("Recipes on base classes", tests).markdown()
    atomic_write(folder / "search.md", text)
    print(text)


if __name__ == "__main__":
    run_main(main)
