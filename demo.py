"""A page to try a tracked ensemble, by voice or by file. See conf/demo/demo.yaml."""

import sys

import hydra
from omegaconf import DictConfig

from audio_mnist import cli


@hydra.main(version_base="1.3", config_path="conf/demo", config_name="demo")
def main(cfg: DictConfig) -> None:
    cli.execute("demo", cfg)


if __name__ == "__main__":
    sys.exit(cli.run(main))
