"""Look at a corpus: numbers, spectrograms, what the net receives. See conf/explore.yaml."""

import sys

import hydra
from omegaconf import DictConfig

from audio_mnist import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="explore")
def main(cfg: DictConfig) -> None:
    cli.execute("explore", cfg)


if __name__ == "__main__":
    sys.argv[1:] = cli.explore_arguments(sys.argv[1:])
    sys.exit(cli.run(main))
