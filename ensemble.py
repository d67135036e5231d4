"""Combine tracked runs into one ensemble, scored out of fold. See conf/ensemble.yaml."""

import sys

import hydra
from omegaconf import DictConfig

from audio_mnist import cli as command


@hydra.main(version_base="1.3", config_path="conf", config_name="ensemble")
def main(cfg: DictConfig) -> dict[str, float]:
    return command.ensemble(cfg)


if __name__ == "__main__":
    sys.exit(command.run(main))
