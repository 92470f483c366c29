"""`python -m flowspec.training.demo`: see `train`."""

from flowspec.program import run_program
from flowspec.training.demo.train import main

run_program(main)
