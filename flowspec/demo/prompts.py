"""Three prompts for a first look at the demo model: beginnings that it completes plausibly.

They end inside a line on purpose: a line break and the indentation after it are one token, so a prompt that ends
with a bare line break would leave the model no good way to go on.
"""

from typing import Final

DEMO_PROMPTS: Final = (
    '''class Queue:
    """A first-in first-out queue with a maximum size.

    The constructor takes the maximum size''',
    '''import os
import sys

def read_lines(filename, encoding=None):
    """Return a list of the lines in the file."""
    with open(filename''',
    """import unittest
from collections import OrderedDict


class TestOrderedDict(unittest.TestCase):

    def test_pop(self):
        d =""",
)
"""A class with a docstring, a function, a test case."""
