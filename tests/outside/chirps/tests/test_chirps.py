from chirps.gru import WaveGRU
from chirps.r2d2 import R2D2
from chirps.waves import Waves

from metarun.testing import check_algorithm, check_algorithm_named, check_dataset, check_model


def test_the_algorithm():
    check_algorithm(R2D2)


def test_its_settings():
    settings = ["hydra.searchpath=[pkg://chirps.conf]", "trusted_modules=[chirps]"]
    check_algorithm_named("ridge", overrides=settings, skip=["learning"])


def test_the_network():
    check_model(WaveGRU, input_shape=(12,))


def test_the_data():
    check_dataset(Waves())
