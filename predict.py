"""What a tracked ensemble hears in new recordings. See conf/predict/predict.yaml."""

import sys

import hydra
from omegaconf import DictConfig

from audio_mnist import cli


@hydra.main(version_base="1.3", config_path="conf/predict", config_name="predict")
def main(cfg: DictConfig) -> None:
    cli.execute("predict", cfg)


if __name__ == "__main__":
    sys.exit(cli.run(main))
