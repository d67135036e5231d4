"""Train one fold, or with -m a sweep of features, models and folds. See conf/train.yaml."""

import sys

import hydra
from omegaconf import DictConfig

from audio_mnist import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> dict[str, float]:
    return cli.train(cfg)


if __name__ == "__main__":
    sys.exit(cli.run(main))
