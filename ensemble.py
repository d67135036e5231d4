"""Combine tracked runs into one ensemble, scored out of fold. See conf/ensemble.yaml."""

import sys

import hydra
from omegaconf import DictConfig

from audio_mnist import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="ensemble")
def main(cfg: DictConfig) -> dict[str, float]:
    return cli.execute("ensemble", cfg)


if __name__ == "__main__":
    sys.exit(cli.run(main))
