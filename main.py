"""Train or evaluate: `python main.py -cn PROTOCOL data=DATA output=FOLDER`; `python main.py --help` says more."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from trainers.config.command_line import composition_errors, one_line_errors
from trainers.config.settings import resolve


@hydra.main(config_path="configs", config_name="base", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run what the configuration describes."""
    with one_line_errors(debug=cfg.debug):
        config = resolve(cfg)
        from trainers.run import run  # imports torch, which help and a mistyped command need not wait for

        run(config)


if __name__ == "__main__":
    with composition_errors(Path(__file__).parent / "configs"):
        main()
