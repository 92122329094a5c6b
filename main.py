"""Train or evaluate: `python main.py -cn PROTOCOL data=DATA output=FOLDER`; `python main.py --help` says more."""

import hydra
from omegaconf import DictConfig

from trainers.command_line import composition_errors, one_line_errors


@hydra.main(config_path="configs", config_name="base", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run what the configuration describes."""
    with one_line_errors(debug=cfg.debug):
        from trainers.run import run  # imports torch, which help and a mistyped command need not wait for

        run(cfg)


if __name__ == "__main__":
    with composition_errors("configs"):
        main()
