"""`python -m flowspec.training.demo`: see `train`."""

from flowspec.training.demo.train import main

main()
