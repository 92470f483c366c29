"""Measurements of flowspec by flowspec. Each prints what it measured, how, and beside what."""
