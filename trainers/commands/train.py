"""Train or evaluate: `tc-clip-train -cn PROTOCOL data=DATA output=FOLDER`; `tc-clip-train --help` lists the choices.

In a checkout `python main.py` is the same command. With several processes: `torchrun ... -m trainers.commands.train`.
"""

import sys

import hydra
from omegaconf import DictConfig

from trainers.config.command_line import composition_errors, one_line_errors, translate_published_keys
from trainers.paths import CONFIGS
from trainers.sweeps import run_job, with_swept_keys


def main() -> None:
    """Compose the configuration that the command line describes, and run it."""
    with composition_errors(CONFIGS):
        with one_line_errors():
            translate_published_keys()
            sys.argv[1:] = with_swept_keys(sys.argv[1:])
        from trainers.config.compose import prepare_hydra

        prepare_hydra()
        _run()


@hydra.main(config_path=str(CONFIGS), config_name="base", version_base="1.3")
def _run(cfg: DictConfig) -> float | None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from trainers.config.resolve import resolve

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_job(cfg)

    with one_line_errors(debug=cfg.debug):
        settings = resolve(cfg)
        from trainers.run import run  # imports torch, which help and a mistyped command need not wait for

        run(settings)
    return None


if __name__ == "__main__":
    main()
