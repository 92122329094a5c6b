"""Train or evaluate: `tc-clip-train -cn PROTOCOL data=DATA output=FOLDER`; `tc-clip-train --help` lists the choices.

In a checkout `python main.py` is the same command. With several processes: `torchrun ... -m trainers.commands.train`.
"""

import hydra
from omegaconf import DictConfig

from trainers.config.command_line import composition_errors, one_line_errors, translate_published_keys
from trainers.paths import CONFIGS


def main() -> None:
    """Compose the configuration that the command line describes, and run it."""
    with composition_errors(CONFIGS):
        with one_line_errors():
            translate_published_keys()
        from trainers.config.compose import prepare_hydra

        prepare_hydra()
        _run()


@hydra.main(config_path=str(CONFIGS), config_name="base", version_base="1.3")
def _run(cfg: DictConfig) -> None:
    from trainers.config.resolve import resolve

    with one_line_errors(debug=cfg.debug):
        settings = resolve(cfg)
        from trainers.run import run  # imports torch, which help and a mistyped command need not wait for

        run(settings)


if __name__ == "__main__":
    main()
