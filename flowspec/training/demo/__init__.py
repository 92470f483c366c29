"""The makers of the demo's models: tokenizer, target and draft, their report and model card.

What they make lies in `flowspec/demo`. They know one corpus, the standard library's own sources.
"""
