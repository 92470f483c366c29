"""From a figure that people quote to the quality of synthetic guesses: so many tokens written in a round."""

from flowspec.synthetic.calibration import quality_for, tokens_per_round

__all__ = ["quality_for", "tokens_per_round"]
