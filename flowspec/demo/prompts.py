"""Three prompts for a first look at the demo model, picked by how its sampled completions of them look.

They end inside a line on purpose: a line break and the indentation after it are one token, so a prompt that ends
with a bare line break would leave the model no good way to go on. Completed greedily, they end in loops, as nearly
everything does with a model of this size.
"""

from typing import Final

DEMO_PROMPTS: Final = (
    '''class Queue:
    """A first-in first-out queue with a maximum size.

    The constructor takes the maximum size''',
    '''def walk(path, followlinks=False):
    """Walk the directory tree below path.

    If followlinks is true''',
    """import socket
import threading

class EchoServer(threading.Thread):

    def __init__(self, address):""",
)
"""A class with a docstring, a function, a thread."""
