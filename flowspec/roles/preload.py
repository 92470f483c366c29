"""What every node needs, imported once: the fork server of a local cluster loads this and forks the nodes from it.

Importing torch and transformers takes seconds; a forked process has them at once and shares their memory. It also has
what takes a node some tenths of a second to find out and is the same for all of them.
"""

from __future__ import annotations

import contextlib
import gc
from importlib import import_module

MODULES = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_tokenizers",
    "zmq",
    "flowspec.transport.zeromq",
    "flowspec.drafting.causal_lm",
    "flowspec.drafting.head_drafter",
    "flowspec.drafting.hybrid",
    "flowspec.drafting.ngram",
    "flowspec.roles.coordinator",
    "flowspec.roles.stage",
    "flowspec.roles.process",
)

# Nearly all that an import makes stays, so it is not looked through for what does not.
gc.disable()
for _name in MODULES:
    import_module(_name)

# One thread: a pool that runs in the server would not run in its children.
import_module("torch").set_num_threads(1)

import_module("flowspec.model.arrangement").halves_win()
# What tensors of all families are called in checkpoints: a thousand patterns, compiled when the first model is loaded.
with contextlib.suppress(ImportError, AttributeError):
    import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")

# Objects that stay for good would otherwise be touched, and so copied, by the collector of every child.
gc.freeze()
gc.enable()
